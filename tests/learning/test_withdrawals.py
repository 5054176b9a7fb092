"""Likes, reposts and hidings that are taken back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest

from python_jobs.db import connect, value
from tests.support.database import add_user
from tests.support.engagements import (
    add_posts,
    base_vectors,
    delete_posts,
    insert_events,
    store,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import RULES, World, live, reasons, user_vector
from tests.support.reference import START, WITHDRAWALS, Event, Reference


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("withdrawn", "given"), WITHDRAWALS.items())
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
        assert np.abs(user_vector(connection, world.user) - user).max() > 5e-3
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
    for _ in range(2):
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


def test_unlikes_take_back_what_the_bound_let_through_and_no_more(
    fresh_database: Callable[[], str],
) -> None:
    """A crowd likes a post beyond its hour, and takes all of it back an hour later."""
    with connect(fresh_database(), autocommit=True) as db:
        rng = np.random.default_rng(8)
        users = [add_user(db) for _ in range(40)]
        posts = add_posts(db, 100, users[-1:], rng)
        for user_id in users[:-1]:
            early = START - timedelta(hours=2)
            insert_events(
                db,
                [Event(user_id, posts[k], ("like", "click")[k], None, early) for k in range(2)],
            )
        value(db, "select two_tower.fold_steps(null)")
        before = {post_id: live(db, post_id) for post_id in posts}
        popularity = "select popularity from two_tower.post_embeddings where post_id = %s"
        popular = value(db, popularity, posts[1])
        db.execute("update two_tower.settings set movement_per_hour = 0.3, popularity_per_hour = 7")
        for user_id in users[:-1]:
            insert_events(db, [Event(user_id, posts[1], "reply")])
            insert_events(db, [Event(user_id, posts[1], "like")])
        value(db, "select two_tower.fold_steps(null)")
        liked = live(db, posts[1])
        gained = 2 ** (value(db, popularity, posts[1]) - popular)
        for user_id in users[:-1]:
            insert_events(
                db, [Event(user_id, posts[1], "unlike", None, START + timedelta(hours=1))]
            )
        value(db, "select two_tower.fold_steps(null)")
        # The replies stand: the likes came when nothing was left of the hour.
        assert np.linalg.norm(live(db, posts[1]) - liked) < 0.3
        db.execute("update two_tower.signals set withdraws = 'reply' where event_type = 'unrepost'")
        for user_id in users[:-1]:
            insert_events(
                db, [Event(user_id, posts[1], "unrepost", None, START + timedelta(hours=2))]
            )
        value(db, "select two_tower.fold_steps(null)")
        left = {post_id: np.linalg.norm(live(db, post_id) - before[post_id]) for post_id in posts}
        print(
            f"liked: {np.linalg.norm(liked - before[posts[1]]):.3f} and {gained:.2f} times as"
            f" popular; left of it: {left[posts[1]]:.3f}, of all others at most"
            f" {max(left[p] for p in posts if p != posts[1]):.3f}"
        )
        assert np.linalg.norm(liked - before[posts[1]]) > 0.05
        assert max(left.values()) < 0.005
        assert value(db, popularity, posts[1]) == pytest.approx(popular, abs=1e-3)
        assert value(
            db, "select moved from two_tower.live_embeddings where post_id = %s", posts[1]
        ) == pytest.approx(0, abs=1e-6)


def test_pushes_are_taken_back_with_the_like(world: World) -> None:
    for post_id in world.post_ids[1:]:
        world.send("like", post_id, world.user_ids[1])
    world.send("like", world.post_ids[1])
    value(world.connection, "select two_tower.fold_steps(null)")
    before = {post_id: live(world.connection, post_id) for post_id in world.post_ids}
    world.send("like")
    value(world.connection, "select two_tower.fold_steps(null)")
    pushed = [
        p for p in world.post_ids[1:] if np.abs(live(world.connection, p) - before[p]).max() > 1e-4
    ]
    assert pushed
    world.send("unlike")
    value(world.connection, "select two_tower.fold_steps(null)")
    for post_id, vector in before.items():
        assert np.linalg.norm(live(world.connection, post_id) - vector) < 0.01


def test_a_like_that_is_taken_back_before_it_is_folded_leaves_nothing_in_the_queue(
    world: World,
) -> None:
    world.send("like")
    world.send("unlike")
    assert value(world.connection, "select count(*) from two_tower.deferred_steps") == 0


def test_the_same_like_is_learned_again_a_few_times_a_day_and_on_the_next_day(
    world: World,
) -> None:
    for _ in range(5):
        world.send("like")
        world.send("unlike")
    assert reasons(world.connection) == {"withdrawn_often": 2, "nothing_to_withdraw": 2}
    world.now += timedelta(days=1, minutes=1)
    world.send("like")
    assert reasons(world.connection) == {"withdrawn_often": 2, "nothing_to_withdraw": 2}
    assert_consistent(world.connection)


HIDDEN = "select is_hidden from two_tower.user_posts where user_id = %s and post_id = %s"


def test_a_post_stays_hidden_until_all_that_hid_it_is_taken_back(world: World) -> None:
    db, post = world.connection, world.post_ids[0]
    world.send("hide")
    world.send("not_interested")
    world.send("unhide")
    assert value(db, HIDDEN, world.user, post) is True
    world.send("undo_not_interested")
    assert value(db, HIDDEN, world.user, post) is False
    assert world.pairs() == []
    assert not user_vector(db, world.user).any()
    world.send("hide")
    assert value(db, HIDDEN, world.user, post) is True
    assert_consistent(db)


def test_a_post_is_shown_to_its_reader_again_as_any_that_was_seen(world: World) -> None:
    """Pages tell what was hidden from what was seen: explain_recommendation() says so, too."""
    explained = "select reason from public.explain_for(%s, %s)"
    world.send("hide")
    assert value(world.connection, explained, world.user, world.post_ids[0]) == "you hid it"
    world.send("unhide")
    assert value(world.connection, explained, world.user, world.post_ids[0]) == "you have seen it"


@pytest.mark.parametrize("why", ["frozen", "minute_full", "post_not_encoded"])
def test_what_is_hidden_and_shown_again_while_lessons_wait_is_not_hidden_and_teaches_nothing(
    world: World, why: str
) -> None:
    db, post = world.connection, world.post_ids[0]
    if why == "frozen":
        value(db, "select two_tower.freeze('a test')")
    elif why == "minute_full":
        db.execute("update two_tower.settings set learned_events_per_minute = 1")
        world.send("skip", world.post_ids[1])
    else:
        (post,) = add_posts(db, 1, [world.author])
    before = live(db, world.post_ids[0])
    for kind, is_hidden in (("hide", True), ("unhide", False), ("not_interested", True)):
        world.send(kind, post)
        assert value(db, HIDDEN, world.user, post) is is_hidden
    world.send("undo_not_interested", post)
    if why == "frozen":
        value(db, "select two_tower.resume()")
        value(db, "select two_tower.learn_deferred()")
    elif why == "post_not_encoded":
        store(db, [post], base_vectors(np.random.default_rng(3), 1))
    assert value(db, "select count(*) from two_tower.deferred_events") == 0
    assert value(db, HIDDEN, world.user, post) is False
    assert np.linalg.norm(live(db, world.post_ids[0]) - before) < 0.01
    assert_consistent(db)
