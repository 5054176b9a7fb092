"""Training pairs: which negatives a positive gets, and what a pair keeps."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest

from python_jobs.db import Connection, value
from tests.support.database import add_user
from tests.support.engagements import (
    add_posts,
    delete_posts,
    read_snapshot,
)
from tests.support.learning import World, live, rng, user_vector
from tests.support.reference import START


@pytest.mark.parametrize("wanted", [5, 8, 10])
@pytest.mark.parametrize("event_type", ["like", "reply", "repost"])
def test_each_positive_has_exactly_n_negatives(world: World, wanted: int, event_type: str) -> None:
    world.connection.execute("update two_tower.settings set negatives_per_positive = %s", [wanted])
    for post_id in world.post_ids[:12]:
        event_id = world.send(event_type, post_id)
        pairs = world.pairs(event_id=event_id)
        assert (post_id, True, "event") in pairs
        negatives = [pair[0] for pair in pairs if not pair[1]]
        assert len(negatives) == len(set(negatives)) == wanted


def test_where_fewer_posts_exist_all_of_them_are_negatives(db: Connection) -> None:
    world = World(db, posts=5)
    event_id = world.send("like", world.post_ids[2])
    assert sorted(pair[0] for pair in world.pairs(event_id=event_id)) == world.post_ids


def test_negatives_are_never_own_hidden_deleted_or_engaged_posts(world: World) -> None:
    own = add_posts(world.connection, 10, [world.user], rng(2))
    engaged, hidden = world.post_ids[:5], world.post_ids[5:10]
    deleted, left = world.post_ids[10:15], set(world.post_ids[16:])
    for k, event_type in enumerate(("like", "reply", "repost", "click", "dwell")):
        world.send(event_type, engaged[k], dwell_ms=9000)
    for k, event_type in enumerate(("hide", "not_interested") * 2):
        world.send(event_type, hidden[k])
    world.send("hide", hidden[4])
    delete_posts(world.connection, deleted)
    # Seen as well: a view must not bring any of them back.
    for post_id in (*own, *engaged, *hidden, *deleted):
        world.send("view", post_id)
    world.connection.execute("update two_tower.settings set withdrawals_per_day = 100")
    drawn: set[int] = set()
    for user_number in range(60):
        event_id = world.send("like", world.post_ids[15], created_at=world.now)
        negatives = {pair[0] for pair in world.pairs(event_id=event_id) if not pair[1]}
        assert len(negatives) == 8, user_number
        drawn |= negatives
        world.send("unlike", world.post_ids[15])
    pushed = {
        post_id
        for (ids,) in world.connection.execute(
            "select pushed_ids from two_tower.training_examples where post_id = %s",
            [world.post_ids[15]],
        )
        for post_id in ids
    }
    assert drawn == left
    assert pushed == left


def test_a_post_that_was_liked_beyond_the_limit_is_never_a_negative(db: Connection) -> None:
    world = World(db, posts=10)
    db.execute(
        "update two_tower.settings set learned_events_per_minute = 1, waiting_events_per_user = 0"
    )
    liked = world.post_ids[0]
    world.send("click", world.post_ids[1])
    world.send("like", liked)  # recorded only: the minute's one event is learned
    world.now += timedelta(minutes=1)
    world.send("skip", liked)
    world.now += timedelta(minutes=1)
    event_id = world.send("like", world.post_ids[2])
    assert len(world.pairs(event_id=event_id)) > 1
    assert liked not in [pair[0] for pair in world.pairs(event_id=event_id)]


def test_viewed_posts_come_first_among_the_negatives_and_say_so(world: World) -> None:
    viewed = world.post_ids[1:4]
    world.send("view", world.post_ids[4], created_at=START - timedelta(hours=2))
    for post_id in viewed:
        world.send("view", post_id)
    world.send("view", world.post_ids[0])
    event_id = world.send("like", world.post_ids[0])
    pairs = world.pairs(event_id=event_id)
    assert {pair[0] for pair in pairs if pair[2] == "viewed"} == set(viewed)
    assert len([pair for pair in pairs if pair[2] == "random"]) == 8 - len(viewed)


def test_a_like_after_a_flood_of_views_reads_the_newest_alone(world: World) -> None:
    views = 30_000
    users = [world.user, *(add_user(world.connection) for _ in range(9))]
    world.connection.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
        " select (%s::uuid[])[1 + n / 20 %% 10], (%s::bigint[])[2 + n %% 20], 'view',"
        "   %s + n * interval '50 ms'"
        " from generate_series(1, %s) n",
        [users, world.post_ids, world.now, views],
    )
    world.now += views * timedelta(milliseconds=50)
    world.connection.execute("analyze public.engagement_events")
    world.connection.execute("discard plans")
    # As on a large table: each page of it is dear, and a bitmap reads each once.
    world.connection.execute("set local random_page_cost = 1000")
    fetched = (
        "select sum(idx_tup_fetch)::int from pg_stat_xact_all_tables"
        " where relname ~ '^engagement_events_'"
    )
    before = value(world.connection, fetched)
    event_id = world.send("like")
    assert value(world.connection, fetched) - before <= 1000
    assert {source for _, label, source in world.pairs(event_id=event_id) if not label} == {
        "viewed"
    }


def test_when_more_posts_were_viewed_than_are_needed_all_negatives_are_viewed_ones(
    world: World,
) -> None:
    for post_id in world.post_ids[1:20]:
        world.send("view", post_id)
    event_id = world.send("like", world.post_ids[0])
    sources = Counter(pair[2] for pair in world.pairs(event_id=event_id))
    assert sources == {"event": 1, "viewed": 8}


def test_what_a_like_reads_is_read_by_key_however_small_the_tables_were_at_first(
    world: World,
) -> None:
    # Plans stay with the session: one made for an empty partition is used when it is full.
    query = (
        "select relname, seq_scan from pg_stat_xact_user_tables where seq_scan > 0 and"
        " relname ~ '^(engagement_events|user_posts|training_examples|live_|user_emb|deferred_)'"
    )
    world.connection.execute("analyze")
    world.send("view", world.post_ids[1])
    before = world.connection.execute(query).fetchall()
    for post_id in world.post_ids[2:6]:
        world.send("view", post_id)
        world.send("like", post_id)
    world.send("unlike", world.post_ids[2])
    assert world.connection.execute(query).fetchall() == before


def test_the_views_of_others_are_no_negatives_of_mine(world: World) -> None:
    for post_id in world.post_ids[1:20]:
        world.send("view", post_id, world.user_ids[1])
    event_id = world.send("like", world.post_ids[0])
    assert "viewed" not in [pair[2] for pair in world.pairs(event_id=event_id)]


def test_a_later_positive_withdraws_the_pair_in_which_the_post_was_a_negative(
    db: Connection,
) -> None:
    world = World(db, posts=9)
    event_id = world.send("like", world.post_ids[0])
    assert world.post_ids[1] in [pair[0] for pair in world.pairs(event_id=event_id)]
    world.send("click", world.post_ids[1])
    assert world.post_ids[1] not in [pair[0] for pair in world.pairs(event_id=event_id)]


def test_a_pair_keeps_both_vectors_as_they_stood_before_the_event(world: World) -> None:
    world.send("like", world.post_ids[1])
    user, post = (
        user_vector(world.connection, world.user),
        live(world.connection, world.post_ids[0]),
    )
    snapshot = read_snapshot(world.connection, world.send("like", world.post_ids[0]))
    assert snapshot is not None
    assert np.abs(snapshot.user_vector - user).max() < 2e-4  # half precision
    assert np.abs(snapshot.post_vector - post).max() < 2e-4
    assert np.abs(user_vector(world.connection, world.user) - user).max() > 1e-2
