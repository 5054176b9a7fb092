"""A job that ends its worker each time ends itself, is an alert, and stops nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from python_jobs.db import connect, rows, value
from tests.support.patience import wait_until
from tests.support.workers import RunningWorker

KIND = "check_serving_index"
# What a job does that takes all memory, or meets a bug of a library: the process is gone.
POISON = f"""
import os, signal
from python_jobs.worker.jobs import HANDLERS
HANDLERS[{KIND!r}] = lambda connection: os.kill(os.getpid(), signal.{{}})
"""


@contextmanager
def restarted(url: str, first: str) -> Iterator[list[RunningWorker]]:
    """A worker that is started again whenever it ends, as systemd or Kubernetes does."""
    workers = [RunningWorker(url, "--lease", "2", first=first)]
    is_over = threading.Event()

    def restart() -> None:
        while not is_over.wait(0.1):
            if not workers[-1].process.is_alive():
                workers[-1].end()
                workers.append(RunningWorker(url, "--lease", "2", first=first))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield workers
    finally:
        is_over.set()
        thread.join()
        workers[-1].stop()
        print("".join(line for worker in workers for line in worker.lines))


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSEGV"])
def test_a_job_that_kills_each_of_its_workers_dies_with_an_alert_and_the_others_go_on(
    fresh_database: Callable[[], str], signal: str
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        connection.execute("update two_tower.schedules set is_enabled = false")
        connection.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'a post about ' || n from generate_series(1, 20) n"
        )
        job = value(connection, "select two_tower.enqueue_job(%s)", KIND)
        connection.execute("update two_tower.jobs set max_attempts = 3 where id = %s", [job])
        state = "select state from two_tower.jobs where id = %s"
        encoded = "select count(*) from two_tower.base_embeddings"
        with restarted(url, POISON.format(signal)) as workers:
            wait_until(lambda: value(connection, state, job) == "dead")
            wait_until(lambda: value(connection, encoded) == 20)
            assert len(workers) == 4
            assert workers[-1].process.is_alive()
            done = "select from two_tower.jobs where kind = 'encode_posts' and state = 'done'"
            wait_until(lambda: rows(connection, done))
        (dead,) = rows(connection, "select * from two_tower.jobs where id = %s", job)
        assert (dead.attempts, dead.last_error) == (3, "lease ended")

        value(connection, "select two_tower.record_metrics()")
        alert = "select advice from two_tower.open_alerts where subject = 'dead_jobs'"
        assert "last_error" in value(connection, alert)
        connection.execute(
            "update two_tower.jobs set finished_at = finished_at - interval '1 day' where id = %s",
            [job],
        )
        value(connection, "select two_tower.record_metrics()")
        assert rows(connection, alert) == []
