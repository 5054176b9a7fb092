// The panel: what the engine knows of the reader, told in words. Its figures come from the little server
// that also serves this page, which asks the database as an operator's back end does.
import { PostMap } from "./map.js";

const EVERY_MS = 15_000;
const ACTS = {
  like: "You liked", reply: "You answered", repost: "You reposted", click: "You opened", dwell: "You looked at",
  skip: "You skipped", hide: "You hid", not_interested: "You did not want", block_author: "You blocked the author of",
  mute_author: "You muted the author of",
};
const STATES = { ok: "fine", warning: "worth a look", alert: "needs somebody", unknown: "not measured yet" };

const find = (id) => document.getElementById(id);
const panel = find("panel");
const opener = find("open-panel");

export class Panel {
  #asking = null;
  #timer = null;

  // token(): the access token of now.
  constructor(token) {
    this.token = token;
    this.map = new PostMap(find("map"), find("near"));
    opener.onclick = () => this.toggle();
    find("close-panel").onclick = () => this.toggle(false);
  }

  start() {
    this.refresh();
    this.#timer = setInterval(() => document.hidden || this.refresh(), EVERY_MS);
  }

  stop() {
    clearInterval(this.#timer);
    this.toggle(false);
    this.map.stop();
  }

  // On a narrow screen the panel lies over the page.
  toggle(isOpen = !document.body.classList.contains("panel-open")) {
    const wasInside = panel.contains(document.activeElement);
    document.body.classList.toggle("panel-open", isOpen);
    opener.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) find("close-panel").focus();
    else if (wasInside) opener.focus();
  }

  // Asks once more when it is asked meanwhile: something may have changed since.
  async refresh() {
    if (this.#asking) return (this.#asking = "again");
    this.#asking = "once";
    const figures = await this.#ask();
    const isLate = this.#asking === "again";
    this.#asking = null;
    if (figures) this.#show(figures);
    if (isLate) this.refresh();
  }

  async #ask() {
    const token = this.token();
    if (!token) return null;
    try {
      const answer = await fetch("figures", { headers: { Authorization: `Bearer ${token}` } });
      if (!answer.ok) throw new Error(answer.statusText);
      return await answer.json();
    } catch {
      find("health").textContent = "No figures: two-tower feed serves them, and does not answer.";
      find("health").dataset.state = "unknown";
      return null;
    }
  }

  #show({ reader, map, health }) {
    this.#showReader(reader);
    this.map.show(map);
    this.#showHealth(health);
  }

  #showReader({ engagement_count: count, warmth, has_prior, lessons }) {
    const engagements = count === 1 ? "1 engagement" : `${count} engagements`;
    const known = count
      ? `It learned from ${engagements} of yours. ${sayWarmth(warmth)}`
      : has_prior
        ? "It knows what you wrote of yourself, and nothing that you did. Like a post, and it learns."
        : "It knows nothing of you yet, and shows what others like. Like a post, and it learns.";
    find("known").textContent = known;
    find("warmth").hidden = !count;
    find("warmth").value = warmth;
    find("lessons").replaceChildren(
      ...lessons.map(({ title, event_type, strength }) => {
        const line = document.createElement("li");
        line.className = strength > 0 ? "towards" : "away";
        line.textContent = `${ACTS[event_type] ?? "You met"} ${title}`;
        return line;
      }),
    );
  }

  #showHealth(health) {
    const bad = health.filter(({ state }) => state === "alert" || state === "warning");
    const unknown = health.filter(({ state }) => state === "unknown").length;
    const rest = unknown ? ` ${unknown} are not measured yet.` : "";
    find("health").dataset.state = bad.some(({ state }) => state === "alert") ? "alert" : bad.length ? "warning" : "ok";
    find("health").textContent = bad.length
      ? `${bad.map(({ name, state }) => `${words(name)}: ${STATES[state]}`).join("; ")}.`
      : `All is well: ${health.length - unknown} figures are where they should be.${rest}`;
    find("figures").replaceChildren(
      ...health.map(({ name, value, unit, state, description }) => {
        const row = document.createElement("div");
        const term = document.createElement("dt");
        const said = document.createElement("dd");
        term.textContent = words(name);
        term.title = description;
        said.textContent = value === null ? STATES[state] : `${short(value)} ${unit}, ${STATES[state]}`;
        said.dataset.state = state;
        row.append(term, said);
        return row;
      }),
    );
  }
}

function sayWarmth(warmth) {
  if (warmth >= 1) return "Your feed is all your own.";
  return `Your feed is ${Math.round(100 * warmth)} % your own, and for the rest what others like.`;
}

function words(name) {
  const said = name.replaceAll("_", " ");
  return said[0].toUpperCase() + said.slice(1);
}

function short(value) {
  return Math.abs(value) >= 100 ? Math.round(value).toLocaleString() : String(Number(value.toPrecision(2)));
}
