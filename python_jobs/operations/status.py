"""`two-tower status`: what the database says about itself."""

from __future__ import annotations

import json
from typing import Any

import click
from psycopg.errors import InsufficientPrivilege, InvalidSchemaName, UndefinedTable
from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

from python_jobs.db import connect
from python_jobs.errors import CommandError

QUERIES = {
    "Overview": "select * from two_tower.overview",
    "Health": "select name, value, unit, state from two_tower.health order by name",
    "Jobs": "select kind, state, count(*) as jobs, max(finished_at) as last_finished_at"
    " from two_tower.jobs group by 1, 2 order by 1, 2",
    "Schedules": "select kind, runs_in, every::text, every_events, is_enabled, last_run_at"
    " from two_tower.schedules order by kind",
    "Towers": "select version, tower, state, verdict, created_at from two_tower.model_weights"
    " order by version desc limit 10",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show counts, health, jobs, schedules and the newest versions of the towers."""
    with connect(row_factory=dict_row) as connection:
        try:
            sections = {title: connection.execute(q).fetchall() for title, q in QUERIES.items()}
        except (UndefinedTable, InvalidSchemaName) as error:
            raise CommandError("Two-Tower is not in this database: two-tower migrate.") from error
        except InsufficientPrivilege as error:
            raise CommandError(
                f"{error.diag.message_primary}: connect as the database's owner."
            ) from error
    if as_json:
        click.echo(json.dumps(sections, default=str, indent=2))
        return
    console = Console()
    for name, number in sections.pop("Overview")[0].items():
        console.print(f"{name.replace('_', ' '):16} {'-' if number is None else number}")
    for title, rows in sections.items():
        console.print(as_table(title, rows) if rows else f"{title}: none")


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Rows of one query as a table."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table
