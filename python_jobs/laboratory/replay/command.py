"""`two-tower replay`, and what `two-tower demo` needs of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from python_jobs.db import database_url
from python_jobs.errors import CommandError
from python_jobs.laboratory import movielens
from python_jobs.laboratory.movielens import MovieLens
from python_jobs.laboratory.replay.report import Report, hit_rates, read_report, write_report
from python_jobs.laboratory.replay.stages import Access, Replay
from python_jobs.state import State, read_state, state_dir

LEAST_RATINGS = 10


def replay_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `replay` and `demo` share: the arguments of run_replay()."""
    for option in (
        click.option(
            "--http-events",
            default=500,
            show_default=True,
            type=click.IntRange(min=0),
            help="How many of the last events go through the API; a quarter at most.",
        ),
        click.option(
            "--questions",
            default=3000,
            show_default=True,
            type=click.IntRange(min=0),
            help="Before so many positives, recommendations are asked for.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=LEAST_RATINGS),
            help="Replay only so many of the newest ratings.",
        ),
        click.option(
            "--path",
            type=click.Path(exists=True, path_type=Path),
            help="Folder with MovieLens 100K [downloaded once, with pip].",
        ),
    ):
        command = option(command)
    return command


@click.command()
@replay_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def replay(as_json: bool, **options: Any) -> None:
    """Replay MovieLens 100K through the database and the API.

    Needs a running worker. Once only: a second run prints the report of the first.
    """
    url = database_url()
    report = run_replay(state_dir(), url, find_access(read_state(), url), **options)
    click.echo(json.dumps(asdict(report), indent=2) if as_json else hit_rates(report))


def run_replay(
    folder: Path,
    url: str,
    access: Access | None,
    *,
    path: Path | None = None,
    limit: int | None = None,
    questions: int = 3000,
    http_events: int = 500,
) -> Report:
    """Loads the data set and replays it with progress bars, or reads the report if that was done.

    folder: where reports and the data set are kept. access: None where there is no API.
    Raises as `Replay` and `movielens.load` do.
    """
    if known := read_report(folder, url):
        click.echo("Replayed already; this is the report of then.", err=True)
        return known
    data = movielens.load(path, folder / "ml-100k")
    if len(data.ratings) < LEAST_RATINGS:
        raise CommandError(f"{len(data.ratings)} ratings are too few: it takes {LEAST_RATINGS}.")
    if limit:
        data = MovieLens(data.films, data.ratings[-limit:])
    http_events = min(http_events, len(data.ratings) // 4)
    with (
        Progress(console=Console(stderr=True)) as progress,
        closing(Replay(url, access, data, progress, http_events, questions)) as replaying,
    ):
        report = replaying.run()
    write_report(folder, url, report)
    return report


def find_access(state: State | None, url: str) -> Access | None:
    """The local stack's API, if the database in use is the local one."""
    if state and state.api_url and state.database_url == url:
        return Access(state.api_url, state.publishable_key)
    return None
