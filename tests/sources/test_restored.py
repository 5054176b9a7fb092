"""A project with attached tables, dumped and restored elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from python_jobs.db import connect, rows, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.app import App, differences, open_alerts, source, tick_until_quiet
from tests.support.dumps import restore_dump


def test_a_restored_project_goes_on_following_and_finds_what_came_without_triggers(
    cluster: Cluster, own_url: str, create_database: Callable[..., str]
) -> None:
    target = create_database()
    with connect(own_url, autocommit=True) as connection:
        app = App(connection)
        # Dropped columns leave gaps in the numbers of the others, which a dump closes.
        app.run('create schema "Odd"')
        app.run(
            "create table public.articles (gone1 int, id uuid primary key, gone2 int,"
            " user_id uuid, headline text, body text, status text default 'published',"
            " published_at timestamptz, language text, tags text[], decoy text)"
        )
        app.run("alter table public.articles drop gone1, drop gone2")
        app.run("alter table public.articles rename headline to title")
        app.attach_articles()
        app.run(
            "insert into public.articles (id, title, decoy) select gen_random_uuid(), 't' || n,"
            " 'not the text' from generate_series(1, 100) n"
        )
        app.run('create table "Odd"."Sub scribers" (a uuid, b uuid, primary key (a, b))')
        app.run("select two_tower.attach_follows('\"Odd\".\"Sub scribers\"', 'a', 'b')")
        app.run('insert into "Odd"."Sub scribers" values (gen_random_uuid(), gen_random_uuid())')
        tick_until_quiet(connection)
        ids = app.known("key, p.id")
    restore_dump(cluster, own_url, target)
    name = target.rsplit("/", 1)[1]
    with (
        connect(target, autocommit=True) as connection,
        connect(cluster.url(name, SUPERUSER), autocommit=True) as loader,
    ):
        app = App(connection)
        assert app.known("key, p.id") == ids
        assert differences(connection) == []
        app.run(
            "insert into public.articles (id, title, body, decoy)"
            " values (gen_random_uuid(), 'early', 'body', 'not the text')"
        )
        app.run('insert into "Odd"."Sub scribers" values (gen_random_uuid(), gen_random_uuid())')
        assert differences(connection) == []
        assert value(connection, "select count(*) from two_tower.follows") == 2
        loader.execute("set session_replication_role = replica")
        loader.execute(
            "insert into public.articles (id, title, decoy) select gen_random_uuid(),"
            " 'late' || n, 'not the text' from generate_series(1, 50) n"
        )
        loader.execute("delete from public.articles where title in ('t1', 't2')")
        tick_until_quiet(connection)
        app.run("select two_tower.reconcile('articles')")
        assert differences(connection) == []
        assert open_alerts(connection) == {}
        texts = {
            row.content
            for row in rows(connection, "select content from two_tower.posts_to_encode(500)")
        }
        assert len(texts) == 149
        assert "not the text" not in texts
        assert source(connection).arguments["content"] == ["title", "body"]
        assert value(connection, "select two_tower.find_missing_parts()") == []
        app.run("alter table public.articles rename title to headline")
        tick_until_quiet(connection)
        assert source(connection).arguments["content"] == ["headline", "body"]


def test_a_dump_of_a_broken_source_tells_after_the_restore(
    cluster: Cluster, own_url: str, create_database: Callable[..., str]
) -> None:
    """A column renamed after the last tick: nothing says what it was, and nothing is guessed."""
    target = create_database()
    with connect(own_url, autocommit=True) as connection:
        app = App(connection)
        app.create_articles()
        app.attach_articles()
        app.run("alter table public.articles rename title to headline")
    restore_dump(cluster, own_url, target)
    with connect(target, autocommit=True) as connection:
        app = App(connection)
        app.run("insert into public.articles (id, headline) values (1, 'x')")
        app.run("select two_tower.reconcile_sources()")
        assert 'column "title" does not exist' in open_alerts(connection)["source_broken"]
        app.run("select two_tower.attach_posts('public.articles', content => '{headline}')")
        tick_until_quiet(connection)
        assert app.keys() == ["1"]
        assert open_alerts(connection) == {}
