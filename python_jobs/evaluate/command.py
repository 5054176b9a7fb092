"""`two-tower evaluate`: our recommendations against popularity, static content and batch peers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from python_jobs.db import connect
from python_jobs.evaluate.database import TwoTower
from python_jobs.evaluate.interactions import Stream, from_csv, from_movielens
from python_jobs.evaluate.measure import (
    Answers,
    Questions,
    choose_questions,
    compare,
    over_time,
    run,
    summarise,
)
from python_jobs.evaluate.systems import Batch, Popularity, StaticContent, System
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.local.stack import Stack
from python_jobs.migrate import migrate
from python_jobs.movielens import load
from python_jobs.project import project_dir

OURS = "two-tower"
ABLATION = {
    "jobs off": (),
    "candidate tower only": ("candidate_tower",),
    "user tower only": ("user_tower",),
    "both towers": ("candidate_tower", "user_tower"),
}


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A CSV of yours: user, item, time, event_type and, if there, text.",
)
@click.option(
    "--path",
    type=click.Path(exists=True, path_type=Path),
    help="A folder with MovieLens 100K, instead of downloading it.",
)
@click.option("--events", type=click.IntRange(100), help="Only the first so many events.")
@click.option(
    "--questions",
    default=5000,
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
@click.option("--ablation", is_flag=True, help="Compare towers on and off instead of peers.")
@click.option("--only-ours", is_flag=True, help="Leave out ALS, item-kNN and the literal rule.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    data: Path | None,
    path: Path | None,
    events: int | None,
    questions: int,
    overrides: tuple[str, ...],
    ablation: bool,
    only_ours: bool,
    as_json: bool,
) -> None:
    """Judge recommendations: each positive is asked for before it is learned."""
    stack_dir = Stack().state_dir
    stream = from_csv(data) if data else from_movielens(load(path, stack_dir / "ml-100k"))
    stream = stream.head(events)
    asked = choose_questions(stream, questions)
    settings = parse_settings(overrides)
    with ExitStack() as on_exit, Progress(console=Console(stderr=True)) as progress:
        base = encode(stream)
        systems: list[System] = [Popularity(stream, 30)]
        databases = on_exit.enter_context(server())
        for name, jobs in (ABLATION if ablation else {OURS: ()}).items():
            systems.append(TwoTower(name, databases(on_exit), stream, base, settings, jobs))
        if not ablation:
            systems += [Popularity(stream, None), StaticContent(stream, base)]
        if not ablation and not only_ours:
            literal = {**settings, "learning_rule": "literal"}
            systems.append(TwoTower("literal rule", databases(on_exit), stream, base, literal))
            systems += [Batch(stream, "ALS"), Batch(stream, "item-kNN")]
        found = []
        for system in systems:
            task = progress.add_task(system.name, total=len(stream.users))
            found.append(
                run(system, stream, asked, lambda n, t=task: progress.update(t, completed=n))  # type: ignore[misc]
            )
            progress.update(task, completed=len(stream.users))
        report = describe(found, systems, asked, stream)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show(report)


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
    from python_jobs.encoder import Encoder

    return Encoder().encode(stream.texts)


@contextmanager
def server() -> Iterator[Any]:
    """A server of its own; gives a factory of migrated databases' connections."""
    with tempfile.TemporaryDirectory(prefix="two-tower-eval-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        cluster = Cluster(
            Path(name) / "postgres", free_port(), settings={"fsync": "off", "max_wal_size": "4GB"}
        )
        cluster.start()
        try:
            bootstrap(cluster.url(user=SUPERUSER), cluster.password)
            migrate(cluster.url(), project_dir())
            count = 0

            def make(on_exit: ExitStack) -> psycopg.Connection[Any]:
                nonlocal count
                count += 1
                with connect(cluster.url("template1", SUPERUSER), autocommit=True) as session:
                    session.execute(
                        f"create database eval_{count} template postgres owner postgres".encode()
                    )
                connection = connect(
                    cluster.url(f"eval_{count}"), autocommit=True, row_factory=dict_row
                )
                on_exit.callback(connection.close)
                return connection

            yield make
        finally:
            cluster.stop("immediate")


def describe(
    found: list[Answers], systems: list[System], asked: Questions, stream: Stream
) -> dict[str, Any]:
    """All figures, with each system against decayed popularity (the first one)."""
    rows = []
    for answers, system in zip(found, systems, strict=True):
        row = summarise(answers, asked, len(stream.texts))
        row["to_popularity"] = compare(answers, found[0], asked)
        row["over_time"] = over_time(answers, asked)
        if isinstance(system, TwoTower):
            row["mean_cosine"] = system.collapse()
            row["versions"] = system.versions()
        rows.append(row)
    return {
        "events": len(stream.users),
        "users": stream.user_count,
        "items": len(stream.texts),
        "questions": len(asked.numbers),
        "systems": rows,
    }


def show(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    table = Table(
        title=f"{report['events']:,} events, {report['users']:,} users, {report['items']:,} items,"
        f" {report['questions']:,} questions; the tail is the last fifth",
        title_justify="left",
    )
    heads = ["", "NDCG@10 all", "tail", "to popularity (95 %)", "HR@10 tail", "HR@50", "MRR",
             "cold users", "warm", "cold items", "warm", "coverage@10", "mean cosine"]  # fmt: skip
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in report["systems"]:
        tail = row.get("tail", row["all"])
        ratio = row["to_popularity"]
        parts = [
            row.get(f"tail_{part}", {}).get("ndcg_10")
            for part in ("cold_users", "warm_users", "cold_items", "warm_items")
        ]
        table.add_row(
            row["name"],
            f"{row['all']['ndcg_10']:.4f}",
            f"{tail['ndcg_10']:.4f}",
            f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{tail['hit_rate_10']:.4f}",
            f"{tail['hit_rate_50']:.4f}",
            f"{tail['mrr']:.4f}",
            *("" if part is None else f"{part:.4f}" for part in parts),
            f"{row['coverage_10']:.2f}",
            f"{row['mean_cosine']:.3f}" if row.get("mean_cosine") is not None else "",
        )
    console.print(table)
    bars = "▁▂▃▄▅▆▇█"
    highest = max(max(row["over_time"]) for row in report["systems"]) or 1
    console.print("NDCG@10 over time:")
    for row in report["systems"]:
        line = "".join(bars[round(value / highest * (len(bars) - 1))] for value in row["over_time"])
        console.print(f"  {row['name']:24} {line}")
    for row in report["systems"]:
        if row.get("versions"):
            console.print(f"  {row['name']}: {row['versions']}")
