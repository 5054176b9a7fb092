"""The worker: claims a job, keeps its lease alive while it runs, says how it ended.

All decisions are the database's: what is due (`two_tower.tick`), whose turn it is
(`two_tower.claim_job`), when a failed job is tried again (`two_tower.fail_job`). A worker works in
two lanes at once, so that a new post does not wait for the minutes of a training or a build.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import click
import psycopg

from python_jobs.db import Connection, connect_as_service, database_url, rows, value
from python_jobs.worker.jobs import HANDLERS

LEASE_S = 60.0
POLL_S = 0.5
RECONNECT_S = 2.0
SHORT = ["encode_posts", "encode_profiles"]
LONG = [kind for kind in HANDLERS if kind not in SHORT]

log = logging.getLogger("two_tower.worker")


class Worker:
    """One worker process over one database.

    url: of the database. lease_s: seconds after which a job is free again when this process dies.
    """

    def __init__(self, url: str, lease_s: float = LEASE_S) -> None:
        self.url = url
        self.lease_s = lease_s
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.is_stopping = threading.Event()

    def run(self, drain: bool) -> int:
        """Works until stopped or, with `drain`, until nothing is due. Returns the jobs done.

        A lost connection is opened again; with `drain` it is an error (psycopg.OperationalError).
        """
        lanes = [SHORT + LONG] if drain else [SHORT, LONG]
        with ThreadPoolExecutor(len(lanes)) as pool:
            return sum(pool.map(lambda kinds: self._lane(kinds, drain), lanes))

    def _lane(self, kinds: list[str], drain: bool) -> int:
        done = 0
        try:
            while not self.is_stopping.is_set():
                try:
                    with connect_as_service(self.url) as connection:
                        done += self._work(connection, kinds, drain)
                        if drain:
                            break
                except psycopg.OperationalError as error:
                    if drain:
                        raise
                    log.warning("connection lost, trying again: %s", str(error).strip())
                    self.is_stopping.wait(RECONNECT_S)
        except BaseException:
            self.is_stopping.set()  # one lane alone would look like a worker and be half of one
            raise
        return done

    def _work(self, connection: Connection, kinds: list[str], drain: bool) -> int:
        done = 0
        while not self.is_stopping.is_set():
            did_something = self._tick(connection)
            if job := self._claim(connection, kinds):
                self._run_job(connection, job)
                done += 1
            elif not did_something:
                if drain:
                    break
                wait_for_work(connection, POLL_S)
        return done

    def _tick(self, connection: Connection) -> bool:
        did = value(connection, "select two_tower.tick()")
        return any(each not in (0, [], "another tick is running") for each in did.values())

    def _tick_or_log(self, connection: Connection) -> None:
        """A tick that failed is made up for by the next one, and must not end the heartbeat."""
        try:
            self._tick(connection)
        except psycopg.OperationalError:
            if connection.broken:
                raise
            log.exception("tick failed")
        except psycopg.Error:
            log.exception("tick failed")

    def _claim(self, connection: Connection, kinds: list[str]) -> Any:
        """A job that is this worker's now; None when none is due."""
        query = "select * from two_tower.claim_job(%s, %s, %s * interval '1 second')"
        claimed = rows(connection, query, self.name, kinds, self.lease_s)
        return claimed[0] if claimed else None

    def _run_job(self, connection: Connection, job: Any) -> None:
        started = time.monotonic()
        try:
            with self._beside(job.id):
                result = HANDLERS[job.kind](connection)
            result["seconds"] = round(time.monotonic() - started, 3)
            connection.execute(
                "select two_tower.complete_job(%s, %s, %s)",
                [job.id, self.name, json.dumps(result)],
            )
            log.info("job %s %s done: %s", job.id, job.kind, json.dumps(result))
        except psycopg.OperationalError:
            raise
        except Exception as error:
            log.exception("job %s %s failed", job.id, job.kind)
            self._fail(connection, job, "".join(traceback.format_exception(error))[-4000:])

    def _fail(self, connection: Connection, job: Any, error: str) -> None:
        try:
            connection.execute("select two_tower.fail_job(%s, %s, %s)", [job.id, self.name, error])
        except psycopg.errors.DatabaseError as lost:
            if lost.sqlstate != "TT003":
                raise
            log.warning("job %s was taken over by another worker", job.id)

    @contextmanager
    def _beside(self, job_id: int) -> Iterator[None]:
        """While a job runs: extends its lease, and ticks, so that nothing waits for a training.

        Uses a connection of its own. A lost lease shows when the job ends.
        """
        is_over = threading.Event()

        def beat() -> None:
            beats_at = time.monotonic() + self.lease_s / 3
            try:
                with connect_as_service(self.url) as connection:
                    while not is_over.wait(POLL_S):
                        self._tick_or_log(connection)
                        if time.monotonic() >= beats_at:
                            beats_at += self.lease_s / 3
                            connection.execute(
                                "select two_tower.heartbeat_job(%s, %s, %s * interval '1 second')",
                                [job_id, self.name, self.lease_s],
                            )
            except psycopg.Error as error:
                log.warning("no heartbeat for job %s: %s", job_id, str(error).strip())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def wait_for_work(connection: Connection, seconds: float) -> None:
    """Sleeps, or less long when a job is announced.

    NOTIFY does not reach through a transaction pooler; polling alone does the work then.
    """
    connection.execute("listen two_tower_jobs")
    for _ in connection.notifies(timeout=seconds, stop_after=1):
        pass


def leave_cores_to_postgres() -> None:
    """On the machine of the database, training must not starve inserts."""
    import torch

    os.nice(10)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


@click.command()
@click.option("--drain", is_flag=True, help="Do what is due, then exit.")
@click.option("--lease", default=LEASE_S, show_default=True, help="Seconds a job stays ours.")
def worker(drain: bool, lease: float) -> None:
    """Encode posts, train the towers: the work that needs torch. Run as many as you like."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    process = Worker(database_url(), lease)
    stop: Callable[..., None] = lambda *_: process.is_stopping.set()  # noqa: E731
    leave_cores_to_postgres()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    done = process.run(drain)
    click.echo(f"{done} jobs done")
