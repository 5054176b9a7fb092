"""Pages as rows of the app's table: their columns, their order, and what is asked of them."""

from __future__ import annotations

import re
import uuid

import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.articles import Articles, create_articles, without_starter
from tests.support.database import add_user, as_user

PAGE = ["place", "score", "source", "arm", "cursor"]
BEYOND = 2**63 - 1


@pytest.fixture
def articles(db: Connection) -> Articles:
    """Articles with uuids as keys, the only attached posts."""
    db.execute("select two_tower.detach('public.posts')")
    return create_articles(db)


def columns(db: Connection, reader: str, query: str = "select * from %s") -> list[str]:
    """The columns of recommended_articles(), which answers."""
    with as_user(db, reader):
        cursor = db.execute((query % "public.recommended_articles(50)").encode())
        assert cursor.fetchall()
    return [column.name for column in cursor.description or []]


def test_a_row_of_a_page_is_the_row_of_the_table_with_its_place(
    db: Connection, articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    articles.write(9, author)
    with as_user(db, reader):
        page = rows(db, "select * from public.recommend(9)")
        own = rows(db, "select * from public.recommended_articles(9)")
        table = {row.id: row for row in rows(db, "select * from public.articles")}
    assert [row.place for row in own] == list(range(1, 10))
    assert [(str(row.id), row.score, row.source) for row in own] == [
        (row.post_key, row.score, row.source) for row in page
    ]
    assert [row[5:] for row in own] == [table[row.id] for row in own]


def test_only_the_columns_that_clients_may_read_are_on_a_page(
    db: Connection, articles: Articles
) -> None:
    reader = add_user(db)
    articles.write(3, add_user(db))
    db.execute("alter table public.articles add column notes_of_editors text default 'secret'")
    db.execute("revoke select on public.articles from authenticated")
    db.execute(
        "grant select (id, author_id, title, is_private, published_at, is_draft)"
        " on public.articles to authenticated"
    )
    articles.attach()
    seen = columns(db, reader)
    assert set(seen) == {
        *PAGE,
        "id",
        "author_id",
        "title",
        "is_private",
        "published_at",
        "is_draft",
    }
    with pytest.raises(psycopg.errors.UndefinedColumn), db.transaction(), as_user(db, reader):
        db.execute("select notes_of_editors from public.articles_page")
    with as_user(db, reader):
        assert len(db.execute("select * from public.recommend(9)").fetchall()) == 3


@pytest.mark.parametrize("hidden", ["title", "is_draft", "published_at"])
def test_a_column_that_the_source_is_made_of_need_not_be_readable(
    db: Connection, articles: Articles, hidden: str
) -> None:
    reader = add_user(db)
    articles.write(3, add_user(db))
    granted = {"id", "author_id", "title", "is_private", "is_draft", "published_at"} - {hidden}
    db.execute("revoke select on public.articles from authenticated")
    db.execute(
        f"grant select ({', '.join(sorted(granted))}) on public.articles to authenticated".encode()
    )
    articles.attach()
    assert set(columns(db, reader)) == {*PAGE, *granted}
    # Few readable ones among many: the direction turns, which asks for the newest.
    articles.write(600, add_user(db), is_private=True)
    with as_user(db, reader):
        for name in ("recommend", "recommended_articles"):
            assert len(rows(db, f"select * from public.{name}()")) == 3


def test_a_table_of_which_clients_may_read_nothing_has_an_empty_page(
    db: Connection, articles: Articles
) -> None:
    reader = add_user(db)
    (post,) = articles.write(1, add_user(db))
    db.execute("revoke select on public.articles from authenticated")
    articles.attach()
    with as_user(db, reader):
        assert rows(db, "select * from public.recommend()") == []
        explained = rows(db, "select * from public.explain_recommendation(%s)", post)
    assert explained[0].reason == "there is no such post"
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_user(db, reader):
        db.execute("select * from public.recommended_articles()")


def test_a_back_end_without_a_grant_is_told(db: Connection, articles: Articles) -> None:
    reader = add_user(db)
    articles.write(1, add_user(db))
    db.execute("revoke select on public.articles from service_role")
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="articles"),
        as_user(db, None, "service_role"),
    ):
        db.execute("select * from public.recommend_for(%s)", [reader])


def test_columns_of_the_app_with_the_names_of_the_page_keep_theirs(
    db: Connection, articles: Articles
) -> None:
    reader = add_user(db)
    articles.write(3, add_user(db))
    db.execute("alter table public.articles add column score integer default 7")
    articles.attach()
    seen = columns(db, reader)
    assert seen[:5] == [f"page_{name}" for name in PAGE]
    with as_user(db, reader):
        found = rows(db, "select page_place, score from public.recommended_articles()")
    assert found == [(1, 7), (2, 7), (3, 7)]


