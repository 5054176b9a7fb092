"""Rows that no trigger met are known to the coverage of posts, and a walk brings them in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.support.app import App, detach_starter, differences, source, tick_until_quiet

COVERAGE = "select value, state, note from two_tower.health where name = 'post_coverage'"
INSERT = (
    "insert into public.articles (id, title) select n, 't' || n from generate_series(%s::int, %s) n"
)


def measure(app: App) -> tuple[float, str, str | None]:
    """Coverage of posts, its state and its note, as a tick would find them now."""
    app.run("select two_tower.sample_sources()")
    app.run("delete from two_tower.metrics where name = 'post_coverage'")
    app.run("select two_tower.record_metrics()")
    (row,) = rows(app.connection, COVERAGE)
    return row.value, row.state, row.note


@pytest.fixture
def articles(app: App) -> App:
    """Six encoded articles that the triggers met, and a worker."""
    rows(app.connection, "select * from two_tower.claim_job('a', '{other}')")
    app.create_articles()
    app.attach_articles()
    tick_until_quiet(app.connection)
    app.run(INSERT, 1, 6)
    encode(app)
    return app


def encode(app: App) -> None:
    app.run(
        "select two_tower.store_base_embeddings(array_agg(id), array_agg(array_fill("
        " (1 / sqrt(384))::real, array[384])::extensions.vector)) from two_tower.posts"
    )


def load(app: App, first: int, last: int) -> None:
    """As a restore does: with the triggers off."""
    app.run("alter table public.articles disable trigger user")
    app.run(INSERT, first, last)
    app.run("alter table public.articles enable trigger user")


def test_two_of_eight_rows_that_no_trigger_met_are_missing_and_come_in(articles: App) -> None:
    assert measure(articles) == (1, "ok", None)
    load(articles, 7, 8)
    found, state, note = measure(articles)
    assert found == pytest.approx(0.75)
    assert (state, note) == ("ok", "A walk of an attached table is bringing rows in.")
    assert (source(articles.connection).sampled_rows, source(articles.connection).missing_rows) == (
        *(8, 2),
    )
    tick_until_quiet(articles.connection)
    assert differences(articles.connection) == []
    found, state, _ = measure(articles)
    assert found == pytest.approx(6 / 8)  # known, and waiting for the encoder
    encode(articles)
    assert measure(articles) == (1, "ok", None)
    assert source(articles.connection).missing_rows == 0


def test_rows_that_no_walk_brings_in_are_an_alert(articles: App) -> None:
    load(articles, 7, 8)
    measure(articles)
    articles.run("update two_tower.sources set is_walk_wanted = false")
    alerts = "select count(*) from two_tower.open_alerts where subject = 'post_coverage'"
    articles.run("delete from two_tower.metrics where name = 'post_coverage'")
    articles.run("select two_tower.record_metrics()")
    assert value(articles.connection, alerts) == 1
    assert measure(articles)[1] == "ok"  # the next sample asks for the walk again
    assert value(articles.connection, alerts) == 0


def test_a_row_of_the_registry_that_is_marked_as_deleted_is_missing(articles: App) -> None:
    articles.run("update two_tower.posts set deleted_at = two_tower.now() where key = '3'")
    assert measure(articles)[0] == pytest.approx(5 / 6)


def test_a_load_into_a_large_table_is_met_by_the_sample_of_few_blocks(articles: App) -> None:
    articles.run(INSERT, 7, 20000)
    assert measure(articles)[1] != "unknown"
    before = source(articles.connection)
    assert before.missing_rows == 0
    assert 20 < before.sampled_rows < 20000
    load(articles, 20001, 20300)
    value(articles.connection, "select two_tower.sample_sources()")
    after = source(articles.connection)
    assert after.missing_rows > 0
    assert after.is_walk_wanted


def test_a_table_that_the_app_holds_or_has_changed_is_left_out(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as db, connect(url) as holder:
        detach_starter(db)
        app = App(db)
        app.create_articles()
        app.attach_articles()
        app.run(INSERT, 1, 6)
        holder.execute("lock table public.articles")
        assert value(db, "select two_tower.sample_sources()") == 0
        assert source(db).sampled_rows == 0
        holder.rollback()
        load(app, 7, 8)
        assert value(db, "select two_tower.sample_sources()") == 2
        app.run("alter table public.articles rename column user_id to writer_id")
        assert value(db, "select two_tower.sample_sources()") == 0
        assert value(db, "select count(*) from two_tower.sources where state = 'broken'") == 0


def test_of_an_empty_table_there_is_nothing_to_measure(app: App) -> None:
    app.create_articles()
    app.attach_articles()
    value(app.connection, "select two_tower.sample_sources()")
    app.run("select two_tower.record_metrics()")
    (row,) = rows(app.connection, COVERAGE)
    assert (row.value, row.state) == (None, "unknown")


def test_every_block_of_a_small_table_is_drawn_and_half_of_the_last_of_a_large_one(
    db: Connection,
) -> None:
    db.execute("create table public.large (filler text)")
    db.execute("alter table public.large alter column filler set storage plain")
    blocks = "select two_tower.draw_blocks('public.large')"
    assert value(db, blocks) == []
    db.execute("insert into public.large select repeat('x', 7000) from generate_series(1, 8)")
    assert sorted(value(db, blocks)) == list(range(8))
    db.execute("insert into public.large select repeat('x', 7000) from generate_series(1, 492)")
    drawn = {block for _ in range(20) for block in value(db, blocks)}
    assert set(range(490, 500)) <= drawn <= set(range(500))
    assert len(value(db, blocks)) <= 20
    assert len(drawn) > 100
