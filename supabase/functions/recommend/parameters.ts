// What a request asks for: in its address, or in a JSON body.
import { isObject, readJson } from "../_shared/body.ts";
import { setting } from "../_shared/environment.ts";
import { Refusal } from "../_shared/http.ts";
import { type Key, rpc } from "../_shared/rpc.ts";

export type Parameters = {
  table: string | undefined;
  limit: number;
  select: string;
  key: string;
  order: string;
  cursor: string | undefined;
};

const NAME = /^[\p{L}_][\p{L}\p{N}_$]{0,62}$/u;
const IS_NAME = "is a name: letters, digits and _, at most 63";
const LONGEST_SELECT = 2000;
const LARGEST_PAGE = 100;
const KNOWN = ["table", "limit", "select", "key", "order", "cursor"];

export async function readParameters(request: Request): Promise<Parameters> {
  const sent: Record<string, unknown> = Object.fromEntries(new URL(request.url).searchParams);
  if (request.method === "POST") Object.assign(sent, await readBody(request));
  for (const name of Object.keys(sent)) {
    if (!KNOWN.includes(name)) throw wrong(name, `is unknown here; known are ${KNOWN.join(", ")}`);
  }
  const text = (name: string) => {
    const value = sent[name] ?? "";
    if (typeof value !== "string") throw wrong(name, "is a text");
    return value || undefined;
  };
  const limit = Array.isArray(sent.limit) ? NaN : Number(sent.limit ?? 20);
  if (!Number.isInteger(limit) || limit < 1 || limit > LARGEST_PAGE) {
    throw wrong("limit", `is a whole number from 1 to ${LARGEST_PAGE}`);
  }
  const [table, select = "*"] = [text("table") ?? setting("RECOMMEND_TABLE"), text("select")];
  const [key = "id", order = "place"] = [text("key"), text("order")];
  if (table && !NAME.test(table)) throw wrong("table", IS_NAME);
  if (!NAME.test(key)) throw wrong("key", IS_NAME);
  if (!NAME.test(order)) throw wrong("order", IS_NAME);
  if (select.length > LONGEST_SELECT) {
    throw wrong("select", `has at most ${LONGEST_SELECT} characters`);
  }
  return { table, limit, select, key, order, cursor: text("cursor") };
}

// The one attached table, where neither the request nor RECOMMEND_TABLE names one. A post that is
// named by its key alone is refused where several tables are attached.
let onlyTable: string | undefined;
export async function findTable(key: Key, timeoutMs: number): Promise<string> {
  if (onlyTable) return onlyTable;
  const [post] = await rpc("recommend", { p_limit: 1 }, key, { timeoutMs });
  if (!post) throw wrong("table", "is missing");
  await rpc("similar_posts", { p_post_key: post.post_key, p_limit: 1 }, key, { timeoutMs })
    .catch((error) => {
      const areSeveral = error instanceof Refusal && error.code === "22023";
      throw areSeveral ? wrong("table", "is missing, and several are attached") : error;
    });
  return onlyTable = post.post_source;
}

async function readBody(request: Request): Promise<Record<string, unknown>> {
  const body = await readJson(request);
  if (!isObject(body)) throw wrong("The body", 'is an object, such as {"table": "posts"}');
  return body;
}

function wrong(name: string, rule: string): Refusal {
  return new Refusal(400, "bad_parameter", `${name} ${rule}`, "See docs/functions.md: recommend.");
}
