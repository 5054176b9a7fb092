"""Which workers live, what each is doing since when, and what one that is told to stop leaves."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import Cluster, free_port
from tests.support.patience import wait_until
from tests.support.servers import kill_all_of
from tests.support.workers import running_worker, waiting_backend

LIVE = "select * from two_tower.live_workers order by name, kind"
SILENCE = "select two_tower.seconds_without_worker()"


def set_clock(connection: Connection, offset: str) -> None:
    """Moves two_tower.now() of this transaction by an interval from the real time."""
    connection.execute(
        "select set_config('two_tower.now', (pg_catalog.now() + %s::interval)::text, true)",
        [offset],
    )


def claim(connection: Connection, worker: str, kind: str = "test") -> Any:
    """The id of a claimed job, or None."""
    query = "select id from two_tower.claim_job(%s, array[%s], '1 hour', '9.9')"
    claimed = rows(connection, query, worker, kind)
    return claimed[0].id if claimed else None


def ask(port: int) -> tuple[int, dict[str, Any]]:
    """Status and body of the health endpoint; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def test_live_workers_say_who_works_on_what_since_when(db: Connection) -> None:
    value(db, "select two_tower.enqueue_job('test')")
    set_clock(db, "-10 minutes")
    db.execute("update two_tower.jobs set run_at = two_tower.now()")
    assert claim(db, "busy") is not None
    assert claim(db, "gone") is None
    set_clock(db, "0 minutes")
    assert claim(db, "idle") is None
    now = value(db, "select two_tower.now()")
    found = [(row.name, row.kind, row.claimed_at, row.attempts) for row in rows(db, LIVE)]
    (started,) = {row.started_at for row in rows(db, LIVE) if row.name == "busy"}
    assert found == [("busy", "test", started, 1), ("idle", None, None, None)]
    assert (now - started).total_seconds() == 600
    assert {(row.role, row.version) for row in rows(db, LIVE)} == {("postgres", "9.9")}


def test_how_long_no_worker_lives_is_told_for_as_long_as_it_lasts(db: Connection) -> None:
    assert value(db, SILENCE) is None
    claim(db, "a")
    set_clock(db, "29 seconds")
    assert value(db, SILENCE) == 0
    set_clock(db, "5 minutes")
    assert value(db, SILENCE) == 300
    set_clock(db, "3 days")
    value(db, "select two_tower.prune_jobs()")
    assert value(db, SILENCE) == 3 * 86400
    claim(db, "b")
    value(db, "select two_tower.prune_jobs()")
    assert [row.name for row in rows(db, "select name from two_tower.workers")] == ["b"]


def test_a_job_that_is_given_back_is_due_at_once_and_was_no_attempt(db: Connection) -> None:
    job = value(db, "select two_tower.enqueue_job('test')")
    for worker in ("a", "b"):
        assert claim(db, worker) == job
        value(db, "select two_tower.release_job(%s, %s)", job, worker)
    assert tuple(rows(db, "select state, attempts, worker from two_tower.jobs")[0]) == (
        "pending",
        0,
        None,
    )
    assert claim(db, "c") == job
    other = value(db, "select two_tower.enqueue_job('test')")
    value(db, "select two_tower.release_job(%s, 'c')", job)
    left = rows(db, "select id, state from two_tower.jobs order by id")
    assert [tuple(row) for row in left] == [(job, "done"), (other, "pending")]


def test_a_worker_that_is_told_to_stop_ends_between_two_batches_and_leaves_the_rest(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection, connect(url) as blocker:
        connection.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'a post about ' || n from generate_series(1, 600) n"
        )
        blocker.execute("lock table two_tower.base_embeddings in share mode")
        with running_worker(url) as worker:
            waiting_backend(connection, "store_base_embeddings")
            worker.process.terminate()
            blocker.rollback()
            assert worker.end() == 0
        encoded = "select count(*) from two_tower.post_embeddings where embedding is not null"
        assert 0 < value(connection, encoded) < 600
        job = rows(connection, "select * from two_tower.jobs where kind = 'encode_posts'")[0]
        assert (job.state, job.attempts, job.last_error) == ("pending", 0, None)
        assert len(worker.said("is left to the next worker")) == 1
        with running_worker(url, "--drain") as heir:
            assert heir.end() == 0
        assert value(connection, encoded) == 600


def test_a_worker_that_is_told_to_stop_ends_whichever_of_its_threads_is_told(
    fresh_database: Callable[[], str],
) -> None:
    another = """
import signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def be_told():
    signal.sigwait([signal.SIGUSR1])
    signal.raise_signal(signal.SIGTERM)
threading.Thread(target=be_told, daemon=True).start()
"""
    with running_worker(fresh_database(), first=another) as worker:
        wait_until(lambda: worker.said("begins"))
        os.kill(worker.process.pid or 0, signal.SIGUSR1)
        assert worker.end() == 0
    assert worker.said("jobs done")


def test_a_worker_notes_its_release_and_answers_probes_while_its_database_comes_and_goes(
    durable: Cluster,
) -> None:
    port = free_port()
    with running_worker(durable.url(), "--health-port", str(port)) as worker:
        status, said = wait_until(lambda: (found := ask(port))[0] == 200 and found)
        assert (status, said["state"]) in ((200, "works"), (200, "waits for work"))
        with connect(durable.url(), autocommit=True) as connection:
            # A worker answers probes before its first claim writes its row.
            (row,) = wait_until(
                lambda: rows(connection, "select name, version from two_tower.workers")
            )
        assert tuple(row) == (said["worker"], version("two-tower"))
        assert worker.said(f"{said['worker']} of two-tower")
        kill_all_of(durable)
        wait_until(lambda: ask(port)[0] == 503)
        assert ask(port)[1]["state"] == "waits for its database"
        durable.start()
        wait_until(lambda: ask(port)[0] == 200)
        assert worker.stop() == 0
    assert ask(port)[0] == 0


def test_a_probe_of_a_worker_that_waits_for_its_first_database_is_refused(
    durable: Cluster,
) -> None:
    durable.stop()
    port = free_port()
    with running_worker(durable.url(), "--health-port", str(port)):
        status, said = wait_until(lambda: (found := ask(port))[0] and found)
    assert status == 503
    assert said == {
        "worker": said["worker"],
        "state": "waits for its database",
        "jobs": [],
        "database_answered_seconds_ago": None,
    }


@pytest.mark.parametrize("options", [[], ["--drain"]])
def test_a_port_that_is_taken_ends_a_worker_with_one_line(
    cluster: Cluster, fresh_database: Callable[[], str], options: list[str]
) -> None:
    taken = str(cluster.port)
    with running_worker(fresh_database(), "--health-port", taken, *options) as worker:
        assert worker.end() == 1
    assert worker.lines == [
        f"Error: Port {taken} of 127.0.0.1 can not be used: Address already in use.\n"
    ]
