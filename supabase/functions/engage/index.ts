// Stores events and answers for each: see docs/functions.md.
import { requireUser } from "../_shared/auth.ts";
import { isObject, readJson } from "../_shared/body.ts";
import type { SentEvent } from "../_shared/database.types.ts";
import { anonKey } from "../_shared/environment.ts";
import { answer, json, Refusal } from "../_shared/http.ts";
import { rpc } from "../_shared/rpc.ts";

const MOST_AT_ONCE = 500; // what record_engagements() takes

async function engage(request: Request): Promise<Response> {
  const { token } = requireUser(request);
  const { events, isEach } = readEvents(await readJson(request));
  const answers = [];
  for (let first = 0; first === 0 || first < events.length; first += MOST_AT_ONCE) {
    const args = { p_events: events.slice(first, first + MOST_AT_ONCE), p_each: isEach };
    const rows = await rpc("record_engagements", args, { apikey: anonKey(), token });
    answers.push(...rows.map((row) => ({ ...row, place: first + row.place })));
  }
  return json(answers);
}

// A bare array, or the arguments of record_engagements(). What is in an event, SQL judges.
function readEvents(body: unknown): { events: SentEvent[]; isEach: boolean } {
  const { p_events: events, p_each: isEach = true } = isObject(body) ? body : { p_events: body };
  if (!Array.isArray(events)) {
    throw wrong(
      "The body holds no list of events",
      'Send [{"post_id": 1, "event_type": "view", "client_event_id": "a uuid"}, ...].',
    );
  }
  if (typeof isEach !== "boolean") throw wrong("p_each is not true or false", "Leave it out.");
  if (!isEach && events.length > MOST_AT_ONCE) {
    throw wrong(
      `All or nothing takes at most ${MOST_AT_ONCE} events`,
      "Leave p_each out, or send fewer.",
    );
  }
  return { events, isEach };
}

function wrong(message: string, hint: string): Refusal {
  return new Refusal(422, "bad_events", message, hint);
}

Deno.serve(answer({ POST: engage }));
