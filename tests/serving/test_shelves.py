"""more_from_author() and trending_posts(): pages about one thing that the reader names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.database.test_settings import settings
from tests.support.articles import Articles, create_articles
from tests.support.database import add_user, as_user


@pytest.fixture
def articles(db: Connection) -> Articles:
    """Articles whose tags are the words of their titles."""
    articles = create_articles(db)
    articles.attach(tags="string_to_array(title, ' ')")
    return articles


def send(db: Connection, user: str, post_id: int, event_type: str = "like") -> None:
    with as_user(db, user):
        db.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, %s)",
            [post_id, event_type],
        )


def of_author(db: Connection, user: str, author: str, limit: int = 20) -> list[int]:
    with as_user(db, user):
        found = rows(db, "select * from public.more_from_author(%s, %s)", author, limit)
    return [each.post_id for each in found]


def trending(db: Connection, user: str, tag: str | None, limit: int = 20) -> list[Any]:
    with as_user(db, user):
        return rows(db, "select * from public.trending_posts(%s, %s)", tag, limit)


def test_an_authors_posts_come_newest_first_seen_ones_too_and_encoded_or_not(
    articles: Articles,
) -> None:
    db = articles.db
    reader, author, other = add_user(db), add_user(db), add_user(db)
    posts = articles.write(5, author) + articles.write(1, author, is_encoded=False)
    articles.write(5, other)
    for place, post in enumerate(posts):
        articles.change(f"published_at = two_tower.now() - interval '{9 - place} hours'", [post])
    send(db, reader, posts[2], "view")
    send(db, reader, posts[1], "like")
    assert of_author(db, reader, author) == posts[::-1]
    assert of_author(db, reader, author, 2) == posts[:3:-1]
    assert of_author(db, author, author) == posts[::-1]


def test_of_an_author_there_is_nothing_that_is_hidden_unreadable_or_withheld(
    articles: Articles,
) -> None:
    db = articles.db
    reader, author = add_user(db), add_user(db)
    posts = articles.write(4, author)
    articles.write(1, author, is_private=True)
    articles.write(1, author, is_draft=True)
    send(db, reader, posts[0], "hide")
    assert sorted(of_author(db, reader, author)) == sorted(posts[1:])
    send(db, reader, posts[0], "unhide")
    assert sorted(of_author(db, reader, author)) == sorted(posts)
    send(db, reader, posts[0], "mute_author")
    assert of_author(db, reader, author) == []
    assert of_author(db, reader, "nobody") == []


def test_who_reads_few_of_an_authors_posts_gets_these(articles: Articles) -> None:
    """More of them are private than a first look finds."""
    db = articles.db
    reader, author = add_user(db), add_user(db)
    old = articles.write(3, author)
    articles.change("published_at = two_tower.now() - interval '3 days'", old)
    articles.write(60, author, is_private=True)
    assert sorted(of_author(db, reader, author, 3)) == sorted(old)


def test_what_trends_is_what_the_last_days_liked_by_its_tag(articles: Articles) -> None:
    db = articles.db
    reader, authors = add_user(db), [add_user(db) for _ in range(3)]
    boats = [articles.write(1, author)[0] for author in authors]
    (old,) = articles.write(1, authors[0])
    (quiet,) = articles.write(1, authors[1])
    articles.change("title = 'boats ' || title", [*boats, old, quiet])
    articles.change("published_at = two_tower.now() - interval '30 days'", [old])
    db.execute("update two_tower.posts set arrived_at = created_at where id = %s", [old])
    (oar,) = articles.write(1, authors[1])
    articles.change("title = 'oars'", [oar])
    for likes, post in zip([2, 3, 1, 5, 9], [*boats, oar, old], strict=True):
        for _ in range(likes):
            send(db, add_user(db), post)
    found = trending(db, reader, "boats")
    assert [each.post_id for each in found] == [boats[1], boats[0], boats[2]]
    assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
    assert {each.post_id for each in trending(db, reader, None)} >= {oar, *boats}
    assert trending(db, reader, "nothing") == []
    send(db, reader, boats[1], "hide")
    send(db, reader, boats[0], "like")
    assert [each.post_id for each in trending(db, reader, "boats")] == [boats[0], boats[2]]
    with settings(db, trending_window=timedelta(days=60)):
        assert old in [each.post_id for each in trending(db, reader, "boats")]


def test_authors_take_turns_in_what_trends_and_nothing_unreadable_is_there(
    articles: Articles,
) -> None:
    db = articles.db
    reader, loud, quiet = add_user(db), add_user(db), add_user(db)
    many = articles.write(6, loud)
    (one,) = articles.write(1, quiet)
    (private,) = articles.write(1, quiet, is_private=True)
    for post in many:
        for _ in range(2):
            send(db, add_user(db), post)
    send(db, add_user(db), one)
    send(db, quiet, private)
    with settings(db, author_share=0.34):
        found = [each.post_id for each in trending(db, reader, None, 3)]
    assert one in found
    assert len(set(found) & set(many)) == 2
    assert private not in [each.post_id for each in trending(db, reader, None, 100)]


@pytest.mark.parametrize("call", ["more_from_author('x')", "trending_posts('x')"])
def test_who_is_not_signed_in_gets_neither(db: Connection, call: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_user(db, None):
        value(db, f"select count(*) from public.{call}")
