"""What an edit of its text leaves of what was learned of a post."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, value
from tests.support.engagements import add_posts, base_vectors, store
from tests.support.learning import World, live, rng
from tests.support.reference import START, norm

Vector = np.ndarray[Any, Any]


def turned(old: list[float], distance: float, seed: int = 3) -> list[float]:
    """A base embedding at this cosine distance from another one."""
    start = np.array(old)
    other = rng(seed).normal(size=len(start))
    other -= (other @ start) * start
    cosine = 1 - distance
    return list(map(float, cosine * start + np.sqrt(1 - cosine**2) * norm(other)))


def base(connection: Connection, post_id: int) -> list[float]:
    """A post's base embedding."""
    return list(
        value(
            connection,
            "select base_embedding::real[] from two_tower.base_embeddings where post_id = %s",
            post_id,
        )
    )


def projected(connection: Connection, post_id: int) -> Vector:
    """Where the candidate tower puts the post's text of now."""
    query = "select two_tower.run_candidate_tower(%s::real[]::extensions.vector)::real[]"
    return np.array(value(connection, query, base(connection, post_id)), float)


def weight(connection: Connection, post_id: int) -> float:
    """A post's popularity, in likes of the test's first day."""
    return float(
        value(
            connection,
            "select coalesce((select 2 ^ (popularity - two_tower.read_popularity_clock(%s, s))"
            " from two_tower.live_embeddings where post_id = %s and slot = s.active_slot), 0)"
            " from two_tower.state s",
            START,
            post_id,
        )
    )


def like(world: World, post_id: int) -> None:
    """All users like the post."""
    for user_id in world.user_ids:
        world.send("like", post_id, user_id)


@pytest.fixture
def liked(world: World) -> int:
    """A post that was engaged with."""
    like(world, world.post_ids[0])
    return world.post_ids[0]


def edit(world: World, post_id: int, distance: float, seed: int = 3) -> None:
    """Hands in the base embedding of an edited text, at this distance from the one of now."""
    store(world.connection, [post_id], [turned(base(world.connection, post_id), distance, seed)])


@pytest.mark.parametrize(
    ("distance", "kept"),
    [(0.02, 1), (0.1, 1), (0.2, 0.8), (0.35, 0.5), (0.61, 0), (1, 0), (1.3, 0)],
)
def test_an_edit_takes_the_share_that_it_takes_of_the_text(
    world: World, liked: int, distance: float, kept: float
) -> None:
    before, popularity = live(world.connection, liked), weight(world.connection, liked)
    edit(world, liked, distance)
    expected = norm(kept * before + (1 - kept) * projected(world.connection, liked))
    assert live(world.connection, liked) == pytest.approx(expected, abs=1e-5)
    assert weight(world.connection, liked) == pytest.approx(kept * popularity, rel=1e-4)


def test_an_untouched_post_stands_where_its_new_text_is(world: World) -> None:
    post_id = world.post_ids[5]
    edit(world, post_id, 0.05)
    assert live(world.connection, post_id) == pytest.approx(
        projected(world.connection, post_id), abs=1e-5
    )
    edit(world, post_id, 0.9)
    like(world, post_id)
    popularity = weight(world.connection, post_id)
    edit(world, post_id, 0.05)
    assert weight(world.connection, post_id) == pytest.approx(popularity)


def test_many_small_edits_add_up_to_the_large_one(world: World, liked: int) -> None:
    popularity = weight(world.connection, liked)
    start = np.array(base(world.connection, liked))
    end = np.array(turned(list(start), 1))
    left = []
    for step in np.linspace(0, np.pi / 2, 31)[1:]:
        text = list(map(float, np.cos(step) * start + np.sin(step) * end))
        store(world.connection, [liked], [text])
        left.append(weight(world.connection, liked) / popularity)
    assert left[0] == pytest.approx(1)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert live(world.connection, liked) @ projected(world.connection, liked) > 0.9


