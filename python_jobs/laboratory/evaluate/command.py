"""`two-tower evaluate`: our recommendations against popularity, static content and batch peers."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from python_jobs.errors import CommandError
from python_jobs.laboratory.evaluate.database import TwoTower
from python_jobs.laboratory.evaluate.interactions import Stream, from_csv, from_movielens
from python_jobs.laboratory.evaluate.measure import (
    Answers,
    Questions,
    choose_questions,
    compare,
    over_time,
    run,
    summarise,
)
from python_jobs.laboratory.evaluate.plot import plot
from python_jobs.laboratory.evaluate.systems import Peer, Popularity, StaticContent, System
from python_jobs.laboratory.evaluate.tuning import GRIDS, tuned_peer
from python_jobs.laboratory.feed_world.command import evaluate_feed
from python_jobs.laboratory.movielens import load
from python_jobs.laboratory.server import databases
from python_jobs.state import state_dir

OURS = "two-tower"
JOBS_OFF = "jobs off"
BASES = {JOBS_OFF: "to_jobs_off", "ALS": "to_als"}
LEAST_EVENTS = 100
ABLATION = {
    JOBS_OFF: (),
    "study only": ("study",),
    "candidate tower only": ("candidate_tower",),
    "user tower only": ("user_tower",),
    "all jobs": ("study", "candidate_tower", "user_tower"),
}


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A CSV of yours: user, item, time, event_type and, if there, text and dwell_ms.",
)
@click.option(
    "--path",
    type=click.Path(exists=True, path_type=Path),
    help="A folder with MovieLens 100K, instead of downloading it.",
)
@click.option("--events", type=click.IntRange(LEAST_EVENTS), help="Only the first so many events.")
@click.option(
    "--questions",
    default=10_000,
    show_default=True,
    type=click.IntRange(10),
    help="So many positives are asked for, evenly over the stream.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of two_tower.settings for our system; may be repeated.",
)
@click.option("--ablation", is_flag=True, help="Compare jobs on and off instead of peers.")
@click.option("--only-ours", is_flag=True, help="Leave out ALS, item-kNN and the literal rule.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write NDCG@10 over time to this .png, .svg or .pdf.",
)
@click.option("--feed", is_flag=True, help="Judge the feeds of simulated readers of real texts.")
@click.option("--small", is_flag=True, help="With --feed: worlds that take seconds, not minutes.")
@click.option(
    "--seeds",
    default=5,
    show_default=True,
    type=click.IntRange(1, 5),
    help="With --feed: the number of worlds.",
)
@click.option(
    "--kept-apart",
    is_flag=True,
    help="With --feed: worlds of other texts, for a last check. Choose nothing by them.",
)
@click.option("--pages", is_flag=True, help="With --feed: print ten pages of one reader instead.")
def evaluate(
    data: Path | None,
    path: Path | None,
    events: int | None,
    questions: int,
    overrides: tuple[str, ...],
    ablation: bool,
    only_ours: bool,
    as_json: bool,
    plot_path: Path | None,
    feed: bool,
    small: bool,
    seeds: int,
    kept_apart: bool,
    pages: bool,
) -> None:
    """Judge recommendations on a stream, against other systems.

    Each positive is asked for before it is learned. With --feed, readers are simulated, and each
    system lives with what its own pages led to.
    """
    if feed:
        evaluate_feed(small, kept_apart, seeds, parse_settings(overrides), as_json, pages)
        return
    stream = from_csv(data) if data else from_movielens(load(path, state_dir() / "ml-100k"))
    stream = stream.head(events)
    if len(stream.users) < LEAST_EVENTS:
        raise CommandError(f"{len(stream.users)} events are too few: it takes {LEAST_EVENTS}.")
    asked = choose_questions(stream, questions)
    settings = parse_settings(overrides)
    with ExitStack() as on_exit, Progress(console=Console(stderr=True)) as progress:
        base = encode(stream)
        systems: list[System] = [Popularity(stream, 30)]
        new_database = on_exit.enter_context(databases())
        for name, jobs in (ABLATION if ablation else {OURS: ("study",)}).items():
            systems.append(TwoTower(name, new_database(on_exit), stream, base, settings, jobs))
        if not ablation:
            systems += [Popularity(stream, None), StaticContent(stream, base)]
        if not ablation and not only_ours:
            literal = {**settings, "learning_rule": "literal"}
            systems.append(TwoTower("literal rule", new_database(on_exit), stream, base, literal))
            for name, grid in GRIDS.items():
                tries = progress.add_task(f"tune {name}", total=len(grid))
                systems.append(tuned_peer(stream, name, partial(_update, progress, tries)))
        found = []
        for system in systems:
            task = progress.add_task(system.name, total=len(stream.users))
            found.append(run(system, stream, asked, partial(_update, progress, task)))
            progress.update(task, completed=len(stream.users))
        report = describe(found, systems, asked, stream)
    if plot_path:
        plot(report, plot_path)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show(report)


def _update(progress: Progress, task: TaskID, completed: int) -> None:
    progress.update(task, completed=completed)


def parse_settings(overrides: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE as given. Raises BadParameter for anything else."""
    settings = {}
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator or not name.isidentifier():
            raise click.BadParameter(f"{override} is not NAME=VALUE", param_hint="--set")
        settings[name] = value
    return settings


