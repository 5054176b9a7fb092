"""What runs every minute and every day reads a bounded part, and keeps nobody waiting."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.operations.test_safety import World
from tests.support.database import add_user
from tests.support.engagements import insert_events
from tests.support.reference import Event

READ = (
    "select count(*) from two_tower.checkpoint_posts",
    "select count(*) from two_tower.checkpoint_users",
    "select count(*) from two_tower.most_moved_posts",
    "select two_tower.measure_drift()",
)


@pytest.fixture
def world(db: Connection) -> World:
    """A world that has learned, and a checkpoint of it."""
    world = World(db)
    world.learn()
    value(db, "select two_tower.checkpoint('operator')")
    return world


def enlarge(db: Connection) -> None:
    """The newest checkpoint says that it is so large that a sample has next to nothing of it."""
    db.execute(
        "update two_tower.checkpoints set posts = 1000000000000"
        " where id = (select max(id) from two_tower.checkpoints)"
    )


def test_a_small_checkpoint_is_its_own_sample_and_a_large_one_is_drawn_from(world: World) -> None:
    db = world.connection
    (made,) = rows(db, "select id, posts from two_tower.checkpoints")
    sample = "select post_id from two_tower.sample_checkpoint(%s, %s)"
    assert len(rows(db, sample, made.id, 10000)) == made.posts > 30
    drawn = [frozenset(row.post_id for row in rows(db, sample, made.id, 20)) for _ in range(100)]
    assert len(set(drawn)) > 1
    assert 0 < sum(map(len, drawn)) / 100 < made.posts
    assert len(frozenset().union(*drawn)) == made.posts
    enlarge(db)
    assert sum(len(rows(db, sample, made.id, 10000)) for _ in range(20)) < made.posts
    assert rows(db, sample, None, 100) == []


def test_posts_of_the_newest_events_are_watched_whatever_a_sample_has(world: World) -> None:
    db = world.connection
    crowd = [add_user(db) for _ in range(12)]
    hit = value(
        db, "select post_id from two_tower.checkpoint_posts order by engagement_count limit 1"
    )
    db.execute("update two_tower.settings set post_movement_limit = 0.01")
    now = world.stream.now
    for user in crowd:
        now += timedelta(minutes=1)
        baits = [Event(user, post, "like", None, now) for post in world.posts[100:104]]
        insert_events(db, [*baits, Event(user, hit, "reply", None, now)])
    enlarge(db)
    assert value(db, "select two_tower.hold_posts()") > 0
    held = rows(db, "select post_id from two_tower.live_embeddings where is_held")
    assert hit in {row.post_id for row in held}


def test_drift_by_a_sample_is_that_by_all_posts(world: World) -> None:
    db = world.connection
    world.learn()
    ids = [row.post_id for row in rows(db, "select post_id from two_tower.checkpoint_posts")]
    moved = rows(db, "select * from two_tower.measure_movement() order by post_id")
    assert len(moved) > 20
    assert rows(db, "select * from two_tower.measure_movement(%s) order by post_id", ids) == moved
    some = [row.post_id for row in moved[:5]]
    found = rows(db, "select * from two_tower.measure_movement(%s) order by post_id", some)
    assert found == moved[:5]
    assert rows(db, "select * from two_tower.measure_movement('{}')") == []


def test_older_checkpoints_are_read_while_one_is_made(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as db, connect(url) as maker:
        world = World(db)
        world.learn()
        value(db, "select two_tower.checkpoint('operator')")
        world.learn(20)
        value(maker, "select two_tower.checkpoint('operator')")
        db.execute("set lock_timeout = '2s'")
        before = [value(db, query) for query in READ]
        assert before[0] == value(db, "select posts from two_tower.checkpoints") > 0
        world.learn(20)  # writers do not wait either
        maker.commit()
        assert (
            value(db, "select count(distinct checkpoint_id) from two_tower.checkpoint_posts") == 2
        )
        for table in ("checkpoint_posts", "checkpoint_users"):
            stray = (
                "select count(*) from pg_constraint where contype = 'c'"
                f" and conrelid in (select relid from pg_partition_tree('two_tower.{table}'))"
            )
            assert value(db, stray) == 0


def test_a_checkpoint_that_cannot_be_dropped_now_is_dropped_with_the_next(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as db, connect(url) as reader:
        World(db).learn()
        db.execute("update two_tower.settings set checkpoints_kept = 2")
        numbers = [value(db, "select two_tower.checkpoint('operator')") for _ in range(2)]
        value(reader, "select count(*) from two_tower.checkpoint_posts")
        numbers.append(value(db, "select two_tower.checkpoint('operator')"))
        ids = "select array_agg(id order by id) from two_tower.checkpoints"
        assert value(db, ids) == numbers
        reader.rollback()
        numbers.append(value(db, "select two_tower.checkpoint('operator')"))
        assert value(db, ids) == numbers[2:]
