"""Likes and reposts that are taken back."""

from __future__ import annotations

import numpy as np
import pytest

from python_jobs.db import value
from tests.support.engagements import (
    delete_posts,
    insert_events,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import RULES, World, live, user_vector
from tests.support.reference import Event, Reference


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("given", "withdrawn"), [("like", "unlike"), ("repost", "unrepost")])
@pytest.mark.parametrize("is_one_statement", [False, True])
def test_a_withdrawal_takes_back_pair_counts_and_nearly_all_of_the_step(
    world: World, rule: str, given: str, withdrawn: str, is_one_statement: bool
) -> None:
    connection, post_id = world.connection, world.post_ids[0]
    connection.execute("update two_tower.settings set learning_rule = %s", [rule])
    for other in world.post_ids[1:16]:
        world.send("reply", other)
    post, user = live(connection, post_id), user_vector(connection, world.user)
    pairs = sorted(world.pairs())
    served = "select two_tower.encode_user(%s)::real[]"
    encoded = np.array(value(connection, served, world.user))
    if is_one_statement:
        at = world.now
        insert_events(
            connection, [Event(world.user, post_id, kind, None, at) for kind in (given, withdrawn)]
        )
    else:
        world.send(given, post_id)
        assert np.abs(user_vector(connection, world.user) - user).max() > 1e-2
        world.send(withdrawn, post_id)
    # Half precision of the snapshots, and second order of the step.
    post_left = np.linalg.norm(live(connection, post_id) - post)
    user_left = np.linalg.norm(user_vector(connection, world.user) - user)
    print(f"{rule}: post {post_left:.1e}, user {user_left:.1e} of norm 1 are left")
    # Normalised after each step: what two opposite ones leave is of second order.
    assert post_left < 0.55 * Reference.contrastive_rate**2
    assert user_left < (1e-3 if rule == "contrastive" else 2e-2)
    # The negatives drawn for it are gone with the pair.
    assert sorted(world.pairs()) == pairs
    assert_consistent(connection)
    assert value(connection, "select engagement_count from two_tower.user_embeddings") == 15
    served_left = np.linalg.norm(np.array(value(connection, served, world.user)) - encoded)
    assert served_left < (1e-3 if rule == "contrastive" else 2e-2)


@pytest.mark.parametrize("rule", RULES)
def test_a_user_whose_only_like_is_withdrawn_is_a_new_user_again(world: World, rule: str) -> None:
    world.connection.execute("update two_tower.settings set learning_rule = %s", [rule])
    world.send("like")
    world.send("unlike")
    assert not user_vector(world.connection, world.user).any()
    assert value(world.connection, "select two_tower.encode_user(%s)", world.user) is None


def test_popularity_is_taken_back_with_the_like(world: World) -> None:
    query = "select popularity from two_tower.post_embeddings where post_id = %s"
    world.send("like", user_id=world.user_ids[1])
    before = value(world.connection, query, world.post_ids[0])
    insert_events(
        world.connection,
        [
            Event(world.user, world.post_ids[0], kind, None, world.now)
            for kind in ("like", "unlike")
        ],
    )
    assert value(world.connection, query, world.post_ids[0]) == pytest.approx(before, rel=1e-9)


def test_a_like_given_again_after_it_was_withdrawn_makes_one_pair_not_two(world: World) -> None:
    for _ in range(3):
        world.send("like")
        world.send("unlike")
    assert world.pairs() == []
    world.send("like")
    assert len([pair for pair in world.pairs() if pair[1]]) == 1
    assert len([pair for pair in world.pairs() if not pair[1]]) == 8
    assert_consistent(world.connection)


def test_a_like_of_a_post_that_was_deleted_since_can_be_withdrawn_from_training(
    world: World,
) -> None:
    world.send("like")
    delete_posts(world.connection, [world.post_ids[0]])
    world.send("unlike")
    assert world.pairs() == []