def test_the_key_of_a_page_may_be_another_column_than_the_primary_key(
    db: Connection, articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute("alter table public.articles add column slug text unique")
    db.execute("update public.articles set slug = id::text where true")
    db.execute("alter table public.articles alter column slug set not null")
    db.execute("select two_tower.detach('public.articles')")
    db.execute("delete from two_tower.sources where name = 'articles'")
    articles.attach(key="slug")
    db.execute("insert into public.articles (author_id, title, slug) values (%s, 'a', 'The/A'),"
               " (%s, 'b', 'the/a')", [author, author])  # fmt: skip
    with as_user(db, reader):
        assert len(rows(db, "select * from public.recommended_articles()")) == 2
        own = rows(db, "select slug from public.recommended_articles(9, '{the/a}')")
        assert own == [("The/A",)]
        db.execute("insert into public.engagement_events (post_key, event_type)"
                   " values ('The/A', 'view')")  # fmt: skip
        assert rows(db, "select slug from public.recommended_articles()") == [("the/a",)]


# What PostgREST makes of select=title,profiles(handle)&order=place on a function: the call, a
# lateral join for each embedded table, and the order on the outside.
EMBEDDED = """
  with called as (select c.* from public.recommended_articles(%s) c)
  select called.place, called.id, p.handle
  from called
    {join} join lateral (
      select profiles.handle from public.accounts profiles where profiles.id = called.author_id
      limit 1 offset 0) p on true
  order by called.place
"""
JOINED = """
  with called as (select c.* from public.recommended_articles(%s) c)
  select called.place, called.id, p.handle
  from called {join} join public.accounts p on p.id = called.author_id
  order by called.place
"""


@pytest.mark.parametrize("query", [EMBEDDED, JOINED], ids=["lateral", "joined"])
@pytest.mark.parametrize("join", ["left", "inner"])
@pytest.mark.parametrize("accounts", [500, 5000])
@pytest.mark.parametrize("nested", ["on", "off"])
def test_embedding_keeps_the_order_of_place(
    db: Connection, articles: Articles, query: str, join: str, accounts: int, nested: str
) -> None:
    reader = add_user(db)
    db.execute("create table public.accounts (id uuid primary key, handle text)")
    db.execute("grant select on public.accounts to authenticated")
    db.execute(
        "insert into public.accounts select gen_random_uuid(), 'user ' || n"
        " from generate_series(1, %s) n",
        [accounts],
    )
    for (author,) in rows(db, "select id from public.accounts order by handle limit 60"):
        articles.write(1, author)
    db.execute("analyze public.accounts, public.articles")
    db.execute(f"set local enable_nestloop = {nested}".encode())
    with as_user(db, reader):
        page = rows(db, "select post_key, author_id from public.recommend(50)")
        if join == "inner":
            query = query.replace("{join}", "inner")
        found = rows(db, query.replace("{join}", join), 50)
    handles = dict(rows(db, "select id, handle from public.accounts"))
    assert [(row.place, str(row.id), row.handle) for row in found] == [
        (place, row.post_key, handles[row.author_id]) for place, row in enumerate(page, 1)
    ]


def test_the_view_tells_postgrest_which_columns_of_the_table_its_own_are(
    db: Connection, articles: Articles
) -> None:
    # PostgREST follows a foreign key through a view by the origin of its columns, which Postgres
    # keeps in the view's rule. The function's rows are those of the view.
    action = str(
        value(
            db,
            "select ev_action::text from pg_rewrite where ev_class ="
            " 'public.articles_page'::regclass and ev_type = '1'",
        )
    )
    origins = set(
        re.findall(
            r":resname (\w+) :ressortgroupref \d+ :resorigtbl (\d+) :resorigcol (\d+)", action
        )
    )
    wanted = rows(
        db,
        "select attname::text, attrelid::bigint::text, attnum::text from pg_attribute"
        " where attrelid = 'public.articles'::regclass and attnum > 0 and not attisdropped",
    )
    assert len(wanted) == 6
    assert set(wanted) <= origins
    returned = value(
        db,
        "select prorettype::regtype::text from pg_proc"
        " where proretset and oid ="
        " 'public.recommended_articles(integer, text[], jsonb, text)'::regprocedure",
    )
    assert returned == "articles_page"


def test_pages_write_nothing_whatever_it_takes_to_fill_them(
    db: Connection, articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute("insert into public.follows (follower_id, followed_id) values (%s, %s)",
               [reader, author])  # fmt: skip
    posts = articles.write(5, author)
    articles.write(600, author, is_private=True)
    db.execute("select two_tower.refresh_popular_candidates()")
    calls = ("recommend", "recommended_articles", "similar_posts", "popular_posts",
             "recent_from_followed", "explain_recommendation")  # fmt: skip
    volatile = rows(
        db,
        "select proname from pg_proc where pronamespace = 'public'::regnamespace"
        " and proname = any (%s) and provolatile <> 's'",
        list(calls),
    )
    assert volatile == []
    db.execute("set transaction read only")
    with as_user(db, reader):
        for call in calls:
            argument = posts[0] if call in ("similar_posts", "explain_recommendation") else 50
            found = rows(db, f"select * from public.{call}(%s)", argument)
            assert len(found) == {"explain_recommendation": 1, "similar_posts": 4}.get(call, 5)


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 20), (0, 1), (-1, 1), (-(2**31), 1), (7, 7), (10**9, 30)]
)
@pytest.mark.parametrize(
    "call",
    ["recommend(%s)", "recommended_articles(%s)", "similar_posts(%s, p_limit => %s)",
     "popular_posts(%s)", "recent_from_followed(%s)"],
)  # fmt: skip
def test_a_limit_out_of_range_is_clamped(
    db: Connection, articles: Articles, call: str, limit: int | None, expected: int
) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute("insert into public.follows (follower_id, followed_id) values (%s, %s)",
               [reader, author])  # fmt: skip
    posts = articles.write(31 if "similar" in call else 30, author)
    db.execute("select two_tower.refresh_popular_candidates()")
    arguments = [posts[0], limit] if "similar" in call else [limit]
    with as_user(db, reader):
        found = db.execute(f"select * from public.{call}".encode(), arguments).fetchall()
    assert len(found) == expected


