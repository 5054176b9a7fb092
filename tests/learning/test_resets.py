"""reset_my_feed(): what was learned of a reader is forgotten; what posts learned stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.operations.test_safety import finish_rollback
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, base_vectors, store
from tests.support.invariants import assert_consistent
from tests.support.learning import RULES, World, live, reasons, user_vector
from tests.support.patience import wait_until

RESET = "select public.reset_my_feed()"
KNOWN = """
  select engagement_count, recent_post_ids || positive_ids as post_ids,
    extensions.vector_norm(engaged_sum) as length, reset_count
  from two_tower.user_embeddings where user_id = %s
"""
SERVED = "select two_tower.encode_user(%s)::real[]"


def reset(db: Connection, user_id: str) -> None:
    with as_user(db, user_id):
        value(db, RESET)


def known(db: Connection, user_id: str) -> Any:
    return rows(db, KNOWN, user_id)[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_reader_begins_anew_and_posts_keep_what_they_learned(world: World, rule: str) -> None:
    db = world.connection
    db.execute("update two_tower.settings set learning_rule = %s", [rule])
    for post in world.post_ids[:5]:
        world.send("like", post)
    world.send("like", world.post_ids[0], world.user_ids[1])
    posts = [live(db, post) for post in world.post_ids]
    other = user_vector(db, world.user_ids[1])
    pairs = sorted(world.pairs())
    reset(db, world.user)
    assert known(db, world.user) == (0, [], 0, 1)
    assert not user_vector(db, world.user).any()
    assert value(db, SERVED, world.user) is None
    assert all(np.array_equal(live(db, p), v) for p, v in zip(world.post_ids, posts, strict=True))
    assert np.array_equal(user_vector(db, world.user_ids[1]), other)
    assert sorted(world.pairs()) == pairs
    world.send("like", world.post_ids[7])
    assert known(db, world.user)[:2] == (1, [world.post_ids[7]] * 2)
    assert value(db, "select count(*) from two_tower.list_interests(%s)", world.user) == 1
    assert_consistent(db)


def test_what_was_seen_hidden_or_blocked_stays_so(world: World) -> None:
    db = world.connection
    world.send("view", world.post_ids[0])
    world.send("hide", world.post_ids[1])
    world.send("like", world.post_ids[2])
    before = "select * from two_tower.user_posts where user_id = %s order by post_id"
    seen = rows(db, before, world.user)
    reset(db, world.user)
    assert rows(db, before, world.user) == seen
    page = rows(db, "select post_id from public.recommend_for(%s, 40)", world.user)
    assert len(page) == 37
    assert not {each.post_id for each in page} & set(world.post_ids[:3])
    world.send("like", world.post_ids[2])
    assert reasons(db) == {"repeated": 1}


@pytest.mark.parametrize("rule", RULES)
def test_an_unlike_after_a_reset_takes_from_the_post_and_not_from_the_reader(
    world: World, rule: str
) -> None:
    db, post = world.connection, world.post_ids[0]
    db.execute("update two_tower.settings set learning_rule = %s", [rule])
    world.send("like", world.post_ids[1])
    untouched = live(db, post)
    world.send("like", post)
    reset(db, world.user)
    # A repost of the same strength, learned since, is not mistaken for the like.
    world.send("repost", post)
    reader, known_before = user_vector(db, world.user), known(db, world.user)
    before = live(db, post)
    world.send("unlike", post)
    assert np.array_equal(user_vector(db, world.user), reader)
    assert known(db, world.user) == known_before
    assert np.abs(live(db, post) - before).max() > 1e-3
    assert np.linalg.norm(live(db, post) - untouched) < np.linalg.norm(before - untouched)
    world.send("unrepost", post)
    assert known(db, world.user)[:2] == (0, [])
    assert_consistent(db)


@pytest.mark.parametrize("why", ["frozen", "minute_full", "post_not_encoded"])
def test_what_waits_is_not_learned_after_a_reset_but_still_taken_back(
    world: World, why: str
) -> None:
    db, post = world.connection, world.post_ids[0]
    world.send("like", world.post_ids[1])
    if why == "frozen":
        value(db, "select two_tower.freeze('a test')")
        world.send("unlike", world.post_ids[1])
    elif why == "minute_full":
        db.execute("update two_tower.settings set learned_events_per_minute = 1")
    else:
        (post,) = add_posts(db, 1, [world.author])
    world.send("like", post)
    reset(db, world.user)
    if why == "frozen":
        value(db, "select two_tower.resume()")
    elif why == "post_not_encoded":
        store(db, [post], base_vectors(np.random.default_rng(3), 1))
    value(db, "select two_tower.learn_deferred()")
    value(db, "select two_tower.learn_waiting()")
    assert value(db, "select count(*) from two_tower.deferred_events") == 0
    assert reasons(db) == {"reset": 1}
    assert known(db, world.user)[:2] == (0, [])
    if why == "frozen":
        assert world.pairs() == []
    world.now += timedelta(minutes=2)
    world.send("unlike", post)
    assert known(db, world.user)[:2] == (0, [])


def test_a_rollback_does_not_bring_back_what_was_forgotten(world: World) -> None:
    db = world.connection
    prior = np.eye(128)[3]
    for user in world.user_ids:
        world.send("like", world.post_ids[0], user)
        db.execute(
            "select two_tower.store_priors(array[row(%s, %s, 0.5, 'profile')"
            "::two_tower.user_prior])",
            [user, np.array(prior, np.float32)],
        )
    checkpoint = value(db, "select two_tower.checkpoint()")
    reset(db, world.user)
    value(db, "select two_tower.rollback(%s)", checkpoint)
    finish_rollback(db)
    assert known(db, world.user) == (0, [], 0, 1)
    assert user_vector(db, world.user) @ prior == pytest.approx(1, abs=1e-5)
    assert known(db, world.user_ids[1])[:2] == (1, [world.post_ids[0]] * 2)


def test_what_the_user_tower_made_of_engagements_goes_and_reads_nothing_from_before(
    world: World,
) -> None:
    db = world.connection
    world.send("like", world.post_ids[0])
    history = "select post_ids from two_tower.user_histories(null, array[%s]::uuid[])"
    assert value(db, history, world.user) == [world.post_ids[0]]
    db.execute(
        "select two_tower.store_priors(array[row(%s, %s, 0.5, 'user_tower')"
        "::two_tower.user_prior])",
        [world.user, np.array(np.eye(128)[3], np.float32)],
    )
    reset(db, world.user)
    assert value(db, SERVED, world.user) is None
    assert db.execute(history.encode(), [world.user]).fetchone() is None
    world.send("like", world.post_ids[1])
    assert value(db, history, world.user) == [world.post_ids[1]]


@pytest.mark.parametrize("first", ["like", "reset"])
def test_a_like_in_flight_is_wholly_before_or_wholly_after_a_reset(
    open_connection: Callable[..., Connection], first: str
) -> None:
    """Whoever comes second waits for the first, and finds what it left."""
    one, two, watcher = open_connection(), open_connection(), open_connection()
    world = World(one)
    world.send("like", world.post_ids[0])
    like = (
        "insert into public.engagement_events (user_id, post_id, event_type)"
        f" values ('{world.user}', {world.post_ids[1]}, 'like')"
    )

    def act(connection: Connection, what: str) -> None:
        if what == "like":
            connection.execute(like.encode())
        else:
            reset(connection, world.user)

    second = "reset" if first == "like" else "like"
    has_waited = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with one.transaction():
            act(one, first)

            def wait() -> None:
                with two.transaction():
                    act(two, second)

            waiting = pool.submit(wait)
            blocked = "select cardinality(pg_catalog.pg_blocking_pids(%s)) > 0"
            wait_until(lambda: value(watcher, blocked, two.info.backend_pid))
            has_waited.set()
        waiting.result()
    assert has_waited.is_set()
    expected = (0, []) if first == "like" else (1, [world.post_ids[1]] * 2)
    assert known(watcher, world.user)[:2] == expected
    insert = like.replace("'like'", "'unlike'")
    watcher.execute(insert.encode())
    assert known(watcher, world.user)[:2] == (0, [])
    assert not user_vector(watcher, world.user).any()
    assert_consistent(watcher)


def test_only_who_is_signed_in_begins_anew(db: Connection) -> None:
    user = add_user(db)
    reset(db, user)
    assert value(db, "select count(*) from two_tower.users where id = %s", user) == 0
    for role, nobody in (("authenticated", None), ("anon", None), ("service_role", None)):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            db.transaction(),
            as_user(db, nobody, role),
        ):
            value(db, RESET)
