// A map of posts in two dimensions: those with close vectors lie close together, and the reader is among
// them. The server keeps the axes, so that a path through it means something.
import { hueOf } from "./post.js";

const LABELS = 6; // authors whose posts are many
const MARGIN = 18;
const STEP_MS = 700;
const PATH = 200;

export class PostMap {
  #map = null;
  #path = []; // where the reader was, oldest first
  #axes = null;
  #moved = 0; // when the reader's point began to move
  #hovered = null;

  // canvas, and an element that says who is near.
  constructor(canvas, near) {
    Object.assign(this, { canvas, near });
    this.resizing = new ResizeObserver(() => this.draw());
    this.resizing.observe(canvas);
    canvas.onpointermove = (event) => this.#hover(event);
    canvas.onpointerleave = () => this.#hover(null);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.scheme.onchange = () => this.draw();
  }

  stop() {
    this.resizing.disconnect();
    this.canvas.onpointermove = this.canvas.onpointerleave = this.scheme.onchange = null;
    this.#map = null;
    this.near.textContent = "";
    this.draw();
  }

  // map: {axes, posts: [{id, x, y, title, author, is_yours}], you: {x, y} or null, nearest: [title]}; -1 to 1.
  show(map) {
    if (map.axes !== this.#axes) this.#path = []; // the old one was on another map
    this.#axes = map.axes;
    this.#map = map;
    const last = this.#path.at(-1);
    if (map.you && (!last || Math.hypot(last.x - map.you.x, last.y - map.you.y) > 0.002)) {
      this.#path = [...this.#path, map.you].slice(-PATH);
      this.#moved = performance.now();
    }
    const where = map.you ? `You are closest to ${list(map.nearest)}.` : "You are not on it yet.";
    this.near.textContent = where;
    const steps = this.#path.length > 1 ? ` Your path has ${this.#path.length - 1} steps.` : "";
    this.canvas.setAttribute("aria-label", `Map of ${map.posts.length} posts. ${where}${steps}`);
    this.canvas.dataset.steps = this.#path.length;
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const scale = devicePixelRatio;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    if (!this.#map || !width) return;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.colours = coloursOf(this.canvas);
    this.#place = ({ x, y }) => [width / 2 + x * (width / 2 - MARGIN), height / 2 - y * (height / 2 - MARGIN)];
    this.#drawPosts(pen);
    this.#drawPath(pen);
    this.#drawLabels(pen);
    if (this.#hovered) this.#drawTitle(pen, width);
  }

  #place = () => [0, 0];

  #drawPosts(pen) {
    const { lightness } = this.colours;
    for (const post of this.#map.posts) {
      const [x, y] = this.#place(post);
      pen.fillStyle = `hsl(${hueOf(post.author)} 55% ${lightness} / ${post.is_yours ? 1 : 0.45})`;
      pen.beginPath();
      pen.arc(x, y, post.is_yours ? 4.5 : 2.2, 0, 7);
      pen.fill();
      if (!post.is_yours) continue;
      pen.strokeStyle = this.colours.text;
      pen.lineWidth = 1.2;
      pen.stroke();
    }
  }

  // Older steps fade. The last one is walked before one's eyes, unless they asked for less motion.
  #drawPath(pen) {
    if (!this.#path.length) return;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const share = isCalm ? 1 : Math.min(1, (performance.now() - this.#moved) / STEP_MS);
    const [last, before] = [this.#path.at(-1), this.#path.at(-2) ?? this.#path.at(-1)];
    const eased = 1 - (1 - share) ** 3;
    const now = { x: before.x + eased * (last.x - before.x), y: before.y + eased * (last.y - before.y) };
    const points = [...this.#path.slice(0, -1), now].map(this.#place);
    pen.strokeStyle = this.colours.accent;
    pen.lineWidth = 2;
    pen.lineCap = "round";
    for (let step = 1; step < points.length; step++) {
      pen.globalAlpha = Math.max(0.25, 1 - (points.length - 1 - step) / 12);
      pen.beginPath();
      pen.moveTo(...points[step - 1]);
      pen.lineTo(...points[step]);
      pen.stroke();
    }
    pen.globalAlpha = 1;
    const [x, y] = points.at(-1);
    pen.fillStyle = this.colours.accent;
    pen.strokeStyle = this.colours.surface;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.arc(x, y, 7, 0, 7);
    pen.stroke();
    pen.fill();
    write(pen, "you", x, y - 12, this.colours, "bold 12px system-ui, sans-serif");
    if (share < 1) requestAnimationFrame(() => this.draw());
  }

  // An author's name stands in the middle of the author's posts.
  #drawLabels(pen) {
    const groups = new Map();
    for (const post of this.#map.posts) groups.set(post.author, [...(groups.get(post.author) ?? []), post]);
    const largest = [...groups].sort(([, one], [, other]) => other.length - one.length).slice(0, LABELS);
    const taken = [];
    for (const [author, posts] of largest) {
      const [x, y] = this.#place({ x: median(posts, "x"), y: median(posts, "y") });
      if (!author || taken.some(([left, top]) => Math.abs(left - x) < 60 && Math.abs(top - y) < 16)) continue;
      taken.push([x, y]);
      write(pen, author, x, y, this.colours);
    }
  }

  #drawTitle(pen, width) {
    const [x, y] = this.#place(this.#hovered);
    pen.font = "12px system-ui, sans-serif";
    const half = pen.measureText(this.#hovered.title).width / 2 + 4;
    write(pen, this.#hovered.title, Math.min(Math.max(x, half), width - half), Math.max(14, y - 10), this.colours);
  }

  #hover(event) {
    const before = this.#hovered;
    this.#hovered = null;
    if (event && this.#map) {
      let closest = 14;
      for (const post of this.#map.posts) {
        const [x, y] = this.#place(post);
        const distance = Math.hypot(x - event.offsetX, y - event.offsetY);
        if (distance < closest) [closest, this.#hovered] = [distance, post];
      }
    }
    if (before !== this.#hovered) this.draw();
  }
}

function write(pen, text, x, y, colours, font = "12px system-ui, sans-serif") {
  pen.font = font;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.lineWidth = 4;
  pen.strokeStyle = colours.surface;
  pen.strokeText(text, x, y);
  pen.fillStyle = colours.text;
  pen.fillText(text, x, y);
}

function coloursOf(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  return { accent: read("--accent"), surface: read("--surface"), text: read("--text"), lightness: isDark ? "65%" : "45%" };
}

function median(posts, axis) {
  const sorted = posts.map((post) => post[axis]).sort((one, other) => one - other);
  return sorted[sorted.length >> 1];
}

function list(titles) {
  return titles.length > 1 ? `${titles.slice(0, -1).join(", ")} and ${titles.at(-1)}` : titles.join("");
}
