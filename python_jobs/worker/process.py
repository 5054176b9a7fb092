"""The worker: claims a job, keeps its lease alive while it runs, says how it ended.

All decisions are the database's: what is due (`two_tower.tick`), whose turn it is
(`two_tower.claim_job`), when a failed job is tried again (`two_tower.fail_job`). A worker works in
two lanes at once, so that a new post does not wait for the minutes of a training or a build.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import click
import psycopg

from python_jobs.db import Connection, call, database_url, explain, rows, value
from python_jobs.errors import CommandError
from python_jobs.worker.database import Database, first_line
from python_jobs.worker.health import Pulse, served
from python_jobs.worker.jobs import HANDLERS
from python_jobs.worker.jobs.encode import encode_texts
from python_jobs.worker.stopping import StoppedError, leaving_when

LEASE_S = 60.0
POLL_S = 0.5
SHORT = ["encode_posts", "encode_profiles"]
LONG = [kind for kind in HANDLERS if kind not in SHORT]
LEASE_LOST = "TT003"
DROPPED = "job %s is not leased by this worker any more: what came of it is dropped"

log = logging.getLogger("two_tower.worker")


class Worker:
    """One worker process over one database.

    url: of the database; a transaction pooler's will do. lease_s: seconds after which a job is free
    again when this process dies. Works as the role that it logs in as.
    """

    def __init__(self, url: str, lease_s: float = LEASE_S) -> None:
        self.url = url
        self.lease_s = lease_s
        # Drawn: in containers all hosts and processes may have one name, and leases are by name.
        self.name = f"worker-{secrets.token_hex(4)}"
        self.version = version("two-tower")
        self.is_stopping = threading.Event()
        self.pulse = Pulse(self.name, self.is_stopping)
        self._is_new = threading.Lock()  # taken once
        self._told: dict[str, str] = {}  # of calls that keep failing: why

    def run(self, drain: bool) -> int:
        """Works until stopped or, with `drain`, until nothing is due. Returns the jobs done.

        Waits for a database that is away; with `drain` that is an error. Raises CommandError: no
        engine in this database, the first login refused, calls that this role may not make.
        """
        self.database = Database(self.url, waits=not drain)
        self.drains = drain
        lanes = [SHORT + LONG] if drain else [SHORT, LONG]
        with ThreadPoolExecutor(len(lanes)) as pool:
            working = [pool.submit(self._lane, kinds) for kinds in lanes]
            # The kernel may give a signal to any thread. Only this one handles it, when it awakes.
            while wait(working, POLL_S).not_done:
                pass
        return sum(each.result() for each in working)

    def _lane(self, kinds: list[str]) -> int:
        done = 0
        try:
            while connection := self.database.connect(self.is_stopping):
                with connection:
                    self._introduce()
                    done += self._work(connection, kinds)
                    if self.drains:
                        break
        except BaseException:
            self.is_stopping.set()  # one lane alone would look like a worker and be half of one
            raise
        return done

    def _introduce(self) -> None:
        """Logs who this is, once, when the database has let it in."""
        if self._is_new.acquire(blocking=False):
            log.info("%s of two-tower %s begins", self.name, self.version)

    def _work(self, connection: Connection, kinds: list[str]) -> int:
        """Does what is due until stopped, drained, or without a connection. Returns jobs done."""
        done = 0
        while not self.is_stopping.is_set() and not connection.closed:
            did_something = self._tick(connection, is_strict=self.drains)
            if "encode_posts" in kinds and self._encode_texts(connection):
                did_something = True
            if job := self._claim(connection, kinds):
                self._run_job(connection, job)
                done += 1
            elif not did_something:
                if self.drains:
                    break
                self.is_stopping.wait(POLL_S)
        return done

    def _tick(self, connection: Connection, is_strict: bool) -> bool:
        """Whether a tick did something. One that failed is made up for by the next."""
        did: dict[str, Any] = {}
        with self._logging(connection, "tick", is_strict):
            did = call(connection, "select two_tower.tick()")
        return any(each not in (0, [], "another tick is running") for each in did.values())

    def _encode_texts(self, connection: Connection) -> bool:
        """Whether texts of callers were encoded. What fails is tried again when its claim ends."""
        try:
            with self._logging(connection, "encode_texts", self.drains):
                return encode_texts(connection) > 0
        except (OSError, RuntimeError, ValueError) as error:  # the encoder's
            if self.drains:
                raise CommandError(f"encode_texts failed: {error}") from error
            self._tell("encode_texts", error)
        return False

    def _claim(self, connection: Connection, kinds: list[str]) -> Any:
        """A job that is this worker's now; None when none is due."""
        query = "select * from two_tower.claim_job(%s, %s, %s * interval '1 second', %s)"
        claimed: list[Any] = []
        with self._logging(connection, "claim_job", self.drains):
            try:
                claimed = rows(connection, query, self.name, kinds, self.lease_s, self.version)
            except psycopg.ProgrammingError as error:  # no such function, no right to call it
                raise CommandError(explain(error)) from error
        return claimed[0] if claimed else None

    @contextmanager
    def _logging(self, connection: Connection, name: str, is_strict: bool) -> Iterator[None]:
        """Within the block, a failed call is logged, once for each reason, and a lost connection.

        Raises CommandError instead when `is_strict`, and psycopg.Error for a lease that is lost.
        """
        try:
            yield
            self.pulse.note_answer()
            self._told.pop(name, None)
        except psycopg.Error as error:
            if error.sqlstate == LEASE_LOST:
                raise
            if is_strict:
                raise CommandError(explain(error)) from error
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                connection.close()  # a failover made this server a standby
            if connection.closed:
                self.pulse.note_loss()
                self.database.tell_loss(connection, error)
            else:
                self._tell(name, error)

    def _tell(self, name: str, error: Exception) -> None:
        """Logs a failure once for each reason."""
        if self._told.get(name) != str(error):
            log.error("%s failed: %s", name, str(error).strip())
            self._told[name] = str(error)

    def _run_job(self, connection: Connection, job: Any) -> None:
        started = time.monotonic()
        try:
            with (
                self.pulse.doing(job.id, job.kind),
                self._beside(job.id),
                leaving_when(self.is_stopping),
            ):
                result = HANDLERS[job.kind](connection)
            result["seconds"] = round(time.monotonic() - started, 3)
            complete = "select two_tower.complete_job(%s, %s, %s)"
            value(connection, complete, job.id, self.name, json.dumps(result))
            log.info("job %s %s done: %s", job.id, job.kind, json.dumps(result))
        except StoppedError:
            log.info("job %s %s is left to the next worker", job.id, job.kind)
            self._give_back(connection, job, "select two_tower.release_job(%s, %s)")
        except Exception as error:
            if connection.closed:
                self._fail_after_loss(connection, job, error)
            elif getattr(error, "sqlstate", None) == LEASE_LOST:
                log.warning(DROPPED, job.id)
            else:
                log.exception("job %s %s failed", job.id, job.kind)
                self._fail(connection, job, error)

    def _fail_after_loss(self, connection: Connection, job: Any, error: Exception) -> None:
        """By a new connection: the lease goes on, and until it ends nobody else takes the job."""
        if self.drains:
            cut = f"Job {job.id} {job.kind} was cut off: {first_line(error)}"
            raise CommandError(cut) from error
        self.pulse.note_loss()
        self.database.tell_loss(connection, error)
        if another := self.database.connect(self.is_stopping):
            with another:
                self._fail(another, job, error)

    def _fail(self, connection: Connection, job: Any, error: Exception) -> None:
        """Has the job tried again later."""
        told = "".join(traceback.format_exception(error))[-4000:]
        self._give_back(connection, job, "select two_tower.fail_job(%s, %s, %s)", told)

    def _give_back(self, connection: Connection, job: Any, query: str, *told: str) -> None:
        """Says what becomes of the job. Where that cannot be said, its lease ends by itself."""
        try:
            with self._logging(connection, "giving back a job", self.drains):
                value(connection, query, job.id, self.name, *told)
        except psycopg.Error:
            log.warning(DROPPED, job.id)

    @contextmanager
    def _beside(self, job_id: int) -> Iterator[None]:
        """While a job runs: extends its lease, and ticks, so that nothing waits for a training."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._beat, args=[job_id, is_over], daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _beat(self, job_id: int, is_over: threading.Event) -> None:
        """Uses connections of its own. A lost lease ends it, and is told when the job ends."""
        heartbeat = "select two_tower.heartbeat_job(%s, %s, %s * interval '1 second')"
        beats_at = time.monotonic() + self.lease_s / 3
        try:
            while connection := self.database.connect(is_over):
                with connection:
                    while not connection.closed and not is_over.wait(POLL_S):
                        self._tick(connection, is_strict=False)
                        if time.monotonic() >= beats_at and not connection.closed:
                            with self._logging(connection, "heartbeat_job", is_strict=False):
                                value(connection, heartbeat, job_id, self.name, self.lease_s)
                                beats_at = time.monotonic() + self.lease_s / 3
        except psycopg.Error:
            return
        except CommandError as error:
            log.warning("no heartbeat for job %s: %s", job_id, error.message)


def leave_cores_to_postgres() -> None:
    """On the machine of the database, training must not starve inserts."""
    import torch

    os.nice(10)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


@click.command()
@click.option("--drain", is_flag=True, help="Do what is due, then exit.")
@click.option("--lease", default=LEASE_S, show_default=True, help="Seconds a job stays ours.")
@click.option("--health-port", type=int, help="Answer GET / with 200 while all is well, else 503.")
@click.option(
    "--health-host", default="127.0.0.1", show_default=True, help="Whom it answers; 0.0.0.0: all."
)
def worker(drain: bool, lease: float, health_port: int | None, health_host: str) -> None:
    """Encode posts, train the towers: the work that needs torch. Run as many as you like.

    SIGTERM ends it between two batches; what it leaves, the next worker does.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    process = Worker(database_url(), lease)
    stop: Callable[..., None] = lambda *_: process.is_stopping.set()  # noqa: E731
    # Before anything slow: who is stopped while it starts ends as well-behaved.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with served(process.pulse, health_host, health_port):
        leave_cores_to_postgres()
        done = process.run(drain)
    click.echo(f"{done} jobs done")
