"""Sessions at once, under each isolation: an event counts once."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from python_jobs.db import Connection, value
from tests.support.engagements import (
    Stream,
    insert_events,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import World, reasons, rng
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.reference import START, Event


def at_once(
    first: Connection, second: Connection, work: Callable[[Connection], Any]
) -> tuple[Any, Future[Any]]:
    """Does the work in both sessions: the second starts while the first has not committed."""
    pid = second.info.backend_pid
    with ThreadPoolExecutor(1) as pool, first.transaction():
        done = work(first)
        started = threading.Event()

        def later() -> Any:
            with second.transaction():
                # In repeatable read the snapshot is taken here, before the first commits.
                second.execute("select 1")
                started.set()
                return work(second)

        future = pool.submit(later)
        assert started.wait(PATIENCE_S)
        blocking = "select cardinality(pg_catalog.pg_blocking_pids(%s))"
        wait_until(lambda: future.done() or value(first, blocking, pid))
    return done, future


ISOLATION = [
    IsolationLevel.READ_COMMITTED,
    IsolationLevel.REPEATABLE_READ,
    IsolationLevel.SERIALIZABLE,
]


@pytest.mark.parametrize("isolation", ISOLATION)
@pytest.mark.parametrize("is_known", [False, True])
def test_the_same_signal_in_two_sessions_at_once_is_learned_once(
    open_connection: Callable[..., Connection], isolation: IsolationLevel, is_known: bool
) -> None:
    first, second = open_connection(isolation), open_connection(isolation)
    world = World(first)
    if is_known:
        world.send("reply", world.post_ids[1])
    like = [Event(world.user, world.post_ids[0], "like", None, START + timedelta(seconds=5))]
    _, other = at_once(first, second, lambda connection: insert_events(connection, like))
    if error := other.exception():
        assert isolation != IsolationLevel.READ_COMMITTED
        assert isinstance(error, errors.SerializationFailure)
    else:
        assert reasons(first) == {"repeated": 1}
    assert len([pair for pair in world.pairs(post_id=world.post_ids[0]) if pair[1]]) == 1
    assert_consistent(first)


@pytest.mark.parametrize("isolation", ISOLATION)
@pytest.mark.parametrize("event_type", ["view", "like"])
def test_a_client_event_id_in_two_sessions_at_once_is_stored_once(
    open_connection: Callable[..., Connection], isolation: IsolationLevel, event_type: str
) -> None:
    first, second = open_connection(isolation), open_connection(isolation)
    world = World(first)
    world.send("reply", world.post_ids[1])
    event, key = Event(world.user, world.post_ids[0], event_type), uuid.uuid4()
    _, other = at_once(first, second, lambda c: insert_events(c, [event], [key]))
    wanted = (
        errors.UniqueViolation
        if isolation == IsolationLevel.READ_COMMITTED
        else (errors.UniqueViolation, errors.SerializationFailure)
    )
    assert isinstance(other.exception(), wanted)
    stored = "select count(*) from public.engagement_events where client_event_id = %s"
    assert value(first, stored, key) == 1
    assert_consistent(first)


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_callers_of_stricter_isolation_succeed_or_are_told_to_try_again(
    open_connection: Callable[..., Connection], isolation: IsolationLevel
) -> None:
    world = World(open_connection(), users=6, posts=30)
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def write(seed: int, connection: Connection) -> None:
        stream = Stream(rng(seed), world.user_ids, world.post_ids)
        for _ in range(25):
            events = stream.next(int(stream.rng.integers(1, 6)))
            try:
                insert_events(connection, events)
                outcome = "stored"
            except psycopg.Error as error:
                outcome = str(error.sqlstate)
            with lock:
                outcomes[outcome] += 1

    sessions = [open_connection(isolation) for _ in range(6)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        for future in [pool.submit(write, seed, c) for seed, c in enumerate(sessions)]:
            future.result()
    assert set(outcomes) <= {"stored", "40001"}
    assert outcomes["stored"] > 20
    assert_consistent(world.connection)
