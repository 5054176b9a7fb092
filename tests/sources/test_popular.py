"""most_popular_<name>(): rows of a table by popularity, and who may call for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.articles import Articles, create_articles
from tests.support.database import add_user, as_user

POPULAR = "select * from public.most_popular_articles(%s)"


@pytest.fixture
def articles(db: Connection) -> Articles:
    """Articles with uuids as keys, beside the starter's posts."""
    return create_articles(db)


@contextmanager
def as_anon(db: Connection) -> Iterator[None]:
    """Runs statements as a caller who is not signed in."""
    with db.transaction(force_rollback=True):
        db.execute("set local role anon")
        yield


def like(db: Connection, post_ids: list[int], likes: int) -> None:
    """Has this number of users like each of the posts, and lists what is popular anew."""
    for _ in range(likes):
        with as_user(db, add_user(db)):
            for post_id in post_ids:
                db.execute(
                    "insert into public.engagement_events (post_id, event_type)"
                    " values (%s, 'like')",
                    [post_id],
                )
    db.execute("select two_tower.refresh_popular_candidates()")


def open_to_anon(db: Connection, articles: Articles) -> None:
    """Lets callers who are not signed in read articles that are not private, and their page."""
    db.execute("grant select on public.articles to anon")
    db.execute(
        'create policy "public rows are read by all" on public.articles for select to anon'
        " using (not is_private)"
    )
    articles.attach(popular_for_anon=True)


def private_functions(db: Connection) -> list[str]:
    """The functions of the engine that anon may call."""
    return [
        name
        for (name,) in db.execute(
            "select p.proname::text from pg_proc p where p.pronamespace = 'two_tower'::regnamespace"
            " and has_function_privilege('anon', p.oid, 'execute')"
        )
    ]


def test_popular_rows_come_first_and_are_of_this_table_alone(
    db: Connection, articles: Articles
) -> None:
    reader, author = add_user(db), add_user(db)
    first, second, *others = articles.write(6, author)
    starter = value(
        db,
        "insert into public.posts (author_id, content) values (%s, 'a post') returning id",
        author,
    )
    like(db, [first], 3)
    like(db, [second], 1)
    like(db, [starter], 5)
    with as_user(db, reader):
        page = rows(db, POPULAR, 6)
    assert [str(row.id) for row in page[:2]] == [articles.key_of(first), articles.key_of(second)]
    assert {str(row.id) for row in page} == {
        articles.key_of(post) for post in (first, second, *others)
    }
    assert [row.place for row in page] == list(range(1, 7))
    assert {row.source for row in page} == {"popular"}


def test_what_the_reader_blocks_or_may_not_read_is_not_popular(
    db: Connection, articles: Articles
) -> None:
    reader, blocked = add_user(db), add_user(db)
    (private,) = articles.write(1, add_user(db))
    (theirs,) = articles.write(1, blocked)
    (shown,) = articles.write(1, add_user(db))
    like(db, [private, theirs, shown], 2)
    articles.change("is_private = true", [private])
    with as_user(db, reader):
        db.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, 'mute_author')",
            [theirs],
        )
        page = rows(db, POPULAR, 6)
    assert [str(row.id) for row in page] == [articles.key_of(shown)]


def test_nobody_is_answered_without_signing_in_unless_the_table_says_so(
    db: Connection, articles: Articles
) -> None:
    articles.write(3, add_user(db))
    assert private_functions(db) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_anon(db):
        db.execute(POPULAR, [3])


def test_a_table_that_opts_in_answers_what_its_policies_show_to_anon(
    db: Connection, articles: Articles
) -> None:
    shown = articles.write(3, add_user(db))
    articles.write(2, add_user(db), is_private=True)
    like(db, shown[:1], 2)
    open_to_anon(db, articles)
    with as_anon(db):
        page = rows(db, POPULAR, 9)
    assert next(str(row.id) for row in page) == articles.key_of(shown[0])
    assert {str(row.id) for row in page} == {articles.key_of(post) for post in shown}


@pytest.mark.parametrize(
    "statement",
    [
        "select * from public.recommended_articles(3)",
        "select * from public.recommend(3)",
        "select * from public.popular_posts(3)",
        "select * from public.most_popular_other(3)",
        "select * from two_tower.recommend_for(null, 3)",
        "select * from two_tower.explain_post(null, 1)",
    ],
)
def test_a_table_that_opts_in_opens_nothing_else(
    db: Connection, articles: Articles, statement: str
) -> None:
    other = create_articles(db, name="other")
    other.write(3, add_user(db))
    open_to_anon(db, articles)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_anon(db):
        db.execute(statement.encode())


def test_posts_of_a_table_that_did_not_opt_in_are_unreadable_to_anon(
    db: Connection, articles: Articles
) -> None:
    other = create_articles(db, name="other")
    hidden = other.write(3, add_user(db))
    db.execute("grant select on public.other to anon")
    db.execute("create policy open on public.other for select to anon using (true)")
    open_to_anon(db, articles)
    with as_anon(db):
        assert rows(db, "select * from two_tower.find_readable(%s) r", hidden) == []


@pytest.mark.parametrize("way", ["attached again", "detached", "dropped"])
def test_who_is_not_signed_in_calls_nothing_again(
    db: Connection, articles: Articles, way: str
) -> None:
    articles.write(3, add_user(db))
    open_to_anon(db, articles)
    assert private_functions(db) != []
    if way == "attached again":
        articles.attach()
    elif way == "detached":
        db.execute("select two_tower.detach('public.articles')")
    else:
        db.execute("drop table public.articles cascade")
        db.execute("select two_tower.mend_sources()")
    assert private_functions(db) == []
    assert value(db, "select has_schema_privilege('anon', 'two_tower', 'usage')") is False
