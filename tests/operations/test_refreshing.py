"""All posts are looked at daily and weekly: what was lost or overtaken is mended, in steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.learning import World, live, rng
from tests.support.reference import Event

VECTORS = (
    "select post_id, embedding::real[] as vector from two_tower.live_embeddings"
    " where slot = (select active_slot from two_tower.state) order by post_id"
)


def walk(db: Connection, kind: str, limit: int = 1000) -> Any:
    """The row of a walk that is begun now and taken to its end."""
    value(db, f"select two_tower.request_{kind}()::text")
    while value(db, "select two_tower.refresh_posts(%s)", limit):
        pass
    (row,) = rows(db, "select * from two_tower.refreshes order by id desc limit 1")
    return row


@pytest.fixture
def world(db: Connection) -> World:
    """Forty encoded posts, three of them learned."""
    world = World(db)
    for post in world.post_ids[:3]:
        world.send("like", post)
    return world


@pytest.mark.parametrize("kind", ["refresh", "recompute"])
def test_a_walk_over_sound_posts_looks_at_all_and_changes_none(world: World, kind: str) -> None:
    db = world.connection
    before = rows(db, VECTORS)
    found = walk(db, kind, 7)
    assert (found.posts, found.mended, found.is_whole) == (40, 0, True)
    assert found.ended_at >= found.began_at
    assert found.worked > timedelta(0)
    assert rows(db, VECTORS) == before
    assert value(db, "select two_tower.refresh_posts()") == 0


def test_a_lost_vector_and_one_of_an_old_tower_come_back_daily(world: World) -> None:
    db = world.connection
    lost, old, learned = world.post_ids[10], world.post_ids[11], world.post_ids[0]
    before = {row.post_id: row.vector for row in rows(db, VECTORS)}
    db.execute("delete from two_tower.live_embeddings where post_id = %s", [lost])
    version = value(
        db,
        "insert into two_tower.model_weights (tower, state, config)"
        " values ('candidate_tower', 'archived', '{}') returning version",
    )
    db.execute(
        "update two_tower.live_embeddings set model_version = %s, embedding ="
        " (select embedding from two_tower.live_embeddings where post_id = %s)"
        " where post_id = any (%s)",
        [version, world.post_ids[12], [old, learned]],
    )
    moved = live(db, learned)
    assert walk(db, "refresh").mended == 2
    after = {row.post_id: row.vector for row in rows(db, VECTORS)}
    for post in (lost, old):
        assert after[post] == pytest.approx(before[post], abs=1e-6)
    assert live(db, learned) == pytest.approx(moved)  # what was learned is not computed
    assert value(db, "select two_tower.compact_numbers()") == 1  # the hole that it left
    assert walk(db, "refresh").mended == 0
    assert_consistent(db)


def test_a_wrong_vector_of_an_untouched_post_is_computed_anew_weekly(world: World) -> None:
    db = world.connection
    before = live(db, world.post_ids[20])
    db.execute(
        "update two_tower.live_embeddings set embedding ="
        " (select embedding from two_tower.live_embeddings where post_id = %s)"
        " where post_id = %s",
        [world.post_ids[21], world.post_ids[20]],
    )
    assert walk(db, "refresh").mended == 0
    assert walk(db, "recompute").mended == 1
    assert live(db, world.post_ids[20]) == pytest.approx(before, abs=1e-6)


def test_texts_whose_encoding_is_lost_or_of_another_encoder_are_asked_for(world: World) -> None:
    db = world.connection
    lost, other = world.post_ids[10], world.post_ids[11]
    db.execute("delete from two_tower.base_embeddings where post_id = %s", [lost])
    db.execute("update two_tower.base_embeddings set encoder = 'x' where post_id = %s", [other])
    due = "select id from two_tower.due_posts order by id"
    with db.transaction(force_rollback=True):  # encode_anew() asks for them by itself
        db.execute("insert into two_tower.cursors values ('encoding_round', 0)")
        assert walk(db, "refresh").mended == 1
        assert [row.id for row in rows(db, due)] == [lost]
    assert walk(db, "refresh").mended == 2
    assert [row.id for row in rows(db, due)] == sorted([lost, other])
    assert walk(db, "refresh").mended == 0  # they wait for the encoder by now


def test_what_differs_from_the_registry_is_carried_over(world: World) -> None:
    db, post = world.connection, world.post_ids[10]
    db.execute("update two_tower.live_embeddings set author_id = null where post_id = %s", [post])
    assert walk(db, "refresh").mended == 1
    assert walk(db, "refresh").mended == 0  # it is on its way
    assert value(db, "select two_tower.apply_post_changes()") == 1
    found = value(
        db, "select author_id::text from two_tower.live_embeddings where post_id = %s", post
    )
    assert found == world.author


def test_a_walk_ends_with_its_time_and_the_next_goes_on_from_there(world: World) -> None:
    db = world.connection
    value(db, "select two_tower.begin_refresh('daily', '1 microsecond')::text")
    assert value(db, "select two_tower.refresh_posts(15)") == 15
    (first,) = rows(db, "select * from two_tower.refreshes")
    assert first.ended_at
    assert not first.is_whole
    assert first.position == sorted(world.post_ids)[14]
    assert value(db, "select two_tower.refresh_posts(15)") == 0
    assert walk(db, "recompute", 15).posts == 40  # the other kind is a walk of its own
    second = walk(db, "refresh", 15)
    assert (second.posts, second.is_whole) == (25, True)
    assert walk(db, "refresh", 15).posts == 40


def test_one_of_a_kind_runs_at_a_time_and_none_while_a_slot_is_filled(world: World) -> None:
    db = world.connection
    for _ in range(2):
        value(db, "select two_tower.request_refresh()::text")
    assert value(db, "select count(*) from two_tower.refreshes") == 1
    value(db, "select two_tower.checkpoint('operator')")
    value(db, "select two_tower.rollback()")
    assert value(db, "select two_tower.refresh_posts()") == 0
    while value(db, "select filling_version is not null from two_tower.state"):
        value(db, "select two_tower.tick()")
    assert value(db, "select two_tower.refresh_posts()") == 40


def test_ticks_begin_and_end_the_daily_and_the_weekly_walk(world: World) -> None:
    db = world.connection
    ended = (
        "select kind, is_whole from two_tower.refreshes where ended_at is not null order by kind"
    )
    for _ in range(30):
        value(db, "select two_tower.tick()")
    assert rows(db, ended) == []
    later = datetime.now(UTC) + timedelta(days=8)
    db.execute("select set_config('two_tower.now', %s, false)", [later.isoformat()])
    for _ in range(60):
        value(db, "select two_tower.tick()")
    assert rows(db, ended) == [("daily", True), ("weekly", True)]


def test_a_post_that_is_held_keeps_nobody_waiting_and_is_mended_by_the_next_walk(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as db, connect(url) as holder:
        author, reader = add_user(db), add_user(db)
        posts = add_posts(db, 40, [author], np.random.default_rng(5))
        db.execute(
            "update two_tower.live_embeddings set embedding = (select embedding"
            " from two_tower.live_embeddings where post_id = %s) where post_id = any (%s)",
            [posts[0], posts[1:3]],
        )
        holder.execute(
            "select from two_tower.live_embeddings where post_id = %s for update", [posts[1]]
        )
        assert walk(db, "recompute").mended == 1
        holder.rollback()
        assert walk(db, "recompute").mended == 1
        # A step that is open holds only what it mends: likes of other posts do not wait.
        value(db, "select two_tower.request_recompute()::text")
        db.execute(
            "update two_tower.live_embeddings set embedding = (select embedding"
            " from two_tower.live_embeddings where post_id = %s) where post_id = %s",
            [posts[0], posts[1]],
        )
        value(holder, "select two_tower.refresh_posts()")
        db.execute("set lock_timeout = '100ms'")
        with ThreadPoolExecutor(1) as thread:
            events = [Event(reader, posts[5], "like")]
            assert thread.submit(insert_events, db, events).result()
        holder.commit()
        assert_consistent(db)


def test_walks_are_kept_for_ninety_days(world: World) -> None:
    db = world.connection
    walk(db, "refresh")
    db.execute("update two_tower.refreshes set ended_at = ended_at - interval '91 days'")
    walk(db, "recompute")
    assert [row.kind for row in rows(db, "select kind from two_tower.refreshes")] == ["weekly"]


def test_random_damage_is_mended_by_one_walk(db: Connection) -> None:
    world, random = World(db, posts=120), rng(9)
    before = {row.post_id: row.vector for row in rows(db, VECTORS)}
    for post in random.choice(world.post_ids, 30, replace=False):
        if random.random() < 0.5:
            db.execute("delete from two_tower.live_embeddings where post_id = %s", [int(post)])
        else:
            db.execute(
                "update two_tower.live_embeddings set embedding = two_tower.scale(-1, embedding)"
                " where post_id = %s",
                [int(post)],
            )
    assert walk(db, "recompute", 11).mended == 30
    after = {row.post_id: row.vector for row in rows(db, VECTORS)}
    assert after.keys() == before.keys()
    for post, vector in before.items():
        assert after[post] == pytest.approx(vector, abs=1e-6)
