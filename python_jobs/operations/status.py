"""`two-tower status`: is all well, and if not, what is not; what is at work; what waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from python_jobs.errors import CommandError
from python_jobs.operations.tables import print_json, read_sections
from python_jobs.operations.verdict import ALERT, OK, WARNING, Finding, judge
from python_jobs.operations.words import clock, count, number, span

QUERIES = {
    "Overview": "select *, two_tower.now() as now,"
    " two_tower.seconds_without_worker() as seconds_without_worker from two_tower.overview",
    "Health": "select * from two_tower.read_health()",
    "Alerts": "select kind, subject, message, advice, page, occurrences, opened_at"
    " from two_tower.open_alerts order by opened_at desc, kind, subject",
    "Workers": "select * from two_tower.live_workers order by claimed_at, name",
    "Jobs": "select kind, state, count(*) as jobs, max(finished_at) as last_finished_at"
    " from two_tower.jobs group by 1, 2 order by 1, 2",
    "Warmth": "select * from two_tower.warmth order by engagements",
    "Schedules": "select kind, runs_in, every::text, every_events, is_enabled, last_run_at,"
    " last_run_at + every as due_at from two_tower.schedules order by kind",
    "Towers": "select version, tower, state, verdict, created_at, decided_at"
    " from two_tower.model_weights order by version desc limit 20",
}
STYLES = {OK: "green", WARNING: "yellow", ALERT: "bold red"}
MARKS = {OK: "✔", WARNING: "▲", ALERT: "✖"}
SHOWN_FINDINGS = 8
SHOWN_REJECTED = 3
REFRESH_S = 2.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Stay, and look again and again. Ctrl-C ends it.")
def status(as_json: bool, watch: bool) -> None:
    """Show whether all is well, and if not, what is not.

    Then what there is, who works on what, what waits, and what serves. Times are local.
    """
    if as_json:
        print_json(read_sections(QUERIES))
    elif watch:
        _watch(Console())
    else:
        Console().print(page(read_sections(QUERIES)))


def _watch(console: Console) -> None:
    """A database that goes away meanwhile is told, and looked for again.

    Counting large tables takes long: looking takes at most a tenth of the time.
    """
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        try:
            while True:
                began = time.monotonic()
                live.update(_look(), refresh=True)
                time.sleep(max(REFRESH_S, 9 * (time.monotonic() - began)))
        except KeyboardInterrupt:
            return


def _look() -> RenderableType:
    try:
        return page(read_sections(QUERIES))
    except CommandError as error:
        return Text(f"{MARKS[ALERT]} {error.message}", STYLES[ALERT])


def page(sections: dict[str, list[Any]]) -> Group:
    """All of it, as wide as the console. sections: the rows of QUERIES."""
    (overview,) = sections["Overview"]
    verdict = judge(overview, sections["Health"], sections["Alerts"])
    head = Text(f"{MARKS[verdict.state]} {verdict.sentence}", STYLES[verdict.state])
    parts: list[RenderableType] = [head, Text("")]
    parts += [describe_finding(each, overview.now) for each in verdict.findings[:SHOWN_FINDINGS]]
    if hidden := len(verdict.findings) - SHOWN_FINDINGS:
        parts += [Text(f"  and {hidden:,} more: two-tower report", "dim")] if hidden > 0 else []
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, lines in facts(sections):
        grid.add_row(label, "\n".join(lines))
    return Group(*parts, *([Text("")] if verdict.findings else []), grid)


def describe_finding(finding: Finding, now: datetime) -> RenderableType:
    """What, since when, and below it why and what to do."""
    since = f"  since {clock(finding.since, now)}" if finding.since else ""
    often = f", {finding.occurrences:,} times" if finding.occurrences > 1 else ""
    head = Text.assemble(
        (f"{MARKS[finding.state]} ", STYLES[finding.state]),
        (finding.what, "bold"),
        (since + often, "dim"),
    )
    return Group(head, Padding(Text(finding.text), (0, 0, 0, 2), expand=False))


def facts(sections: dict[str, list[Any]]) -> Iterator[tuple[str, list[str]]]:
    """Labels with their lines: what there is, who works, what waits, what serves."""
    (overview,) = sections["Overview"]
    health = {row.name: row.value for row in sections["Health"]}
    yield (
        "There is",
        [
            f"{count(overview.posts, 'post')} ({overview.encoded_posts:,} encoded),"
            f" {count(overview.users, 'reader')}, {count(overview.events, 'event')}"
        ],
    )
    yield "Workers", _workers(sections["Workers"], overview)
    yield "Waiting", [", ".join(_waiting(health, overview)) or "nothing"]
    yield "Serving", [*_serving(overview), _warmth(sections["Warmth"])]
    if rejected := [row for row in sections["Towers"] if row.state == "rejected"]:
        yield "Rejected", [_rejected(row, overview.now) for row in rejected[:SHOWN_REJECTED]]
    yield "Schedules", _schedules(sections["Schedules"], overview.now)


def _workers(workers: list[Any], overview: Any) -> list[str]:
    if not workers:
        silence = overview.seconds_without_worker
        return ["none has run yet" if silence is None else f"none for {span(silence)}"]
    return [
        f"{row.name} "
        + (
            f"does {row.kind} for {span(overview.now - row.claimed_at)}"
            + (f", attempt {row.attempts}" if row.attempts > 1 else "")
            if row.kind
            else "waits for work"
        )
        + f" (up {span(overview.now - row.started_at)}, {row.version or 'unknown release'})"
        for row in workers
    ]


def _waiting(health: dict[str, float | None], overview: Any) -> Iterator[str]:
    for name, thing in (("posts", "post"), ("texts", "text"), ("jobs", "job")):
        waiting = int(health.get(f"waiting_{name}") or 0)
        if waiting:
            age = span(health.get(f"oldest_waiting_{thing}"))
            yield f"{count(waiting, thing)} (the oldest for {age})"
    if overview.deferred_events:
        yield f"{count(overview.deferred_events, 'event')} for a vector or the end of a freeze"
    if overview.waiting_events:
        longest = span(overview.longest_wait)
        yield f"{count(overview.waiting_events, 'event')} of busy readers (the first for {longest})"
    if overview.deferred_steps:
        yield f"{count(overview.deferred_steps, 'step')} to fold"


def _serving(overview: Any) -> list[str]:
    user = f"user tower {overview.user_tower}" if overview.user_tower else "no user tower yet"
    lines = [
        f"candidate tower {overview.candidate_tower} ({overview.projection}), {user},"
        f" rule {overview.learning_rule}"
    ]
    if overview.filling_version is not None:
        lines.append(f"changing to candidate tower {overview.filling_version}")
    return lines


def _warmth(curve: list[Any]) -> str:
    """After how many engagements pages are a warm reader's, and the evidence after the first."""
    warm = [row.engagements for row in curve if row.warmth >= 1]
    line = f"a reader is warm after {count(warm[0], 'engagement') if warm else '20 or more'}"
    _, after_one, *_ = curve
    if not after_one.trials:
        return line
    return (
        f"{line}; after 1, vectors rank {number(after_one.personal)} of 100 right,"
        f" popularity {number(after_one.popular)}"
    )


def _rejected(row: Any, now: datetime) -> str:
    tower = row.tower.replace("_", " ")
    at = clock(row.decided_at or row.created_at, now)
    return f"{tower} {row.version}, {at}: {row.verdict.removeprefix('rejected: ')}"


def _schedules(schedules: list[Any], now: datetime) -> list[str]:
    on = [row for row in schedules if row.is_enabled]
    lines = [f"{count(len(on), 'schedule')} on"]
    coming = sorted((row.due_at, row.kind) for row in on if row.due_at and row.due_at > now)
    if coming:
        lines[0] += "; next " + ", ".join(f"{kind} in {span(at - now)}" for at, kind in coming[:2])
    if off := [row.kind for row in schedules if not row.is_enabled]:
        lines.append(f"off: {', '.join(off)}")
    return lines
