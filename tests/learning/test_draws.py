"""The posts that a positive pushes away."""

from __future__ import annotations

from collections import Counter

import pytest

from python_jobs.db import Connection
from tests.support.engagements import (
    delete_posts,
    insert_events,
)
from tests.support.learning import World
from tests.support.reference import Event
from tests.support.statistics import assert_uniform


@pytest.mark.parametrize(
    ("posts", "gap"),
    [(60, 1), (300, 1), (300, 4)],
    ids=["few posts are all read", "ids are drawn", "ids with gaps are drawn"],
)
def test_the_posts_that_a_positive_pushes_away_are_drawn_uniformly(
    db: Connection, posts: int, gap: int
) -> None:
    connection = db
    world = World(connection, users=600, posts=posts)
    if gap > 1:
        gone = [post_id for post_id in world.post_ids if post_id % gap != 1]
        delete_posts(connection, gone, rows=True)
        world.post_ids = [post_id for post_id in world.post_ids if post_id % gap == 1]
    target, candidates = world.post_ids[0], world.post_ids[1:]
    # Views must not attract the draws: the viewed ones are negatives of pairs, not of pushes.
    insert_events(connection, [Event(u, candidates[0], "view") for u in world.user_ids])
    connection.execute("select setseed(0.25)")
    insert_events(connection, [Event(u, target, "like") for u in world.user_ids])
    drawn = Counter(
        post_id
        for (ids,) in connection.execute("select pushed_ids from two_tower.deferred_steps")
        for post_id in ids
    )
    assert sum(drawn.values()) == 8 * 600
    assert set(drawn) <= set(candidates)
    assert_uniform(drawn, candidates)


def test_a_post_that_was_encoded_after_the_locks_is_drawn_as_it_stands(db: Connection) -> None:
    """Another session can encode a post of the statement between its locks and its draws.

    Then the statement has no row of it: what was drawn is newer, and stays.
    """
    drawn = db.execute(
        """
        select (r).negative_embs = negatives as has_negatives, (r).pushed_weights,
          (r).are_untouched
        from (select array[array_fill(0.5::real, array[128])::extensions.halfvec] as negatives) n,
          lateral two_tower.refresh_drawn_posts(
            row('{7}', n.negatives, 0, '{7, 8}', '{0.25, 0.5}', '{f, t}')::two_tower.drawn_posts,
            two_tower.read_settings(), 1,
            array_fill(1::real, array[128])::extensions.vector, '{7, 9}',
            array[null, null]::two_tower.live_embeddings[]) r
        """
    ).fetchone()
    assert drawn == (True, [0.25, 0.5], [False, True])
