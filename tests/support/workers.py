"""Workers as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from python_jobs.db import Connection, rows
from tests.support.patience import PATIENCE_S, wait_until


def start_worker(url: str, *options: str, first: str = "pass") -> subprocess.Popen[str]:
    """A worker process over a database. first: what its Python does before anything else."""
    command = f"{first}\nfrom python_jobs.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "worker", *options],
        env={**os.environ, "TWO_TOWER_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class RunningWorker:
    """A worker process, and what it has said so far."""

    def __init__(self, url: str, *options: str, first: str = "pass") -> None:
        self.process = start_worker(url, *options, first=first)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self, text: str) -> list[str]:
        """The lines with this text in them."""
        return [line for line in self.lines if text in line]

    def end(self) -> int:
        """Waits until the process has ended by itself and all was read. Returns its status."""
        status = self.process.wait(PATIENCE_S)
        self._reader.join()
        return status

    def stop(self) -> int:
        """Ends it as an operator does. Returns its status."""
        self.process.terminate()
        return self.end()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)


@contextmanager
def running_worker(url: str, *options: str, first: str = "pass") -> Iterator[RunningWorker]:
    """A worker while the block lasts; a test that fails shows what it said."""
    worker = RunningWorker(url, *options, first=first)
    try:
        yield worker
    finally:
        worker.stop()
        print("".join(worker.lines))


def waiting_backend(watcher: Connection, query: str) -> int:
    """The pid of the backend that runs a query with this text and waits for a lock."""
    waiting = (
        "select pid from pg_stat_activity where datname = current_database()"
        " and wait_event_type = 'Lock' and position(%s in query) > 0"
    )
    return int(wait_until(lambda: rows(watcher, waiting, query))[0].pid)
