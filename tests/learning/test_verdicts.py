"""What is not learned though it is recorded, and why."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from python_jobs.db import value
from tests.support.engagements import (
    add_posts,
    base_vectors,
    delete_posts,
    insert_events,
    store,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import World, live, reasons, user_vector
from tests.support.reference import START, Event


@pytest.mark.parametrize("event_type", ["like", "click", "dwell", "skip", "block_author"])
def test_a_signal_is_learned_once_however_often_it_is_sent(world: World, event_type: str) -> None:
    world.send(event_type, dwell_ms=9000)
    user, post = (
        user_vector(world.connection, world.user),
        live(world.connection, world.post_ids[0]),
    )
    for _ in range(5):
        world.send(event_type, dwell_ms=9000)
    insert_events(
        world.connection,
        [Event(world.user, world.post_ids[0], event_type, 9000, world.now)] * 20,
    )
    assert np.array_equal(user_vector(world.connection, world.user), user)
    assert np.array_equal(live(world.connection, world.post_ids[0]), post)
    assert reasons(world.connection) == {"repeated": 25}
    assert_consistent(world.connection)


def test_once_only_outlives_the_partitions_of_events(world: World) -> None:
    world.send("like")
    world.connection.execute("truncate public.engagement_events, two_tower.training_examples")
    world.send("like")
    assert reasons(world.connection) == {"repeated": 1}


def test_what_was_never_given_can_not_be_withdrawn(world: World) -> None:
    world.send("reply")
    user = user_vector(world.connection, world.user)
    world.send("unlike")
    world.send("unrepost")
    assert np.array_equal(user_vector(world.connection, world.user), user)
    assert reasons(world.connection) == {"nothing_to_withdraw": 2}


def test_what_no_queue_takes_above_the_bound_of_a_minute_is_only_recorded(world: World) -> None:
    world.connection.execute(
        "update two_tower.settings set learned_events_per_minute = 7, waiting_events_per_user = 0"
    )
    minute = START + timedelta(hours=1)
    events = [Event(world.user, post_id, "like", None, minute) for post_id in world.post_ids[:10]]
    insert_events(world.connection, events[:4])
    for event in events[4:]:
        insert_events(world.connection, [event])
    assert reasons(world.connection) == {"rate_limited": 3}
    assert value(world.connection, "select count(*) from public.engagement_events") == 10
    world.send("like", world.post_ids[11], world.user_ids[1], created_at=minute)
    # The next minute starts from nothing, and what was not learned may still be.
    world.send("like", world.post_ids[8], created_at=minute + timedelta(minutes=1))
    assert reasons(world.connection) == {"rate_limited": 3}
    assert_consistent(world.connection)


def test_a_post_that_is_deleted_teaches_nothing_and_its_events_are_recorded(world: World) -> None:
    (late,) = add_posts(world.connection, 1, [world.author])
    for post_id in (late, world.post_ids[0]):
        delete_posts(world.connection, [post_id])
        world.send("like", post_id)
    assert reasons(world.connection) == {"post_deleted": 2}
    assert world.pairs() == []
    assert_consistent(world.connection)


def test_an_author_s_own_events_teach_and_count_nothing(world: World) -> None:
    post = world.post_ids[0]
    before = live(world.connection, post)
    for event_type in ("like", "reply", "repost", "click", "hide"):
        world.send(event_type, post, world.author)
    world.send("unlike", post, world.author)
    assert reasons(world.connection) == {"own_post": 5, "nothing_to_withdraw": 1}
    assert np.array_equal(live(world.connection, post), before)
    counted = (
        "select engagement_count, popularity from two_tower.live_embeddings where post_id = %s"
    )
    (row,) = world.connection.execute(counted, [post]).fetchall()
    assert tuple(row) == (0, float("-inf"))
    assert world.pairs() == []
    assert_consistent(world.connection)


def test_an_author_s_own_events_teach_nothing_once_their_post_is_encoded(world: World) -> None:
    (late,) = add_posts(world.connection, 1, [world.author])
    world.send("like", late, world.author)
    assert reasons(world.connection) == {}
    store(world.connection, [late], base_vectors(np.random.default_rng(7), 1))
    world.connection.execute("select two_tower.learn_deferred()")
    assert reasons(world.connection) == {"own_post": 1}
    assert world.pairs() == []
