"""Workers behind a transaction pooler, which gives each transaction any connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from python_jobs.db import connect, rows, value
from python_jobs.local.postgres import Cluster
from tests.support.database import add_user
from tests.support.patience import wait_until
from tests.support.pooler import SERVER_CONNECTIONS, find_pgbouncer, pooler
from tests.support.tower_world import make_world
from tests.support.workers import running_worker

pytestmark = pytest.mark.skipif(
    find_pgbouncer() is None, reason="no pgbouncer here: apt-get install pgbouncer"
)

# What the next client of a server's connection would see of the one before.
LEFT = """
    select session_user::text, current_user::text, current_setting('statement_timeout') as timeout,
      (select count(*) from pg_prepared_statements) as prepared,
      (select count(*) from pg_listening_channels()) as listening,
      (select count(*) from pg_locks
       where pid = pg_backend_pid() and locktype = 'advisory') as locks
"""

ENDED = """
    select not exists (select from two_tower.jobs where state in ('pending', 'running'))
      and (select filling_version is null from two_tower.state)
"""


def test_workers_encode_and_train_through_a_transaction_pooler_and_leave_it_as_it_was(
    cluster: Cluster, fresh_database: Callable[[], str]
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        make_world(connection)
        connection.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'post number ' || n from generate_series(1, 600) n"
        )
        connection.execute(
            "insert into public.profiles (user_id, bio) values (%s, 'I sail')",
            [add_user(connection)],
        )
        for kind in ("train_candidate_tower", "train_user_tower"):
            value(connection, "select two_tower.enqueue_job(%s)", kind)
        with pooler(cluster, url) as pooled, running_worker(pooled) as one:
            with running_worker(pooled, "--drain") as two:
                assert two.end() == 0
            wait_until(lambda: value(connection, ENDED))
            value(connection, "select two_tower.enqueue_job('build_serving_index')")
            wait_until(lambda: value(connection, ENDED))
            jobs = rows(connection, "select kind, state, attempts from two_tower.jobs")
            assert {job.kind for job in jobs} >= {
                "encode_posts",
                "encode_profiles",
                "train_candidate_tower",
                "train_user_tower",
                "build_serving_index",
            }
            assert {(job.state, job.attempts) for job in jobs} == {("done", 1)}
            assert one.stop() == 0
            # A transaction keeps a connection: so many at once are all that the pooler has.
            with ExitStack() as clients:
                left = [
                    rows(clients.enter_context(connect(pooled)), LEFT)[0]
                    for _ in range(SERVER_CONNECTIONS)
                ]
    assert {tuple(each) for each in left} == {("postgres", "postgres", "0", 0, 0, 0)}
    assert not [*one.said("Traceback"), *two.said("Traceback")]


def test_a_worker_waits_for_the_server_behind_its_pooler(durable: Cluster) -> None:
    with pooler(durable, durable.url()) as pooled, running_worker(pooled) as worker:
        with connect(durable.url(), autocommit=True) as connection:
            wait_until(lambda: value(connection, "select count(*) from two_tower.jobs"))
        durable.stop("immediate")
        wait_until(lambda: worker.said("no database, waiting for it"))
        durable.start()
        with connect(durable.url(), autocommit=True) as connection:
            connection.execute(
                "insert into public.posts (author_id, content) values (null, 'a boat')"
            )
            missing = "select count(*) from two_tower.post_embeddings where embedding is null"
            wait_until(lambda: value(connection, missing) == 0)
            assert worker.process.is_alive()
    assert not worker.said("Traceback")
