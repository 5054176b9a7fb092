"""Who moved what, and how impressions are spread."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from python_jobs.db import Connection, array, rows, value
from tests.operations.test_safety import World
from tests.support.database import add_user
from tests.support.engagements import add_posts, insert_events
from tests.support.reference import Event

LEARNED = "select * from two_tower.training_examples where not is_withdrawn"


@pytest.fixture
def world(db: Connection) -> World:
    """A world that learned, was audited, and learned on."""
    world = World(db)
    world.learn()
    value(db, "select two_tower.checkpoint()")
    world.learn()
    return world


def test_posts_are_shown_by_how_far_events_moved_them_and_by_whom(world: World) -> None:
    db = world.connection
    last = value(db, "select last_event_id from two_tower.checkpoints")
    movement: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows(db, f"{LEARNED} and event_id > %s", last):
        movement[row.post_id][str(row.user_id)] += abs(row.step)
    found = rows(db, "select * from two_tower.most_moved_posts")
    assert {row.post_id for row in found} == set(movement)
    moved = [row.movement for row in found]
    assert moved == sorted(moved, reverse=True)
    for row in found:
        users = movement[row.post_id]
        assert row.movement == pytest.approx(sum(users.values()), abs=1e-4)
        assert row.users == len(users)
        assert users[str(row.most_by)] == pytest.approx(max(users.values()), abs=1e-5)
        assert row.key == str(row.post_id)
    known = [row for row in found if row.distance is not None]
    then, now = (
        {row.post_id: array(row.embedding) for row in rows(db, query)}
        for query in (
            "select post_id, embedding from two_tower.checkpoint_posts",
            "select post_id, embedding from two_tower.live_embeddings",
        )
    )
    assert known
    for row in known:
        assert row.distance == pytest.approx(
            1 - float(then[row.post_id] @ now[row.post_id]), abs=1e-5
        )


def test_a_freeze_that_says_since_when_looks_back_further(world: World) -> None:
    db = world.connection
    value(db, "select two_tower.checkpoint()")
    count = "select coalesce(sum(lessons), 0) from two_tower.most_moved_posts"
    assert value(db, count) == 0
    db.execute("select two_tower.freeze('x', '2001-01-01')")
    assert value(db, count) == value(db, f"select count(*) from ({LEARNED}) x")


def test_users_are_shown_by_how_far_they_moved_posts_and_how_far_they_moved(world: World) -> None:
    db = world.connection
    spammer, last = add_user(db), value(db, "select last_event_id from two_tower.checkpoints")
    now = world.stream.now
    insert_events(db, [Event(spammer, post, "reply", None, now) for post in world.posts[:50]])
    top = rows(db, "select * from two_tower.most_moving_users")
    assert str(top[0].user_id) == spammer
    assert (top[0].event_types, top[0].posts, top[0].lessons) == ({"reply": 50}, 50, 50)
    ledger = f"select count(*) from ({LEARNED}) x where event_id > %s"
    assert sum(row.lessons for row in top) == value(db, ledger, last)
    assert all(row.lessons == sum(row.event_types.values()) for row in top)
    moved = rows(db, "select * from two_tower.most_moved_users")
    assert {str(row.user_id) for row in moved} <= set(world.users)
    assert moved[0].distance == max(row.distance for row in moved) > 0


def test_each_lesson_is_shown_with_what_it_did(world: World) -> None:
    db = world.connection
    shown = rows(db, "select * from two_tower.lessons order by event_id")
    assert len(shown) == value(db, "select count(*) from two_tower.training_examples")
    assert {row.source for row in shown} == {"posts"}
    assert any(row.is_withdrawn for row in shown)
    assert not any(row.is_rolled_back for row in shown)
    last = value(db, "select last_event_id from two_tower.checkpoints")
    value(db, "select two_tower.rollback()")
    shown = rows(db, "select * from two_tower.lessons")
    assert all(row.is_rolled_back == (row.event_id > last) for row in shown)


def test_impressions_are_spread_or_not(db: Connection) -> None:
    readers = [add_user(db) for _ in range(40)]
    posts = add_posts(db, 100, [add_user(db)], np.random.default_rng(71))
    measure = "select * from two_tower.measure_concentration()"
    (none,) = rows(db, measure)
    assert (none.listed_posts, none.shown_posts, none.gini) == (100, 0, None)
    assert value(db, "select count(*) from two_tower.posts_never_shown") == 100
    rng = np.random.default_rng(72)
    counts = np.zeros(100)
    send = "insert into public.engagement_events (user_id, post_id, event_type) values (%s, %s, %s)"
    for reader in readers:
        for place in {int(100 * x) for x in rng.random(20) ** 3}:
            counts[place] += 1
            for _ in range(2):  # twice is once
                db.execute(send, [reader, posts[place], "view"])
    (found,) = rows(db, measure)
    wanted = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert found.gini == pytest.approx(wanted)
    assert (found.shown_posts, found.readers_reached) == ((counts > 0).sum(), counts.sum())
    assert found.share_of_top_percent == pytest.approx(counts.max() / counts.sum())
    never = {row.post_id for row in rows(db, "select post_id from two_tower.posts_never_shown")}
    assert never == {post for post, count in zip(posts, counts, strict=True) if not count}


def test_signals_are_words(db: Connection) -> None:
    user = add_user(db)
    (post,) = add_posts(db, 1, [add_user(db)], np.random.default_rng(73))
    send = "insert into public.engagement_events (user_id, post_id, event_type) values (%s, %s, %s)"
    for event_type in ("view", "repost", "like", "unlike", "hide"):
        db.execute(send, [user, post, event_type])
    signals = "select signals from two_tower.user_post_signals where user_id = %s"
    assert value(db, signals, user) == ["view", "repost", "hide"]
