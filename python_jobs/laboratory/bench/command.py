"""`two-tower bench`: the budgets as tables, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.status import Status
from rich.table import Table

from python_jobs.laboratory.bench import (
    alternatives,
    cpu,
    growth,
    inserts,
    operations,
    serving,
    sources,
    towers,
)
from python_jobs.laboratory.bench.feed import AUTHORS, READERS, fill_feed
from python_jobs.laboratory.bench.plan import explain_page
from python_jobs.laboratory.bench.world import filled_world, world

Command = TypeVar("Command", bound=Callable[..., Any])
SIZES = {
    "users": "Users, each with a history.",
    "posts": "Posts to make.",
    "events": "Events to insert.",
    "likes": "Likes to send, with the sample of latencies and without.",
    "engagements": "Likes after which pages are measured again.",
}


def size(name: str, default: int, least: int) -> Callable[[Command], Command]:
    """The option that says how many of something there are."""
    kind = click.IntRange(least)
    return click.option(
        f"--{name}", default=default, show_default=True, type=kind, help=SIZES[name]
    )


@click.group()
def bench() -> None:
    """Measure the budgets, on a Postgres of its own."""


@bench.command("inserts")
@click.option("--quick", is_flag=True, help="Two short rounds: a minute, for a first look.")
@size("users", 20_000, 100)
@size("posts", 20_000, 1000)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_inserts(quick: bool, users: int, posts: int, as_json: bool, check: bool) -> None:
    """What an event costs against a plain insert of the same row."""
    rounds, seconds = (2, 1) if quick else (5, 3)
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = inserts.measure(target, rounds, {"seconds": seconds}, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_inserts(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)


@bench.command("cpu")
@size("likes", 100_000, 500)
@size("users", 20_000, 100)
@size("posts", 20_000, 1000)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_cpu(likes: int, users: int, posts: int, as_json: bool, check: bool) -> None:
    """What an event costs the server in CPU time.

    And what the sample of latencies, which health shows, adds to a like.
    """
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = cpu.measure(target, likes, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_cpu(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)


@bench.command("operations")
@size("posts", 100_000, 1000)
@size("users", 20_000, 100)
@size("events", 10_000, 100)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_operations(posts: int, users: int, events: int, as_json: bool, check: bool) -> None:
    """What an operator waits for.

    A checkpoint, an undo, a rollback, a look at health; and how long a writer waits while the
    checkpoint is made.
    """
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = operations.measure(target, events, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_operations(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)


@bench.command("alternatives")
@size("users", 20_000, 1000)
@size("posts", 20_000, 1000)
@click.option("--quick", is_flag=True, help="One short round, for a first look.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_alternatives(users: int, posts: int, quick: bool, as_json: bool) -> None:
    """What a user would have instead.

    A service beside the database that learns as the specification lists it, and pgvector by hand.
    """
    rounds, acts = (1, 50) if quick else (5, 200)
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = alternatives.measure(target, rounds, acts, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_alternatives(report)


@bench.command("growth")
@size("events", 1_000_000, 1000)
@size("users", 20_000, 100)
@size("posts", 20_000, 1000)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_growth(events: int, users: int, posts: int, as_json: bool) -> None:
    """What grows when a million events arrive at full speed.

    A tenth of them are likes.
    """
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = growth.measure(target, events, 10, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_growth(report)


@bench.command("serving")
@size("posts", 100_000, 10_000)
@size("engagements", 200_000, 0)
@click.option("--quick", is_flag=True, help="One short round, for a first look.")
@click.option("--explain", is_flag=True, help="Print the plans of a page, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_serving(
    posts: int, engagements: int, quick: bool, explain: bool, as_json: bool, check: bool
) -> None:
    """What a page costs against the bare index, and what it misses.

    What it misses is told by an exact search.
    """
    rounds, seconds = (1, 1) if quick else (3, 3)
    memory = f"{max(512, posts // 400)}MB"  # the vectors of a feed that is being read are in memory
    with (
        progress("filling a database") as status,
        world(READERS + AUTHORS, posts, {"shared_buffers": memory}) as target,
    ):
        fill_feed(target)
        if explain:
            status.update("building the serving index")
            serving.build(target)
            click.echo(explain_page(target, 4))
            return
        report = serving.measure(target, engagements, rounds, {"seconds": seconds}, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2, default=str))
    else:
        show_serving(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)


@bench.command("sources")
@size("posts", 200_000, 1000)
@click.option("--quick", is_flag=True, help="Three rounds, for a first look.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_sources(posts: int, quick: bool, as_json: bool, check: bool) -> None:
    """What attaching a table costs.

    Its writes, its pages, and events by its keys. Writes are compared with those to the same
    table bare.
    """
    with (
        progress("filling a database") as status,
        world(READERS + AUTHORS, posts) as target,
    ):
        fill_feed(target)
        status.update("building the serving index")
        serving.build(target)
        report = sources.measure(target, 3 if quick else 15, status.update)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_sources(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)


@bench.command("towers")
@click.option(
    "--posts",
    "sizes",
    multiple=True,
    default=(1000, 10_000, 100_000),
    show_default=True,
    type=click.IntRange(1000),
    help="May be repeated.",
)
@size("users", 1000, 100)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_towers(sizes: tuple[int, ...], users: int, as_json: bool, check: bool) -> None:
    """What training costs, and who notices a new tower.

    Readers and writers are at work meanwhile.
    """
    with progress("starting") as status:
        report = towers.measure(
            lambda posts: filled_world(users, posts), list(sizes), status.update
        )
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_towers(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)


def progress(message: str) -> Status:
    """A line on stderr that says what is being done."""
    return Console(stderr=True).status(message)


def show_inserts(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [
        [
            case["case"],
            *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)),
            f"{case['p50_to_plain']:.2f}" if case["p50_to_plain"] else "",
            f"{case['events_per_s']:,.0f}",
            f"{case['wal_bytes_per_event']:,.0f}",
        ]
        for case in report["cases"]
    ]
    head = ["insert", "p50 ms", "p95 ms", "p99 ms", "p50 / plain", "events/s", "WAL B/event"]
    console.print(table("Inserts, medians over rounds in turn", head, rows))
    for title, unit, parts in (
        ("Where a like spends its time", "us", report["parts_of_a_like_us"]),
        ("What a like writes to the WAL", "bytes", report["wal_of_a_like_bytes"]),
    ):
        total = sum(parts.values())
        rows = [[k, f"{v:,.0f}", f"{v / total:.0%}"] for k, v in parts.items() if v >= total / 100]
        console.print(table(title, ["part", unit, "share"], rows))
    shares = [[name, f"{share:.2%}"] for name, share in report["updates_in_place"].items()]
    console.print(table("Updates within their page (HOT)", ["table", "share"], shares))
    console.print(
        table(
            "Budgets",
            ["budget", "figure", "bound", ""],
            budget_rows(report),
        )
    )
    show_facts(console, {**report["versions"], **report["verdicts"]})


def show_cpu(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [[name, f"{cost:,.0f}"] for name, cost in report["events"].items()]
    console.print(table("CPU time of the server", ["event", "us an event"], rows))
    sample = report["sample"]
    console.print(table("Budgets", ["budget", "figure", "bound", ""], budget_rows(report)))
    console.print(
        f"The sample costs {sample['us']:.1f} us a like ({sample['low_us']:.1f} to"
        f" {sample['high_us']:.1f}, 95 %), over {sample['likes']:,} likes with it and without."
    )
    show_facts(console, report["versions"])


def show_operations(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    console.print(table("Budgets", ["budget", "figure", "bound", ""], budget_rows(report)))
    figures = report["figures"]
    facts = {
        "posts in the checkpoint": f"{figures['checkpoint_posts']:,}",
        "users in it": f"{figures['checkpoint_users']:,}",
        "slowest like": f"{figures['slowest_write_ms']:.0f} ms",
        "while it was made": f"{figures['slowest_write_during_ms']:.0f} ms",
        "the serving index was built in": f"{figures['index_s']:.0f} s",
    }
    show_facts(console, {**facts, **report["versions"]})


def show_alternatives(report: dict[str, Any]) -> None:
    """A table for people."""
    console = wide_console()
    columns = ["", "like p50 ms", "p99 ms", "likes/s, 8 clients", "page p50 ms", "p99 ms"]
    lines = [
        [
            way["way"],
            *(f"{way[name]:.2f}" for name in ("like_p50_ms", "like_p99_ms")),
            f"{way['likes_per_s']:,.0f}",
            *(f"{way[name]:.2f}" for name in ("page_p50_ms", "page_p99_ms")),
            f"{way['counted']:,} of {way['likes_of_one_post']:,}",
        ]
        for way in report["ways"]
    ]
    console.print(
        table("Likes and pages of 50", [*columns, "likes of one post at once: counted"], lines)
    )
    show_facts(console, report["versions"])


def show_growth(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [
        [
            line["table"],
            *(f"{line['bytes'][k] / 2**20:,.1f}" for k in (1, len(line["bytes"]) // 2, -1)),
            f"{line['index_share']:.0%}",
            f"{line['bytes_per_event']:,.0f}",
            f"{line['dead']:,}",
            f"{line['autovacuums']}",
            line["bounded_by"],
        ]
        for line in report["tables"]
    ]
    head = ["table", "MB first", "middle", "end", "indexes", "B/event", "dead", "vacuums"]
    console.print(table(f"Growth over {report['events']:,} events", [*head, "bounded by"], rows))
    slices = [
        [f"{number + 1}", *(f"{ms:.2f}" for ms in line.values())]
        for number, line in enumerate(report["latency_ms"])
    ]
    ratios = ["late to early", *(f"{ratio:.2f} x" for ratio in report["late_to_early"].values())]
    head = ["slice", "p50 ms", "p95 ms", "p99 ms"]
    console.print(table("A statement of 20 events, 4 clients", head, [*slices, ratios]))
    names = ("events_per_s", "wal_bytes_per_event", "ticks", "longest_tick_s", "left_in_queue")
    show_facts(console, {**{k: f"{report[k]:,.1f}" for k in names}, **report["versions"]})


def show_serving(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    states = {"fresh": "On a fresh index", "worn": f"After {report['engagements']:,} engagements"}
    for state, title in states.items():
        if state not in report:
            continue
        measured = report[state]
        rows = []
        for case in measured["cases"]:
            k = case["interests"]
            bare = measured["bare"][k]
            is_bare = case["case"] == "bare HNSW"
            rows.append(
                [
                    case["case"] + (f", ef {bare['ef']}, {bare['rows']} rows" if is_bare else ""),
                    *(str(k), str(case["clients"])),
                    f"{bare['recall'] if is_bare else measured['recall'][k]:.3f}",
                    *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)),
                    f"{case['pages_per_s']:,.0f}",
                ]
            )
        head = ["", "interests", "clients", "recall@50", "p50 ms", "p95 ms", "p99 ms", "pages/s"]
        console.print(table(f"{title}: pages of 50, 1,000 seen, 20 blocked", head, rows))
    rows = [
        [case["situation"], *(f"{case[name]:.1f}" for name in ("p50_ms", "scan_ms"))]
        for case in report["scarce"]
    ]
    head = ["where", "page, p50 ms", "exact scan, p50 ms"]
    console.print(table("Readers for whom little is left", head, rows))
    if faiss := report["faiss"]:
        columns = {"ef": 0, "recall": 3, "p50_ms": 2, "p99_ms": 2}
        rows = [
            [str(k), *(f"{f[name]:.{digits}f}" for name, digits in columns.items())]
            for k, f in faiss["interests"].items()
        ]
        head = ["interests", "ef", "recall@50", "p50 ms", "p99 ms"]
        title = "FAISS HNSW in memory, as a reference: no filter, no transaction, no update"
        console.print(table(title, head, rows))
    console.print(table("Budgets", ["budget", "figure", "bound", ""], budget_rows(report)))
    facts = {
        "build": f"{report['build']['seconds']:.0f} s",
        "index": f"{report['build']['index_bytes'] / 2**20:.0f} MB",
    }
    if faiss:
        facts["FAISS build"] = f"{faiss['build_s']:.0f} s"
        facts["FAISS index"] = f"{faiss['index_bytes'] / 2**20:.0f} MB"
    if "worn" in report:
        facts["likes/s with a worker beside"] = (
            f"{report['engagements'] / report['engaging_s']:,.0f}"
        )
        facts["copies replaced"] = f"{report['index']['replaced']:,}"
        facts["builds"] = str(report["builds"])
        facts["recall after a fresh build"] = ", ".join(
            f"{recall:.3f}" for recall in report["rebuilt_recall"].values()
        )
    show_facts(console, {**facts, **report["versions"]})


def show_sources(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = []
    for name, cases in report["groups"].items():
        for number, case in enumerate(cases):
            figures = [f"{case['p50_ms']:.2f}", f"{case['cpu_us']:,.0f}"]
            if number:
                figures += [f"{case['p50_ratio']:.2f}", f"{case['cpu_ratio']:.2f}"]
                figures += [f"{case['more_cpu_us_per_row']:,.1f}"]
            rows.append(["" if number else name, case["case"], *figures])
    head = ["", "", "p50 ms", "CPU us", "p50 ratio", "CPU ratio", "CPU us more a row"]
    console.print(table("Attached tables, against the first of each group", head, rows))
    console.print(table("Budgets", ["budget", "figure", "bound", ""], budget_rows(report)))
    show_facts(console, report["versions"])


def budget_rows(report: dict[str, Any]) -> list[list[str]]:
    """Rows of the table of budgets."""
    return [
        [b["budget"], f"{b['figure']:,.2f}", b["bound"], "kept" if b["is_kept"] else "OVER"]
        for b in report["budgets"]
    ]


def show_towers(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    columns = {
        "posts": "posts", "candidate tower s": "candidate_s", "CPU": "candidate_cpu_s",
        "peak MB": "candidate_mb", "user tower s": "user_s", "CPU ": "user_cpu_s",
        "peak MB ": "user_mb", "refresh s": "refresh_s",
        "peak MB  ": "refresh_mb", "read p99 ms": "read_p99_ms", "during": "read_p99_during_ms",
        "slowest write ms": "slowest_write_ms", "during ": "slowest_write_during_ms",
        "new post s": "new_post_s", "beside training": "new_post_training_s",
    }  # fmt: skip
    rows = [
        ["-" if row[key] is None else f"{row[key]:,.{0 if 'mb' in key or key == 'posts' else 1}f}"
         for key in columns.values()]
        for row in report["rows"]
    ]  # fmt: skip
    console.print(table("Training, by number of posts", columns, rows))
    console.print(
        table(
            "Budgets, at the largest number of posts",
            ["budget", "figure", "bound", ""],
            [
                [
                    b["budget"],
                    "-" if b["figure"] is None else f"{b['figure']:,.2f}",
                    b["bound"],
                    "kept" if b["is_kept"] else "OVER",
                ]
                for b in report["budgets"]
            ],
        )
    )
    last = report["rows"][-1]
    facts = {
        "pairs": last["pairs"], "users trained": last["users"],
        "a process before its job": f"{last['start_mb']:.0f} MB",
        "texts/s and core": f"{report['texts_per_s_and_core']:.0f}",
    }  # fmt: skip
    show_facts(console, {**facts, **report["versions"]})


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is text and the others numbers."""
    made = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        made.add_column(name, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def wide_console() -> Console:
    """Tables are not cut where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """What was measured on, in one line."""
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
