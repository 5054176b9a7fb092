"""What a worker does when a statement of its job is cancelled, its lease or a connection lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.support.patience import wait_until
from tests.support.workers import running_worker, waiting_backend

STORE = "store_base_embeddings"


@dataclass
class Held:
    """A database in which no worker can store what it encoded, until the lock is let go."""

    url: str
    connection: Connection
    blocker: Connection

    def job(self) -> Any:
        """The row of the encoding job."""
        return rows(self.connection, "select * from two_tower.jobs where kind = 'encode_posts'")[0]

    def let_go(self) -> None:
        """Lets the worker store."""
        self.blocker.rollback()

    def wait_until_done(self) -> Any:
        """The row of the encoding job that is done."""
        wait_until(lambda: self.job().state == "done")
        return self.job()


@pytest.fixture
def held(fresh_database: Callable[[], str]) -> Iterator[Held]:
    url = fresh_database()
    with connect(url, autocommit=True) as connection, connect(url) as blocker:
        connection.execute("insert into public.posts (author_id, content) values (null, 'a boat')")
        blocker.execute("lock table two_tower.base_embeddings in share mode")
        yield Held(url, connection, blocker)


def test_a_cancelled_statement_is_a_failed_attempt_that_is_tried_again(held: Held) -> None:
    with running_worker(held.url) as worker:
        backend = waiting_backend(held.connection, STORE)
        held.connection.execute("select pg_cancel_backend(%s)", [backend])
        wait_until(lambda: held.job().last_error)
        held.let_go()
        job = held.wait_until_done()
    assert job.attempts == 2
    assert "QueryCanceled: canceling statement due to user request" in job.last_error
    assert len(worker.said(f"job {job.id} encode_posts failed")) == 1
    assert not worker.said("no database")


def test_a_job_whose_connection_is_lost_fails_and_is_tried_again_before_its_lease_ends(
    held: Held,
) -> None:
    with running_worker(held.url, "--lease", "100000") as worker:
        backend = waiting_backend(held.connection, STORE)
        held.connection.execute("select pg_terminate_backend(%s)", [backend])
        wait_until(lambda: held.job().last_error)
        held.let_go()
        job = held.wait_until_done()
    assert job.attempts == 2
    assert "terminating connection due to administrator command" in job.last_error
    assert len(worker.said("no database, waiting for it")) == 1
    assert len(worker.said("the database is back")) == 1
    assert not worker.said("Traceback")


def test_a_heartbeat_that_loses_its_connection_goes_on_by_another(held: Held) -> None:
    with running_worker(held.url, "--lease", "6") as worker:
        backend = waiting_backend(held.connection, STORE)
        mine = [c.info.backend_pid for c in (held.connection, held.blocker)]
        held.connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> all(%s)",
            [[*mine, backend]],
        )
        is_extended = "select lease_until > %s + interval '6 seconds' from two_tower.jobs"
        cut_off_at = value(held.connection, "select two_tower.now()")
        query = f"{is_extended} where kind = 'encode_posts' and attempts = 1"
        wait_until(lambda: value(held.connection, query, cut_off_at))
        held.let_go()
        job = held.wait_until_done()
    assert job.attempts == 1
    assert len(worker.said("no database, waiting for it")) == 1


def test_what_came_of_a_job_that_another_worker_has_is_dropped_with_one_warning(
    held: Held,
) -> None:
    with running_worker(held.url, "--lease", "3") as worker:
        waiting_backend(held.connection, STORE)
        held.connection.execute(
            "update two_tower.jobs set worker = 'another', lease_until = now() + interval '1 day'"
            " where kind = 'encode_posts'"
        )
        held.let_go()
        (warning,) = wait_until(lambda: worker.said("WARNING"))
    job = held.job()
    assert (job.state, job.worker, job.result) == ("running", "another", None)
    assert f"job {job.id} is not leased by this worker any more" in warning
    assert worker.said("WARNING") == [warning]
    assert not worker.said("Traceback")


@pytest.mark.parametrize(
    ("held_back", "query"),
    [
        ("lock table two_tower.base_embeddings in share mode", STORE),
        ("select from two_tower.cursors where name = 'tick' for update", "two_tower.tick()"),
    ],
)
def test_ticks_and_calls_of_jobs_outlast_the_time_limit_of_the_database(
    fresh_database: Callable[[], str], held_back: str, query: str
) -> None:
    url = fresh_database()
    limit = f'alter database "{url.rsplit("/", 1)[1]}" set statement_timeout'
    with connect(url, autocommit=True) as connection, connect(url) as blocker:
        connection.execute(f"{limit} = '3s'".encode())
        connection.execute("insert into public.posts (author_id, content) values (null, 'a boat')")
        blocker.execute("set local statement_timeout = 0")
        blocker.execute(held_back.encode())
        with running_worker(url) as worker:
            backend = waiting_backend(connection, query)
            is_over = (
                "select now() > query_start + interval '6 seconds' from pg_stat_activity"
                " where pid = %s"
            )
            wait_until(lambda: value(connection, is_over, backend))
            assert waiting_backend(connection, query) == backend
            blocker.rollback()
            done = (
                "select attempts from two_tower.jobs where kind = 'encode_posts' and state = 'done'"
            )
            ((attempts,),) = wait_until(lambda: rows(connection, done))
    assert attempts == 1
    assert not worker.said("tick failed")
    assert not worker.said("statement timeout")
