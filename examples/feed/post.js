// One post on the page, and the buttons under it.
import { explain } from "./why.js";

const ICONS = {
  like: "M12 20.5 4.3 12.9a5 5 0 0 1 7.1-7.1l.6.6.6-.6a5 5 0 0 1 7.1 7.1Z",
  hide: "M3 3l18 18M10 5.3A9.6 9.6 0 0 1 12 5c5 0 8.5 4 10 7a17 17 0 0 1-3 4M6 7.2A16 16 0 0 0 2 12c1.5 3 5 7 10 7 1.6 0 3-.4 4.3-1M9.9 9.9a3 3 0 0 0 4.2 4.2",
  mute: "M4 9.5v5h3.5L12 18.5v-13L7.5 9.5ZM16 9.5l5 5M21 9.5l-5 5",
  why: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18ZM9.5 9.3a2.6 2.6 0 1 1 3.7 2.4c-.8.4-1.2.9-1.2 1.8M12 16.5v.1",
};

export class Post {
  // row: of recommended_posts. feed: what carries out what is done here.
  constructor(row, feed) {
    Object.assign(this, { key: row.id, author: row.author_id, handle: row.profiles?.handle ?? "someone", row, feed, isLiked: false });
    const [title, ...rest] = row.content.split(/(?<=\.)\s/); // its first sentence stands out
    this.element = make("article", { className: "post", tabIndex: 0 });
    const head = make("header");
    const face = make("span", { className: "face", textContent: this.handle[0].toUpperCase(), ariaHidden: "true" });
    face.style.setProperty("--hue", hueOf(this.handle));
    this.followButton = button("Follow", () => this.follow());
    this.followButton.classList.add("follow");
    head.append(face, make("span", { className: "handle", textContent: this.handle }), make("span", { className: "source", textContent: SOURCES[row.source] ?? "" }), this.followButton);
    const heading = make("h3", { id: `post-${row.id}`, textContent: title.replace(/\.$/, "") });
    this.element.setAttribute("aria-labelledby", heading.id);
    this.likeButton = iconButton("like", "Like", () => this.like());
    this.whyButton = iconButton("why", "Why", () => this.explain());
    this.whyButton.setAttribute("aria-expanded", "false");
    const foot = make("footer");
    foot.append(this.likeButton, iconButton("hide", "Hide", () => this.hide()), iconButton("mute", "Mute", () => this.mute(), `Mute ${this.handle}`), this.whyButton);
    this.element.append(head, heading);
    if (rest.length) this.element.append(make("p", { textContent: rest.join(" ") }));
    this.element.append(foot);
    this.likeButton.setAttribute("aria-pressed", "false");
  }

  like() {
    this.isLiked = !this.isLiked;
    this.likeButton.setAttribute("aria-pressed", String(this.isLiked));
    this.likeButton.querySelector("span").textContent = this.isLiked ? "Liked" : "Like";
    return this.feed.record(this, this.isLiked ? "like" : "unlike");
  }

  hide() {
    this.feed.hide(this);
  }

  mute() {
    this.feed.mute(this);
  }

  follow() {
    return this.feed.follow(this);
  }

  showFollow(isFollowed) {
    this.followButton.hidden = !this.author;
    this.followButton.textContent = isFollowed ? "Following" : "Follow";
    this.followButton.setAttribute("aria-pressed", String(isFollowed));
    this.followButton.setAttribute("aria-label", `Follow ${this.handle}`);
  }

  // Opens the answer under the post, or closes it.
  async explain() {
    const shown = this.element.querySelector(".reasons");
    this.whyButton.setAttribute("aria-expanded", String(!shown));
    if (shown) return shown.remove();
    const place = make("div", { className: "reasons", textContent: "Asking the engine.", ariaLive: "polite" });
    this.element.append(place);
    place.replaceChildren(...(await explain(this.feed.supabase, this)));
  }
}

const SOURCES = {
  personal: "for you",
  popular: "popular",
  fresh: "new",
  followed: "you follow",
  exploration: "something else",
  content: "like what you liked",
  recent: "new",
};

function make(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

function button(text, act) {
  const element = make("button", { type: "button", textContent: text });
  element.addEventListener("click", act);
  return element;
}

function iconButton(icon, text, act, label = null) {
  const element = button("", act);
  element.className = icon;
  element.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;
  element.append(make("span", { textContent: text }));
  if (label) element.setAttribute("aria-label", label);
  return element;
}

// The same colour for the same author, here and on the map.
export function hueOf(name) {
  let hue = 0;
  for (const letter of name ?? "") hue = (hue * 6 + letter.codePointAt(0)) % 360;
  return hue;
}
