"""What attaching a table costs is measured by statements that do what they say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.db import connect, rows, value
from python_jobs.laboratory.bench import scarce, serving, sources
from python_jobs.laboratory.bench.feed import AUTHORS, READERS, fill_feed, readers, user_id
from python_jobs.laboratory.bench.tables import show_sources
from python_jobs.laboratory.bench.world import World, world

ROUNDS = 2
POSTS = 3000


@pytest.fixture(scope="module")
def feed() -> Iterator[World]:
    with world(READERS + AUTHORS, POSTS) as made:
        fill_feed(made)
        serving.build(made)
        yield made


def test_attached_tables_are_measured(feed: World, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    report = sources.measure(feed, ROUNDS, said.append)
    groups = report["groups"]
    assert len(groups) == 13
    assert len(said) == 1 + ROUNDS * sum(len(cases) for cases in groups.values())
    for cases in groups.values():
        assert cases[0]["p50_ratio"] == cases[0]["cpu_ratio"] == 1
        assert all(case["p50_ms"] > 0 and case["cpu_us"] > 0 for case in cases)
    assert len(report["budgets"]) == 7
    json.dumps(report)
    show_sources(report)
    assert "Insert into articles, rows: 100: p50 against bare" in capsys.readouterr().out

    single, batch = 20 + sources.WARM_UP, 10 + sources.WARM_UP
    written = ROUNDS * (single + batch * sources.BATCH)
    with connect(feed.superuser_url, autocommit=True) as connection:
        likes = rows(
            connection,
            "select post_key is null as is_by_id, count(*), count(distinct post_id) as posts"
            " from public.engagement_events where post_id < 0 group by 1 order by 1",
        )
        assert likes == [
            (False, ROUNDS * single, ROUNDS * single),
            (True, 3 * ROUNDS * single, 3 * ROUNDS * single),
        ]
        for table, before in (("posts", POSTS), ("articles", sources.ARTICLES)):
            for name in (table, f"plain_{table}"):
                counts = f"select count(*), sum(views) from public.{name}"
                assert rows(connection, counts) == [(before + written, written)]
            registered = "select count(*) from two_tower.posts p join two_tower.sources s"
            registered += " on s.id = p.source_id where s.name = %s"
            assert value(connection, registered, table) == before + written
        assert rows(connection, "select state from two_tower.sources where state = 'broken'") == []
        assert rows(connection, "select from two_tower.source_reports") == []
        trigger = "select tgenabled from pg_trigger where tgname = 'check_readable'"
        assert {row.tgenabled for row in rows(connection, trigger)} == {"O"}


def test_measured_pages_are_full_and_of_the_few_readable_posts(feed: World) -> None:
    (page,) = sources.reading_groups("posts")
    (few,) = sources.restricted_groups()
    with (
        connect(feed.superuser_url, autocommit=True) as superuser,
        connect(feed.url, autocommit=True) as connection,
    ):
        for case in page.cases:
            session = sources.Session(case, connection)
            connection.execute(f"set role {case.role}".encode())
            session.run(user_id(1), itertools.count())
            assert len(rows(connection, case.statement)) == sources.PAGE
        superuser.execute(few.scene.encode())
        connection.execute(b"set role authenticated")
        readable = {row.id for row in rows(connection, "select id from public.posts")}
        assert {id % sources.ONE_READABLE_IN for id in readable} == {1}
        shown = [row.id for row in rows(connection, few.cases[1].statement)]
        superuser.execute(few.after.encode())
        assert shown
        assert set(shown) <= readable


def test_a_feed_too_small_to_measure_is_refused() -> None:
    answer = CliRunner().invoke(main, ["bench", "sources", "--posts", "3"])
    assert answer.exit_code == 2
    assert "1000" in answer.output


def test_readers_for_whom_little_is_left_are_in_their_situations(feed: World) -> None:
    figures = scarce.measure(feed, 1, {"transactions": 2}, lambda text: None)
    assert [case["situation"] for case in figures] == list(scarce.SITUATIONS)
    assert all(case["ratio"] > 0 for case in figures)
    numbers = list(readers(1))[-3:]
    with connect(feed.superuser_url, autocommit=True) as connection:
        pages = [
            rows(connection, "select author_id from two_tower.recommend_for(%s, 500)", user_id(n))
            for n in numbers
        ]
    assert len(pages[0]) == 5
    assert len(pages[1]) == 500
    assert len({post.author_id for post in pages[2]}) == 1
