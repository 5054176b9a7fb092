// Bodies of unknown senders: bounded while they are read, and checked before anything walks them.
import { Refusal } from "./http.ts";

export const LONGEST_BODY = 1_048_576; // bytes
const DEEPEST = 16;

type Source = { source?: string };
const { parse, rawJSON } = JSON as unknown as {
  parse(text: string, reviver: (key: string, value: unknown, context: Source) => unknown): unknown;
  rawJSON(text: string): unknown;
};

// JSON whose integers beyond 2^53 keep their digits: ids of posts may be that large.
export function parseExactly(text: string): unknown {
  return parse(text, (_key, value, { source }) => {
    const isRounded = typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER;
    return isRounded && source && /^-?\d+$/.test(source) ? rawJSON(source) : value;
  });
}

// The JSON of a request. Raises 413, 400, or 422 for what is nested too deep.
export async function readJson(request: Request): Promise<unknown> {
  const text = await readText(request);
  if (isDeep(text)) {
    throw new Refusal(
      422,
      "too_deep",
      `The body is nested more than ${DEEPEST} levels deep`,
      "Send flat objects.",
    );
  }
  try {
    return parseExactly(text);
  } catch {
    throw new Refusal(
      400,
      "bad_json",
      "The body is not JSON",
      "Send JSON in UTF-8, with Content-Type: application/json.",
    );
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

// Content-Length is not believed: chunked bodies have none.
async function readText(request: Request): Promise<string> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of request.body ?? []) {
    length += chunk.byteLength;
    if (length > LONGEST_BODY) {
      throw new Refusal(
        413,
        "too_large",
        `The body is longer than ${LONGEST_BODY} bytes`,
        "Send it in several requests.",
      );
    }
    chunks.push(chunk);
  }
  return await new Blob(chunks as BlobPart[]).text();
}

// Looked at before it is parsed, in one pass: a parser or a serializer may run out of stack.
function isDeep(text: string): boolean {
  let depth = 0;
  let isQuoted = false;
  for (let place = 0; place < text.length && depth <= DEEPEST; place++) {
    const mark = text[place];
    if (mark === '"') isQuoted = !isQuoted;
    else if (isQuoted && mark === "\\") place += 1;
    else if (!isQuoted && (mark === "[" || mark === "{")) depth += 1;
    else if (!isQuoted && (mark === "]" || mark === "}")) depth -= 1;
  }
  return depth > DEEPEST;
}
