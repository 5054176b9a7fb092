"""Postgres killed while writers are at work: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import errors

from python_jobs.db import Connection, connect, value
from python_jobs.local.postgres import Cluster
from tests.support.database import add_user
from tests.support.engagements import (
    Stream,
    add_posts,
    insert_events,
)
from tests.support.invariants import assert_consistent, count_learned_positives
from tests.support.patience import PATIENCE_S
from tests.support.reference import Event
from tests.support.servers import kill_all_of


@dataclass
class Delivery:
    """What one writer knows: which batches were acknowledged, and which may be stored or not."""

    acknowledged: list[uuid.UUID] = field(default_factory=list)
    unsure: list[tuple[list[Event], list[uuid.UUID]]] = field(default_factory=list)


def deliver(
    url: str, seed: int, users: Sequence[str], posts: Sequence[int], acknowledged: Callable[[], Any]
) -> Delivery:
    """Sends batches until the server is gone."""
    stream = Stream(np.random.default_rng(seed), users, posts)
    stream.now += timedelta(minutes=seed)
    delivery = Delivery()
    try:
        with connect(url, autocommit=True) as session:
            while True:
                events = stream.next(int(stream.rng.integers(1, 11)))
                keys = [uuid.UUID(bytes=stream.rng.bytes(16)) for _ in events]
                delivery.unsure.append((events, keys))
                insert_events(session, events, keys)
                delivery.unsure.pop()
                delivery.acknowledged += keys
                acknowledged()
    except (errors.OperationalError, psycopg.OperationalError):
        return delivery


def check_after_crash(connection: Connection, deliveries: Sequence[Delivery]) -> int:
    """All that was acknowledged is stored once, and the rest is finished by trying again."""

    def stored(keys: Sequence[uuid.UUID]) -> int:
        counts = connection.execute(
            "select count(*), count(distinct client_event_id) as keys from public.engagement_events"
            " where client_event_id = any(%s)",
            [list(keys)],
        ).fetchone()
        assert counts is not None
        assert counts[0] == counts[1], "an event is stored twice"
        return int(counts[0])

    assert_consistent(connection)
    acknowledged = [key for delivery in deliveries for key in delivery.acknowledged]
    assert stored(acknowledged) == len(acknowledged)
    for delivery in deliveries:
        for events, keys in delivery.unsure:
            there = stored(keys)
            assert there in (0, len(keys)), "half a statement is stored"
            if there:
                with pytest.raises(errors.UniqueViolation):
                    insert_events(connection, events, keys)
            else:
                insert_events(connection, events, keys)
            assert stored(keys) == len(keys)
    assert_consistent(connection)
    return len(acknowledged)


def kill_in_the_middle(cluster: Cluster, rounds: int) -> None:
    writers = 8
    with connect(cluster.url(), autocommit=True) as connection:
        # Durability is what is tested: a setting of this machine must not weaken it.
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert value(connection, f"show {name}") == "on"
        users = [add_user(connection) for _ in range(10)]
        posts = add_posts(connection, 240, users[:4], np.random.default_rng(8))[:40]
    acknowledged_before = folded = 0
    for number in range(rounds):
        counted, enough, lock = [0], threading.Event(), threading.Lock()

        def acknowledged(
            counted: list[int] = counted,
            enough: threading.Event = enough,
            lock: threading.Lock = lock,
        ) -> None:
            with lock:
                counted[0] += 1
                if counted[0] >= 120:
                    enough.set()

        def fold() -> int:
            folded = 0
            try:
                with connect(cluster.url(), autocommit=True) as session:
                    while True:
                        folded += value(session, "select two_tower.fold_steps(5)")
            except psycopg.OperationalError:
                return folded

        with ThreadPoolExecutor(writers + 1) as pool:
            folding = pool.submit(fold)
            futures = [
                pool.submit(deliver, cluster.url(), 100 * number + k, users, posts, acknowledged)
                for k in range(writers)
            ]
            try:
                assert enough.wait(PATIENCE_S), "the writers did not get on"
            finally:
                kill_all_of(cluster)
            deliveries = [future.result() for future in futures]
            folded += folding.result()
        cluster.start()
        with connect(cluster.url(), autocommit=True) as connection:
            # Each positive has a row. The call that the kill cut off may have committed its five.
            queued = value(connection, "select count(*) from two_tower.deferred_steps")
            folded += 5
            assert folded + queued >= count_learned_positives(connection)
            acknowledged_before += check_after_crash(connection, deliveries)
            # Learning goes on by itself, and no push was lost with the session that had it.
            folded += value(connection, "select two_tower.fold_steps(null)")
            assert folded >= count_learned_positives(connection)
            assert_consistent(connection)
    print(f"{rounds} kills, {acknowledged_before} acknowledged events, all there once")


def test_a_kill_of_postgres_loses_nothing_acknowledged_and_applies_nothing_twice(
    durable: Cluster,
) -> None:
    """One kill, looked at closely; many of all kinds come in tests/security/test_chaos.py."""
    kill_in_the_middle(durable, 1)
