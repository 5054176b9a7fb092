"""Workers whose database goes away, comes back, refuses them, or lacks the engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import Cluster
from tests.support.database import add_user
from tests.support.invariants import assert_consistent
from tests.support.patience import wait_until
from tests.support.servers import kill_all_of
from tests.support.workers import RunningWorker, running_worker, waiting_backend

LOSS, RETURN = "no database, waiting for it", "the database is back"
UNFINISHED = """
    select from two_tower.jobs where state in ('pending', 'running')
    union all select from two_tower.deferred_events
"""


def add_liked_posts(connection: Connection, count: int) -> None:
    """Posts that are not encoded yet, each liked once: the likes wait and are learned with it.

    A user learns a bounded number of likes an hour, so every twenty are of another one.
    """
    users = [add_user(connection) for _ in range(-(-count // 20))]
    connection.execute(
        "with made as (insert into public.posts (author_id, content)"
        " select null, 'a post about ' || n from generate_series(1, %s) n returning id)"
        " insert into public.engagement_events (user_id, post_id, event_type)"
        " select (%s::uuid[])[1 + id %% cardinality(%s::uuid[])], id, 'like' from made",
        [count, users, users],
    )


def more_encoded(connection: Connection, than: int) -> int:
    """How many posts are encoded, if that is more; else 0."""
    encoded = "select count(*) from two_tower.post_embeddings where embedding is not null"
    count = int(value(connection, encoded))
    return count if count > than else 0


def is_waiting(worker: RunningWorker, outages: int) -> bool:
    """Whether it has told that many losses; one that has ended will never tell more."""
    assert worker.process.is_alive(), worker.lines
    return len(worker.said(LOSS)) == outages


def test_a_worker_outlives_kills_of_its_server_and_does_every_job_once(durable: Cluster) -> None:
    posts, encoded = 0, 0
    with running_worker(durable.url()) as worker:
        for outage in (1, 2):
            with connect(durable.url(), autocommit=True) as connection:
                add_liked_posts(connection, 150)
                posts += 150
                encoded = wait_until(lambda: more_encoded(connection, encoded))  # noqa: B023
            kill_all_of(durable)
            wait_until(lambda: is_waiting(worker, outage))  # noqa: B023
            durable.start()
            wait_until(lambda: len(worker.said(RETURN)) == outage)  # noqa: B023
        with connect(durable.url(), autocommit=True) as connection:
            wait_until(lambda: more_encoded(connection, posts - 1))
            wait_until(lambda: not rows(connection, UNFINISHED))
            assert not rows(connection, "select from two_tower.jobs where state = 'dead'")
            learned = (
                "select count(*) as events, count(distinct event_id) as once"
                " from two_tower.training_examples where event_type = 'like'"
            )
            assert tuple(rows(connection, learned)[0]) == (posts, posts)
            assert_consistent(connection)
        assert worker.stop() == 0
    assert (len(worker.said(LOSS)), len(worker.said(RETURN))) == (2, 2)
    assert not worker.said("Traceback")


def test_a_worker_waits_for_a_server_that_does_not_run_yet(durable: Cluster) -> None:
    durable.stop()
    with running_worker(durable.url()) as worker:
        wait_until(lambda: is_waiting(worker, 1))
        durable.start()
        with connect(durable.url(), autocommit=True) as connection:
            add_liked_posts(connection, 1)
            wait_until(lambda: more_encoded(connection, 0))
    assert (len(worker.said(LOSS)), len(worker.said(RETURN))) == (1, 1)
    assert not worker.said("Traceback")


def test_a_worker_waits_while_its_database_takes_no_writes(
    fresh_database: Callable[[], str],
) -> None:
    """As after a failover, when the address still leads to what is a standby now."""
    url = fresh_database()
    change = f'alter database "{url.rsplit("/", 1)[1]}" set default_transaction_read_only'
    with (
        running_worker(url) as worker,
        connect(url, autocommit=True) as connection,
    ):
        wait_until(lambda: value(connection, "select count(*) from two_tower.jobs"))
        connection.execute(f"{change} = on".encode())
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        wait_until(lambda: is_waiting(worker, 1))
        connection.execute(f"{change} = off".encode())
        add_liked_posts(connection, 1)
        wait_until(lambda: more_encoded(connection, 0))
    assert len(worker.said(RETURN)) == 1


def test_a_drain_that_loses_its_database_ends_with_one_line(durable: Cluster) -> None:
    with connect(durable.url(), autocommit=True) as connection, connect(durable.url()) as blocker:
        add_liked_posts(connection, 1)
        blocker.execute("lock table two_tower.base_embeddings in share mode")
        with running_worker(durable.url(), "--drain") as worker:
            waiting_backend(connection, "store_base_embeddings")
            kill_all_of(durable)
            assert worker.end() == 1
        connection.close()
        blocker.close()
    assert len(worker.said("Error: ")) == 1
    assert worker.lines[-1].startswith("Error: ")
    assert not worker.said("Traceback")


@pytest.mark.parametrize("options", [[], ["--drain"]])
def test_a_worker_on_a_database_without_the_engine_ends_with_one_line(
    create_database: Callable[..., str], options: list[str]
) -> None:
    with running_worker(create_database(), *options) as worker:
        assert worker.end() == 1
    assert worker.lines == ["Error: Two-Tower is not in this database: two-tower migrate.\n"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("password", "Wrong password for role postgres"), ("dbname", "has no database missing")],
)
def test_a_worker_whose_first_login_is_refused_ends_with_one_line(
    cluster: Cluster, wrong: str, says: str
) -> None:
    url = cluster.url("missing" if wrong == "dbname" else "postgres")
    if wrong == "password":
        url = url.replace(cluster.password, "guess")
    with running_worker(url) as worker:
        assert worker.end() == 1
    assert len(worker.lines) == 1
    assert says in worker.lines[0]


def test_a_worker_whose_role_may_do_nothing_ends_with_one_line(
    cluster: Cluster, fresh_database: Callable[[], str]
) -> None:
    url = fresh_database().replace("//postgres:", "//authenticator:")
    with running_worker(url) as worker:
        assert worker.end() == 1
    assert worker.lines[-1].startswith("Error: permission denied")
    assert not worker.said("Traceback")
