"""What an operator does and sees: checkpoint, freeze, resume, rollback and report."""

from __future__ import annotations

import time

import click

from python_jobs.db import call, value
from python_jobs.operations.database import open_database
from python_jobs.operations.switch import finish_switch
from python_jobs.operations.tables import print_json, print_sections, read_sections

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
    "Experiments": "select experiment, arm, users, round(positives_per_view::numeric, 4) as rate,"
    " round(difference::numeric, 4) as difference,"
    " format('%%s to %%s', round(difference_low::numeric, 4), round(difference_high::numeric, 4))"
    " as interval, verdict from two_tower.experiment_results order by experiment, arm",
}


@click.command()
def checkpoint() -> None:
    """Take a snapshot to roll back to, and audit it."""
    good = "select is_good from two_tower.checkpoints where id = %s"
    with open_database() as connection:
        number = call(connection, "select two_tower.checkpoint('operator')")
        is_good = value(connection, good, number)
    found = "its audit found nothing" if is_good else "its audit found something: two-tower report"
    click.echo(f"Checkpoint {number}; {found}.")


@click.command()
@click.argument("reason")
def freeze(reason: str) -> None:
    """Stop learning, for REASON. Events are still recorded."""
    with open_database() as connection:
        value(connection, "select two_tower.freeze(%s)", reason)
    click.echo("Learning is frozen; events are recorded and wait. Go on with: two-tower resume")


@click.command()
@click.option("--factor", default=1.0, show_default=True, help="Of the learning rate from now on.")
@click.option("--skip", is_flag=True, help="Never learn what happened during the freeze.")
def resume(factor: float, skip: bool) -> None:
    """Go on learning after a freeze."""
    with open_database() as connection:
        call(connection, "select two_tower.resume(%s::real, %s)", factor, skip)
    what = "are skipped" if skip else "are learned by the next ticks, in order"
    click.echo(f"Learning goes on; the events of the freeze {what}.")


@click.command()
@click.option("--checkpoint", "number", type=int, help="Its id; without it the newest good one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(number: int | None, yes: bool) -> None:
    """Bring vectors and weights back to a checkpoint.

    Ends when they serve. Learning stays frozen.
    """
    if not yes:
        click.confirm("What was learned since the checkpoint is gone then. Go on?", abort=True)
    began = time.monotonic()
    with open_database() as connection:
        number = call(connection, "select two_tower.rollback(%s)", number)
        finish_switch(connection)
    seconds = time.monotonic() - began
    click.echo(f"Checkpoint {number} serves again, after {seconds:.1f} s. Go on: two-tower resume")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(as_json: bool) -> None:
    """Show health, open alerts, audits, checkpoints and experiments."""
    sections = read_sections(REPORT)
    if as_json:
        print_json(sections)
    else:
        print_sections(sections)
