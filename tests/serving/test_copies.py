"""Posts of one text, or nearly, count once on a page; nobody is left with a short page by that."""

from __future__ import annotations

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.serving.test_authors import build_index, engage
from tests.support.database import add_user, as_user
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


def turn_clock(db: Connection, by: str) -> None:
    """It is so much later, or earlier."""
    later = "select set_config('two_tower.now', (two_tower.now() + %s::interval)::text, true)"
    db.execute(later, [by])


def write(db: Connection, author: str, text: str, vector: list[float]) -> int:
    """A post, encoded. Each is a second younger than the one before."""
    turn_clock(db, "1 s")
    query = (
        "insert into public.posts (author_id, content, created_at)"
        " values (%s, %s, two_tower.now()) returning id"
    )
    post = int(value(db, query, author, text))
    store(db, [post], [vector])
    return post


class Theft:
    """A post, and a younger one of the same text, or nearly, that scores better."""

    def __init__(self, db: Connection, cosine: float = 1) -> None:
        self.db = db
        turn_clock(db, "-1 hour")
        # New posts have places of their own, which they do not get from one another.
        db.execute("update two_tower.settings set exploration_share = 0")
        random = np.random.default_rng(7)
        add_posts(db, 80, [add_user(db) for _ in range(80)], random)
        (vector,) = base_vectors(random, 1)
        self.reader, self.author, self.thief = (add_user(db) for _ in range(3))
        (self.liked,) = add_posts(db, 1, [add_user(db)])
        store(db, [self.liked], [near(vector, 0.9, 8)])
        engage(db, self.reader, [self.liked], "like")
        self.vector, self.stolen = vector, near(vector, cosine, 9)
        self.text = "The one text" if cosine == 1 else "The one text!"
        self.original = write(db, self.author, "The one text", vector)
        self.copy = 0

    def move(self, post: int, factor: int) -> None:
        """As learning does: it brings a post to the reader's vector, or to what is opposite."""
        self.db.execute(
            "update two_tower.live_embeddings v set embedding = two_tower.scale(%s, u.embedding)"
            " from two_tower.user_embeddings u where v.post_id = %s and u.user_id = %s",
            [factor, post, self.reader],
        )

    def steal(self) -> int:
        """The thief's post."""
        self.copy = write(self.db, self.thief, self.text, self.stolen)
        self.move(self.copy, 1)
        return self.copy

    def shown(self, limit: int = 10) -> set[int]:
        """Which of the two are on the reader's page."""
        return set(page_of(self.db, self.reader, limit)) & {self.original, self.copy}


@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize("cosine", [1, 0.97])
def test_the_older_post_stands_for_its_copies_also_where_a_copy_scores_better(
    db: Connection, cosine: float, is_indexed: bool
) -> None:
    theft = Theft(db, cosine)
    theft.steal()
    if cosine == 1:
        theft.move(theft.original, -1)  # the last of all
    if is_indexed:
        build_index(db)
    page = page_of(db, theft.reader, 10)
    assert theft.original in page[:3]
    assert theft.copy not in page
    everything = page_of(db, theft.reader, 100)
    assert everything[-1] == theft.copy
    assert len(everything) == len(set(everything)) == 82
    with as_user(db, theft.reader):
        (told,) = rows(db, "select * from public.explain_recommendation(%s)", theft.copy)
    assert told.is_eligible
    assert told.reason == f"eligible, a copy: post {theft.original} stands for it"
    with as_user(db, theft.reader):
        (told,) = rows(db, "select * from public.explain_recommendation(%s)", theft.original)
    assert "copy" not in told.reason


def test_the_original_of_a_text_stands_also_where_it_is_no_candidate(db: Connection) -> None:
    db.execute(
        "update two_tower.settings set over_fetch = 40, ef_search = 40, cold_until = 0,"
        " exploration_share = 0"
    )
    theft = Theft(db)
    theft.steal()
    theft.move(theft.original, -1)
    build_index(db)
    assert theft.shown() == {theft.original}
    db.execute("update public.posts set deleted_at = now() where id = %s", [theft.original])
    assert theft.shown() == {theft.copy}


def test_what_a_thief_edits_or_dates_back_is_no_original(db: Connection) -> None:
    theft = Theft(db)
    db.execute(
        "update public.posts set created_at = created_at - interval '1 year' where id = %s",
        [theft.liked],
    )
    old = write(db, theft.thief, "Something else", base_vectors(np.random.default_rng(3), 1)[0])
    theft.original, before = theft.steal(), theft.original
    db.execute("delete from public.posts where id = %s", [before])
    turn_clock(db, "1 s")
    db.execute("update public.posts set content = %s where id = %s", [theft.text, old])
    store(db, [old], [theft.vector])
    theft.copy = old
    assert theft.shown() == {theft.original}
    db.execute("grant insert (created_at) on public.posts to authenticated")
    with as_user(db, theft.thief):
        query = "insert into public.posts (content, created_at) values (%s, '2020-01-01')"
        dated = value(db, f"{query} returning id", theft.text)
    turn_clock(db, "2 hours")
    store(db, [dated], [theft.vector])
    theft.copy = dated
    assert theft.shown() == {theft.original}


@pytest.mark.parametrize("who", ["author", "reader"])
def test_an_original_that_the_reader_does_not_get_stands_for_nothing(
    db: Connection, who: str
) -> None:
    theft = Theft(db)
    theft.steal()
    blocking, blocked = (
        (theft.reader, theft.author) if who == "reader" else (theft.author, theft.reader)
    )
    db.execute(
        "insert into public.author_blocks (user_id, author_id, kind)"
        " values (%s, %s, 'block_author')",
        [blocking, blocked],
    )
    assert theft.shown() == {theft.copy}


def test_of_a_text_of_a_crowd_the_oldest_and_newest_tell_whether_it_was_seen(
    db: Connection,
) -> None:
    random = np.random.default_rng(10)
    others = add_posts(db, 30, [add_user(db) for _ in range(30)], random)
    (vector,) = base_vectors(random, 1)
    crowd = [write(db, add_user(db), "Hello", vector) for _ in range(60)]
    for seen in (crowd[:1], crowd[-2:-1]):
        reader = add_user(db)
        engage(db, reader, seen, "view")
        assert set(page_of(db, reader, 30)) == set(others)
