"""Logical replication: rows bring their embeddings with them, and teach nothing a second time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, connect
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from tests.support.database import PROJECT, add_user, reachable_folder
from tests.support.engagements import Stream, add_posts, insert_events
from tests.support.patience import wait_until
from tests.support.reference import Event
from tests.support.servers import chosen_binaries

TABLES = [
    "auth.users",
    "public.posts",
    "public.engagement_events",
    "public.author_blocks",
    "two_tower.base_embeddings",
    "two_tower.live_embeddings",
    "two_tower.user_embeddings",
    "two_tower.user_posts",
    "two_tower.training_examples",
    "two_tower.unlearned_events",
    "two_tower.deferred_steps",
]


@pytest.fixture
def logical() -> Iterator[Cluster]:
    """A server that writes what logical replication needs."""
    with reachable_folder() as folder:
        settings = {"fsync": "off", "wal_level": "logical"}
        cluster = Cluster(
            folder / "postgres", free_port(), binaries=chosen_binaries(), settings=settings
        )
        cluster.start()
        yield cluster
        cluster.stop("immediate")


def make_database(cluster: Cluster, name: str) -> str:
    with connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
        connection.execute(f"create database {name}")  # type: ignore[arg-type]
    bootstrap(cluster.url(name, SUPERUSER), cluster.password)
    migrate(cluster.url(name), PROJECT)
    return cluster.url(name, SUPERUSER)


def contents(connection: Connection) -> dict[str, list[Any]]:
    """All rows of the replicated tables, as text."""
    return {
        table: connection.execute(
            f"select t::text from {table} t order by 1"  # type: ignore[arg-type]
        ).fetchall()
        for table in TABLES
    }


def test_a_subscriber_holds_the_same_vectors_and_no_trigger_fires_twice(logical: Cluster) -> None:
    origin_url, copy_url = (make_database(logical, name) for name in ("origin", "copy"))
    with (
        connect(origin_url, autocommit=True) as origin,
        connect(copy_url, autocommit=True) as copy,
    ):
        origin.execute(
            "create publication everything for table "  # type: ignore[arg-type]
            + ", ".join(TABLES)
            + " with (publish_via_partition_root = true)"
        )
        origin.execute("select pg_create_logical_replication_slot('copy', 'pgoutput')")
        copy.execute(
            f"create subscription copy connection '{origin_url}'"  # type: ignore[arg-type]
            " publication everything with (create_slot = false, copy_data = false)"
        )
        *users, author, other = (add_user(origin) for _ in range(8))
        posts = add_posts(origin, 40, [author, other], np.random.default_rng(41))
        stream = Stream(np.random.default_rng(42), users, posts)
        for size in (1, 1, 30, 100, 1, 60):
            insert_events(origin, stream.next(size))
            origin.execute("select two_tower.fold_steps(20)")
        insert_events(origin, [Event(users[0], posts[0], "view")])

        wanted = contents(origin)
        empty = [table for table in TABLES if not wanted[table]]
        assert empty == [], "a table was not written at all"
        position = "select pg_current_wal_lsn()"
        row = origin.execute(position).fetchone()  # type: ignore[arg-type]
        assert row is not None
        caught_up = (
            "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots"
            " where slot_name = 'copy'"
        )

        def is_there() -> bool:
            answer = origin.execute(caught_up, [row[0]]).fetchone()
            return bool(answer and answer[0])

        wait_until(is_there)
        assert contents(copy) == wanted
        copy.execute("drop subscription copy")
