// One key a thing to do, as in the help that ? opens.
import { undoLast } from "./toasts.js";

const help = document.getElementById("help");
document.getElementById("open-help").addEventListener("click", () => help.showModal());

// Returns what ends it: abort().
export function listen({ feed, panel }) {
  const stopped = new AbortController();
  const keys = {
    j: () => feed.step(1),
    k: () => feed.step(-1),
    l: () => feed.current?.like(),
    h: () => feed.current?.hide(),
    m: () => feed.current?.mute(),
    f: () => feed.current?.follow(),
    w: () => feed.current?.explain(),
    u: undoLast,
    p: () => panel.toggle(),
    "?": () => help.showModal(),
  };
  const act = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key !== "j" && event.key !== "k") return;
    if (help.open || event.target.matches("input, textarea, select, [contenteditable]")) return;
    const todo = keys[event.key];
    if (!todo) return;
    event.preventDefault();
    todo();
  };
  addEventListener("keydown", act, { signal: stopped.signal });
  return stopped;
}
