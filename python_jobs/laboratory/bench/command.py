"""`two-tower bench`: the budgets as tables, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.status import Status

from python_jobs.laboratory.bench import (
    alternatives,
    cpu,
    growth,
    inserts,
    operations,
    serving,
    sources,
    study,
    tables,
    towers,
    upkeep,
)
from python_jobs.laboratory.bench.feed import AUTHORS, READERS, fill_feed
from python_jobs.laboratory.bench.plan import explain_page
from python_jobs.laboratory.bench.world import filled_world, world

Command = TypeVar("Command", bound=Callable[..., Any])
SIZES = {
    "users": "Users, each with a history.",
    "posts": "Posts to make.",
    "events": "Events to insert.",
    "likes": "Likes to send, timed and not timed, and as many views.",
    "engagements": "Likes after which pages are measured again.",
    "window": "Likes before those, which a study repeats too.",
    "new": "Likes that are new to the study.",
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
    tell(report, tables.show_inserts, as_json, check)


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
    tell(report, tables.show_cpu, as_json, check)


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
    tell(report, tables.show_operations, as_json, check)


@bench.command("study")
@size("posts", 100_000, 1000)
@size("users", 1000, 100)
@size("window", 19_000, 100)
@size("new", 1000, 50)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_study(posts: int, users: int, window: int, new: int, as_json: bool, check: bool) -> None:
    """What a study costs, and who notices it.

    Readers and a writer are at work meanwhile.
    """
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = study.measure(target, window, new, status.update)
    tell(report, tables.show_study, as_json, check)


@bench.command("upkeep")
@size("posts", 300_000, 1000)
@size("users", 20_000, 100)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 when a budget is exceeded.")
def bench_upkeep(posts: int, users: int, as_json: bool, check: bool) -> None:
    """What runs by itself, and who waits for it.

    Each scheduled step that needs no worker, ticks, and a look at health.
    """
    with progress("filling a database") as status, filled_world(users, posts) as target:
        report = upkeep.measure(target, status.update)
    tell(report, tables.show_upkeep, as_json, check)


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
    tell(report, tables.show_alternatives, as_json)


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
    tell(report, tables.show_growth, as_json)


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
    tell(report, tables.show_serving, as_json, check)


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
    tell(report, tables.show_sources, as_json, check)


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
    tell(report, tables.show_towers, as_json, check)


def progress(message: str) -> Status:
    """A line on stderr that says what is being done."""
    return Console(stderr=True).status(message)


def tell(
    report: dict[str, Any],
    show: Callable[[dict[str, Any]], None],
    as_json: bool,
    check: bool = False,
) -> None:
    """Prints a report for a program or for people. Exits with 1 where a budget is to be kept and
    is not."""
    if as_json:
        click.echo(json.dumps(report, indent=2, default=str))
    else:
        show(report)
    if check and not all(line["is_kept"] for line in report["budgets"]):
        sys.exit(1)
