"""New posts: explored by likeness and by chance, and those of followed authors first."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user
from tests.support.engagements import base_vectors, store

OPENED = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _clock(db: Connection) -> None:
    at(db, 0)


def at(db: Connection, days: float) -> None:
    """It is so many days after the feed opened."""
    moment = (OPENED + timedelta(days=days)).isoformat()
    db.execute("select set_config('two_tower.now', %s, true)", [moment])


def add_new(
    db: Connection, authors: list[str], vectors: list[list[float]], days: float = 0
) -> list[int]:
    """Posts of that day, of authors in turn, with these vectors."""
    query = (
        "insert into public.posts (author_id, content, created_at)"
        " values (%s, gen_random_uuid()::text, %s) returning id"
    )
    born = OPENED + timedelta(days=days)
    posts = [
        value(db, query, authors[number % len(authors)], born) for number in range(len(vectors))
    ]
    store(db, posts, vectors)
    return posts


def act(db: Connection, user: str, posts: list[int], kind: str) -> None:
    """One event a post."""
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, unnest(%s::bigint[]), %s",
        [user, posts, kind],
    )


def topic(seed: int, count: int) -> list[list[float]]:
    """Vectors about one thing: cosines of .5 with each other."""
    random = np.random.default_rng(seed)
    center = random.normal(size=384)
    vectors = center + random.normal(size=(count, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [list(map(float, vector)) for vector in vectors]


def page(db: Connection, reader: str, limit: int = 20) -> list[tuple[int, str]]:
    """Posts of a page with their sources."""
    query = "select post_id, source from two_tower.recommend_for(%s, %s)"
    return [(row.post_id, row.source) for row in rows(db, query, reader, limit)]


def explored(db: Connection, reader: str, limit: int = 20) -> list[int]:
    """What a reader explores."""
    query = "select two_tower.choose_explored_posts(two_tower.load_reader(%s), %s, '{}')"
    found = value(db, query, reader, limit)
    assert isinstance(found, list)
    return found


def test_half_of_what_is_explored_is_near_to_the_reader_and_half_is_anything(
    db: Connection,
) -> None:
    db.execute("update two_tower.settings set exploration_share = 0.2")
    authors = [add_user(db) for _ in range(60)]
    add_new(db, authors, base_vectors(np.random.default_rng(1), 200))
    *mine, liked = add_new(db, authors, topic(2, 11))
    shown: Counter[int] = Counter()
    near = []
    for _ in range(30):
        reader = add_user(db)
        act(db, reader, [liked], "like")
        found = explored(db, reader)
        assert len(found) in (4, 5)
        near.append(len(set(found) & set(mine)) / len(found))
        shown.update(set(found) - set(mine))
    assert 0.4 <= np.mean(near) <= 0.65
    assert len(shown) > 30  # what is near to nobody is shown, too


def test_an_author_who_floods_has_one_of_the_first_turns(db: Connection) -> None:
    db.execute("update two_tower.settings set exploration_share = 0.5")
    loud, liked_author = add_user(db), add_user(db)
    vectors = topic(3, 450)
    flood = add_new(db, [loud], vectors[:400])
    honest = add_new(db, [add_user(db) for _ in range(40)], vectors[400:440])
    (liked,) = add_new(db, [liked_author], vectors[449:])
    turns = "select max(turn) from two_tower.exploration_pool where post_id = any (%s)"
    assert value(db, turns, flood) == 399
    assert value(db, turns, honest) == 0
    reader = add_user(db)
    act(db, reader, [liked], "like")
    found = page(db, reader)
    assert len(set(flood) & {post for post, _ in found}) == 1
    nearest = "select two_tower.explore_nearest(two_tower.load_reader(%s), 20, '{}')"
    add_new(db, [add_user(db) for _ in range(300)], base_vectors(np.random.default_rng(4), 300))
    assert len(set(flood) & set(value(db, nearest, reader))) <= 1


def test_old_posts_are_not_explored_however_they_came(db: Connection) -> None:
    db.execute("update two_tower.settings set exploration_share = 0.5")
    author = [add_user(db)]
    random = np.random.default_rng(5)
    imported = add_new(db, author, base_vectors(random, 10), days=-53)
    new = add_new(db, author, base_vectors(random, 10))
    waiting = "select array_agg(post_id order by post_id) from two_tower.exploration_pool"
    assert value(db, waiting) == new
    db.execute("update two_tower.settings set author_share = 1")
    reader = add_user(db)
    assert explored(db, reader)
    assert set(explored(db, reader)) <= set(new)
    at(db, 13.9)
    assert explored(db, reader)
    assert set(explored(db, reader)) <= set(new)
    at(db, 14.1)
    assert explored(db, reader) == []
    assert {source for _, source in page(db, reader)} == {"fresh"}
    db.execute("select two_tower.refresh_serving_index()")
    assert value(db, waiting) is None
    assert imported


def test_each_reader_counts_once_and_the_author_not_at_all(db: Connection) -> None:
    author, readers = add_user(db), [add_user(db) for _ in range(3)]
    (post,) = add_new(db, [author], base_vectors(np.random.default_rng(6), 1))
    count = "select max(impressions) from two_tower.exploration_pool where post_id = %s"
    for seconds, (user, expected) in enumerate(
        [(author, 0), (readers[0], 1), (readers[0], 1), (author, 1), (readers[1], 2)]
    ):
        at(db, seconds / 86400)
        act(db, user, [post], "view")
        db.execute("select two_tower.follow_events()")
        assert value(db, count, post) == expected
    db.execute("update two_tower.settings set exploration_impressions = 3")
    act(db, readers[2], [post], "view")
    db.execute("select two_tower.follow_events()")
    assert value(db, count, post) is None


def test_explored_posts_stand_anywhere_in_the_lower_half_of_a_page(db: Connection) -> None:
    db.execute("update two_tower.settings set exploration_share = 0.1")
    authors = [add_user(db) for _ in range(60)]
    add_new(db, authors, base_vectors(np.random.default_rng(7), 200))
    places: Counter[int] = Counter()
    for _ in range(40):
        found = page(db, str(add_user(db)))
        places.update(n for n, (_, source) in enumerate(found, 1) if source == "exploration")
    assert min(places) >= 9
    assert len(places) >= 8


def test_new_posts_of_followed_authors_stand_first_up_to_followed_share(db: Connection) -> None:
    random = np.random.default_rng(8)
    followed, others = [add_user(db) for _ in range(8)], [add_user(db) for _ in range(40)]
    near = add_new(db, others, topic(9, 60), days=-20)
    old = add_new(db, followed, base_vectors(random, 8), days=-3)
    new = add_new(db, followed, base_vectors(random, 8), days=-1)
    reader = add_user(db)
    act(db, reader, near[:5], "like")
    db.execute("update two_tower.settings set exploration_share = 0")
    before = [post for post, _ in page(db, reader)]
    assert not set(before[:5]) & set(new)
    db.execute("insert into public.follows select %s, unnest(%s::uuid[])", [reader, followed])
    after = [post for post, _ in page(db, reader)]
    assert set(after[:5]) <= set(new)
    assert not set(after[5:]) & set(new + old)
    db.execute("update two_tower.settings set followed_share = 0")
    assert not set(page(db, reader)[:5]) & set(new)
    db.execute("update two_tower.settings set followed_share = 1")
    assert {post for post, _ in page(db, reader)[:8]} == set(new)
    db.execute("update two_tower.settings set followed_new_for = '4 days'")
    assert {post for post, _ in page(db, reader)[:16]} == set(new + old)


def test_for_warm_readers_too_a_fresh_post_scores_above_an_old_one_as_near(db: Connection) -> None:
    vectors = topic(10, 2)
    (old,) = add_new(db, [add_user(db)], vectors[:1], days=-30)
    (new,) = add_new(db, [add_user(db)], vectors[:1])
    (liked,) = add_new(db, [add_user(db)], vectors[1:])
    reader = add_user(db)
    act(db, reader, [liked], "like")
    db.execute("update two_tower.settings set cold_until = 1, recency_weight = 0.3")
    query = (
        "select s.post_id, s.fresh, s.personal"
        " from two_tower.score_posts(two_tower.load_reader(%s), %s) s order by s.post_id"
    )
    first, second = rows(db, query, reader, [old, new])
    assert first.personal == pytest.approx(second.personal, abs=1e-6)
    assert second.fresh == pytest.approx(0.3)
    assert first.fresh == pytest.approx(0.3 * 2**-10)
