"""The steps of users and posts, under either rule."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from python_jobs.db import Connection, value
from tests.support.engagements import (
    Stream,
    insert_events,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import RULES, TOLERANCE, World, live, rng, user_vector
from tests.support.reference import START, Event
from tests.support.twin import Twin


def test_a_user_is_served_with_the_posts_as_they_are_now(
    db: Connection,
) -> None:
    twin = Twin(db, rng(7), users=2, posts=60)
    reader, other = twin.user_ids
    twin.give_base(reader, 1.0)
    for k in range(40):
        twin.insert([Event(reader, twin.post_ids[k], "like" if k % 3 else "skip")])
    stored = user_vector(twin.connection, reader)
    # Another user moves the posts that the reader liked: only the served vector follows.
    for k in range(40):
        for event_type in ("reply", "like", "repost", "click"):
            at = START + timedelta(minutes=k + 1)
            twin.insert([Event(other, twin.post_ids[k], event_type, None, at)])
    twin.fold()
    encoded = value(twin.connection, "select two_tower.encode_user(%s)::real[]", reader)
    assert np.abs(np.array(encoded) - twin.reference.encode_user(reader)).max() < TOLERANCE
    assert np.abs(np.array(encoded) - stored).max() > 100 * TOLERANCE
    assert np.array_equal(user_vector(twin.connection, reader), stored)


def test_a_user_of_whom_nothing_is_known_has_no_vector(world: World) -> None:
    assert value(world.connection, "select two_tower.encode_user(%s)", world.user) is None


@pytest.mark.parametrize("rule", RULES)
def test_the_first_event_makes_the_user_the_post_and_leaves_the_post(
    world: World, rule: str
) -> None:
    world.connection.execute("update two_tower.settings set learning_rule = %s", [rule])
    post_id = world.post_ids[0]
    before = live(world.connection, post_id)
    world.send("like", post_id)
    assert np.allclose(user_vector(world.connection, world.user), before, atol=1e-6)
    # The user's vector was zero before the event, and a step along zero is none.
    assert np.allclose(live(world.connection, post_id), before, atol=1e-6)
    assert_consistent(world.connection)


@pytest.mark.parametrize("rule", RULES)
def test_a_first_event_that_is_negative_makes_the_user_the_opposite_of_the_post(
    world: World, rule: str
) -> None:
    world.connection.execute("update two_tower.settings set learning_rule = %s", [rule])
    before = live(world.connection, world.post_ids[0])
    world.send("not_interested")
    assert np.allclose(user_vector(world.connection, world.user), -before, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        "temperature = 0.01",
        "temperature = 10",
        "history_decay = 0.1, history_length = 200",
        "history_decay = 1, history_length = 200",
        "contrastive_learning_rate = 0.5",
        "contrastive_learning_rate = 0",
        "pushes_per_positive = 0",
        "pushes_per_positive = 128",
        "negative_strength_factor = 0",
        "literal_maximum_alpha = 0.99, learning_rule = 'literal'",
        "history_length = 1",
    ],
)
def test_no_setting_in_its_range_makes_an_event_or_a_reader_fail(
    db: Connection, change: str
) -> None:
    connection = db
    world = World(connection, posts=60)
    connection.execute(f"update two_tower.settings set learned_events_per_minute = 1000, {change}")
    stream = Stream(rng(11), world.user_ids, world.post_ids)
    for size in (1, 1, 1, 1, 100, 300):
        insert_events(connection, stream.next(size))
        value(connection, "select two_tower.fold_steps(100000)")
    # Opposite directions give the smallest shares of all.
    other = world.post_ids[0]
    for event_type in ("not_interested", "skip", "hide", "like", "reply"):
        insert_events(connection, [Event(world.user, other, event_type, None, stream.now)])
    value(connection, "select two_tower.fold_steps(100000)")
    for user_id in world.user_ids:
        value(connection, "select two_tower.encode_user(%s)", user_id)
    assert_consistent(connection)
