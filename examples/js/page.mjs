// A page of recommended posts in HTML, as a server renders it: no JavaScript is needed to read it.
//
//   SUPABASE_URL=... SUPABASE_KEY=sb_publishable_... node page.mjs ACCESS_TOKEN > page.html
//
// It asks with the reader's own access token, so the app's policies decide what is on it.
import { createClient } from "@supabase/supabase-js";

export async function renderPage(url, key, accessToken) {
  const client = createClient(url, key, { accessToken: async () => accessToken });
  const { data: posts } = await client
    .rpc("recommended_posts", { p_limit: 20 })
    .select("place, id, content, profiles(handle)")
    .order("place")
    .throwOnError();
  // What is sent is not yet seen: a page without JavaScript counts it as a view all the same.
  const p_events = posts.map(({ id }) => ({ post_key: String(id), event_type: "view" }));
  if (p_events.length) await client.rpc("record_engagements", { p_events, p_each: true }).throwOnError();
  const items = posts.map((post) => `  <li>${renderPost(post)}</li>`).join("\n");
  return `<!doctype html>\n<html lang="en">\n<title>For you</title>\n<ol>\n${items}\n</ol>\n</html>`;
}

// What people wrote is escaped.
const renderPost = ({ content, profiles }) =>
  `<article><p>${escape(content)}</p><p>${escape(profiles?.handle ?? "someone")}</p></article>`;
const escape = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.codePointAt(0)};`);

const { SUPABASE_URL, SUPABASE_KEY } = process.env;
console.log(await renderPage(SUPABASE_URL, SUPABASE_KEY, process.argv[2]));
