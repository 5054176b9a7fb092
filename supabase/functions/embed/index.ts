// The vectors of a text, and posts like it: see docs/functions.md.
import { requireUser } from "../_shared/auth.ts";
import { isObject, readJson } from "../_shared/body.ts";
import { anonKey, numberSetting } from "../_shared/environment.ts";
import { answer, json, Refusal, Unavailable } from "../_shared/http.ts";
import { type Key, rpc } from "../_shared/rpc.ts";

const WAIT_MS = numberSetting("EMBED_WAIT_MS", 10_000);
const MOST_SIMILAR = 100;

async function embed(request: Request): Promise<Response> {
  const { token } = requireUser(request);
  const { text, similar } = readQuestion(await readJson(request));
  const key = { apikey: anonKey(), token };
  const { base_embedding, embedding } = await encode(text, key);
  const posts = similar !== undefined &&
    await rpc("search_posts", { p_text: text, p_limit: similar }, key);
  return json({ base_embedding, embedding, ...(posts && { posts }) });
}

// A worker encodes the text: asks again, less and less often, until it is ready.
async function encode(text: string, key: Key) {
  const deadline = performance.now() + WAIT_MS;
  for (let pauseMs = 50;; pauseMs = Math.min(500, 1.5 * pauseMs)) {
    const [state] = await rpc("embed_text", { p_text: text }, key);
    if (state?.status === "ready") return state;
    if (state?.status === "unreadable") {
      throw new Refusal(422, "unreadable", "The encoder cannot read the text", "Use words of it.");
    }
    const again = state?.retry_after ?? undefined;
    if (state?.status === "no_worker") {
      throw new Unavailable("no_worker", "No worker is alive to encode the text", ASK_AGAIN, again);
    }
    if (performance.now() + pauseMs > deadline) {
      throw new Unavailable("waiting", "The text is not encoded yet", ASK_AGAIN, again);
    }
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

const ASK_AGAIN = "Send the same text again after Retry-After seconds: it stays in the queue.";

function readQuestion(body: unknown): { text: string; similar: number | undefined } {
  const { text, similar } = isObject(body) ? body : {};
  if (typeof text !== "string") throw wrong("text is missing", 'Send {"text": "..."}.');
  const isCount = Number.isInteger(similar) && Number(similar) >= 1 &&
    Number(similar) <= MOST_SIMILAR;
  if (similar !== undefined && !isCount) {
    throw wrong("similar is not a number of posts", `Send 1 to ${MOST_SIMILAR}, or leave it out.`);
  }
  return { text, similar: similar as number | undefined };
}

function wrong(message: string, hint: string): Refusal {
  return new Refusal(422, "bad_question", message, hint);
}

Deno.serve(answer({ POST: embed }));
