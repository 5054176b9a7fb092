"""A worker of the local stack, in the background."""

from __future__ import annotations

from python_jobs.local.background import Background
from python_jobs.local.stack import Stack
from python_jobs.state import read_state


def start_worker(stack: Stack) -> int:
    """Starts a worker, unless the one started before still runs. Returns its pid.

    Stopped, it leaves the job that it was doing to be done again later.
    """
    state = read_state(stack.project)
    assert state is not None, "the stack is up"
    worker = Background(stack.state_dir, "worker")
    return worker.start("-m", "python_jobs", "worker", TWO_TOWER_DATABASE_URL=state.database_url)
