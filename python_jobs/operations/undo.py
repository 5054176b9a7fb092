"""`two-tower undo`: what users, or a range of time, taught is taken back."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import click

from python_jobs.db import call, call_rows, value
from python_jobs.operations.database import open_database
from python_jobs.operations.safety import LOCAL_TIME

SHOWN = 10


@click.command()
@click.argument("reason")
@click.option("--user", "users", multiple=True, type=click.UUID, help="Whose; may be repeated.")
@click.option("--from", "begin", type=LOCAL_TIME, help="Events that arrived from then on.")
@click.option("--until", "end", type=LOCAL_TIME, help="Events that arrived before.")
@click.option("--dry-run", is_flag=True, help="Say what would move, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask, and do not look first.")
def undo(
    reason: str,
    users: tuple[Any, ...],
    begin: datetime | None,
    end: datetime | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Take back what users, or a range of time, taught, for REASON.

    Events stay recorded, and likes stay likes. Ends when posts and users stand where they would
    without it. Local times.
    """
    which = (list(users) or None, *(each and each.astimezone() for each in (begin, end)))
    with open_database() as connection:
        if dry_run or not yes:
            plan = "select * from two_tower.plan_undo(%s::uuid[], %s, %s)"
            _print(call_rows(connection, plan, *which))
        if dry_run:
            return
        if not yes:
            click.confirm("Go on?", abort=True)
        began = time.monotonic()
        number = call(connection, "select two_tower.undo(%s, %s::uuid[], %s, %s)", reason, *which)
        done = "select finished_at is not null from two_tower.undos where id = %s"
        while not value(connection, done, number):
            call(connection, "select two_tower.undo_lessons()")
        while call(connection, "select two_tower.fold_steps(1000)"):
            pass
        taken = value(connection, "select lessons from two_tower.undos where id = %s", number)
    click.echo(f"{taken:,} lessons are taken back, after {time.monotonic() - began:.1f} s.")


def _print(plan: list[Any]) -> None:
    """Rows of two_tower.plan_undo(), the farthest first."""
    found = {kind: [row for row in plan if row.kind == kind] for kind in ("post", "user")}
    lessons = sum(row.lessons for row in found["user"])
    click.echo(
        f"{lessons:,} lessons of {_count(found['user'], 'user')}"
        f" about {_count(found['post'], 'post')}."
    )
    for kind, some in found.items():
        for row in some[:SHOWN]:
            far = "starts anew" if row.distance is None else f"moves by {row.distance:.3f}"
            click.echo(f"  {kind} {row.id} {far} ({row.lessons:,} lessons)")
        if len(some) > SHOWN:
            click.echo(f"  and {_count(some[SHOWN:], kind)} more")


def _count(some: list[Any], noun: str) -> str:
    return f"{len(some):,} {noun}{'' if len(some) == 1 else 's'}"
