"""What an operator does and sees: checkpoint, freeze, resume, rollback and report."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from rich.console import Console

from python_jobs.db import connect
from python_jobs.errors import CommandError
from python_jobs.operations.status import as_table
from python_jobs.worker.jobs.serve import finish_switch

REPORT = {
    "Learning": "select frozen_at, frozen_reason, learning_rate_factor, filling_checkpoint"
    " from two_tower.state",
    "Health": "select name, value, unit, state from two_tower.health order by name",
    "Open alerts": "select kind, subject, message, occurrences, opened_at from two_tower.alerts"
    " where closed_at is null order by opened_at desc limit 50",
    "Last audits": "select made_at, checkpoint_id, is_good, findings from two_tower.audits"
    " order by id desc limit 3",
    "Checkpoints": "select id, made_at, reason, candidate_tower, user_tower, posts, users, is_good"
    " from two_tower.checkpoints order by id desc",
    "Experiments": "select * from two_tower.experiment_results order by experiment, arm",
}


def ask(query: str, *parameters: Any) -> Any:
    """The one value of a query, committed. Raises CommandError with the database's own hint."""
    with connect(autocommit=True) as connection:
        try:
            row = connection.execute(query.encode(), list(parameters)).fetchone()
        except psycopg.Error as error:
            raise as_command_error(error) from error
    return row[0] if row else None


def as_command_error(error: psycopg.Error) -> CommandError:
    """The database's message and hint in one line."""
    absent = (errors.InvalidSchemaName, errors.UndefinedFunction, errors.UndefinedTable)
    if isinstance(error, absent):
        return CommandError("Two-Tower is not in this database: two-tower migrate.")
    message = error.diag.message_primary or str(error)
    return CommandError(f"{message}. {error.diag.message_hint or ''}".strip())


@click.command()
def checkpoint() -> None:
    """Take a snapshot to roll back to, and audit it."""
    number = ask("select two_tower.checkpoint('operator')")
    is_good = ask("select is_good from two_tower.checkpoints where id = %s", number)
    found = "its audit found nothing" if is_good else "its audit found something: two-tower report"
    click.echo(f"Checkpoint {number}; {found}.")


@click.command()
@click.argument("reason")
def freeze(reason: str) -> None:
    """Stop learning, for REASON. Events are still recorded."""
    ask("select two_tower.freeze(%s)", reason)
    click.echo("Learning is frozen; events are recorded and wait. Go on with: two-tower resume")


@click.command()
@click.option("--factor", default=1.0, show_default=True, help="Of the learning rate from now on.")
@click.option("--skip", is_flag=True, help="Never learn what happened during the freeze.")
def resume(factor: float, skip: bool) -> None:
    """Go on learning after a freeze."""
    ask("select two_tower.resume(%s::real, %s)", factor, skip)
    what = "are skipped" if skip else "are learned by the next ticks, in order"
    click.echo(f"Learning goes on; the events of the freeze {what}.")


@click.command()
@click.option("--checkpoint", "number", type=int, help="Its id; without it the newest good one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(number: int | None, yes: bool) -> None:
    """Bring vectors and weights back to a checkpoint; wait for the end. Learning stays frozen."""
    if not yes:
        click.confirm("What was learned since the checkpoint is gone then. Go on?", abort=True)
    began = time.monotonic()
    number = ask("select two_tower.rollback(%s)", number)
    with connect(autocommit=True) as connection:
        finish_switch(connection)
    seconds = time.monotonic() - began
    click.echo(f"Checkpoint {number} serves again, after {seconds:.1f} s. Go on: two-tower resume")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(as_json: bool) -> None:
    """Show health, open alerts, audits, checkpoints and experiments."""
    with connect(row_factory=dict_row) as connection:
        try:
            sections = {title: connection.execute(q).fetchall() for title, q in REPORT.items()}
        except psycopg.Error as error:
            raise as_command_error(error) from error
    if as_json:
        click.echo(json.dumps(sections, default=str, indent=2))
        return
    console = Console()
    for title, rows in sections.items():
        console.print(as_table(title, rows) if rows else f"{title}: none")
