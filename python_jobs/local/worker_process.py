"""A worker of the local stack, in the background: its pid and its log lie in the state folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from python_jobs.local.stack import Stack
from python_jobs.state import read_state


def start_worker(stack: Stack) -> int:
    """Starts a worker, unless the one started before still runs. Returns its pid."""
    if pid := running_worker(stack):
        return pid
    state = read_state(stack.project)
    assert state is not None, "the stack is up"
    with (stack.state_dir / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "python_jobs", "worker"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "TWO_TOWER_DATABASE_URL": state.database_url},
        )
    _pid_path(stack).write_text(str(process.pid))
    return process.pid


def stop_worker(stack: Stack) -> None:
    """Stops the worker if it runs; the job that it was doing is done again later."""
    if pid := running_worker(stack):
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    _pid_path(stack).unlink(missing_ok=True)


def running_worker(stack: Stack) -> int | None:
    """The pid of the worker if it runs; a pid that now is another program's does not count."""
    try:
        pid = int(_pid_path(stack).read_text())
        os.kill(pid, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
        return None
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"python_jobs" not in command.read_bytes():
        return None
    return pid


def _pid_path(stack: Stack) -> Path:
    return stack.state_dir / "worker.pid"
