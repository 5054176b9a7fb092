// A page for the signed-in user, with the app's rows: see docs/functions.md.
import { requireUser } from "../_shared/auth.ts";
import { encodeBase64Url } from "../_shared/base64.ts";
import { readCursor, writeCursor } from "../_shared/cursor.ts";
import { anonKey, numberSetting } from "../_shared/environment.ts";
import { answer, json, Unavailable } from "../_shared/http.ts";
import { rpc } from "../_shared/rpc.ts";
import { popularPage, refreshPopular } from "./popular.ts";
import { findTable, readParameters } from "./parameters.ts";
import { asAsked, KEY, type Row, rowsQuery } from "./rows.ts";

const DEADLINE_MS = numberSetting("RECOMMEND_DEADLINE_MS", 1500);
const FRESH = "private, max-age=0, stale-if-error=86400";

async function recommend(request: Request): Promise<Response> {
  const began = performance.now();
  const { token, userId } = requireUser(request);
  const asked = await readParameters(request);
  const key = { apikey: anonKey(), token };
  const table = asked.table ?? await findTable(key, DEADLINE_MS);
  const feed = { userId, table };
  const shown = asked.cursor ? await readCursor(feed, asked.cursor) : [];
  const query = rowsQuery(asked);
  refreshPopular(table, query);

  const { rows, fallback, waited } = await readRows();
  const keys = rows.map((row) => row[KEY]);
  const cursor = rows.length > 0 ? await writeCursor(feed, [...shown, ...keys]) : null;
  const page = { rows: rows.map(asAsked), cursor, fallback };
  const tag = await etag(page);
  const headers = {
    "Cache-Control": fallback ? "no-store" : FRESH,
    "ETag": tag,
    "Vary": "Authorization",
    "Server-Timing": `db;dur=${waited.toFixed(1)}, total;dur=${
      (performance.now() - began).toFixed(1)
    }`,
    ...(fallback && { "X-Fallback": "popular" }),
  };
  return isKnown(request, tag) ? new Response(null, { status: 304, headers }) : json(page, headers);

  // Where the database does not answer in time: what the function remembers is popular.
  async function readRows(): Promise<{ rows: Row[]; fallback: boolean; waited: number }> {
    const asking = performance.now();
    const waited = () => performance.now() - asking;
    // Each attached table has a function of this shape.
    const name = `recommended_${table}` as "recommended_posts";
    const args = { p_limit: asked.limit, p_exclude: shown };
    try {
      const rows = await rpc(name, args, key, { query, timeoutMs: DEADLINE_MS });
      return { rows: rows as unknown as Row[], fallback: false, waited: waited() };
    } catch (error) {
      const rows = error instanceof Unavailable && popularPage(table, query, asked.limit, shown);
      if (!rows) throw error;
      return { rows, fallback: true, waited: waited() };
    }
  }
}

async function etag(page: unknown): Promise<string> {
  const bytes = new TextEncoder().encode(JSON.stringify(page));
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return `W/"${encodeBase64Url(new Uint8Array(digest).slice(0, 16))}"`;
}

function isKnown(request: Request, tag: string): boolean {
  const known = request.headers.get("If-None-Match") ?? "";
  return known.split(",").some((each) => each.trim().replace(/^W\//, "") === tag.slice(2));
}

Deno.serve(answer({ GET: recommend, POST: recommend }));
