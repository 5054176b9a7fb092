"""A dump is made while writers write and much is under way. What is restored goes on by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import Cluster
from tests.support.chaos import UNFINISHED
from tests.support.dumps import restore_dump
from tests.support.engagements import Stream, add_posts, insert_events
from tests.support.invariants import assert_consistent, assert_lessons_in_force
from tests.support.learning import World
from tests.support.patience import wait_until
from tests.support.reference import Event
from tests.support.workers import running_worker
from tests.worker.test_study import begin, engage

UNDER_WAY = """
  select (select count(*) from two_tower.jobs where state = 'running') as jobs,
    (select count(*) from two_tower.deferred_steps) as steps,
    (select count(*) from two_tower.deferred_events) as events,
    (select count(*) from two_tower.studies where state = 'open') as studies,
    (select count(*) from two_tower.undos where finished_at is null) as undos,
    (select count(*) from two_tower.state where filling_checkpoint is not null) as rollbacks
"""
INSERT = """
  insert into public.engagement_events (user_id, post_id, event_type, dwell_ms)
  select * from unnest(%s::uuid[], %s::bigint[], %s::text[], %s::integer[])
"""


def begin_undo(world: World) -> None:
    """Takes back a part of what a user taught."""
    value(world.connection, "select two_tower.undo('spam', %s::uuid[])", world.user_ids[:2])
    assert value(world.connection, "select two_tower.undo_lessons(7)") == 7


def begin_rollback(world: World) -> None:
    """Restores a part of posts and users."""
    value(world.connection, "select two_tower.rollback()")
    value(world.connection, "select two_tower.fill_slot(10)")
    value(world.connection, "select two_tower.restore_users(3)")


def fill(connection: Connection) -> World:
    """Users who engaged, a checkpoint between, and a study of which a part was handed in."""
    connection.execute("update two_tower.settings set learned_events_per_minute = 1000000")
    start = value(connection, "select now()") - timedelta(minutes=600)
    connection.execute("select two_tower.create_partitions_back_to(%s::date)", [start])
    world = World(connection, users=12, posts=60)
    engage(world, 300, start)
    value(connection, "select two_tower.checkpoint('operator')")
    late = start + timedelta(minutes=400)
    likes = [Event(user, post, "repost", None, late) for user in world.user_ids
             for post in world.post_ids[30:36]]  # fmt: skip
    insert_events(connection, likes)
    connection.execute("select set_config('two_tower.now', '', false)")
    study = begin(connection)
    moves = [np.float32(0.02 * np.random.default_rng(5).normal(size=128))] * 20
    apply = "select two_tower.apply_study(%s, %s::bigint[], %s)"
    assert value(connection, apply, study.id, world.post_ids[:20], moves) > 0
    # Their worker is gone, with its lease.
    add_posts(connection, 20, [world.author])
    for kind in ("study", "encode_posts"):
        value(connection, "select two_tower.enqueue_job(%s)", kind)
        claim = "select * from two_tower.claim_job('gone', array[%s], '5 seconds')"
        assert rows(connection, claim, kind)
    return world


@contextmanager
def written_to(url: str, world: World) -> Iterator[None]:
    """Within the block two sessions write, one of them about posts that have no vector yet."""
    is_over = threading.Event()
    sent = [0, 0]

    def write(number: int) -> None:
        with connect(url, autocommit=True) as session:
            posts = rows(session, "select id from two_tower.posts order by id desc limit 50")
            stream = Stream(
                np.random.default_rng(number),
                world.user_ids,
                [row.id for row in posts] if number else world.post_ids,
            )
            while not is_over.is_set():
                events = stream.next(4)
                columns = zip(*((e.user_id, e.post_id, e.event_type, e.dwell_ms)
                                for e in events), strict=True)  # fmt: skip
                session.execute(INSERT, [list(column) for column in columns])
                sent[number] += 1

    def wait_for_more() -> None:
        before = list(sent)
        wait_until(lambda: all(now > then + 5 for now, then in zip(sent, before, strict=True)))

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number) for number in range(2)]
        try:
            wait_for_more()
            yield
            wait_for_more()
        finally:
            is_over.set()
        for writer in writers:
            writer.result()


@pytest.mark.parametrize("operation", [begin_undo, begin_rollback])
def test_a_dump_in_the_middle_of_everything_is_restored_and_ends_all_of_it_by_itself(
    operation: Callable[[World], None],
    cluster: Cluster,
    fresh_database: Callable[[], str],
    create_database: Callable[..., str],
) -> None:
    source, target = fresh_database(), create_database()
    with connect(source, autocommit=True) as connection:
        world = fill(connection)
        operation(world)
        with written_to(source, world):
            restore_dump(cluster, source, target)

    with connect(target, autocommit=True) as connection:
        (left,) = rows(connection, UNDER_WAY)
        assert min(left.jobs, left.steps, left.events) > 0
        assert (left.studies, left.undos + left.rollbacks) == (1, 1)
        with running_worker(target) as worker:
            wait_until(
                lambda: value(
                    connection,
                    "select filling_checkpoint is null from two_tower.state",
                )
            )
            if left.rollbacks:
                connection.execute("select two_tower.resume()")
            unfinished = (
                f"{UNFINISHED} union all select 'undo' from two_tower.undos"
                " where finished_at is null"
                " union all select 'study' from two_tower.studies where state = 'open'"
            )
            wait_until(lambda: not rows(connection, unfinished))
        assert not worker.said("Traceback")
        assert value(connection, "select two_tower.find_missing_parts()") == []
        assert_consistent(connection, counts=False)
        assert_lessons_in_force(connection)
        taken = "select sum(lessons) from two_tower.undos"
        undone = "select count(*) from two_tower.training_examples where is_undone"
        assert value(connection, undone) == (value(connection, taken) or 0)
        (state,) = rows(connection, "select state from two_tower.studies order by id limit 1")
        assert state == (("void" if left.rollbacks else "done"),)
