"""The engine never breaks a write of the app, and follows again by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from python_jobs.db import Connection, connect, rows, value
from tests.support.app import App, differences, open_alerts, source, tick_until_quiet
from tests.support.database import add_user, as_user
from tests.support.patience import PATIENCE_S, wait_until


@pytest.fixture
def articles(own_url: str) -> Iterator[App]:
    """A hundred attached articles in a database of this test alone."""
    with connect(own_url, autocommit=True) as connection:
        app = App(connection)
        app.create_articles()
        app.attach_articles()
        app.run(
            "insert into public.articles (id, title) select n, 't' from generate_series(1, 100) n"
        )
        tick_until_quiet(connection)
        yield app


class Writers:
    """Sessions of the app that write all the time; a failed write fails the test."""

    def __init__(self, url: str, statements: list[str]) -> None:
        self.url, self.statements = url, statements
        self.counts = [0] * len(statements)
        self.stop = threading.Event()

    def write(self, place: int) -> None:
        with connect(self.url, autocommit=True) as session:
            while not self.stop.is_set():
                session.execute(self.statements[place].encode())
                self.counts[place] += 1

    def go_on(self) -> None:
        """Returns when each has written twice more."""
        wanted = [count + 2 for count in self.counts]
        wait_until(
            lambda: (
                self.failed()
                or all(count >= least for count, least in zip(self.counts, wanted, strict=True))
            )
        )
        assert not self.failed()

    def failed(self) -> list[BaseException]:
        return [f.exception() for f in self.futures if f.done() and f.exception()]  # type: ignore[misc]

    @contextmanager
    def running(self) -> Iterator[Writers]:
        with ThreadPoolExecutor(len(self.statements)) as pool:
            self.futures = [pool.submit(self.write, k) for k in range(len(self.statements))]
            try:
                self.go_on()
                yield self
            finally:
                self.stop.set()
            for future in self.futures:
                future.result()


# Whatever a column is called at the moment: writes that name none but the key and the views.
WRITES = [
    "insert into public.articles (id, views) select coalesce(max(id), 0) + 1, 0"
    " from public.articles on conflict do nothing",
    "update public.articles set status = case status when 'draft' then 'published' else 'draft' end"
    " where id = (select min(id) from public.articles)",
    "delete from public.articles where id = (select max(id) from public.articles where id > 150)",
]


def reported(app: App) -> Callable[[], Any]:
    return lambda: (
        source(app.connection).state == "broken"
        or value(app.connection, "select count(*) from two_tower.source_reports")
    )


def test_a_renamed_column_is_followed_while_writers_write(articles: App, own_url: str) -> None:
    db = articles.connection
    with Writers(own_url, WRITES).running() as writers:
        articles.run("alter table public.articles rename column title to headline")
        writers.go_on()
        wait_until(reported(articles))
        articles.run("select two_tower.take_source_reports()")
        assert open_alerts(db)["source_broken"] == (
            "Writes to public.articles were stored and not followed: column t.title does not exist."
            " Reconciliation mends it. If the alert stays open, attach the table again."
        )
        tick_until_quiet(db)
        writers.go_on()
    tick_until_quiet(db)
    articles.run("alter table public.articles rename column headline to title")
    tick_until_quiet(db)
    assert differences(db) == []
    assert open_alerts(db) == {}
    assert source(db).arguments["content"] == ["title", "body"]


def test_a_column_of_another_type_and_a_new_one_are_followed(articles: App, own_url: str) -> None:
    db = articles.connection
    with Writers(own_url, WRITES).running() as writers:
        with pytest.raises(errors.FeatureNotSupported):  # the page shows the column
            articles.run("alter table public.articles alter title type varchar(50)")
        with db.transaction():
            articles.run("drop view public.articles_page cascade")
            articles.run("alter table public.articles alter title type jsonb using to_jsonb(title)")
            articles.run("alter table public.articles add column added text default 'x'")
        writers.go_on()
        tick_until_quiet(db)
        writers.go_on()
    tick_until_quiet(db)
    assert open_alerts(db) == {}
    columns = rows(
        db,
        "select attname from pg_attribute"
        " where attrelid = 'public.articles_page'::regclass and attnum > 0",
    )
    assert "added" in {row.attname for row in columns}
    assert value(db, "select count(*) from pg_proc where proname = 'recommended_articles'") == 1
    texts = rows(db, "select content from two_tower.posts_to_encode()")
    assert '"t"' in {row.content for row in texts}


def test_a_dropped_column_is_told_until_the_table_is_attached_without_it(
    articles: App, own_url: str
) -> None:
    db = articles.connection
    with Writers(own_url, WRITES).running() as writers:
        articles.run("alter table public.articles drop column body cascade")
        writers.go_on()
        wait_until(
            lambda: (
                value(db, "select two_tower.reconcile_sources() is not null")
                and "source_broken" in open_alerts(db)
                and "cannot be followed" in open_alerts(db)["source_broken"]
            )
        )
        assert open_alerts(db)["source_broken"] == (
            'Table public.articles has changed, and cannot be followed: column "body" does not'
            " exist. Attach it again as it is now, or detach it."
        )
        state, message, hint = articles.refusal("select two_tower.reconcile('articles')")
        assert (state, message) == ("55000", "the table of articles cannot be followed")
        assert 'column "body" does not exist' in hint
        assert source(db).state == "broken"
        writers.go_on()
        articles.run(
            "select two_tower.attach_posts('public.articles', content => '{title}',"
            " visible => $$status = 'published'$$)"
        )
        writers.go_on()
        tick_until_quiet(db)
    tick_until_quiet(db)
    assert open_alerts(db) == {}
    assert len(articles.keys()) == value(db, "select count(*) from public.articles")


def test_the_engines_function_dropped_is_made_again_and_what_was_missed_is_found(
    articles: App, own_url: str
) -> None:
    db = articles.connection
    number = source(db).id
    with Writers(own_url, WRITES).running() as writers:
        articles.run(f"drop function two_tower.follow_source_{number}() cascade")
        writers.go_on()
        tick_until_quiet(db)
        articles.run(f"drop function two_tower.missing_in_source_{number}(two_tower.post_row[])")
        articles.run("drop view public.articles_page cascade")
        writers.go_on()
        tick_until_quiet(db)
        writers.go_on()
    tick_until_quiet(db)
    assert differences(db) == []
    assert value(db, "select two_tower.find_missing_parts()") == []
    assert value(db, "select to_regclass('public.articles_page') is not null")


def test_one_trigger_dropped_is_put_back(articles: App) -> None:
    articles.run("drop trigger two_tower_delete on public.articles")
    articles.run("delete from public.articles where id = 1")
    tick_until_quiet(articles.connection)
    articles.run("delete from public.articles where id = 2")
    assert differences(articles.connection) == []


def test_a_locked_registry_is_waited_for_no_longer_than_the_app_says(
    articles: App, own_url: str
) -> None:
    db = articles.connection
    with connect(own_url) as holder, connect(own_url, autocommit=True) as writer:
        holder.execute("lock table two_tower.posts in access exclusive mode")
        writer.execute("set lock_timeout = '50ms'")
        writer.execute("insert into public.articles (id, title) values (1000, 'x')")
        writer.execute("delete from public.articles where id = 1")
        holder.rollback()
    (report, *_) = rows(db, "select event, sqlstate from two_tower.source_reports order by id")
    assert (report.event, report.sqlstate) == ("broken", "55P03")
    articles.run("select two_tower.take_source_reports()")
    assert "canceling statement due to lock timeout" in open_alerts(db)["source_broken"]
    tick_until_quiet(db)
    assert differences(db) == []
    assert open_alerts(db) == {}


def test_a_write_goes_on_where_even_the_report_cannot_be_stored(
    articles: App, own_url: str
) -> None:
    db = articles.connection
    with connect(own_url) as holder, connect(own_url, autocommit=True) as writer:
        holder.execute(
            "lock table two_tower.posts, two_tower.source_reports in access exclusive mode"
        )
        notices: list[str] = []
        writer.add_notice_handler(lambda n: notices.append(n.message_primary or ""))
        writer.execute("set lock_timeout = '50ms'")
        writer.execute("insert into public.articles (id, title) values (1000, 'x')")
        holder.rollback()
    assert any("was not reported" in notice for notice in notices)
    articles.run("select two_tower.request_reconciliation()")
    tick_until_quiet(db)
    assert differences(db) == []


def test_a_cancelled_write_is_cancelled(articles: App, own_url: str) -> None:
    with connect(own_url) as holder, connect(own_url, autocommit=True) as writer:
        holder.execute("select from two_tower.posts for update")
        writer.execute("set statement_timeout = '100ms'")
        with pytest.raises(errors.QueryCanceled):
            writer.execute("update public.articles set title = 'x'")
        holder.rollback()
    assert differences(articles.connection) == []
    assert rows(articles.connection, "select from two_tower.source_reports") == []


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_a_conflict_of_a_stricter_isolation_is_the_apps_to_see(
    articles: App, own_url: str, isolation: IsolationLevel
) -> None:
    db = articles.connection
    with connect(own_url) as first:
        first.isolation_level = isolation
        first.execute("select count(*) from two_tower.posts")  # the snapshot
        db.execute("update two_tower.posts set language = 'xx'")
        with pytest.raises(errors.SerializationFailure):
            first.execute("update public.articles set title = 'mine'")
        first.rollback()
    assert rows(db, "select from two_tower.source_reports") == []
    with connect(own_url) as other:
        other.isolation_level = isolation
        other.execute("update public.articles set title = 'mine'")
        other.commit()
    assert differences(db) == []


def test_a_deadlock_is_the_apps_to_see(articles: App, own_url: str) -> None:
    with connect(own_url) as first, connect(own_url) as second:
        pids = [session.info.backend_pid for session in (first, second)]
        for session, own in ((first, 1), (second, 2)):
            session.execute("select from two_tower.posts where id = %s for update", [own])
        with ThreadPoolExecutor(2) as pool:
            work = [
                pool.submit(
                    session.execute, "update public.articles set title = 'd' where id = %s", [other]
                )
                for session, other in ((first, 2), (second, 1))
            ]
            wait_until(
                lambda: (
                    any(job.done() for job in work)
                    or value(
                        articles.connection,
                        "select bool_and(cardinality(pg_blocking_pids(p)) > 0)"
                        " from unnest(%s::integer[]) p",
                        pids,
                    )
                )
            )
            failed = [
                job
                for job in work
                if isinstance(job.exception(PATIENCE_S), errors.DeadlockDetected)
            ]
        assert len(failed) == 1
        first.rollback()
        second.rollback()
    assert rows(articles.connection, "select from two_tower.source_reports") == []


def test_a_dropped_table_is_detached_and_pages_go_on(articles: App) -> None:
    db = articles.connection
    articles.create_articles(name="public.others")
    articles.attach_articles("public.others")
    author, reader = add_user(db), add_user(db)
    articles.run("insert into public.others (id, title, user_id) values (1, 'x', %s)", author)
    articles.run("grant select on public.others to authenticated")
    articles.run("drop table public.articles cascade")
    with db.transaction(), as_user(db, reader):
        assert [row.post_key for row in rows(db, "select post_key from public.recommend()")] == [
            "1"
        ]
    wait_until(
        lambda: (
            articles.run("select two_tower.tick()")
            and source(db).state == "detached"
            and not source(db).is_walk_wanted
            and source(db).walk is None
        )
    )
    assert (articles.keys(), open_alerts(db)) == ([], {})
    assert value(db, "select two_tower.find_missing_parts()") == []
    left = "select proname from pg_proc where proname like '%%articles' or proname ~ %s"
    assert rows(db, left, f"_source_{source(db).id}$") == []
    with db.transaction(), as_user(db, reader):
        assert [row.post_key for row in rows(db, "select post_key from public.recommend()")] == [
            "1"
        ]
        db.execute(
            "insert into public.engagement_events (post_key, event_type) values ('1', 'like')"
        )


def test_following_goes_on_where_something_of_the_app_stands_on_the_page(articles: App) -> None:
    db = articles.connection
    articles.run("create view public.mine as select title from public.articles_page")
    articles.run("alter table public.articles rename column body to main_text")
    articles.run("insert into public.articles (id, main_text) values (500, 'new')")
    tick_until_quiet(db)
    assert articles.keys().count("500") == 1
    assert open_alerts(db)["page_is_old"].startswith(
        "The columns of public.articles have changed, and articles_page cannot follow: cannot drop"
    )
    articles.run("drop view public.mine")
    articles.run("select two_tower.attach_posts('public.articles', content => '{title,main_text}')")
    tick_until_quiet(db)
    assert open_alerts(db) == {}


def test_a_renamed_table_and_a_moved_one_are_followed(articles: App) -> None:
    db = articles.connection
    articles.run("alter table public.articles rename to essays")
    articles.run("create schema other")
    articles.run("alter table public.essays set schema other")
    articles.run("insert into other.essays (id, title) values (500, 'new')")
    assert differences(db, "other.essays") == []
    tick_until_quiet(db)
    articles.run("select two_tower.reconcile('articles')")
    assert differences(db, "other.essays") == []
    assert open_alerts(db) == {}


def test_a_mend_gives_way_to_what_the_app_holds(articles: App, own_url: str) -> None:
    db = articles.connection
    articles.run("drop trigger two_tower_insert on public.articles")
    with connect(own_url) as writer:
        writer.execute("insert into public.articles (id, title) values (700, 'x')")
        articles.run("select two_tower.reconcile_sources()")
        is_written = "select two_tower.is_written(s) from two_tower.sources s where name = %s"
        assert value(db, is_written, "articles") is False
        assert open_alerts(db) == {}
        writer.commit()
    tick_until_quiet(db)
    assert differences(db) == []


def test_a_broken_source_that_is_attached_again_closes_its_alert(articles: App) -> None:
    db: Connection = articles.connection
    articles.run(
        "select two_tower.report_source(%s::smallint, 'broken', 'XX000', 'a fault')", source(db).id
    )
    articles.run("select two_tower.take_source_reports()")
    assert "source_broken" in open_alerts(db)
    articles.attach_articles()
    tick_until_quiet(db)
    assert open_alerts(db) == {}


def test_an_error_of_the_trigger_is_no_error_of_psycopg(articles: App) -> None:
    """A bad row is stored, the rows beside it too, and the registry has what it could take."""
    db = articles.connection
    articles.run(
        "select two_tower.attach_posts('public.articles', content => '{title}',"
        " visible => '100 / views > 0')"
    )
    try:
        articles.run("insert into public.articles (id, title, views) values (900, 'x', 0)")
    except psycopg.Error as error:  # pragma: no cover
        raise AssertionError("the app's write was refused") from error
    articles.run("select two_tower.take_source_reports()")
    assert "division by zero" in open_alerts(db)["source_broken"]
