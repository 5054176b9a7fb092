// Calls functions of the database over PostgREST, which decides who may.
import { unauthorized } from "./auth.ts";
import { isObject, parseExactly } from "./body.ts";
import type { Database } from "./database.types.ts";
import { projectUrl } from "./environment.ts";
import { Refusal, Unavailable } from "./http.ts";

type Functions = Database["public"]["Functions"];
export type Key = { apikey: string; token?: string };
type Options = { query?: Record<string, string>; timeoutMs?: number };

const TIMEOUT_MS = 15_000; // above the platform's limit of 8 s for a statement of a signed-in user
const AGAIN = "Send the request again.";

// What a function returns. Raises a Refusal with what the database says, and Unavailable where it
// does not answer.
export async function rpc<Name extends keyof Functions>(
  name: Name,
  args: Functions[Name]["Args"],
  key: Key,
  { query = {}, timeoutMs = TIMEOUT_MS }: Options = {},
): Promise<Functions[Name]["Returns"]> {
  const url = new URL(`${projectUrl()}/rest/v1/rpc/${encodeURIComponent(name)}`);
  for (const [parameter, value] of Object.entries(query)) url.searchParams.set(parameter, value);
  const { status, text } = await send(url, args, key, timeoutMs);
  if (status >= 200 && status < 300) {
    return (text ? parseExactly(text) : undefined) as Functions[Name]["Returns"];
  }
  throw refusal(status, text);
}

async function send(url: URL, args: unknown, { apikey, token }: Key, timeoutMs: number) {
  // A key of the new kind is no token; one of the old kind is sent as one too.
  const bearer = token ?? (apikey.startsWith("sb_") ? undefined : apikey);
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: {
        apikey,
        "Content-Type": "application/json",
        ...(bearer && { "Authorization": `Bearer ${bearer}` }),
      },
      body: JSON.stringify(args),
      signal: AbortSignal.timeout(timeoutMs),
    });
    return { status: response.status, text: await response.text() };
  } catch (error) {
    const isLate = error instanceof DOMException && error.name === "TimeoutError";
    throw isLate
      ? new Unavailable("late", "The database did not answer in time", AGAIN)
      : new Unavailable("unreachable", "The database cannot be reached", AGAIN);
  }
}

function refusal(status: number, text: string): Refusal {
  const said = parseError(text);
  // So PostgREST answers, with 400, when its connection to the database breaks under a request.
  if (said.code === "") {
    return new Unavailable("connection_lost", "The connection to the database was lost", AGAIN);
  }
  const code = String(said.code ?? status);
  const message = String(said.message ?? "The database refused the request");
  const hint = String(said.hint ?? said.details ?? "Correct the request.");
  if (/^PGRST30\d$/.test(code)) return unauthorized(code, message);
  if (isTemporary(status, code)) return new Unavailable(code, message, AGAIN);
  const again = code === TOO_MANY ? { "Retry-After": "60" } : undefined;
  return new Refusal(STATUS[code] ?? status, code, message, hint, again);
}

const TOO_MANY = "TT005"; // of one user in a minute
const STATUS: Record<string, number> = {
  "22023": 422,
  "22P02": 422,
  "TT002": 413,
  [TOO_MANY]: 429,
};

// No connection, a server that starts or stops, a statement that was cancelled, a conflict.
function isTemporary(status: number, code: string): boolean {
  return status === 502 || status === 503 || status === 504 ||
    /^(08|53|57|PGRST00)/.test(code) || code === "40001" || code === "40P01";
}

function parseError(text: string): Record<string, unknown> {
  try {
    const said = JSON.parse(text);
    return isObject(said) ? said : {};
  } catch {
    return {};
  }
}
