"""The measurements run, count what they say they count, and say on what they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.db import connect
from python_jobs.errors import CommandError
from python_jobs.laboratory.bench import growth, inserts
from python_jobs.laboratory.bench.command import show_growth, show_inserts
from python_jobs.laboratory.bench.pgbench import pgbench
from python_jobs.laboratory.bench.world import World, filled_world

ROUNDS = 3  # what else writes to the WAL meanwhile falls into one of them: a median passes it over


@pytest.fixture(scope="module")
def small() -> Iterator[World]:
    with filled_world(users=3000, posts=1000) as made:
        yield made


def test_inserts_are_counted_and_compared(small: World, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    report = inserts.measure(small, ROUNDS, {"transactions": 4}, said.append)
    assert len(said) == ROUNDS * len(inserts.CASES)
    cases = {case["case"]: case for case in report["cases"]}
    assert len(cases) == len(inserts.CASES)
    for case in cases.values():
        assert 0 < case["p50_ms"] <= case["p95_ms"] <= case["p99_ms"]
        assert case["wal_bytes_per_event"] > 0
    assert cases["plain, 1 client"]["p50_to_plain"] == 1
    # A like writes its example, which a view and a plain row do not.
    assert (
        cases["like, 1 client"]["wal_bytes_per_event"]
        > cases["view, 1 client"]["wal_bytes_per_event"]
        > cases["plain, 1 client"]["wal_bytes_per_event"]
    )
    with connect(small.url, autocommit=True) as connection:
        likes = connection.execute(
            "select count(*) from public.engagement_events where event_type = 'like'"
        ).fetchone()
        left = connection.execute("select count(*) from two_tower.deferred_steps").fetchone()
    assert likes == (
        sum(report["verdicts"].values()) + 51 + 501 + 301,  # by parts_of() and wal_of()
    )
    assert report["verdicts"]["learned"] > 0
    assert {"training_examples", "user_embeddings"} <= set(report["wal_of_a_like_bytes"])
    assert {"draw_posts", "learn_events", "interpret_events"} <= set(report["parts_of_a_like_us"])
    assert len(report["budgets"]) == 6
    assert report["versions"]["fsync"] == report["versions"]["synchronous_commit"] == "on"
    # What the rounds queued is folded in; parts_of() and wal_of() run after them.
    assert left is not None
    assert left[0] <= 853
    json.dumps(report)
    show_inserts(report)
    assert "like, one client, p50 against plain" in capsys.readouterr().out


def test_growth_sends_what_it_says_and_empties_its_queue(
    small: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(small.url, autocommit=True) as connection:
        before = connection.execute("select count(*) from public.engagement_events").fetchone()
        report = growth.measure(small, 4800, 4, lambda _: None)
        after = connection.execute("select count(*) from public.engagement_events").fetchone()
    assert before is not None
    assert after is not None
    warm_up = growth.CLIENTS * 21 * growth.ROWS
    assert after[0] - before[0] == report["events"] + warm_up
    assert report["events"] == 4800 + 4 * growth.CLIENTS * growth.ROWS
    assert report["ticks"] > 0
    assert [list(line) for line in report["latency_ms"]] == [["p50", "p95", "p99"]] * 4
    assert all(ratio > 0 for ratio in report["late_to_early"].values())
    tables = {line["table"]: line for line in report["tables"]}
    assert tables["engagement_events"]["bounded_by"] == "settings.events_kept_for"
    assert len(tables["engagement_events"]["bytes"]) == 5
    json.dumps(report)
    show_growth(report)
    assert "Growth over 5,120 events" in capsys.readouterr().out


def test_a_script_that_fails_is_told_by_its_error(small: World) -> None:
    with pytest.raises(CommandError, match="does not exist"):
        pgbench(small, "select * from public.nowhere;", transactions=1)


@pytest.mark.parametrize("command", ["inserts", "growth", "towers"])
def test_a_world_too_small_is_refused(command: str) -> None:
    answer = CliRunner().invoke(main, ["bench", command, "--posts", "3"])
    assert answer.exit_code == 2
    assert "1000" in answer.output


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_jobs_of_the_towers_are_measured() -> None:
    """Runs all of it on the smallest world; what it takes is told, not judged."""
    answer = CliRunner().invoke(main, ["bench", "towers", "--posts", "1000", "--json"])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    (row,) = report["rows"]
    assert (row["posts"], row["pairs"], row["users"]) == (1000, 1000, 256)
    measured = ("candidate_s", "user_s", "refresh_s", "new_post_s", "new_post_training_s")
    assert all(row[name] > 0 for name in measured)
    assert row["candidate_mb"] >= row["start_mb"] > 0
    assert {budget["budget"] for budget in report["budgets"]} > {"refresh of all posts: s"}
