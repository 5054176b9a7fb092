// What a client of supabase-js gets from database.types.ts. Checked, never run.
import { createClient } from "@supabase/supabase-js";
import type { Database, EventType, Tables } from "./database.types.ts";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true
  : false;
type Row<Answer extends { data: unknown[] | null }> = NonNullable<Answer["data"]>[number];
const holds = <Claim extends true>(claim?: Claim) => claim;
const client = createClient<Database>("https://example.com", "key");

const page = await client.rpc("recommended_posts", { p_limit: 1 });
holds<Same<Row<typeof page>["place"], number>>();
holds<Same<Row<typeof page>["arm"], string | null>>();
holds<Same<Row<typeof page>["content"], string>>();

const selected = await client.rpc("recommended_posts")
  .select("place, id, author:profiles(handle)").order("place");
holds<Same<Row<typeof selected>["place"], number>>();
holds<Same<Row<typeof selected>["author"], { handle: string | null } | null>>();

const similar = await client.rpc("similar_posts", { p_post_key: "1" });
holds<Same<Row<typeof similar>["author_id"], string | null>>();

const text = await client.rpc("embed_text", { p_text: "boats" });
holds<Same<Row<typeof text>["status"], "ready" | "waiting" | "unreadable" | "no_worker">>();
holds<Same<Row<typeof text>["embedding"], number[] | null>>();

await client.from("engagement_events").insert({ post_key: "1", event_type: "like" });
// @ts-expect-error there is no such event
await client.from("engagement_events").insert({ post_key: "1", event_type: "love" });
holds<Same<Tables<"engagement_events">["event_type"], EventType>>();

const answers = await client.rpc("record_engagements", {
  p_events: [{ post_key: "1", event_type: "dwell", dwell_ms: 6000 }],
  p_each: true,
});
holds<Same<Row<typeof answers>["status"], "stored" | "known" | "refused">>();
holds<Same<Row<typeof answers>["event_id"], number | null>>();
// @ts-expect-error there is no such event
await client.rpc("record_engagements", { p_events: [{ post_key: "1", event_type: "love" }] });
