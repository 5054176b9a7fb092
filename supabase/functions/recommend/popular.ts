// Popular posts that this process remembers, for when the database does not answer. They are read
// without a user, so they hold only what everybody may read. A table has them where it was attached
// with popular_for_anon.
import { anonKey } from "../_shared/environment.ts";
import { Refusal } from "../_shared/http.ts";
import { rpc } from "../_shared/rpc.ts";
import { KEY, type Row } from "./rows.ts";

type Memory = { rows: Row[]; refreshedAt: number; isRefreshing: boolean };

const FRESH_MS = 60_000;
const MOST_ROWS = 100;
const MOST_QUERIES = 50; // each selection of columns is remembered by itself
const memories = new Map<string, Memory>();

// Reads the popular posts again where they are a minute old. The page does not wait for it.
export function refreshPopular(table: string, query: Record<string, string>): void {
  const name = JSON.stringify([table, query]);
  const memory = memories.get(name) ?? { rows: [], refreshedAt: -Infinity, isRefreshing: false };
  memories.delete(name); // the last one used stands last
  memories.set(name, memory);
  if (memories.size > MOST_QUERIES) memories.delete([...memories.keys()][0]!);
  if (memory.isRefreshing || performance.now() - memory.refreshedAt < FRESH_MS) return;
  memory.isRefreshing = true;
  const refreshed = refresh(memory, table, query).finally(() => memory.isRefreshing = false);
  // The platform ends a process that has answered, unless it is told of work that goes on.
  (globalThis as { EdgeRuntime?: { waitUntil(work: Promise<void>): void } })
    .EdgeRuntime?.waitUntil(refreshed);
}

// Popular rows that were not shown; undefined where none is left.
export function popularPage(
  table: string,
  query: Record<string, string>,
  limit: number,
  shown: string[],
): Row[] | undefined {
  const remembered = memories.get(JSON.stringify([table, query]))?.rows ?? [];
  const rows = remembered.filter((row) => !shown.includes(row[KEY])).slice(0, limit);
  return rows.length > 0 ? rows : undefined;
}

async function refresh(memory: Memory, table: string, query: Record<string, string>) {
  // Each table that is attached with popular_for_anon has a function of this shape.
  const name = `most_popular_${table}` as "most_popular_posts";
  try {
    const rows = await rpc(name, { p_limit: MOST_ROWS }, { apikey: anonKey() }, { query });
    Object.assign(memory, { rows, refreshedAt: performance.now() });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    // Not for everybody, or no longer: nothing is remembered. Otherwise the old rows stay.
    if (error.status < 500) Object.assign(memory, { rows: [], refreshedAt: performance.now() });
  }
}
