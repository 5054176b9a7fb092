"""What an operator takes out of all feeds stays out, whatever the author does, and at once."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from python_jobs.db import Connection, rows
from tests.support.articles import Articles, create_articles
from tests.support.database import add_user, as_user


@pytest.fixture
def articles(db: Connection) -> Articles:
    """Articles with uuids as keys, which their authors write as they like."""
    db.execute("select two_tower.detach('public.posts')")
    made = create_articles(db)
    db.execute("grant all on public.articles to authenticated")
    db.execute(
        'create policy "authors do all with their own" on public.articles to authenticated'
        " using (author_id = (select auth.uid())) with check (author_id = (select auth.uid()))"
    )
    return made


def shown(db: Connection, reader: str, near: int) -> set[int]:
    """What all pages of a reader show; near: a post for similar_posts()."""
    with as_user(db, reader):
        pages = [
            "select post_id from public.recommend(500)",
            "select post_id from public.popular_posts(100)",
            "select post_id from public.recent_from_followed(100)",
            f"select post_id from public.similar_posts({near}, 100)",
            "select f.post_id from public.recommended_articles(500) a"
            " join two_tower.page_for(auth.uid(), 500) f on f.post_key = a.id::text",
        ]
        found = [{row[0] for row in db.execute(page.encode())} for page in pages]
    by_name = dict(zip(("recommend", "popular", "followed", "similar", "rows"), found, strict=True))
    # All pages know the same posts, but for the one that similar_posts() is asked about.
    assert by_name["recommend"] == by_name["rows"] == by_name["followed"] == by_name["popular"]
    assert by_name["similar"] == by_name["recommend"] - {near}
    return by_name["recommend"]


def follow(db: Connection, reader: str, authors: Sequence[str]) -> None:
    for author in authors:
        db.execute(
            "insert into public.follows (follower_id, followed_id) values (%s, %s)",
            [reader, author],
        )


def test_a_removed_post_is_on_no_page_from_then_on_and_a_restored_one_is_again(
    db: Connection, articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    follow(db, reader, [author])
    posts = articles.write(6, author)
    db.execute("select two_tower.refresh_popular_candidates()")
    assert shown(db, reader, posts[5]) == set(posts)
    with as_user(db, None, "service_role"):
        db.execute("select public.remove_post(%s, 'spam')", [posts[0]])
        db.execute(
            "select public.remove_post(p_post_key => upper(%s), p_post_source => 'articles')",
            [articles.key_of(posts[1])],
        )
    assert shown(db, reader, posts[5]) == set(posts[2:])
    assert rows(
        db,
        "select removed_by, removal_reason from two_tower.posts where removed_at is not null"
        " order by id desc",
    ) == [("service_role", "spam"), ("service_role", None)]
    with as_user(db, author):
        explained = rows(db, "select * from public.explain_recommendation(%s)", posts[0])[0]
    assert (explained.is_eligible, explained.reason) == (False, "the post was removed")
    # A tick carries it on into learning, and changes nothing here.
    db.execute("select two_tower.apply_post_changes()")
    assert shown(db, reader, posts[5]) == set(posts[2:])
    with as_user(db, None, "service_role"):
        db.execute("select public.restore_post(%s)", [posts[0]])
    db.execute("select two_tower.apply_post_changes()")
    db.execute("select two_tower.refresh_popular_candidates()")
    assert shown(db, reader, posts[5]) == {posts[0], *posts[2:]}


@pytest.mark.parametrize(
    "tries",
    [
        ["update public.articles set title = 'other words' where id = %(key)s"],
        ["update public.articles set published_at = now() where id = %(key)s"],
        [
            "update public.articles set is_draft = true where id = %(key)s",
            "update public.articles set is_draft = false where id = %(key)s",
        ],
        ["update public.articles set author_id = auth.uid() where id = %(key)s"],
        [
            "delete from public.articles where id = %(key)s",
            "insert into public.articles (id, author_id, title) values (%(key)s, auth.uid(), 'a')",
        ],
        [
            "insert into public.articles (id, author_id, title) values (%(key)s, auth.uid(), 'a')"
            " on conflict (id) do update set title = excluded.title"
        ],
    ],
)
@pytest.mark.parametrize("afterwards", ["", "tick", "reconcile", "attach"])
def test_an_author_does_not_bring_a_removed_post_back(
    db: Connection, articles: Articles, tries: list[str], afterwards: str
) -> None:
    author, reader = add_user(db), add_user(db)
    removed, other = articles.write(2, author)
    key = articles.key_of(removed)
    with as_user(db, None, "service_role"):
        db.execute("select public.remove_post(%s)", [removed])
    for statement in tries:
        with as_user(db, author):
            db.execute(statement.encode(), {"key": key})
        if afterwards == "tick":
            db.execute("select two_tower.tick()")
        elif afterwards == "reconcile":
            db.execute("select two_tower.reconcile('articles')")
        elif afterwards == "attach":
            db.execute("select two_tower.detach('public.articles')")
            for _ in range(5):
                db.execute("select two_tower.reconcile_sources()")
            articles.attach()
            db.execute("select two_tower.reconcile('articles')")
    assert articles.id_of(key) == removed
    with as_user(db, reader):
        page = [row[0] for row in db.execute("select post_id from public.recommend(50)")]
    assert page == [other]


@pytest.mark.parametrize("call", ["remove_post(%s, 'mine')", "restore_post(%s)"])
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_clients_neither_remove_nor_restore(
    db: Connection, articles: Articles, call: str, role: str
) -> None:
    author = add_user(db)
    (post,) = articles.write(1, author)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_user(db, author, role):
        db.execute(f"select public.{call}".encode(), [post])


@pytest.mark.parametrize("call", ["remove_post(4711)", "restore_post(4711)", "remove_post()"])
def test_an_unknown_post_is_told(db: Connection, articles: Articles, call: str) -> None:
    with (
        pytest.raises(psycopg.errors.InvalidParameterValue, match="no such post"),
        as_user(db, None, "service_role"),
    ):
        db.execute(f"select public.{call}".encode())


def test_a_banned_author_is_on_no_page_while_banned(db: Connection, articles: Articles) -> None:
    banned, other, reader = (add_user(db) for _ in range(3))
    follow(db, reader, [banned, other])
    theirs, others = articles.write(6, banned), articles.write(6, other)
    db.execute("select two_tower.refresh_popular_candidates()")
    ban = "update auth.users set banned_until = %s where id = %s"
    assert shown(db, reader, others[0]) == {*theirs, *others}
    db.execute(ban, ["2999-01-01", banned])
    assert shown(db, reader, others[0]) == set(others)
    with as_user(db, reader):
        explained = rows(db, "select * from public.explain_recommendation(%s)", theirs[0])[0]
    assert (explained.is_eligible, explained.reason) == (False, "it is not available to you")
    for until in ("2020-01-01", None):
        db.execute(ban, [until, banned])
        assert shown(db, reader, others[0]) == {*theirs, *others}
        db.execute(ban, ["2999-01-01", banned])
        assert shown(db, reader, others[0]) == set(others)


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_page_is_full_beside_all_that_a_banned_author_wrote(
    db: Connection, articles: Articles, is_indexed: bool
) -> None:
    banned, other, reader = (add_user(db) for _ in range(3))
    articles.write(700, banned)
    others = articles.write(30, other)
    if is_indexed:
        db.execute("update two_tower.settings set ef_search = 40, over_fetch = 40")
        db.execute("select two_tower.build_serving_index('test')")
    db.execute("select two_tower.refresh_popular_candidates()")
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " values (%s, %s, 'like')",
        [reader, others[0]],
    )
    db.execute("update auth.users set banned_until = '2999-01-01' where id = %s", [banned])
    for statement, wanted in (
        ("select post_id from public.recommend(29)", set(others[1:])),
        (f"select post_id from public.similar_posts({others[0]}, 29)", set(others[1:])),
    ):
        with as_user(db, reader):
            assert {row[0] for row in db.execute(statement.encode())} == wanted
