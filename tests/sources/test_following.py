"""Whatever the app writes to an attached table, the registry says what the table says."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from python_jobs.db import rows, value
from tests.support.app import App, detach_starter, differences, open_alerts, source
from tests.support.database import add_user, as_user
from tests.support.engagements import base_vectors, store
from tests.support.learning import rng
from tests.support.reference import START

ALL = "(select string_agg(t::text, '|' order by t::text) from {} t)"
# Whatever a statement of the app may write in the engine.
STATE = "select concat_ws(E'\\n', {})".format(
    ", ".join(
        ALL.format(f"two_tower.{name}") for name in ("posts", "post_changes", "source_reports")
    )
)


@pytest.fixture(params=["bigint", "uuid", "text"])
def articles(app: App, request: pytest.FixtureRequest) -> App:
    """Attached articles, one kind of key after another."""
    app.create_articles(request.param)
    app.attach_articles()
    return app


def key(number: int, app: App) -> Any:
    """The number as a key of the table."""
    return f"00000000-0000-4000-8000-{number:012d}" if app.key_type == "uuid" else str(number)


def insert(app: App, numbers: range, **columns: Any) -> None:
    app.insert([key(number, app) for number in numbers], **columns)


def walk(app: App) -> None:
    """Steps as a tick takes them, until no walk is due."""
    while value(app.connection, "select two_tower.reconcile_sources()"):
        pass


def test_inserts_one_by_one_in_bulk_and_by_copy(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 4), user_id=add_user(db), tags=["a", "b"], language="en")
    assert differences(db) == []
    values = ", ".join(f"('{key(number, articles)}', 'bulk {number}')" for number in range(4, 300))
    articles.run(f"insert into public.articles (id, title) values {values}")
    lines = [(key(number, articles), f"copied {number}", "draft") for number in range(300, 400)]
    with db.cursor().copy("copy public.articles (id, title, status) from stdin") as copy:
        for line in lines:
            copy.write_row(line)
    assert len(articles.keys()) == 399
    assert differences(db) == []


@pytest.mark.parametrize(
    "change",
    [
        "update public.articles set title = title || ' anew'",
        "update public.articles set title = null, body = null",
        "update public.articles set user_id = gen_random_uuid()",
        "update public.articles set user_id = null",
        "update public.articles set published_at = '2026-01-01'",
        "update public.articles set status = 'draft'",
        "update public.articles set status = 'draft' where title like '%1%'",
        "update public.articles set language = 'de', tags = '{x,null,y}'",
        "delete from public.articles where title like '%1%'",
        "delete from public.articles",
        "with gone as (delete from public.articles returning *)"
        " insert into public.articles (id, title) select id, 'moved' from gone where false",
        "merge into public.articles a using (values ('one')) as v (x) on a.title like '%1%'"
        " when matched then update set title = x when not matched then do nothing",
    ],
)
def test_a_change_of_any_part_is_followed(articles: App, change: str) -> None:
    db = articles.connection
    insert(articles, range(1, 31), user_id=add_user(db), published_at="2025-01-01")
    articles.run(change)
    assert differences(db) == []
    assert rows(db, "select from two_tower.source_reports") == []
    articles.run("select two_tower.reconcile('articles')")
    assert differences(db) == []


def test_an_update_of_other_columns_writes_nothing(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 31))
    before = value(db, STATE)
    articles.run("update public.articles set views = views + 1")
    articles.run("update public.articles set title = title")
    articles.run("update public.articles set title = 'x' where false")
    articles.run("delete from public.articles where false")
    assert value(db, STATE) == before


def test_an_upsert_adds_and_changes(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 11))
    values = ", ".join(f"('{key(number, articles)}', 'new {number}')" for number in range(6, 16))
    articles.run(
        f"insert into public.articles (id, title) values {values}"
        " on conflict (id) do update set title = excluded.title"
    )
    assert len(articles.keys()) == 15
    assert differences(db) == []
    articles.run(f"insert into public.articles (id, title) values {values} on conflict do nothing")
    assert differences(db) == []


def test_a_changed_key_is_another_post_and_swapped_keys_swap_their_texts(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 4))
    (first, *_) = articles.known("p.id")
    articles.run(
        "update public.articles set id = %s where id = %s", key(9, articles), key(1, articles)
    )
    assert articles.keys() == [key(n, articles) for n in (2, 3, 9)]
    assert differences(db) == []
    articles.run(
        "update public.articles set id = %s where id = %s", key(1, articles), key(9, articles)
    )
    assert first in articles.known("p.id")
    articles.run(
        "alter table public.articles drop constraint articles_pkey,"
        " add primary key (id) deferrable initially deferred"
    )
    two, three = key(2, articles), key(3, articles)
    articles.run(
        "update public.articles set id = v.new from (values (%s, %s), (%s, %s)) as v (old, new)"
        " where id::text = v.old".replace("v.new", f"v.new::{articles.key_type}"),
        *(two, three, three, two),
    )
    assert differences(db) == []


def test_a_truncated_table_is_empty_after_ticks_and_rows_after_it_stay(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 101))
    articles.run("truncate public.articles")
    insert(articles, range(95, 105), body="anew")
    walk(articles)
    assert len(articles.keys()) == 10
    assert differences(db) == []
    assert open_alerts(db) == {}
    assert not source(db).may_remove_all


def test_a_rollback_to_a_savepoint_leaves_what_was_before(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 4))
    before = value(db, STATE)
    articles.run("savepoint s")
    insert(articles, range(4, 8))
    articles.run("update public.articles set title = 'x'")
    articles.run("truncate public.articles")
    articles.run("rollback to savepoint s")
    assert value(db, STATE) == before
    assert differences(db) == []


def test_a_post_is_published_when_its_time_comes(articles: App) -> None:
    db = articles.connection
    reader, author = add_user(db), add_user(db)
    articles.run("grant select on public.articles to authenticated")
    articles.run("select set_config('two_tower.now', %s, true)", START.isoformat())
    insert(articles, range(1, 2), user_id=author, published_at=START + timedelta(hours=2))
    insert(articles, range(2, 3), user_id=author, published_at=START - timedelta(hours=1))

    def page() -> list[str]:
        return [
            row.post_key
            for row in rows(db, "select post_key from two_tower.recommend_for(%s, 10)", reader)
        ]

    def due() -> list[str]:
        return [row.content for row in rows(db, "select content from two_tower.posts_to_encode()")]

    assert page() == [key(2, articles)]
    assert due() == [f"a title {key(2, articles)}"]
    articles.run(
        "select set_config('two_tower.now', %s, true)", (START + timedelta(hours=3)).isoformat()
    )
    assert set(page()) == {key(1, articles), key(2, articles)}
    assert len(due()) == 2
    store(db, [row.id for row in articles.known("p.id")], base_vectors(rng(), 2))
    assert due() == []
    assert set(page()) == {key(1, articles), key(2, articles)}
    # An author puts it off: from then on it is not there.
    articles.run(
        "update public.articles set published_at = %s where id = %s",
        START + timedelta(days=1),
        key(1, articles),
    )
    assert page() == [key(2, articles)]


def test_a_post_arrives_once_however_often_it_is_published(articles: App) -> None:
    db = articles.connection
    author = add_user(db)
    articles.run("grant insert, update, select on public.articles to authenticated")

    def at(hours: int, statement: str, *parameters: Any) -> None:
        articles.run(
            "select set_config('two_tower.now', %s, true)",
            (START + timedelta(hours=hours)).isoformat(),
        )
        articles.run(statement, *parameters)

    at(
        0,
        "insert into public.articles (id, title, status) values (%s, 'x', 'draft')",
        key(1, articles),
    )
    assert articles.known("arrived_at") == [(None,)]
    at(1, "update public.articles set status = 'published'")
    assert articles.known("arrived_at") == [(START + timedelta(hours=1),)]
    at(2, "update public.articles set status = 'draft'")
    at(3, "update public.articles set status = 'published'")
    assert articles.known("arrived_at, is_listed") == [(START + timedelta(hours=1), True)]
    with as_user(db, author):
        articles.run(
            "insert into public.articles (id, title, published_at)"
            " values (%s, 'backdated', '2001-01-01')",
            key(2, articles),
        )
    (mine,) = articles.known("p.arrived_at = pg_catalog.now() as is_now", "articles")[1:]
    assert mine.is_now


def test_what_operators_and_walks_bring_arrived_when_it_was_created(articles: App) -> None:
    insert(articles, range(1, 2), published_at="2020-05-05")
    articles.run("grant insert on public.articles to service_role")
    articles.run("set local role service_role")
    insert(articles, range(2, 3), published_at="2020-05-05")
    articles.run("reset role")
    articles.run("alter table public.articles disable trigger user")
    insert(articles, range(3, 4), published_at="2020-05-05")
    articles.run("alter table public.articles enable trigger user")
    articles.run("create role a_worker in role two_tower_worker")
    articles.run("grant a_worker to postgres")
    articles.run("update two_tower.sources set is_walk_wanted = true where name = 'articles'")
    articles.run("set local role a_worker")
    for _ in range(40):  # steps go by turns
        articles.run("select two_tower.tick()")
    articles.run("reset role")
    arrived = {row.arrived_at.date().isoformat() for row in articles.known("arrived_at")}
    assert (len(articles.keys()), arrived) == (3, {"2020-05-05"})


def test_the_first_source_of_numbers_lends_its_keys_as_ids(app: App) -> None:
    app.create_articles()
    app.create_articles(name="public.others")
    app.attach_articles()
    app.attach_articles("public.others")
    largest = 2**63 - 1
    app.insert([1, 17, largest])
    app.run("insert into public.others (id, title) values (1, 'x'), (2, 'y')")
    assert sorted(row.id for row in app.known("p.id")) == [1, 17, largest]
    first, second = (row.id for row in app.known("p.id", "others"))
    assert first < 0
    assert second == first - 1


def test_keys_below_one_of_a_table_that_lends_are_not_followed(app: App) -> None:
    db = app.connection
    app.create_articles()
    app.attach_articles()
    app.insert([-5, 0, 5])
    app.run("update public.articles set title = 'again'")
    app.run("select two_tower.reconcile('articles')")
    assert app.keys() == ["5"]
    app.run("update public.articles set id = -6 where id = 5")
    assert app.keys() == []
    app.run("delete from public.articles where id = 0")
    assert differences(db, where="where id > 0") == []


@pytest.mark.parametrize("keys", [[0], [-1, 2]])
def test_a_table_with_keys_below_one_lends_nothing(app: App, keys: list[int]) -> None:
    app.create_articles()
    app.insert(keys)
    app.attach_articles()
    app.run("select two_tower.reconcile('articles')")
    assert not source(app.connection).lends_ids
    assert [row.id < 0 for row in app.known("p.id")] == [True] * len(keys)


def test_detach_keeps_ids_and_attaching_again_finds_them(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 31))
    ids = articles.known("p.id, key")
    articles.run("select two_tower.detach('public.articles')")
    insert(articles, range(31, 33))
    articles.run("select two_tower.reconcile('articles')")
    assert articles.keys() == []
    assert rows(db, "select from two_tower.posts_to_encode()") == []
    articles.attach_articles()
    articles.run("select two_tower.reconcile('articles')")
    assert differences(db) == []
    assert set(ids) < set(articles.known("p.id, key"))
    assert open_alerts(db) == {}


def test_attach_in_the_middle_of_a_detached_tables_walk_keeps_all(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 31))
    articles.run("select two_tower.detach('public.articles')")
    articles.run(
        "update two_tower.sources set walk = 'removal', position = 'begun' where name = 'articles'"
    )
    articles.attach_articles()
    articles.run("select two_tower.reconcile('articles')")
    assert differences(db) == []


def test_without_a_time_a_post_is_as_old_as_its_arrival(app: App) -> None:
    db = app.connection
    app.run("create table public.articles (id text primary key, title text, body text)")
    app.run("select two_tower.attach_posts('public.articles', content => '{title}')")
    app.run("select set_config('two_tower.now', %s, true)", START.isoformat())
    app.insert(["a"])
    app.run("select set_config('two_tower.now', %s, true)", (START + timedelta(1)).isoformat())
    app.run("update public.articles set title = 'changed'")
    app.run("select two_tower.reconcile('articles')")
    assert app.known("created_at, arrived_at, author_key, is_listed") == [
        (START, START, None, True)
    ]
    assert len(rows(db, "select from two_tower.posts_to_encode()")) == 1


def test_the_starter_app_is_followed_like_any_other(db: Any) -> None:
    author = add_user(db)
    db.execute("insert into public.posts (author_id, content) values (%s, 'x')", [author])
    assert len(rows(db, "select from two_tower.posts")) == 1
    db.execute("update public.posts set deleted_at = now()")
    assert value(db, "select bool_or(is_listed) from two_tower.posts") is False
    db.execute("delete from public.posts")
    detach_starter(db)
    assert value(db, "select bool_and(deleted_at is not null) from two_tower.posts")


def test_of_a_long_text_an_encoder_gets_the_start(articles: App) -> None:
    db = articles.connection
    insert(articles, range(1, 4))
    insert(articles, range(4, 5), title="boat " * 400_000)
    (waiting,) = [
        row
        for row in rows(db, "select * from two_tower.posts_to_encode()")
        if len(row.content) > 99
    ]
    assert waiting.content == "boat " * 2000
    stored = "select content_hash from two_tower.posts where id = %s"
    assert waiting.content_hash == value(db, stored, waiting.post_id)
