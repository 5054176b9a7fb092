"""`two-tower report`, on the terminal, as JSON, or as a page of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import psycopg
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from python_jobs.db import Connection, rows
from python_jobs.errors import CommandError
from python_jobs.operations.database import open_database
from python_jobs.operations.report.html import write_page
from python_jobs.operations.report.kept import describe_impressions, describe_table
from python_jobs.operations.report.story import read_map, read_measurements
from python_jobs.operations.status import MARKS, STYLES, describe_finding
from python_jobs.operations.status import QUERIES as STATUS
from python_jobs.operations.tables import print_json
from python_jobs.operations.verdict import ALERT, OK, judge
from python_jobs.operations.words import clock, count, number

QUERIES = {
    "Learning": "select frozen_at, frozen_reason, learning_rate_factor, filling_checkpoint"
    " from two_tower.state",
    **STATUS,
    "Audits": "select id, made_at, checkpoint_id, is_good, findings from two_tower.audits"
    " order by id desc limit 3",
    "Checkpoints": "select id, made_at, reason, candidate_tower, user_tower, posts, users, is_good"
    " from two_tower.checkpoints order by id desc",
    "Experiments": "select * from two_tower.experiment_results order by experiment, arm",
    "Versions": "select version, tower, state, verdict, decided_at,"
    " (metrics #>> '{gate,mean_difference}')::double precision as mean_difference,"
    " (metrics #>> '{gate,lower_bound}')::double precision as lower_bound,"
    " (metrics #>> '{gate,events}')::integer as events"
    " from two_tower.model_weights where decided_at is not null order by decided_at",
    "Storage": "select * from two_tower.retention",
}
# Reads all that readers did with posts: where that takes too long, the report does without.
IMPRESSIONS = (
    "select c.*, (select count(*) from two_tower.posts_never_shown) as never_shown_posts"
    " from two_tower.measure_concentration() c"
)
IMPRESSIONS_TIMEOUT = "20s"
SHOWN_CHECKPOINTS = 5
SHOWN_TABLES = 5


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots."
)
@click.option("--days", default=14.0, show_default=True, help="How far back plots go at most.")
@click.option("--reader", type=click.UUID, help="Whose path is on the map [who engaged most].")
def report(as_json: bool, html: Path | None, days: float, reader: UUID | None) -> None:
    """Show what is not well, audits, checkpoints and experiments.

    --html FILE adds what has become of the figures, of versions of the towers, and a map of posts.
    """
    if days <= 0:
        raise click.UsageError("--days is a number above 0.")
    with open_database() as connection:
        sections = {title: rows(connection, query) for title, query in QUERIES.items()}
        sections["Impressions"] = _read_impressions(connection)
        if html is None:
            print_json(sections) if as_json else _print(sections)
            return
        page = write_page(
            sections, read_measurements(connection, days), read_map(connection, reader), days
        )
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{html} can not be written: {error.strerror}.") from error
    click.echo(f"The report is in {html}. It needs nothing beside it: open it in a browser.")


def _read_impressions(connection: Connection) -> list[Any]:
    """One row, or none where it takes longer than IMPRESSIONS_TIMEOUT."""
    try:
        with connection.transaction():
            connection.execute(f"set local statement_timeout = '{IMPRESSIONS_TIMEOUT}'".encode())
            return rows(connection, IMPRESSIONS)
    except psycopg.errors.QueryCanceled:
        return []


def _print(sections: dict[str, list[Any]]) -> None:
    (overview,) = sections["Overview"]
    console = Console()
    verdict = judge(overview, sections["Health"], sections["Alerts"])
    console.print(Text(f"{MARKS[verdict.state]} {verdict.sentence}", STYLES[verdict.state]))
    for finding in verdict.findings:
        console.print(describe_finding(finding, overview.now))
    for title, lines in (
        ("Audits", _audits(sections["Audits"], overview.now)),
        ("Checkpoints", _checkpoints(sections["Checkpoints"], overview.now)),
        ("Experiments", _experiments(sections["Experiments"])),
        ("Impressions", map(Text, describe_impressions(sections["Impressions"]))),
        ("Storage", map(Text, _storage(sections["Storage"]))),
    ):
        console.print()
        console.print(Text(title, "bold"))
        for line in list(lines) or [Text("none")]:
            console.print(Padding(line, (0, 0, 0, 2), expand=False))


def _mark(is_good: bool | None) -> tuple[str, str]:
    state = OK if is_good else ALERT
    return ("? ", "dim") if is_good is None else (f"{MARKS[state]} ", STYLES[state])


def _audits(audits: list[Any], now: datetime) -> Iterator[Text]:
    for row in audits:
        of = f"of checkpoint {row.checkpoint_id}" if row.checkpoint_id else "by itself"
        bad = [f"{name} {number(found['value'])}" for name, found in row.findings.items()
               if found["state"] == ALERT]  # fmt: skip
        found = f"found {', '.join(bad)}" if bad else "found nothing"
        yield Text.assemble(_mark(row.is_good), f"{clock(row.made_at, now)} {of}: {found}")


def _checkpoints(checkpoints: list[Any], now: datetime) -> Iterator[Text]:
    for row in checkpoints[:SHOWN_CHECKPOINTS]:
        holds = f"{count(row.posts, 'post')}, {count(row.users, 'reader')}"
        yield Text.assemble(
            _mark(row.is_good), f"{row.id}, {clock(row.made_at, now)}, {row.reason}: {holds}"
        )
    if (older := len(checkpoints) - SHOWN_CHECKPOINTS) > 0:
        yield Text(f"and {older} older", "dim")


def _experiments(results: list[Any]) -> Iterator[Text]:
    name = None
    for row in results:
        if row.experiment != name:
            name = row.experiment
            yield Text(name)
        difference = (
            f", {row.difference:+.3g} ({row.difference_low:+.3g} to {row.difference_high:+.3g})"
            if row.difference_low is not None
            else ""
        )
        rate = f", {number(row.positives_per_view)} positives a view" if row.users else ""
        yield Text.assemble(
            f"  {row.arm}: {count(row.users, 'reader')}{rate}{difference}",
            f"; {row.verdict}" if row.verdict else "",
        )


def _storage(tables: list[Any]) -> Iterator[str]:
    for row in tables[:SHOWN_TABLES]:
        yield f"{row.table_name}: {', '.join(each for each in describe_table(row) if each)}"
