// A digest by e-mail of what waits for each user, written by a back end with the service role.
//
//   SUPABASE_URL=... SUPABASE_SECRET_KEY=sb_secret_... node digest.mjs
//
// Prints the messages; hand them to what sends your mail. The service role reads all rows: an app whose
// policies hide posts from some users asks for those users with their own tokens.
import { createClient } from "@supabase/supabase-js";

const POSTS = 5;

// The message to a user; null when there is nothing to tell. Writes nothing to the database.
async function writeDigest(backend, { id, email }) {
  const { data: found } = await backend.rpc("recommend_for", { p_user_id: id, p_limit: POSTS }).throwOnError();
  const keys = found.filter((row) => row.post_source === "posts").map((row) => row.post_key);
  const { data: rows } = await backend.from("posts").select("id, content").in("id", keys).throwOnError();
  const contents = new Map(rows.map((row) => [String(row.id), row.content]));
  const lines = keys.filter((key) => contents.has(key)).map((key) => `- ${contents.get(key)}`);
  return lines.length ? { to: email, subject: `${lines.length} posts for you`, text: lines.join("\n") } : null;
}

const { SUPABASE_URL, SUPABASE_SECRET_KEY } = process.env;
const backend = createClient(SUPABASE_URL, SUPABASE_SECRET_KEY, { auth: { persistSession: false } });
const { data, error } = await backend.auth.admin.listUsers();
if (error) throw error;
for (const user of data.users) {
  const message = user.email && (await writeDigest(backend, user));
  if (message) console.log(JSON.stringify(message));
}
