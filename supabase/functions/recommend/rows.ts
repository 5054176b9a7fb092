// Rows of an attached table as PostgREST returns them, each with its key as text, and its place.

export const KEY = "two_tower_key";
const PLACE = "two_tower_place";
export type Row = Record<string, unknown> & { [KEY]: string };

// select, key and order: as the caller says. PostgREST and the policies decide what they may be. It
// orders by what it selects alone.
export function rowsQuery(
  { select, key, order }: { select: string; key: string; order: string },
): Record<string, string> {
  return { select: `${select},${KEY}:${key}::text,${PLACE}:${order}`, order };
}

// A row as the caller asked for it.
export function asAsked({ [KEY]: _key, [PLACE]: _place, ...row }: Row): Record<string, unknown> {
  return row;
}
