"""Pushes that wait are folded in later, the oldest first."""

from __future__ import annotations

import numpy as np

from python_jobs.db import value
from tests.support.learning import World, live


def test_a_step_that_would_leave_no_direction_leaves_the_post_where_it_is(world: World) -> None:
    post_id, vector = world.post_ids[0], live(world.connection, world.post_ids[0])
    # lr 0.5 * strength 3 * (1 - q) can not cancel a post by chance; an operator's numbers can.
    world.connection.execute(
        "update two_tower.live_embeddings set is_pretrained = false where post_id = %s", [post_id]
    )
    world.connection.execute(
        "insert into two_tower.deferred_steps"
        " (event_id, user_id, epoch, user_vector, pushed_ids, push_factors, created_at)"
        " select 0, %s, 0, embedding, array[post_id], array[1::real], now()"
        " from two_tower.post_embeddings where post_id = %s",
        [world.user, post_id],
    )
    value(world.connection, "select two_tower.fold_steps(10)")
    assert np.allclose(live(world.connection, post_id), vector)


def test_pushes_of_an_older_epoch_are_void(world: World) -> None:
    world.send("reply", world.post_ids[1])
    world.send("reply", world.post_ids[2])
    vectors = [live(world.connection, post_id) for post_id in world.post_ids]
    world.connection.execute("update two_tower.state set epoch = epoch + 1")
    assert value(world.connection, "select two_tower.fold_steps(10)") == 2
    assert value(world.connection, "select count(*) from two_tower.deferred_steps") == 0
    for post_id, vector in zip(world.post_ids, vectors, strict=True):
        assert np.array_equal(live(world.connection, post_id), vector)


def test_a_fold_takes_no_more_than_it_may_and_the_oldest_first(world: World) -> None:
    for post_id in world.post_ids[:7]:
        world.send("like", post_id)
    queued = "select array_agg(event_id order by event_id) from two_tower.deferred_steps"
    ids = value(world.connection, queued)
    assert value(world.connection, "select two_tower.fold_steps(3)") == 3
    assert value(world.connection, queued) == ids[3:]
