"""Workers as processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe

from python_jobs.db import URL_VARIABLE, Connection, rows
from tests.support.patience import PATIENCE_S, wait_until

# Each worker is forked from a process that has imported these: an import takes many seconds, and
# tests start a hundred workers. What a worker itself is made of is imported after the fork.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["sentence_transformers"])


def _work(environment: Mapping[str, str], options: tuple[str, ...], first: str, said: Pipe) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    sys.argv = ["two-tower", "worker", *options]
    exec(first, {})
    from python_jobs.cli import main

    main()


class RunningWorker:
    """A worker process over a database, and what it has said so far.

    options: of the command. first: what its Python does before it imports the command.
    """

    def __init__(self, url: str, *options: str, first: str = "pass") -> None:
        read, write = _SERVER.Pipe(duplex=False)
        environment = {**os.environ, URL_VARIABLE: url}
        self.process = _SERVER.Process(target=_work, args=(environment, options, first, write))
        self.process.start()
        write.close()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=[read], daemon=True)
        self._reader.start()

    def said(self, text: str) -> list[str]:
        """The lines with this text in them."""
        return [line for line in self.lines if text in line]

    def end(self) -> int:
        """Waits until the process has ended by itself and all was read. Returns its status."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, "it has not ended in time"
        self._reader.join()
        return self.process.exitcode

    def kill(self) -> None:
        """Ends it as a lack of memory does."""
        self.process.kill()
        self.end()

    def stop(self) -> int:
        """Ends it as an operator does. Returns its status."""
        self.process.terminate()
        return self.end()

    def _read(self, pipe: Pipe) -> None:
        with os.fdopen(os.dup(pipe.fileno())) as lines:
            self.lines.extend(lines)


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
