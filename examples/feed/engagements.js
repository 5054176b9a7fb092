// Engagements of one signed-in user on their way to Two-Tower. They wait in localStorage, an entry each,
// so that tabs do not disturb one another, and neither a lost network nor a closed tab loses one. The
// server knows an event by its client_event_id: sent twice, it is stored once. Needs nothing but a
// browser; take it over as it stands, with views.js.
//
//   const engagements = new Engagements({ url, key, user: session.user.id, token: () => session.access_token });
//   engagements.record({ post_key: post.id, event_type: "like" });
//   const id = engagements.record({ post_key: post.id, event_type: "hide" }, 8000); // until then: engagements.undo(id)

const BATCH = 150; // events a request: one that outlives its page may have 64 KiB
const KEPT = 1000; // events that wait; beyond, the oldest go
const KNOWN_MS = 6 * 24 * 3600 * 1000; // older ones go: the server knows a client_event_id for a week
const LATE_MS = 60_000; // what waited longer says when it happened
const SLOWEST_MS = 60_000; // of an answer, and between two tries
const REFUSED = [400, 409, 413, 422]; // the batch as a whole, and so it would be again

export class Engagements {
  #sending = new Set();
  #flight = Promise.resolve();
  #failures = 0;
  #retry = null;
  #stopped = new AbortController();

  // url, key: of the project. user: id. token(): the access token of now. onAnswer(rows): a row an event.
  // address: where to post instead, such as the function `engage`.
  constructor({ url, key, user, token, onAnswer = () => {}, address = `${url}/rest/v1/rpc/record_engagements` }) {
    Object.assign(this, { key, token, onAnswer, address, prefix: `two-tower:${user}:event:`, pageName: `two-tower:${user}:page` });
    const { signal } = this.#stopped;
    addEventListener("online", () => this.flush(), { signal });
    addEventListener("pagehide", () => this.#sendRest(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden && this.flush(), { signal });
    this.flush();
  }

  // Puts an event into the queue. It is sent after wait_ms: until then undo() takes it out. One that may
  // go with others is due at once, and sent with the next, or after gather_ms.
  record(event, wait_ms = 0, gather_ms = wait_ms) {
    const id = crypto.randomUUID();
    const at = performance.timeOrigin + performance.now(); // finer than Date.now(): a like comes before its unlike
    const entry = { at, due: Date.now() + wait_ms, event: { ...event, client_event_id: id } };
    try {
      localStorage.setItem(this.prefix + id, JSON.stringify(entry));
    } catch {
      this.#send([entry]); // no room to wait in: now or never
    }
    setTimeout(() => this.#retry ?? this.flush(), gather_ms);
    return id;
  }

  // True when the event had not been sent yet, and now never will be.
  undo(id) {
    if (this.#sending.has(id) || !localStorage.getItem(this.prefix + id)) return false;
    localStorage.removeItem(this.prefix + id);
    return true;
  }

  // How many events wait.
  get waiting() {
    return this.#entries().length;
  }

  // Sends what is due, in order. Resolves with true when the server has answered for all of it.
  flush() {
    return (this.#flight = this.#flight.then(() => this.#sendDue()));
  }

  // What ask() resolves with. Where it fails, what it did the last time, and when that was:
  // { rows, keptAt }. Throws what ask() throws where there was no last time.
  async page(ask) {
    try {
      const rows = await ask();
      try {
        localStorage.setItem(this.pageName, JSON.stringify({ rows, keptAt: Date.now() }));
      } catch {} // no room: nothing to fall back to
      return { rows, keptAt: null };
    } catch (error) {
      const kept = JSON.parse(localStorage.getItem(this.pageName));
      if (!kept) throw error;
      return kept;
    }
  }

  // When the user signs out, after a last flush(). What still waits stays for the next time.
  stop() {
    clearTimeout(this.#retry);
    this.#stopped.abort();
  }

  // What waits and is not under way, oldest first; what is too old or too much goes.
  #entries() {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    const all = names.map((name) => JSON.parse(localStorage.getItem(name))).sort((one, other) => one.at - other.at);
    const kept = all.filter(({ at }, place) => at > Date.now() - KNOWN_MS && place >= all.length - KEPT);
    this.#forget(all.filter((entry) => !kept.includes(entry)));
    return kept.filter(({ event }) => !this.#sending.has(event.client_event_id));
  }

  #forget(entries) {
    for (const { event } of entries) localStorage.removeItem(this.prefix + event.client_event_id);
  }

  async #sendDue() {
    if (this.#stopped.signal.aborted) return false; // the token would be another user's
    clearTimeout(this.#retry);
    this.#retry = null;
    for (;;) {
      const due = this.#entries().filter((entry) => entry.due <= Date.now());
      if (!due.length) return true;
      if (!(await this.#send(due.slice(0, BATCH)))) break;
      this.#failures = 0;
    }
    const pause = Math.min(SLOWEST_MS, 1000 * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
    this.#retry = setTimeout(() => this.flush(), pause);
    return false;
  }

  // The page is closed: nobody can undo any more.
  #sendRest() {
    const rest = this.#entries();
    if (rest.length) this.#send(rest.slice(0, BATCH));
  }

  // True when the server has answered: then the events leave the queue, also those that it refused.
  async #send(entries) {
    const token = this.token();
    if (!token) return false;
    const ids = entries.map(({ event }) => event.client_event_id);
    ids.forEach((id) => this.#sending.add(id));
    try {
      const answer = await fetch(this.address, {
        method: "POST",
        keepalive: true, // goes on when the page is closed
        headers: { apikey: this.key, Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
        body: JSON.stringify({ p_events: entries.map(dated), p_each: true }),
        signal: AbortSignal.timeout(SLOWEST_MS),
      });
      if (!answer.ok && !REFUSED.includes(answer.status)) return false;
      const said = await answer.json();
      this.#forget(entries);
      this.onAnswer(answer.ok ? said : ids.map((id) => ({ ...said, client_event_id: id, status: "refused" })));
      return true;
    } catch {
      return false; // no network, or not for long enough
    } finally {
      ids.forEach((id) => this.#sending.delete(id));
    }
  }
}

// The event as it is sent. What goes out at once needs no time: it happened when it arrived.
function dated({ at, event }) {
  return Date.now() - at > LATE_MS ? { happened_at: new Date(at).toISOString(), ...event } : event;
}
