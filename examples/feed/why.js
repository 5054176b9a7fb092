// "Why this post", in words: what explain_recommendation() says, and what brought the post to the page.

const PARTS = {
  personal: "close to what you engaged with",
  popular: "liked by many lately",
  fresh: "new",
  followed: "from somebody you follow",
};
const BROUGHT = {
  personal: "It is here because it is close to what you engaged with.",
  popular: "It is here because many like it.",
  fresh: "It is here because it is new.",
  followed: "It is here because you follow its author.",
  told: "It is here because of what you said you like.",
  exploration: "It is here to find out whether you like something else.",
  content: "It is here because its text is close to what you engaged with.",
  recent: "It is here because it is new.",
};
const NOW = {
  "you have seen it": "You have seen it, so it will not come again.",
  "you engaged with it": "You engaged with it, so it will not come again.",
};

// Returns elements to show.
export async function explain(supabase, post) {
  const { data, error } = await supabase.rpc("explain_recommendation", { p_post_key: post.key }).single();
  const parts = Object.keys(PARTS).filter((name) => data?.[name] > 0.005);
  const now = error ? "The server cannot be reached, so there is no more to say now." : say(data);
  return [paragraph(BROUGHT[post.row.source] ?? "", "brought"), ...(parts.length ? [bars(data, parts)] : []), paragraph(now, "now")];
}

function say({ is_eligible, reason, place }) {
  if (NOW[reason]) return NOW[reason];
  if (!is_eligible) return `It would not be recommended now: ${reason}.`;
  return place ? `It is number ${place} of all that could be shown to you now.` : "It is far down on your list now.";
}

// The parts of the score, the largest first, against their sum.
function bars(data, parts) {
  const sum = parts.reduce((total, name) => total + data[name], 0);
  const list = document.createElement("dl");
  list.className = "bars";
  for (const name of parts.sort((one, other) => data[other] - data[one])) {
    const share = Math.round((100 * data[name]) / sum);
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const said = document.createElement("dd");
    term.textContent = PARTS[name];
    said.textContent = `${share} %`;
    row.style.setProperty("--share", `${share}%`);
    row.append(term, said);
    list.append(row);
  }
  return list;
}

function paragraph(text, className) {
  return Object.assign(document.createElement("p"), { textContent: text, className });
}
