// The page: who is signed in, and what belongs to them.
import { createClient } from "@supabase/supabase-js";
import { key, url } from "./config.js";
import { Engagements } from "./engagements.js";
import { Feed } from "./feed.js";
import { listen } from "./keyboard.js";
import { Panel } from "./panel.js";
import { toast } from "./toasts.js";
import { Views } from "./views.js";

const supabase = createClient(url, key);
const find = (id) => document.getElementById(id);
let session = null;
let open = null; // { user, engagements, views, feed, panel, keys } of the signed-in user

function enter(user) {
  const engagements = new Engagements({ url, key, user, token: () => session?.access_token, onAnswer });
  const views = new Views(engagements);
  const feed = new Feed({ supabase, engagements, views });
  const panel = new Panel(() => session?.access_token);
  open = { user, engagements, views, feed, panel, keys: listen({ feed, panel }) };
  feed.start();
  panel.start();
}

function leave() {
  for (const part of [open.views, open.engagements, open.feed, open.panel]) part.stop();
  open.keys.abort();
  open = null;
}

// What the server said of a batch: figures have changed, and a refused event is told.
function onAnswer(rows) {
  open?.panel.refresh();
  for (const { status, message } of rows) if (status === "refused") toast(`Not stored: ${message}.`);
}

function show() {
  for (const part of document.querySelectorAll(".signed-in")) part.hidden = !session;
  find("sign-in").hidden = Boolean(session);
}

// supabase-js holds a lock while it calls: nothing here waits for it.
supabase.auth.onAuthStateChange((_, now) => {
  session = now;
  show();
  const user = now?.user.id ?? null;
  if (open && open.user !== user) leave();
  if (user && !open) enter(user);
});

find("sign-out").addEventListener("click", async () => {
  open?.views.stop();
  await open?.engagements.flush();
  await supabase.auth.signOut({ scope: "local" });
});

find("sign-in").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password, bio } = Object.fromEntries(new FormData(event.target));
  const isNew = event.submitter?.value !== "in";
  const error = event.target.querySelector(".error");
  error.textContent = "";
  const answer = isNew
    ? await supabase.auth.signUp({ email, password })
    : await supabase.auth.signInWithPassword({ email, password });
  if (answer.error) error.textContent = `${answer.error.message}.`;
  else if (!answer.data.session) error.textContent = "Confirm your e-mail address, then sign in.";
  else if (isNew && bio) await supabase.from("profiles").insert({ bio });
});
