"""What an operator does and sees: checkpoint, freeze, resume, rollback and report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from python_jobs.db import call, rows, value
from python_jobs.errors import CommandError
from python_jobs.operations.database import open_database
from python_jobs.operations.switch import finish_switch
from python_jobs.operations.words import span

NO_CHECKPOINT = (
    "No checkpoint is good, not empty, and older than what went wrong: two-tower report shows all."
)
LOCAL_TIME = click.DateTime(["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])


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
@click.option(
    "--since",
    type=LOCAL_TIME,
    help="When it began, in local time: rollback takes a checkpoint from before.",
)
def freeze(reason: str, since: datetime | None) -> None:
    """Stop learning, for REASON. Events are still recorded.

    Called again with --since, it says anew when it began.
    """
    began = since.astimezone() if since else None
    with open_database() as connection:
        value(connection, "select two_tower.freeze(%s, %s)", reason, began)
    click.echo("Learning is frozen; events are recorded and wait. Go on with: two-tower resume")


@click.command()
@click.option("--factor", default=1.0, show_default=True, help="Of the learning rate from now on.")
@click.option("--skip", is_flag=True, help="Never learn what happened during the freeze.")
def resume(factor: float, skip: bool) -> None:
    """Go on learning after a freeze."""
    with open_database() as connection:
        was_frozen = call(connection, "select two_tower.resume(%s::real, %s)", factor, skip)
    if was_frozen:
        what = "are skipped" if skip else "are learned by the next ticks, in order"
        click.echo(f"Learning goes on; the events of the freeze {what}.")
    else:
        click.echo(f"Learning was not frozen. It goes on, at {factor:g} times its rate.")


@click.command()
@click.option("--checkpoint", "number", type=int, help="Its id; without it the newest good one.")
@click.option("--dry-run", is_flag=True, help="Say what would be lost, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(number: int | None, dry_run: bool, yes: bool) -> None:
    """Bring vectors and weights back to a checkpoint.

    Without a number, to the newest one that is good, not empty, and older than what went wrong.
    Ends when they serve. Learning stays frozen.
    """
    with open_database() as connection:
        plans = rows(connection, "select * from two_tower.plan_rollback(%s)", number)
        if not plans:
            raise CommandError(
                NO_CHECKPOINT if number is None else f"There is no checkpoint {number}."
            )
        (plan,) = plans
        for line in _told(plan):
            click.echo(line)
        if dry_run:
            return
        if not plan.refusal and not yes:
            click.confirm("Go on?", abort=True)
        began = time.monotonic()
        chosen = call(connection, "select two_tower.rollback(%s)", plan.checkpoint_id)
        finish_switch(connection)
    seconds = time.monotonic() - began
    click.echo(f"Checkpoint {chosen} serves again, after {seconds:.1f} s. Go on: two-tower resume")


def _told(plan: Any) -> Iterator[str]:
    """A row of two_tower.plan_rollback() in words."""
    found = "its audit found nothing" if plan.is_good else "its audit found something"
    yield (
        f"Checkpoint {plan.checkpoint_id} of {plan.made_at.astimezone():%Y-%m-%d %H:%M},"
        f" {span(plan.age)} old; {found}."
    )
    if plan.wrong_since:
        yield f"Learning goes wrong since {plan.wrong_since.astimezone():%Y-%m-%d %H:%M}."
    if plan.refusal:
        yield f"It is refused: {plan.refusal}."
    for what in ("users", "engagements", "candidate_tower", "user_tower"):
        then, now = (getattr(plan, f"{what}_{when}") for when in ("then", "now"))
        yield f"  {_NAMES[what]:<28} {_figure(now):>9} now, {_figure(then):>9} then"
    yield f"What {plan.engagements_lost:,} engagements taught would be gone. They stay recorded."


_NAMES = {
    "users": "Users who taught something",
    "engagements": "Engagements they taught by",
    "candidate_tower": "Version of candidate tower",
    "user_tower": "Version of user tower",
}


def _figure(count: int | None) -> str:
    return "none" if count is None else f"{count:,}"