def test_an_edit_that_is_taken_back_again_and_again_costs_once(world: World, liked: int) -> None:
    popularity, text = weight(world.connection, liked), base(world.connection, liked)
    other = turned(text, 0.35)
    for _ in range(5):
        store(world.connection, [liked], [other])
        store(world.connection, [liked], [text])
    assert weight(world.connection, liked) == pytest.approx(popularity / 2, rel=1e-4)


def test_what_is_learned_of_another_text_is_measured_from_that_one(
    world: World, liked: int
) -> None:
    edit(world, liked, 1)
    world.connection.execute("update two_tower.settings set learned_events_per_minute = 1000")
    for user_id in world.user_ids:
        world.send("reply", liked, user_id)
    popularity = weight(world.connection, liked)
    assert popularity > 0
    edit(world, liked, 0.05, seed=4)
    assert weight(world.connection, liked) == pytest.approx(popularity)
    edit(world, liked, 0.35, seed=5)
    assert 0.3 < weight(world.connection, liked) / popularity < 0.6


def test_both_slots_follow_an_edit_while_one_is_filled(world: World, liked: int) -> None:
    connection = world.connection
    version = value(
        connection,
        "select two_tower.store_first_tower(two_tower.active_version('candidate_tower'),"
        " '{}', 'accepted', array(select row from two_tower.model_tensors where version ="
        " two_tower.active_version('candidate_tower') and name = 'hidden.weight'"
        " and row_index < 128 order by row_index), two_tower.zero_vector(384))",
    )
    connection.execute("select two_tower.begin_switch(%s)", [version])
    while value(connection, "select two_tower.fill_slot(1000)"):
        pass
    edit(world, liked, 0.35)
    rows = connection.execute(
        "select embedding::text, popularity from two_tower.live_embeddings where post_id = %s",
        [liked],
    ).fetchall()
    assert len(rows) == 2
    assert rows[0] == rows[1]


def hand_in_nothing(connection: Connection, post_id: int) -> None:
    """The encoder says that it cannot read a post's text."""
    connection.execute(
        "select two_tower.store_base_embeddings(array[%s]::bigint[],"
        " array[null]::extensions.vector[])",
        [post_id],
    )


def verdicts(connection: Connection) -> list[str]:
    """Why events were not learned, in their order."""
    query = "select reason from two_tower.unlearned_events order by event_id"
    return [row[0] for row in connection.execute(query)]


def test_events_about_a_text_that_the_encoder_cannot_read_are_recorded(world: World) -> None:
    connection = world.connection
    (post_id,) = add_posts(connection, 1, [world.author])
    world.send("like", post_id)
    world.send("view", post_id, world.user_ids[1])
    assert value(connection, "select count(*) from two_tower.deferred_events") == 1
    hand_in_nothing(connection, post_id)
    assert value(connection, "select two_tower.learn_deferred()") == 1
    world.send("reply", post_id)
    assert verdicts(connection) == ["post_unreadable"] * 2
    assert value(connection, "select count(*) from two_tower.deferred_events") == 0
    assert value(connection, "select count(*) from public.engagement_events") == 3
    seen = "select count(*) from two_tower.user_posts where post_id = %s"
    assert value(connection, seen, post_id) == 2


def test_what_was_engaged_with_and_can_not_be_read_any_more_has_no_vector(
    world: World, liked: int
) -> None:
    hand_in_nothing(world.connection, liked)
    left = "select count(*) from two_tower.post_embeddings where post_id = %s and embedding is null"
    assert value(world.connection, left, liked) == 1
    world.send("unlike", liked)
    assert verdicts(world.connection) == ["post_unreadable"]
    is_engaged = "select is_engaged from two_tower.user_posts where user_id = %s and post_id = %s"
    world.send("like", world.post_ids[1])
    assert value(world.connection, is_engaged, world.user, world.post_ids[1])
    store(world.connection, [liked], base_vectors(rng(9), 1))
    assert live(world.connection, liked) == pytest.approx(
        projected(world.connection, liked), abs=1e-5
    )
    world.send("reply", liked)
    assert verdicts(world.connection) == ["post_unreadable"]