def encode(stream: Stream) -> np.ndarray:
    """Base embeddings of all items: float32 [items, 384]."""
    from python_jobs.worker.encoder import Encoder

    return Encoder().encode(stream.texts)


def describe(
    found: list[Answers], systems: list[System], asked: Questions, stream: Stream
) -> dict[str, Any]:
    """All figures; each system against decayed popularity and against ALS or, in an ablation,
    jobs off."""
    bases = {"to_popularity": found[0]}
    for answers in found:
        if answers.name in BASES:
            bases[BASES[answers.name]] = answers
    parts = {"all": np.ones(len(asked.numbers), dtype=bool), "tail": asked.is_tail}
    rows = []
    for answers, system in zip(found, systems, strict=True):
        row = summarise(answers, asked, len(stream.texts))
        for part in parts.keys() & row.keys():
            for name, base in bases.items():
                row[part][name] = compare(answers, base, asked, parts[part])
        row["over_time"] = over_time(answers, asked)
        if isinstance(system, TwoTower):
            row["mean_cosine"] = system.collapse()
            row["versions"] = system.versions()
            row["agreements"] = system.agreements()
        if isinstance(system, Peer):
            row["config"] = {"kind": system.kind, **system.config}
        rows.append(row)
    return {
        "events": len(stream.users),
        "users": stream.user_count,
        "items": len(stream.texts),
        "questions": len(asked.numbers),
        "tail_starts_at": 100 * float(np.mean(~asked.is_tail)),
        "systems": rows,
    }


def show(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    console.print(
        f"{report['events']:,} events, {report['users']:,} users, {report['items']:,} items,"
        f" {report['questions']:,} questions. In brackets: paired bootstrap"
        " over users, 95 %. Of cold users and items fewer than ten positives were known: NDCG@10."
    )
    for part, title in (("all", "Whole stream"), ("tail", "Tail: the last fifth of the stream")):
        console.print(_table(report["systems"], part, title))
    bars = "▁▂▃▄▅▆▇█"
    highest = max(max(row["over_time"]) for row in report["systems"]) or 1
    console.print("NDCG@10 over time:")
    for row in report["systems"]:
        line = "".join(bars[round(value / highest * (len(bars) - 1))] for value in row["over_time"])
        console.print(f"  {row['name']:24} {line}")
    for row in report["systems"]:
        if row.get("mean_cosine") is not None:
            console.print(
                f"{row['name']}: mean cosine of the most engaged posts {row['mean_cosine']:.3f};"
                f" versions of towers: {row['versions']}; Spearman of cosines with those of the"
                f" texts: {row['agreements']}"
            )
        if "config" in row:
            console.print(f"{row['name']}: chosen on the first four fifths: {row['config']}")


def _table(systems: list[dict[str, Any]], part: str, title: str) -> Table:
    rows = [row for row in systems if part in row]
    ratios = [name for name in ("to_popularity", *BASES.values()) if name in rows[0][part]]
    kinds = ("cold_users", "warm_users", "cold_items", "warm_items")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for head in (
        "NDCG@10", *(name.replace("_", " ") for name in ratios), "HR@10", "HR@50", "MRR",
        *(kind.replace("_", " ") for kind in kinds), "coverage@10",
    ):  # fmt: skip
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        figures = row[part]
        table.add_row(
            row["name"],
            f"{figures['ndcg_10']:.4f}",
            *("{ratio:.2f} ({low:.2f} to {high:.2f})".format(**figures[name]) for name in ratios),
            *(f"{figures[name]:.4f}" for name in ("hit_rate_10", "hit_rate_50", "mrr")),
            *(("ndcg_10" in figures[k] and f"{figures[k]['ndcg_10']:.4f}") or "" for k in kinds),
            f"{figures['coverage_10']:.2f}",
        )
    return table
