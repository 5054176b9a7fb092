"""pg_cron keeps the time: it learns what was deferred with no worker at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from tests.support.database import PROJECT, reachable_folder
from tests.support.learning import World
from tests.support.patience import wait_until
from tests.support.servers import chosen_binaries

# As the platform hands pg_cron over to the role that runs migrations.
HAND_OVER = """
  create extension pg_cron;
  grant usage on schema cron to postgres;
  grant all on all tables in schema cron to postgres
"""
# pg_cron connects to the server as the owner of a job does, without a password.
TRUST = "host postgres postgres 127.0.0.1/32 trust\n"


@pytest.fixture(scope="module")
def timed(cluster: Cluster) -> Iterator[Cluster]:
    """A server with pg_cron in its database `postgres`, migrated as on the platform."""
    at_hand = "select exists (select from pg_available_extensions where name = 'pg_cron')"
    with connect(cluster.url(user=SUPERUSER)) as connection:
        if not value(connection, at_hand):
            pytest.skip("this Postgres has no pg_cron; debian-17 has: see docs/CONTRIBUTING.md")
    settings = {
        "fsync": "off",
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": "postgres",
        "cron.host": "127.0.0.1",
    }
    with reachable_folder() as folder:
        server = Cluster(
            folder / "postgres", free_port(), binaries=chosen_binaries(), settings=settings
        )
        server.start()
        try:
            bootstrap(server.url(user=SUPERUSER), server.password)
            access = server.data_dir / "pg_hba.conf"
            access.write_text(TRUST + access.read_text())
            with connect(server.url(user=SUPERUSER), autocommit=True) as owner:
                owner.execute(HAND_OVER)
                owner.execute("select pg_reload_conf()")
            migrate(server.url(), PROJECT)
            # A scheduler that learns of its extension just now can miss the job that comes with it.
            server.stop("fast")
            server.start()
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture
def timed_db(timed: Cluster) -> Iterator[Connection]:
    """A connection as role postgres to the database that pg_cron serves."""
    with connect(timed.url(), autocommit=True) as connection:
        yield connection


def test_the_migrations_leave_one_job_of_their_role(timed_db: Connection) -> None:
    jobs = rows(timed_db, "select jobname, command, username, database, active from cron.job")
    command = "set statement_timeout = 0; select two_tower.tick()"
    assert jobs == [("two_tower_tick", command, "postgres", "postgres", True)]


def test_what_is_deferred_is_learned_by_ticks_alone(timed_db: Connection) -> None:
    for _ in range(10):  # what is due at once in a new database: an old pg_cron ticks by minutes
        timed_db.execute("select two_tower.tick()")
    World(timed_db).send("like")
    waiting = "select count(*) from two_tower.deferred_steps"
    assert value(timed_db, waiting) > 0
    wait_until(lambda: value(timed_db, waiting) == 0)
    ran = "select status, return_message from cron.job_run_details where status <> 'running'"
    wait_until(lambda: rows(timed_db, ran))
    assert {status for status, _ in rows(timed_db, ran)} == {"succeeded"}


def test_a_job_that_somebody_stopped_is_named(timed_db: Connection) -> None:
    missing = "select two_tower.find_missing_parts()"
    assert value(timed_db, missing) == []
    with timed_db.transaction(force_rollback=True):
        timed_db.execute("update cron.job set active = false where true")
        assert value(timed_db, missing) == ["job two_tower_tick of pg_cron"]
    with timed_db.transaction(force_rollback=True):
        timed_db.execute("select cron.unschedule('two_tower_tick')")
        assert value(timed_db, missing) == ["job two_tower_tick of pg_cron"]


def test_the_history_of_ticks_is_pruned(timed_db: Connection) -> None:
    ended = "select count(*) from cron.job_run_details where end_time is not null"
    wait_until(lambda: value(timed_db, ended))
    with timed_db.transaction(force_rollback=True):
        timed_db.execute("update cron.job_run_details set end_time = end_time - interval '2 days'")
        old = value(timed_db, ended)
        assert value(timed_db, "select two_tower.prune_cron_history()") >= old
        assert value(timed_db, f"{ended} and end_time < now() - interval '1 day'") == 0
