// The feed: pages of recommended posts below one another, for as long as somebody scrolls.
import { Post } from "./post.js";
import { toast } from "./toasts.js";

const PAGE = 12;
const COLUMNS = "place,id:id::text,content,created_at,author_id,source,profiles(handle)";
const UNDO_MS = 6000;
const EXCLUDED = 1000; // the most that a page leaves out; what was viewed earlier does not come again

const list = document.getElementById("feed");
const notice = document.getElementById("notice");
const end = document.getElementById("end");

export class Feed {
  #posts = []; // as on the page, from the top
  #gone = new Set(); // keys of posts that were hidden
  #muted = new Set();
  #followed = new Set();
  #loading = null;
  #isKept = false; // the page is that of another time
  #renewals = 0;

  constructor({ supabase, engagements, views }) {
    Object.assign(this, { supabase, engagements, views });
    this.sight = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.more(), { rootMargin: "800px" });
    this.again = () => this.#isKept && this.restart();
  }

  // What waited from the last visit goes first, so that the first page knows it.
  async start() {
    list.replaceChildren();
    this.supabase.from("follows").select("followed_id").then(({ data }) => {
      for (const { followed_id } of data ?? []) this.#followed.add(followed_id);
      for (const post of this.#posts) post.showFollow(this.#followed.has(post.author));
    });
    addEventListener("online", this.again);
    await this.engagements.flush();
    await this.more();
    this.sight.observe(end);
  }

  stop() {
    this.sight.disconnect();
    removeEventListener("online", this.again);
    for (const post of this.#posts) this.views.unwatch(post.element);
    this.#posts = [];
    list.replaceChildren();
    notice.hidden = true;
  }

  async restart() {
    this.#remove(this.#posts);
    this.#isKept = false;
    await this.engagements.flush();
    await this.more();
  }

  // The next page, below what is there. Called again meanwhile, it is the same page.
  more() {
    this.#loading ??= this.#load().finally(() => (this.#loading = null));
    return this.#loading;
  }

  async #load() {
    if (this.#isKept) return;
    list.setAttribute("aria-busy", "true");
    try {
      const isFirst = this.#posts.length === 0;
      const ask = () => this.#ask(this.#posts);
      const { rows, keptAt } = isFirst ? await this.engagements.page(ask) : { rows: await ask(), keptAt: null };
      this.#isKept = keptAt !== null;
      this.#append(rows);
      this.#tell(keptAt);
      end.textContent = rows.length < PAGE && !this.#isKept ? "That is all for now." : this.#isKept ? "" : "Loading";
      // What is observed tells when it comes into sight, not that it stayed there.
      if (rows.length === PAGE && !this.#isKept) requestAnimationFrame(() => this.#lookAgain());
    } catch (error) {
      end.textContent = "The server cannot be reached. Trying again.";
      setTimeout(() => this.#lookAgain(), 3000);
    } finally {
      list.setAttribute("aria-busy", "false");
    }
  }

  #lookAgain() {
    if (!this.#posts.length) return this.more();
    this.sight.unobserve(end);
    this.sight.observe(end);
  }

  async #ask(shown) {
    const p_exclude = [...this.#gone, ...shown.map((post) => post.key)].slice(-EXCLUDED);
    const { data, error } = await this.supabase
      .rpc("recommended_posts", { p_limit: PAGE, p_exclude })
      .select(COLUMNS)
      .order("place");
    if (error) throw error;
    return data;
  }

  #append(rows) {
    const there = new Set(this.#posts.map((post) => post.key));
    for (const row of rows) {
      if (there.has(row.id) || this.#gone.has(row.id) || this.#muted.has(row.author_id)) continue;
      const post = new Post(row, this);
      post.showFollow(this.#followed.has(post.author));
      this.#posts.push(post);
      list.append(post.element);
      this.views.watch(post.element, post.key);
    }
    this.#number();
  }

  #remove(posts) {
    for (const post of posts) {
      this.views.unwatch(post.element);
      post.element.remove();
    }
    this.#posts = this.#posts.filter((post) => !posts.includes(post));
    this.#number();
  }

  #number() {
    this.#posts.forEach((post, place) => post.element.setAttribute("aria-posinset", place + 1));
    for (const post of this.#posts) post.element.setAttribute("aria-setsize", "-1");
  }

  // What is below the screen was chosen before the last engagement, so it is chosen again. Nothing that
  // is on the screen moves.
  async renew() {
    const renewal = ++this.#renewals;
    if (!(await this.engagements.flush()) || this.#isKept) return;
    await this.#loading;
    const isBelow = (post) => post.element.getBoundingClientRect().top > innerHeight && !post.element.contains(document.activeElement);
    const asked = this.#posts.filter((post) => !isBelow(post));
    const rows = await this.#ask(asked).catch(() => null);
    if (!rows || renewal !== this.#renewals) return;
    const below = this.#posts.filter((post) => isBelow(post) && !asked.includes(post));
    this.#remove(below);
    const first = this.#posts.length;
    this.#append(rows);
    this.#posts[first]?.element.classList.add("new");
    end.textContent = rows.length < PAGE ? "That is all for now." : "Loading";
    this.#lookAgain();
  }

  // The notice above an old page.
  #tell(keptAt) {
    notice.hidden = keptAt === null;
    if (keptAt === null) return;
    const time = new Date(keptAt).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const button = document.createElement("button");
    button.textContent = "Try again";
    button.addEventListener("click", () => this.restart());
    notice.replaceChildren(`The server cannot be reached. This is your page of ${time}; what you do is kept. `, button);
  }

  // What one does with a post. Each is stored at once, or waits while it can be undone.

  async record(post, event_type) {
    this.views.settle(post.element);
    this.engagements.record({ post_key: post.key, event_type });
    await this.renew();
  }

  hide(post) {
    this.#takeOut([post], { post_key: post.key, event_type: "hide" }, "Hidden.", this.#gone, post.key);
  }

  mute(post) {
    const posts = this.#posts.filter((other) => other.author === post.author);
    this.#takeOut(posts, { post_key: post.key, event_type: "mute_author" }, `${post.handle} is muted.`, this.#muted, post.author);
  }

  async follow(post) {
    const isFollowed = !this.#followed.has(post.author);
    this.#setFollowed(post.author, isFollowed);
    const follows = this.supabase.from("follows");
    const { error } = await (isFollowed
      ? follows.insert({ followed_id: post.author })
      : follows.delete().eq("followed_id", post.author));
    if (error) {
      this.#setFollowed(post.author, !isFollowed);
      return toast("That did not work: the server cannot be reached.");
    }
    toast(isFollowed ? `You follow ${post.handle}.` : `You do not follow ${post.handle} any more.`);
    await this.renew();
  }

  #setFollowed(author, isFollowed) {
    if (isFollowed) this.#followed.add(author);
    else this.#followed.delete(author);
    for (const post of this.#posts) if (post.author === author) post.showFollow(isFollowed);
  }

  // Takes posts off the page now, and tells the server when they cannot come back any more.
  #takeOut(posts, event, said, out, name) {
    const next = this.#after(posts);
    const hadFocus = posts.some((post) => post.element.contains(document.activeElement));
    posts.forEach((post) => {
      this.views.settle(post.element);
      post.element.hidden = true;
    });
    out.add(name);
    if (hadFocus) next?.element.focus({ preventScroll: true });
    const id = this.engagements.record(event, UNDO_MS);
    const settled = setTimeout(() => {
      this.#remove(posts.filter((post) => this.#posts.includes(post)));
      this.renew();
    }, UNDO_MS);
    const undo = () => {
      if (!this.engagements.undo(id)) return toast("Too late: it is stored.");
      clearTimeout(settled);
      out.delete(name);
      for (const post of posts) post.element.hidden = false;
      posts[0].element.focus();
    };
    toast(said, { undo, shown_ms: UNDO_MS - 500 });
  }

  #after(posts) {
    const place = this.#posts.indexOf(posts[0]);
    const stays = (post) => !posts.includes(post) && !post.element.hidden;
    return this.#posts.slice(place).find(stays) ?? this.#posts.findLast(stays);
  }

  // The post with the focus, else the first one that is wholly on the screen.

  get current() {
    return this.#posts.find((post) => post.element.contains(document.activeElement));
  }

  step(by) {
    const shown = this.#posts.filter((post) => !post.element.hidden);
    const place = shown.indexOf(this.current);
    const first = shown.findIndex((post) => post.element.getBoundingClientRect().top >= 0);
    const next = shown[place < 0 ? Math.max(0, first) : place + by];
    if (!next) return;
    next.element.focus({ preventScroll: true });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    next.element.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }
}
