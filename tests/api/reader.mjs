// A reader of an app, with supabase-js: what test_any_app.py does with supabase-py, step by step.
// Settings come as JSON in READER: {url, key, token, packages, table}. Prints what it saw, as JSON.
import { createRequire } from "node:module";

const { url, key, token, packages, table } = JSON.parse(process.env.READER);
const { createClient } = createRequire(`${packages}/`)("@supabase/supabase-js");
const supabase = createClient(url, key, { accessToken: async () => token });

const answer = async (call) => {
  const { data, error } = await call;
  if (error) throw new Error(JSON.stringify(error));
  return data;
};
const keys = (rows) => rows.map((row) => row.post_key);

const seen = {};
const first = await answer(supabase.rpc("recommend", { p_limit: 30 }));
seen.first = keys(first);
seen.second = keys(await answer(supabase.rpc("recommend", { p_limit: 100, p_exclude: seen.first })));
seen.got = keys(await answer(supabase.rpc("recommend", { p_limit: 100, p_exclude: seen.first }, { get: true })));
const own = first.filter((row) => row.post_source === table);
await answer(
  supabase.from("engagement_events")
    .insert({ post_key: own[0].post_key, post_source: table, event_type: "like" }));
seen.liked = own[0].post_key;
seen.rows = await answer(
  supabase.rpc(`recommended_${table}`, { p_limit: 100 })
    .select("place,key:id::text,title,profiles(handle)").ilike("title", "%1%").order("place"));
seen.explained = await answer(
  supabase.rpc("explain_recommendation", { p_post_key: seen.rows[0].key, p_post_source: table }));
seen.recorded = await answer(
  supabase.rpc("record_engagements", {
    p_events: seen.rows.slice(1, 4).map((row) => (
      { post_key: row.key, post_source: table, event_type: "view" }))
      .concat({ post_key: "none", post_source: table, event_type: "view" }),
    p_each: true,
  }));
seen.viewed = seen.rows.slice(1, 4).map((row) => row.key);
seen.last = keys(await answer(supabase.rpc("recommend", { p_limit: 100 })));
console.log(JSON.stringify(seen));
