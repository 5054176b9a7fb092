"""What came to a table without its triggers is found, and nothing is removed by mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.app import (
    App,
    detach_starter,
    differences,
    open_alerts,
    source,
    tick_until_quiet,
)
from tests.support.database import add_user
from tests.support.patience import wait_until
from tests.support.servers import kill_all_of


@contextmanager
def without_triggers(app: App) -> Iterator[None]:
    """As a load with session_replication_role = replica, which only a superuser may set."""
    app.run("alter table public.articles disable trigger user")
    yield
    app.run("alter table public.articles enable trigger user")


@pytest.fixture
def articles(app: App) -> App:
    """A hundred attached articles."""
    app.create_articles("text")
    app.attach_articles()
    app.run(
        "insert into public.articles (id, title) select n, 't' || n from generate_series(1, 100) n"
    )
    return app


def test_what_was_added_changed_and_removed_without_triggers_is_found(articles: App) -> None:
    with without_triggers(articles):
        articles.run("insert into public.articles (id, title) values ('', 'x'), ('new', 'y')")
        articles.run("update public.articles set title = 'anew' where id like '1%'")
        articles.run("update public.articles set status = 'draft' where id like '2%'")
        articles.run("delete from public.articles where id in ('50', '51')")
    assert len(differences(articles.connection)) > 20
    assert value(articles.connection, "select two_tower.reconcile('articles')") > 0
    assert differences(articles.connection) == []


def test_a_replica_session_fires_nothing_and_a_walk_finds_what_it_wrote(
    cluster: Cluster, own_url: str
) -> None:
    with (
        connect(own_url, autocommit=True) as connection,
        connect(cluster.url(own_url.rsplit("/", 1)[1], SUPERUSER), autocommit=True) as loader,
    ):
        app = App(connection)
        app.create_articles("uuid")
        app.attach_articles()
        loader.execute("set session_replication_role = replica")
        loader.execute(
            "insert into public.articles (id, title) select gen_random_uuid(), 't' || n"
            " from generate_series(1, 500) n"
        )
        assert len(differences(connection)) == 500
        value(connection, "select two_tower.request_reconciliation()::text")
        tick_until_quiet(connection)
        assert differences(connection) == []


def test_a_post_with_an_empty_key_that_is_gone_is_found(articles: App) -> None:
    articles.run("insert into public.articles (id, title) values ('', 'x')")
    with without_triggers(articles):
        articles.run("delete from public.articles where id = ''")
    articles.run("select two_tower.reconcile('articles')")
    assert differences(articles.connection) == []


@pytest.mark.parametrize(("kept", "is_refused"), [(79, True), (81, False), (0, True)])
def test_a_table_that_lost_much_keeps_its_posts_until_an_operator_says_so(
    articles: App, kept: int, is_refused: bool
) -> None:
    db = articles.connection
    with without_triggers(articles):
        articles.run("delete from public.articles where id::integer > %s", kept)
    articles.run("select two_tower.reconcile('articles')")
    alerts = open_alerts(db)
    if not is_refused:  # at most 20 posts may go
        assert (len(articles.keys()), alerts) == (kept, {})
        return
    assert len(articles.keys()) == 100
    assert alerts["source_lost_posts"] == (
        "More than a tenth of the posts of public.articles are gone from the table. Nothing was"
        " removed. If that is right: select two_tower.reconcile('articles', true)."
    )
    assert rows(db, "select from two_tower.vanished_posts") == []
    articles.run("select two_tower.reconcile('articles', true)")
    assert len(articles.keys()) == kept
    assert open_alerts(db) == {}
    assert not source(db).may_remove_all


def test_a_tenth_of_many_may_go(articles: App) -> None:
    articles.run(
        "insert into public.articles (id, title) select n, 't' from generate_series(101, 400) n"
    )
    with without_triggers(articles):
        articles.run("delete from public.articles where id::integer > 360")
    articles.run("select two_tower.reconcile('articles')")
    assert len(articles.keys()) == 360


def test_a_truncate_in_the_middle_of_a_walk_is_for_the_next_one(articles: App) -> None:
    """The walk that runs may be past what is gone, and must not spend the leave to remove it."""
    db = articles.connection
    articles.run(
        "update two_tower.sources set walk = 'removal', position = null,"
        " is_walk_wanted = false where name = 'articles'"
    )
    articles.run("truncate public.articles")
    while value(db, "select two_tower.reconcile_sources()"):
        pass
    assert articles.keys() == []
    assert open_alerts(db) == {}


def test_posts_whose_rows_come_back_are_the_same_posts(articles: App) -> None:
    before = articles.known("key, p.id")
    with without_triggers(articles):
        articles.run("create table public.saved as select * from public.articles")
        articles.run("delete from public.articles")
    articles.run("select two_tower.reconcile('articles', true)")
    with without_triggers(articles):
        articles.run("insert into public.articles select * from public.saved")
    articles.run("select two_tower.reconcile('articles')")
    assert articles.known("key, p.id") == before


def test_an_unknown_name_is_refused(app: App) -> None:
    state, message, hint = app.refusal("select two_tower.reconcile('nothing')")
    assert (state, message) == ("22023", "no table is attached as nothing")
    assert hint == "Attached tables: select name, relation from two_tower.sources."


def test_a_row_that_cannot_be_read_stops_its_own_walk_alone(app: App) -> None:
    db = app.connection
    for name in ("articles", "others"):
        app.run(f"create table public.{name} (id text primary key, doc jsonb)")
        app.run(f"insert into public.{name} select n, '{{\"n\": 1}}' from generate_series(1, 9) n")
        app.run(
            f"select two_tower.attach_posts('public.{name}', content => '{{doc}}',"
            " visible => '(doc->>''n'')::integer > 0')"
        )
    app.run("insert into public.articles values ('bad', '{\"n\": \"many\"}')")
    assert value(db, "select count(*) from public.articles") == 10
    for _ in range(60):
        app.run("select two_tower.reconcile_sources()")
    assert len(app.keys("others")) == 9
    assert source(db).state == "broken"
    assert open_alerts(db)["source_broken"] == (
        'Rows of public.articles cannot be read: invalid input syntax for type integer: "many".'
        " Mend the row, or attach the table again with parts that every row has."
    )
    app.run("update public.articles set doc = '{\"n\": 2}' where id = 'bad'")
    while value(db, "select two_tower.reconcile_sources()"):
        pass
    assert len(app.keys()) == 10
    assert (source(db).state, open_alerts(db)) == ("attached", {})


def test_thirty_thousand_rows_are_walked_in_steps_that_others_share(own_url: str) -> None:
    with connect(own_url, autocommit=True) as connection:
        app = App(connection)
        app.create_articles()
        app.run(
            "insert into public.articles (id, title, body) select n, 't' || n, repeat('x', 300)"
            " from generate_series(1, 30000) n"
        )
        app.attach_articles()
        app.create_articles(name="public.others")
        app.run("insert into public.others (id, title) select n, 't' from generate_series(1, 9) n")
        app.attach_articles("public.others")
        tick_until_quiet(connection, "others")
        assert len(app.keys("others")) == 9
        steps, most, last = 0, 0, len(app.keys())
        while source(connection).is_walk_wanted or source(connection).walk:
            connection.execute("select two_tower.reconcile_sources()")
            now = len(app.keys())
            most, last, steps = max(most, now - last), now, steps + 1
        assert steps > 10
        assert most <= 100 * 100  # of 100 blocks, which hold some 60 rows each
        assert differences(connection) == []


Operation = Callable[[App, np.random.Generator, bool], None]


def add(app: App, rng: np.random.Generator, is_loud: bool) -> None:
    app.run(
        "insert into public.articles (id, title) select distinct v, 'a' || v"
        " from unnest(%s::bigint[]) v on conflict (id) do update set title = excluded.title || 'u'",
        [int(n) for n in rng.integers(1, 400, int(rng.integers(1, 20)))],
    )


def change(app: App, rng: np.random.Generator, is_loud: bool) -> None:
    column = rng.choice(
        [
            "title = title || 'c'",
            "status = 'draft'",
            "status = 'published'",
            "views = views + 1",
            "user_id = gen_random_uuid()",
            "tags = '{z}'",
        ]
    )
    app.run(f"update public.articles set {column} where id %% %s = 0", int(rng.integers(2, 9)))


def move(app: App, rng: np.random.Generator, is_loud: bool) -> None:
    app.run("update public.articles set id = id + 1000 where id = %s", int(rng.integers(1, 400)))


def remove(app: App, rng: np.random.Generator, is_loud: bool) -> None:
    app.run("delete from public.articles where id %% %s = 1", int(rng.integers(20, 60)))


def empty(app: App, rng: np.random.Generator, is_loud: bool) -> None:
    if rng.random() < 0.2 and is_loud:
        app.run("truncate public.articles")


OPERATIONS: list[Operation] = [add, add, change, change, move, remove, empty]


@pytest.mark.parametrize("seed", range(12))
def test_after_any_writes_with_or_without_triggers_a_walk_leaves_what_the_table_says(
    app: App, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    app.create_articles(str(rng.choice(["bigint", "integer", "bigint"])))
    app.attach_articles()
    for _ in range(40):
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        if rng.random() < 0.25:
            with without_triggers(app):
                operation(app, rng, False)
        else:
            operation(app, rng, True)
        if rng.random() < 0.3:
            app.run("select two_tower.reconcile_sources()")
    app.run("select two_tower.reconcile('articles', true)")
    assert differences(app.connection) == []


# A table of each role: a row that its triggers miss, and where the engine keeps it.
MISSED = {
    "posts": (
        "insert into public.posts (id, content) values (7, 'x')",
        "select count(*) from two_tower.posts where key = '7' and deleted_at is null",
    ),
    "profiles": (
        "insert into public.profiles (user_id, handle, bio) values ({user}, 'h', 'x')",
        "select count(*) from two_tower.profile_embeddings",
    ),
    "follows": (
        "insert into public.follows (follower_id, followed_id) values ({user}, {other})",
        "select count(*) from two_tower.follows",
    ),
    "author_blocks": (
        "insert into public.author_blocks (user_id, author_id, kind)"
        " values ({user}, {other}, 'mute_author')",
        "select count(*) from two_tower.blocks",
    ),
}


@pytest.mark.parametrize("name", MISSED)
def test_a_row_deleted_while_a_walk_takes_it_in_is_gone(
    fresh_database: Callable[[], str], name: str
) -> None:
    url, (insert, count) = fresh_database(), MISSED[name]
    with (
        connect(url, autocommit=True) as walk,
        connect(url, autocommit=True) as app,
        ThreadPoolExecutor(1) as pool,
    ):
        user, other = (f"'{add_user(app)}'" for _ in range(2))
        app.execute(f"select two_tower.add_users(array[{user}, {other}]::uuid[])".encode())
        app.execute(f"alter table public.{name} disable trigger user".encode())
        app.execute(insert.format(user=user, other=other).encode())
        app.execute(f"alter table public.{name} enable trigger user".encode())
        with walk.transaction():
            walk.execute("select two_tower.reconcile(%s)", [name])
            assert value(walk, count) == 1
            deleting = pool.submit(app.execute, f"delete from public.{name}".encode())
            wait_until(
                lambda: value(
                    walk,
                    "select cardinality(pg_blocking_pids(%s)) > 0",
                    app.info.backend_pid,
                )
            )
        deleting.result()
        assert value(walk, count) == 0
        assert open_alerts(walk) == {}


def test_a_walk_beside_writers_ends_equal_to_the_table(own_url: str) -> None:
    with connect(own_url, autocommit=True) as connection:
        app = App(connection)
        app.create_articles()
        app.run(
            "insert into public.articles (id, title, body) select n, 't', repeat('x', 1000)"
            " from generate_series(1, 400) n"
        )
        app.attach_articles()
        stop = [False]

        def write(seed: int) -> int:
            rng, done = np.random.default_rng(seed), 0
            with connect(own_url, autocommit=True) as session:
                mine = App(session)
                while not stop[0]:
                    with session.transaction():
                        # In one order: writers must not wait for each other in circles.
                        for number in sorted(rng.integers(1, 400, 3)):
                            mine.run(
                                "insert into public.articles (id, title) values (%s, 'w')"
                                " on conflict (id) do update set title = excluded.title || %s",
                                int(number),
                                str(rng.integers(1000)),
                            )
                        if rng.random() < 0.2:
                            mine.run("delete from public.articles where id = %s", 400 + seed)
                    done += 1
            return done

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, seed) for seed in range(4)]
            for _ in range(6):
                connection.execute("select two_tower.request_reconciliation()")
                wait_until(
                    lambda: (
                        connection.execute("select two_tower.reconcile_sources(9)").fetchone()
                        == (0,)
                    )
                )
            stop[0] = True
            assert all(writer.result() > 0 for writer in writers)
        assert differences(connection) == []
        assert open_alerts(connection) == {}


def test_postgres_killed_in_the_middle_of_a_walk_goes_on_with_it(durable: Cluster) -> None:
    with connect(durable.url(), autocommit=True) as connection:
        detach_starter(connection)
        app = App(connection)
        app.create_articles()
        app.run(
            "insert into public.articles (id, title, body) select n, 't' || n, repeat('x', 500)"
            " from generate_series(1, 12000) n"
        )
        app.attach_articles()

    def walk() -> None:
        with connect(durable.url(), autocommit=True) as session:
            while True:
                session.execute("select two_tower.reconcile_sources()")

    with ThreadPoolExecutor(1) as pool:
        walking = pool.submit(walk)
        with connect(durable.url(), autocommit=True) as watcher:
            wait_until(lambda: value(watcher, "select count(*) from two_tower.posts") > 1000)
        kill_all_of(durable)
        assert isinstance(walking.exception(), psycopg.OperationalError)
    durable.start()
    with connect(durable.url(), autocommit=True) as connection:
        known = value(connection, "select count(*) from two_tower.posts")
        assert known > 0
        position: str | None = source(connection).position
        assert position is not None or known == 12000
        tick_until_quiet(connection)
        assert differences(connection) == []


def test_a_step_gives_way_to_what_the_app_holds(own_url: str) -> None:
    with (
        connect(own_url, autocommit=True) as connection,
        connect(own_url, autocommit=True) as holder,
    ):
        app = App(connection)
        app.create_articles("text")
        app.attach_articles()
        app.insert(["a", "b"])
        tick_until_quiet(connection)
        with without_triggers(app):
            app.run("update public.articles set title = 'anew'")
        with holder.transaction():
            holder.execute("update public.articles set body = 'held' where id = 'b'")
            app.run("select two_tower.request_reconciliation()")
            for _ in range(5):
                app.run("select two_tower.reconcile_sources()")
            assert source(connection).state == "attached"
            (text,) = rows(connection, "select title from public.articles where id = 'a'")
            assert text.title == "anew"
            # What waits holds nothing that the app may want next.
            holder.execute("update public.articles set body = 'held' where id = 'a'")
        tick_until_quiet(connection)
        assert differences(connection) == []
        assert open_alerts(connection) == {}


def every_source(connection: Connection) -> list[str]:
    return [row.name for row in rows(connection, "select name from two_tower.sources")]


def test_the_daily_walk_asks_for_every_attached_table(app: App) -> None:
    app.create_articles()
    app.attach_articles()
    app.run("select two_tower.reconcile('articles')")
    app.run("select two_tower.request_reconciliation()")
    wanted = rows(app.connection, "select name from two_tower.sources where is_walk_wanted")
    assert {row.name for row in wanted} == set(every_source(app.connection))
