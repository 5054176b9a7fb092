"""The page of a report: one file, with its style and its plots inside, for light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from html import escape
from string import Template
from typing import Any

from python_jobs.operations.report import plots
from python_jobs.operations.report.kept import describe_impressions, describe_table
from python_jobs.operations.report.story import Map
from python_jobs.operations.status import MARKS, facts
from python_jobs.operations.verdict import Verdict, judge
from python_jobs.operations.words import clock, count, number

# Title, metrics, and what a reader should know of them.
CHARTS = (
    ("Latency of an update", ["update_latency"]),
    ("Click-through of new posts", ["cold_start_ctr"]),
    ("Drift", ["embedding_drift"]),
    ("Mean cosine of posts", ["mean_cosine"]),
    ("Training pairs", ["training_pairs_per_hour"]),
    ("Negatives for each positive", ["negatives_per_positive"]),
    ("Posts with a vector", ["post_coverage"]),
    ("Readers with a vector", ["user_coverage"]),
    ("Recall of the serving index", ["serving_recall"]),
    ("What waits", ["waiting_posts", "waiting_texts", "waiting_jobs", "waiting_events",
                    "deferred_events", "deferred_steps"]),
    ("For how long the oldest waits",
     ["oldest_waiting_post", "oldest_waiting_text", "oldest_waiting_job"]),
)  # fmt: skip

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Two-Tower: $sentence</title>
<style>
:root {
  --page: #f7f7f5; --card: #fff; --ink: #1c1e21; --muted: #61666d; --grid: #dcdfe3;
  --blue: #2a6fdb; --orange: #c8620a; --green: #1d8a4e; --red: #c9302c; --violet: #7b46c9;
  --grey: #8d949c; --yellow: #a97400;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141618; --card: #1d2023; --ink: #e8eaed; --muted: #a0a7af; --grid: #363b41;
    --blue: #78a9ff; --orange: #f5a355; --green: #5cc98b; --red: #ff7b72; --violet: #bd93f9;
    --grey: #7d858e; --yellow: #e3b341;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; }
h2 { margin: 2rem 0 .75rem; font-size: 1.15rem; }
h3 { margin: 0 0 .25rem; font-size: 1rem; }
p { margin: 0 0 .5rem; }
.ok { color: var(--green); } .warning { color: var(--yellow); } .alert { color: var(--red); }
.muted, figcaption { color: var(--muted); font-size: .85rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
.card { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: .5rem; overflow-wrap: anywhere; }
.card svg { display: block; width: 100%; height: auto; }
.card.wide { overflow-x: auto; }
.card.wide svg { min-width: 44rem; }
.card.narrow { max-width: 30rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .3rem .6rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 500; }
svg text { font-family: system-ui, sans-serif !important; }
</style>
<main>
<h1 class="$state">$mark $sentence</h1>
<p class="muted">$when</p>
$body
</main>
</html>
""")


def write_page(
    sections: dict[str, list[Any]],
    measured: dict[str, list[Any]],
    found: Map | None,
    days: float,
) -> str:
    """The page. sections: rows of the queries. measured: by metric. days: of the plots at most."""
    (overview,) = sections["Overview"]
    verdict = judge(overview, sections["Health"], sections["Alerts"])
    since = _beginning(sections, measured, days)
    parts = [*_findings(verdict, overview), *_facts(sections), *_quality(sections, since)]
    parts += [*_charts(sections, measured, since), *_map(found), *_records(sections)]
    at, begin = overview.now.astimezone(), since.astimezone()
    return PAGE.substitute(
        state=verdict.state,
        mark=MARKS[verdict.state],
        sentence=escape(verdict.sentence),
        when=f"Written {at:%B %d, %Y at %H:%M} ({at:%Z}). Plots begin {begin:%B %d at %H:%M}.",
        body="\n".join(parts),
    )


def _beginning(
    sections: dict[str, list[Any]], measured: dict[str, list[Any]], days: float
) -> datetime:
    """Where plots begin: with what is known, at most that many days ago and at least an hour."""
    now: datetime = sections["Overview"][0].now
    known: list[datetime] = [row.at for part in measured.values() for row in part]
    known += [row.decided_at for row in sections["Versions"]]
    return max(now - timedelta(days=days), min([*known, now - timedelta(hours=1)]))


