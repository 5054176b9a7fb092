// Tells which posts a user looks at, and for how long: a view for each that was on screen for a second,
// and a dwell when it leaves the screen. Take it over as it stands, with engagements.js.
//
//   const views = new Views(engagements);
//   views.watch(element, post.id); // ... views.unwatch(element)

const SEEN_MS = 1000; // with half its height, or over half the screen
const GATHER_MS = 2000; // a view or a dwell waits for others
const STEPS = Array.from({ length: 21 }, (_, step) => step / 20);

export class Views {
  #posts = new Map(); // element -> {key, since, timer, isViewed, isDone}
  #stopped = new AbortController();

  constructor(engagements) {
    this.engagements = engagements;
    this.observer = new IntersectionObserver((seen) => this.#look(seen), { threshold: STEPS });
    const { signal } = this.#stopped;
    // Before the queue hears of it, so that the last dwells go with the rest.
    addEventListener("pagehide", () => this.#lookAway(), { signal, capture: true });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#lookAway() : this.#lookAgain()), { signal, capture: true });
  }

  watch(element, key) {
    this.#posts.set(element, { key, since: null });
    this.observer.observe(element);
  }

  unwatch(element) {
    this.#turnAway(element);
    this.observer.unobserve(element);
    this.#posts.delete(element);
  }

  // The user acted on the post: how long it was looked at says nothing more.
  settle(element) {
    this.#posts.get(element).isDone = true;
  }

  // When the user signs out.
  stop() {
    this.#lookAway();
    this.observer.disconnect();
    this.#stopped.abort();
  }

  #look(seen) {
    for (const { target, intersectionRatio, intersectionRect, rootBounds } of seen) {
      const isSeen = intersectionRatio >= 0.5 || intersectionRect.height >= (rootBounds?.height ?? innerHeight) / 2;
      if (isSeen && !document.hidden) this.#turnTo(target);
      else this.#turnAway(target);
    }
  }

  #turnTo(element) {
    const post = this.#posts.get(element);
    if (!post || post.since !== null) return;
    post.since = performance.now();
    post.timer = setTimeout(() => {
      if (!post.isViewed) this.engagements.record({ post_key: post.key, event_type: "view" }, 0, GATHER_MS);
      post.isViewed = true;
    }, SEEN_MS);
  }

  // The first look that counted as a view makes the dwell. The server rounds it.
  #turnAway(element) {
    const post = this.#posts.get(element);
    if (!post || post.since === null) return;
    clearTimeout(post.timer);
    const dwell_ms = performance.now() - post.since;
    post.since = null;
    if (!post.isViewed || post.isDone) return;
    post.isDone = true;
    this.engagements.record({ post_key: post.key, event_type: "dwell", dwell_ms }, 0, GATHER_MS);
  }

  #lookAway() {
    for (const element of this.#posts.keys()) this.#turnAway(element);
  }

  #lookAgain() {
    for (const element of this.#posts.keys()) {
      this.observer.unobserve(element);
      this.observer.observe(element);
    }
  }
}