@pytest.mark.parametrize(
    ("key", "excluded", "left"),
    [
        ("uuid", None, 5),
        ("uuid", [], 5),
        ("uuid", [None, None], 5),
        ("uuid", ["", "NaN", "null", "{}", "'", "\\", "1e400", "%s", "é\u200b"], 5),
        ("uuid", ["{first}", None, "{first}"], 4),
        ("uuid", ["{{first}}"], 4),  # a uuid in braces is that uuid
        ("lent", ["NaN", "Infinity", "1.0", "1e0", "-1", "", None, str(2**64)], 5),
        ("lent", ["1", " 2 ", "+3", "0004", "1"], 1),
        ("integer", ["1", str(2**31), str(BEYOND), str(-BEYOND - 1)], 4),
        ("text", ["the", "THE", None, "{first}"], 4),
    ],
)
def test_what_is_excluded_may_be_anything(
    db: Connection, key: str, excluded: list[str | None] | None, left: int
) -> None:
    if key == "lent":
        without_starter(db)
    else:
        db.execute("select two_tower.detach('public.posts')")
    articles = create_articles(db, key)
    author, reader = add_user(db), add_user(db)
    posts = articles.write(5, author)
    first = articles.key_of(posts[0])
    given = [each and each.replace("{first}", first) for each in excluded or []]
    asked = None if excluded is None else given
    with as_user(db, reader):
        for name in ("recommend", "recommended_articles"):
            assert len(rows(db, f"select * from public.{name}(9, %s::text[])", asked)) == left


def test_a_thousand_keys_are_excluded_and_no_more_are_taken(
    db: Connection, articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    posts = articles.write(50, author)
    keys = [str(uuid.UUID(int=number)) for number in range(960)]
    keys += [articles.key_of(post) for post in posts[:40]]
    with as_user(db, reader):
        page = db.execute("select post_id from public.recommend(50, %s)", [keys]).fetchall()
        own = db.execute("select id from public.recommended_articles(50, %s)", [keys]).fetchall()
    assert {row[0] for row in page} == set(posts[40:])
    assert len(own) == 10
    for function in ("recommend", "recommended_articles", "most_popular_articles"):
        with pytest.raises(psycopg.Error) as caught, db.transaction(), as_user(db, reader):
            db.execute(f"select * from public.{function}(50, %s)".encode(), [[*keys, None]])
        assert caught.value.sqlstate == "TT002"
        assert "Record views" in str(caught.value.diag.message_hint)


@pytest.mark.parametrize(
    "call", ["recommend(p_exclude => array[1, 2])", "recommend(p_limit => 'NaN')",
             "recommend(p_limit => 2.5)", "recommended_articles(p_limit => 'many')",
             "similar_posts(p_post_id => 'x')", "recommend(p_limit => 3000000000)"],
)  # fmt: skip
def test_an_argument_of_the_wrong_type_is_refused_as_a_call(
    db: Connection, articles: Articles, call: str
) -> None:
    with pytest.raises((psycopg.DataError, psycopg.ProgrammingError)) as caught, as_user(
        db, add_user(db)
    ):  # fmt: skip
        db.execute(f"select * from public.{call}".encode())
    assert caught.value.sqlstate in ("42883", "22P02")