def _findings(verdict: Verdict, overview: Any) -> Iterator[str]:
    if not verdict.findings:
        return
    yield '<div class="cards">'
    for each in verdict.findings:
        since = f" since {clock(each.since, overview.now)}" if each.since else ""
        yield (
            f'<section class="card"><h3><span class="{each.state}">{MARKS[each.state]}</span>'
            f' {escape(each.what)}<span class="muted">{since}</span></h3>'
            f"<p>{escape(each.text)}</p></section>"
        )
    yield "</div>"


def _facts(sections: dict[str, list[Any]]) -> Iterator[str]:
    yield '<h2>What is at work</h2><dl class="card">'
    for label, lines in facts(sections):
        yield f"<dt>{label}</dt><dd>{'<br>'.join(map(escape, lines))}</dd>"
    for line in describe_impressions(sections["Impressions"]):
        yield f"<dt>Impressions</dt><dd>{escape(line)}</dd>"
    yield "</dl>"


def _figure(title: str, svg: str, caption: str = "", kind: str = "") -> str:
    return (
        f'<figure class="card {kind}"><h3>{escape(title)}</h3>{svg}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _quality(sections: dict[str, list[Any]], since: datetime) -> Iterator[str]:
    recent = [row for row in sections["Versions"] if row.decided_at >= since]
    yield "<h2>Does it get better?</h2>"
    if svg := plots.gate(recent, since):
        caption = (
            "By the measure of the promotion gate, on events that neither version had seen: how"
            " much better the new version ranked what readers engaged with, and its interval."
            " Above the line it is better. Only what is better by more than chance explains serves."
        )
        yield _figure("Each trained version against the one that served", svg, caption, "wide")
    else:
        yield "<p>No version was judged in this time.</p>"
    if svg := plots.experiments(sections["Experiments"]):
        yield "<h2>Experiments</h2>"
        yield _figure("Difference of each arm, with its 95 % interval", svg, kind="narrow")


def _charts(
    sections: dict[str, list[Any]], measured: dict[str, list[Any]], since: datetime
) -> Iterator[str]:
    targets = {row.name: row for row in sections["Health"]}
    yield "<h2>Figures over time</h2>"
    yield '<p class="muted">Dashed: the target (green) and the alert (red). Shaded: from the lowest'
    yield "to the highest measurement.</p>"
    yield '<div class="cards">'
    silent = []
    for title, names in CHARTS:
        if svg := plots.over_time(names, measured, targets, since):
            yield _figure(title, svg, targets[names[0]].description if len(names) == 1 else "")
        else:
            silent.append(title.lower())
    yield "</div>"
    if silent:
        yield f'<p class="muted">Not measured in this time: {escape(", ".join(silent))}.</p>'


def _map(found: Map | None) -> Iterator[str]:
    if found is None:
        return
    yield "<h2>A map of posts</h2>"
    caption = (
        "Posts by their vectors, in the two directions in which they differ most. Near means alike,"
        " as far as two of 128 directions can show it."
    )
    yield _figure(
        f"{count(len(found.keys), 'post')} and a reader", plots.post_map(found), caption, "wide"
    )


def _records(sections: dict[str, list[Any]]) -> Iterator[str]:
    now = sections["Overview"][0].now
    yield from _table(
        "Experiments in numbers",
        ("experiment", "arm", "readers", "positives a view", "difference", "verdict"),
        (
            (
                row.experiment, row.arm, f"{row.users:,}", number(row.positives_per_view),
                "" if row.difference_low is None else
                f"{row.difference:+.3g} ({row.difference_low:+.3g} to {row.difference_high:+.3g})",
                row.verdict or "",
            )
            for row in sections["Experiments"]
        ),
    )  # fmt: skip
    yield from _table(
        "Checkpoints",
        ("checkpoint", "made", "why", "posts", "readers", "audit"),
        (
            (
                str(row.id), clock(row.made_at, now), row.reason, f"{row.posts:,}",
                f"{row.users:,}", {None: "none yet", True: "good"}.get(row.is_good, "not good"),
            )
            for row in sections["Checkpoints"]
        ),
    )  # fmt: skip
    yield from _table(
        "Storage",
        ("table", "takes", "grows", "for how long", "in the end"),
        ((row.table_name, *describe_table(row)) for row in sections["Storage"]),
    )


def _table(title: str, heads: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> Iterator[str]:
    body = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines]
    if body:
        head = "".join(f"<th>{each}</th>" for each in heads)
        yield f'<h2>{title}</h2><div class="card wide"><table><tr>{head}</tr>'
        yield "".join(f"<tr>{line}</tr>" for line in body) + "</table></div>"
