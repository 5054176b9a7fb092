"""Events that wait: for the encoder, or for the end of a freeze."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from python_jobs.db import Connection, value
from tests.support.engagements import (
    Stream,
    add_posts,
    base_vectors,
    delete_posts,
    insert_events,
    store,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import TOLERANCE, World, live, reasons, rng, user_vector
from tests.support.reference import START, Draw, Event, Post, Reference, User
from tests.support.twin import Twin


def test_events_of_a_post_that_is_not_encoded_are_learned_in_order_when_it_is(
    db: Connection,
) -> None:
    twin = Twin(db, rng(8), users=4, posts=30, unencoded_posts=2)
    late, later = twin.unencoded
    for user_id in twin.user_ids:
        for event_type in ("view", "like", "reply", "unlike", "like", "skip"):
            twin.insert([Event(user_id, late, event_type), Event(user_id, later, event_type)])
    assert value(twin.connection, "select count(*) from two_tower.deferred_events") == 40
    twin.encode(late)
    assert value(twin.connection, "select count(*) from two_tower.deferred_events") == 20
    assert twin.difference() < TOLERANCE
    twin.assert_same_verdicts()
    twin.encode(later)
    assert twin.difference() < TOLERANCE
    assert_consistent(twin.connection)


def test_a_waiting_like_already_keeps_the_post_from_being_seen_as_not_engaged_with(
    db: Connection,
) -> None:
    world = World(db, posts=10)
    (late,) = add_posts(db, 1, [world.author])
    world.send("view", late)
    world.send("like", late)
    assert value(db, "select is_engaged from two_tower.user_posts where post_id = %s", late)
    world.send("skip", late)
    assert value(db, "select is_engaged from two_tower.user_posts where post_id = %s", late)


def test_more_events_than_one_step_takes_are_learned_in_order_by_the_next_ones(
    db: Connection,
) -> None:
    twin = Twin(db, rng(9), users=150, posts=20, unencoded_posts=1)
    (late,) = twin.unencoded
    types = ("like", "reply", "click", "repost")
    twin.insert([Event(user_id, late, kind) for kind in types for user_id in twin.user_ids])
    connection = twin.connection
    (vector,) = base_vectors(rng(), 1)
    store(connection, [late], [vector])
    waiting = value(connection, "select count(*) from two_tower.deferred_events")
    assert waiting < 600
    # What comes meanwhile queues up behind the events that still wait.
    insert_events(connection, [Event(twin.user_ids[0], late, "skip")])
    assert value(connection, "select count(*) from two_tower.deferred_events") == waiting + 1
    while value(connection, "select two_tower.learn_deferred(70)"):
        pass
    assert value(connection, "select count(*) from two_tower.deferred_events") == 0
    assert_consistent(connection)
    order = connection.execute(
        "select event_id from two_tower.training_examples where post_id = %s and label order by 1",
        [late],
    ).fetchall()
    assert len(order) == 450


def test_a_deleted_users_waiting_events_hold_up_nobody_elses(
    db: Connection,
) -> None:
    connection = db
    world = World(connection)
    late = add_posts(connection, 1, [world.author])
    for user_id in world.user_ids:
        insert_events(connection, [Event(user_id, late[0], "like")])
    connection.execute("delete from auth.users where id = %s", [world.user_ids[1]])
    store(connection, late, base_vectors(rng(), 1))
    value(connection, "select two_tower.learn_deferred(100)")
    count = "select engagement_count from two_tower.post_embeddings where post_id = %s"
    assert value(connection, count, late[0]) == 2
    assert value(connection, "select count(*) from two_tower.deferred_events") == 0


def test_events_of_a_frozen_time_are_learned_in_order_after_it(
    db: Connection,
) -> None:
    twin = Twin(db, rng(10), users=5, posts=30, unencoded_posts=1)
    stream = Stream(twin.rng, twin.user_ids, [*twin.post_ids, *twin.unencoded])
    twin.insert(stream.next(100))
    twin.fold()
    before = twin.difference()
    value(twin.connection, "select two_tower.freeze('a test')")
    twin.reference.is_frozen = True
    for size in (1, 1, 1, 50, 150):
        twin.insert(stream.next(size))
    assert value(twin.connection, "select two_tower.learn_deferred(1000)") == 0
    assert twin.difference() == before
    value(twin.connection, "select two_tower.resume()")
    twin.reference.is_frozen = False
    twin.learn_deferred()
    twin.fold()
    assert twin.difference() < TOLERANCE
    twin.encode(twin.unencoded[0])
    assert twin.difference() < TOLERANCE
    twin.assert_same_verdicts()
    assert_consistent(twin.connection)


def test_events_of_a_frozen_time_can_be_skipped_and_then_say_why(world: World) -> None:
    world.send("like", world.post_ids[1])
    (late,) = add_posts(world.connection, 1, [world.author])
    value(world.connection, "select two_tower.freeze('a test')")
    frozen = world.send("like", world.post_ids[0])
    world.connection.execute("select two_tower.resume(1, true)")
    assert value(world.connection, "select two_tower.learn_deferred(100)") == 0
    assert value(world.connection, "select engagement_count from two_tower.user_embeddings") == 1
    # Stored, not learned, and the record says so: else it would count as learned.
    unlearned = [
        row[0]
        for row in world.connection.execute("select event_id from two_tower.unlearned_events")
    ]
    assert unlearned == [frozen]
    assert_consistent(world.connection)
    assert late not in [pair[0] for pair in world.pairs()]


def test_an_event_that_was_taken_is_learned_whatever_the_clock_says_later(world: World) -> None:
    value(world.connection, "select two_tower.freeze('a test')")
    world.send("like")
    value(world.connection, "select two_tower.resume()")
    earlier = START - timedelta(days=400)
    world.connection.execute("select set_config('two_tower.now', %s, false)", [earlier.isoformat()])
    assert value(world.connection, "select two_tower.learn_deferred()") == 1
    later = START + timedelta(days=400)
    world.connection.execute("update two_tower.settings set oldest_event_age = '1 day'")
    value(world.connection, "select two_tower.freeze('a test')")
    world.connection.execute("select set_config('two_tower.now', %s, false)", [START.isoformat()])
    world.send("like", world.post_ids[1])
    value(world.connection, "select two_tower.resume()")
    world.connection.execute("select set_config('two_tower.now', %s, false)", [later.isoformat()])
    assert value(world.connection, "select two_tower.learn_deferred()") == 1
    assert_consistent(world.connection)


def test_after_a_freeze_learning_goes_on_at_a_factor_of_its_rate(world: World) -> None:
    world.send("like", world.post_ids[1])
    value(world.connection, "select two_tower.freeze('a test')")
    world.connection.execute("select two_tower.resume(0.5)")
    reference = Reference()
    reference.contrastive_rate = Reference.contrastive_rate / 2
    user = User(vector=user_vector(world.connection, world.user))
    reference.users[world.user] = user
    for post_id in world.post_ids:
        reference.posts[post_id] = Post(live(world.connection, post_id))
    event_id = world.send("like")
    (drawn,) = world.connection.execute(
        "select pushed_ids from two_tower.deferred_steps order by event_id desc limit 1"
    ).fetchall()
    reference.apply(
        [(event_id, Event(world.user, world.post_ids[0], "like"))], lambda _: Draw(drawn[0])
    )
    moved = reference.posts[world.post_ids[0]].vector
    assert moved is not None
    assert np.abs(live(world.connection, world.post_ids[0]) - moved).max() < TOLERANCE


def test_a_post_deleted_while_its_events_wait_teaches_nothing(world: World) -> None:
    (late,) = add_posts(world.connection, 1, [world.author])
    world.send("like", late)
    delete_posts(world.connection, [late])
    assert value(world.connection, "select two_tower.learn_deferred(10)") == 1
    assert reasons(world.connection) == {"post_deleted": 1}
    assert_consistent(world.connection)


def test_a_post_removed_for_good_while_its_events_wait_leaves_nothing_waiting(
    world: World,
) -> None:
    (late,) = add_posts(world.connection, 1, [world.author])
    world.send("like", late)
    delete_posts(world.connection, [late], rows=True)
    value(world.connection, "select two_tower.learn_deferred(10)")
    assert value(world.connection, "select count(*) from two_tower.deferred_events") == 0
