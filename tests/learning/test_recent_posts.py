"""The newest posts, from which random negatives are drawn: each author has a share of them."""

from __future__ import annotations

import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, base_vectors, delete_posts, insert_events, store
from tests.support.invariants import assert_consistent
from tests.support.learning import World, rng
from tests.support.reference import Event

REFRESH = "select two_tower.refresh_recent_posts()"


def recent(db: Connection) -> list[int]:
    """The posts of the pool."""
    query = """
      select v.post_id from two_tower.recent_posts r
        join two_tower.live_embeddings v on v.number = r.number
      where v.slot = (select active_slot from two_tower.state) order by r.place"""
    return [row.post_id for row in rows(db, query)]


def negatives(db: Connection) -> list[int]:
    """All random negatives that were drawn."""
    query = "select post_id from two_tower.training_pairs where source = 'random'"
    return [row.post_id for row in rows(db, query)]


@pytest.fixture
def world(db: Connection) -> World:
    """400 posts of 40 authors, and a pool of a hundred."""
    db.execute("update two_tower.settings set recent_posts_pool = 100, account_share = 0.05")
    world = World(db, users=30, posts=1)
    authors = [add_user(db) for _ in range(40)]
    world.post_ids = add_posts(db, 400, authors, rng())
    return world


def test_who_posts_a_lot_is_at_most_a_share_of_the_random_negatives(
    db: Connection, world: World
) -> None:
    value(db, REFRESH)
    assert recent(db) == world.post_ids[:-101:-1]
    for _ in range(3):
        flood = add_posts(db, 500, [add_user(db)], rng(2))
        assert value(db, REFRESH) > 0
        pool = recent(db)
        # The share is of its newest posts. What others wrote last keeps its places.
        assert pool[:5] == flood[:-6:-1]
        assert len(set(pool) & set(flood)) == 5
        assert len(pool) == 100
    assert set(world.post_ids[-85:]) <= set(recent(db))
    insert_events(db, [Event(user, world.post_ids[0], "like") for user in world.user_ids])
    drawn = negatives(db)
    assert len(drawn) == 8 * 30
    assert set(drawn) <= set(recent(db))
    assert sum(post in flood for post in drawn) < 40  # 12 are expected
    assert_consistent(db)


def test_a_flood_before_the_first_tick_leaves_a_share_too(db: Connection, world: World) -> None:
    flood = add_posts(db, 3000, [add_user(db)], rng(2))
    value(db, REFRESH)
    assert len(set(recent(db)) & set(flood)) == 5


def test_the_posts_of_one_author_fill_the_pool_where_there_are_no_others(db: Connection) -> None:
    db.execute("update two_tower.settings set recent_posts_pool = 100")
    world = World(db, posts=300)
    value(db, REFRESH)
    assert recent(db) == world.post_ids[:-101:-1]


def test_posts_without_an_author_have_no_share(db: Connection, world: World) -> None:
    db.execute(
        "insert into public.posts (author_id, content) select null, 'post' || n"
        " from generate_series(1, 200) n"
    )
    ids = [row.id for row in rows(db, "select id from two_tower.posts where author_id is null")]
    store(db, ids, base_vectors(rng(), len(ids)))
    value(db, REFRESH)
    assert recent(db) == sorted(ids)[:-101:-1]


def test_posts_that_went_are_never_drawn_and_others_take_their_places(
    db: Connection, world: World
) -> None:
    value(db, REFRESH)
    gone = world.post_ids[-60:]
    delete_posts(db, gone)
    insert_events(db, [Event(user, world.post_ids[0], "like") for user in world.user_ids])
    assert len(negatives(db)) == 8 * 30
    assert not set(negatives(db)) & set(gone)
    while value(db, REFRESH) + value(db, "select two_tower.compact_numbers()"):
        pass
    assert len(recent(db)) == 100
    assert not set(recent(db)) & set(gone)


def test_ticks_keep_the_pool_and_rest_when_nothing_came(db: Connection, world: World) -> None:
    taken = {}
    while step := value(db, "select two_tower.take_step()"):
        taken |= step
    assert taken["refresh_recent_posts"] == 100
    assert recent(db) == world.post_ids[:-101:-1]
    newest = add_posts(db, 3, [add_user(db)], rng(3))
    while value(db, "select two_tower.take_step()"):
        pass
    assert recent(db)[:3] == newest[::-1]
    assert len(recent(db)) == 100
