// Where a reader is in a feed: the keys of what was shown, so that no page repeats it. Opaque to
// clients, and signed, so that only what was given out here is taken back, from the same user.
import { decodeBase64Url, encodeBase64Url } from "./base64.ts";
import { serviceKey } from "./environment.ts";
import { Refusal } from "./http.ts";

const VERSION = 1;
const MOST_KEYS = 400;
const LONGEST = 8_000; // characters: it stands in the address of a GET
const TAG_BYTES = 16;

export type Feed = { userId: string; table: string };

// The cursor after a page. The keys shown first are left out where it would become too long: what
// was viewed by then is not recommended again in any case.
export async function writeCursor(feed: Feed, shown: string[]): Promise<string> {
  for (let keys = shown.slice(-MOST_KEYS);; keys = keys.slice(Math.ceil(keys.length / 8))) {
    const packed = await pipe(new TextEncoder().encode(JSON.stringify(keys)), "compress");
    const tag = await sign(feed, packed);
    const cursor = `${VERSION}.${encodeBase64Url(new Uint8Array([...tag, ...packed]))}`;
    if (cursor.length <= LONGEST || keys.length <= 1) return cursor;
  }
}

// The keys that a cursor holds. Raises 400 for one that writeCursor() did not write for this feed.
export async function readCursor(feed: Feed, cursor: string): Promise<string[]> {
  const [, version, rest] = cursor.match(/^(\d+)\.([\w-]+)$/) ?? [];
  const bytes = rest && rest.length <= LONGEST ? decodeBase64Url(rest) : undefined;
  if (version !== String(VERSION) || !bytes || bytes.length <= TAG_BYTES) throw forged();
  const packed = bytes.slice(TAG_BYTES);
  const expected = await sign(feed, packed);
  if (expected.some((byte, place) => byte !== bytes[place])) throw forged();
  return JSON.parse(new TextDecoder().decode(await pipe(packed, "decompress")));
}

function forged(): Refusal {
  return new Refusal(
    400,
    "bad_cursor",
    "The cursor is not one that this function gave this user for this table",
    "Leave `cursor` out to begin at the first page.",
  );
}

async function sign({ userId, table }: Feed, packed: Uint8Array): Promise<Uint8Array> {
  const encoder = new TextEncoder();
  const secret = encoder.encode(`cursor of ${serviceKey()}`);
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", secret, algorithm, false, ["sign"]);
  const feed = encoder.encode(JSON.stringify([VERSION, userId, table]));
  const tag = await crypto.subtle.sign("HMAC", key, new Uint8Array([...feed, ...packed]));
  return new Uint8Array(tag).slice(0, TAG_BYTES);
}

async function pipe(bytes: Uint8Array, way: "compress" | "decompress"): Promise<Uint8Array> {
  const through = way === "compress"
    ? new CompressionStream("deflate-raw")
    : new DecompressionStream("deflate-raw");
  const stream = new Blob([bytes as BlobPart]).stream().pipeThrough(through);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
