"""Posts of one text, or nearly, count once on a page; nobody is left with a short page by that."""

from __future__ import annotations

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.serving.test_authors import build_index, engage
from tests.support.database import add_user
from tests.support.engagements import add_posts, base_vectors, store


def add_crowd(db: Connection, text: str, count: int, vector: list[float]) -> list[int]:
    """New accounts, each with a post of this text."""
    query = "insert into public.posts (author_id, content) values (%s, %s) returning id"
    posts = [value(db, query, add_user(db), text) for _ in range(count)]
    store(db, posts, [vector] * count)
    return posts


def near(vector: list[float], cosine: float, seed: int) -> list[float]:
    """A unit vector at this cosine from another one."""
    away = np.random.default_rng(seed).normal(size=len(vector))
    away -= np.array(vector) * (away @ vector)
    away /= np.linalg.norm(away)
    return list(map(float, cosine * np.array(vector) + np.sqrt(1 - cosine**2) * away))


def page_of(db: Connection, reader: str, limit: int = 20) -> list[int]:
    """The posts of a page."""
    query = "select post_id from two_tower.recommend_for(%s, %s)"
    return [row.post_id for row in rows(db, query, reader, limit)]


@pytest.mark.parametrize("is_indexed", [False, True])
def test_forty_accounts_with_one_text_have_one_of_twenty_places(
    db: Connection, is_indexed: bool
) -> None:
    random = np.random.default_rng(1)
    add_posts(db, 200, [add_user(db) for _ in range(100)], random)
    (vector,) = base_vectors(random, 1)
    crowd = add_crowd(db, "Buy our shoes", 40, vector)
    reader, fan = add_user(db), add_user(db)
    engage(db, fan, crowd[:12], "like")
    (alike,) = add_posts(db, 1, [add_user(db)])
    store(db, [alike], [near(vector, 0.9, 2)])
    engage(db, reader, [alike], "like")
    if is_indexed:
        build_index(db)
    db.execute("select two_tower.refresh_popular_candidates()")
    for limit in (10, 20, 50):
        page = page_of(db, reader, limit)
        assert len(page) == len(set(page)) == limit
        assert len(set(page) & set(crowd)) == 1
    assert set(page_of(db, add_user(db))) & set(crowd)  # popular: one is shown to newcomers
    # Who liked twelve of them has enough of it.
    assert not set(page_of(db, fan)) & set(crowd)


def test_posts_count_as_copies_from_copy_similarity_on(db: Connection) -> None:
    random = np.random.default_rng(3)
    add_posts(db, 60, [add_user(db) for _ in range(60)], random)
    (vector,) = base_vectors(random, 1)
    alike = add_posts(db, 10, [add_user(db) for _ in range(10)])
    store(db, alike, [near(vector, 0.97, seed) for seed in range(10)])  # .94 from each other
    reader = add_user(db)
    (liked,) = add_posts(db, 1, [add_user(db)])
    store(db, [liked], [near(vector, 0.9, 11)])
    engage(db, reader, [liked], "like")
    assert set(alike) <= set(page_of(db, reader))
    for most, least_cosine in ((10, 0.95), (1, 0.93), (0, 0.8), (10, None)):
        db.execute("update two_tower.settings set copy_similarity = %s", [least_cosine])
        assert len(set(alike) & set(page_of(db, reader))) == most, least_cosine


def test_a_text_that_was_seen_comes_behind_all_others(db: Connection) -> None:
    random = np.random.default_rng(4)
    others = add_posts(db, 30, [add_user(db) for _ in range(30)], random)
    crowd = add_crowd(db, "Hello", 5, base_vectors(random, 1)[0])
    reader = add_user(db)
    engage(db, reader, crowd[:1], "view")
    page = page_of(db, reader, 34)
    assert set(page[:30]) == set(others)
    assert set(page[30:]) == set(crowd[1:])


@pytest.mark.parametrize("is_indexed", [False, True])
def test_where_there_are_only_copies_they_fill_the_page(db: Connection, is_indexed: bool) -> None:
    (vector,) = base_vectors(np.random.default_rng(5), 1)
    crowd = add_crowd(db, "The one text", 60, vector)
    reader = add_user(db)
    engage(db, reader, crowd[:3], "like")
    if is_indexed:
        build_index(db)
    assert len(set(page_of(db, reader, 50)) & set(crowd[3:])) == 50


def test_popular_posts_are_of_different_texts(db: Connection) -> None:
    random = np.random.default_rng(6)
    others = add_posts(db, 30, [add_user(db) for _ in range(30)], random)
    crowd = add_crowd(db, "Buy our shoes", 40, base_vectors(random, 1)[0])
    engage(db, add_user(db), crowd, "like")
    engage(db, add_user(db), others, "click")
    db.execute("select two_tower.refresh_popular_candidates()")
    listed = {row.post_id for row in rows(db, "select post_id from two_tower.popular_candidates")}
    assert set(others) < listed
    assert len(listed & set(crowd)) == 1


def test_new_posts_of_one_text_count_once_before_they_are_encoded(db: Connection) -> None:
    query = "insert into public.posts (author_id, content) values (%s, %s) returning id"
    crowd = [value(db, query, add_user(db), "Buy our shoes") for _ in range(20)]
    others = [value(db, query, add_user(db), f"text {number}") for number in range(9)]
    page = page_of(db, add_user(db), 10)
    assert set(others) < set(page)
    assert len(set(page) & set(crowd)) == 1
