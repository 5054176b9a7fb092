"""The measurements run, count what they say they count, and say on what they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.db import connect, rows, value
from python_jobs.errors import CommandError
from python_jobs.laboratory.bench import (
    alternatives,
    cpu,
    growth,
    inserts,
    operations,
    study,
    upkeep,
)
from python_jobs.laboratory.bench.pgbench import pgbench
from python_jobs.laboratory.bench.tables import (
    show_alternatives,
    show_cpu,
    show_growth,
    show_inserts,
    show_operations,
    show_study,
    show_upkeep,
)
from python_jobs.laboratory.bench.towers import load
from python_jobs.laboratory.bench.world import World, filled_world

ROUNDS = 3  # what else writes to the WAL meanwhile falls into one of them: a median passes it over


@pytest.fixture(scope="module")
def small() -> Iterator[World]:
    with filled_world(users=3000, posts=1000) as made:
        yield made


def test_inserts_are_counted_and_compared(
    small: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserts, "WARM_UP", 5)
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
        sum(report["verdicts"].values()) + 6 + 501 + 301,  # by parts_of() and wal_of()
    )
    assert report["verdicts"]["learned"] > 0
    assert {"training_examples", "user_embeddings"} <= set(report["wal_of_a_like_bytes"])
    assert {"draw_posts", "learn_events", "interpret_events"} <= set(report["parts_of_a_like_us"])
    assert len(report["budgets"]) == 7
    assert report["versions"]["fsync"] == report["versions"]["synchronous_commit"] == "on"
    # What the rounds queued is folded in; parts_of() and wal_of() run after them.
    assert left is not None
    assert left[0] <= 808
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


def test_what_the_sample_costs_is_of_likes_that_differ_by_the_sample_alone(
    small: World, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = (
        "select (select count(*) from two_tower.update_latencies) as timed,"
        " (select count(*) from two_tower.training_examples) as learned,"
        " (select count(*) from public.engagement_events) as events"
    )
    with connect(small.url, autocommit=True) as connection:
        before = rows(connection, counts)[0]
    report = cpu.measure(small, 400, lambda _: None)
    sample = report["sample"]
    assert (sample["likes"], sample["timed_share"]) == (400, 1 / 127)
    assert sample["us"] == pytest.approx(sample["asking_us"] + sample["timing_us"] / 127)
    assert sample["low_us"] < sample["us"] < sample["high_us"]
    assert set(report["events"]) == {case.name for case in cpu.CASES}
    assert all(cost > 0 for cost in report["events"].values())
    with (
        connect(small.url, autocommit=True) as first,
        connect(small.cluster.url(cpu.BARE), autocommit=True) as second,
    ):
        after = [rows(each, counts)[0] for each in (first, second)]
    # What events cost is measured on the first alone, after it planned anew, in two rounds.
    assert after[0].events - after[1].events == (1 + 2 * len(cpu.CASES)) * cpu.EACH
    for each in after:  # Each timed all of its likes in one half: those that were learned.
        assert 200 < each.timed - before.timed < each.learned - before.learned
    json.dumps(report)
    show_cpu(report)
    assert "what the sample of latencies adds to a like" in capsys.readouterr().out


def test_who_waits_for_a_writer_that_ended_learns_why(small: World) -> None:
    lacking = replace(small, posts=10**9)
    with pytest.raises(psycopg.Error, match="post"), load(lacking, reads=False) as running:
        running.wait()


@pytest.fixture
def untouched() -> Iterator[World]:
    """Nobody has liked anything yet: a second like of one post would not count."""
    with filled_world(users=1000, posts=1000) as made:
        yield made


def test_what_a_user_would_have_instead_does_what_it_says(
    untouched: World, capsys: pytest.CaptureFixture[str]
) -> None:
    report = alternatives.measure(untouched, 1, 6, lambda _: None)
    ways = {way["way"]: way for way in report["ways"]}
    for way in ways.values():
        assert 0 < way["like_p50_ms"] <= way["like_p99_ms"]
        assert 0 < way["page_p50_ms"] <= way["page_p99_ms"]
        assert 0 < way["counted"] <= way["likes_of_one_post"] == 8 * 6
    assert ways["two-tower"]["counted"] == ways["pgvector by hand"]["counted"] == 8 * 6
    with connect(untouched.url, autocommit=True) as connection:
        # Of the 7 likes of one client and of 8, and of those of one post.
        pairs = "select count(*) from public.other_pairs where label"
        assert value(connection, pairs) == 7 + 8 * 7 + 8 * 6
        moved = (
            "select count(*) from public.other_posts o join two_tower.live_embeddings v"
            " on v.slot = 0 and v.post_id = o.id where o.engagement_count > 0"
            " and o.embedding <> v.embedding"
            " and abs(extensions.vector_norm(o.embedding) - 1) < 1e-5"
        )
        assert value(connection, moved) > 40
        for _, page in alternatives.WAYS.values():
            assert len(page(connection, 5, 0)) == alternatives.PAGE
    json.dumps(report)
    show_alternatives(report)
    assert "48 of 48" in capsys.readouterr().out


def test_what_an_operator_waits_for_is_done_and_measured(
    small: World, capsys: pytest.CaptureFixture[str]
) -> None:
    report = operations.measure(small, 200, lambda _: None)
    figures = report["figures"]
    assert figures["checkpoint_posts"] == small.posts
    assert figures["slowest_write_during_ms"] > 0
    assert figures["rollback_s"] > 0 < figures["index_s"]
    with connect(small.url, autocommit=True) as connection:
        undone = "select count(*) from two_tower.training_examples where is_undone"
        # What the checkpoint holds of it, the rollback has put in force again.
        assert 0 < value(connection, undone) <= figures["undone"]
        assert value(connection, "select filling_version is null from two_tower.state")
        assert value(connection, "select count(*) from two_tower.rollbacks") == 1
        assert value(connection, "select count(*) from two_tower.deferred_steps") == 0
    assert len(report["budgets"]) == 4
    json.dumps(report)
    show_operations(report)
    assert "rollback of 1,000 posts" in capsys.readouterr().out


def test_a_study_is_measured_while_others_read_and_write(
    untouched: World, capsys: pytest.CaptureFixture[str]
) -> None:
    report = study.measure(untouched, 600, 60, lambda _: None)
    figures = report["figures"]
    assert figures["study_s"] > 0 < figures["slowest_write_during_ms"]
    assert figures["moved_posts"] > 0
    with connect(untouched.url, autocommit=True) as connection:
        done = "select engagements, steps from two_tower.studies where state = 'done' order by id"
        first, second = connection.execute(done).fetchall()
    # Repeated likes of a pair, and of one account more than its share, are no steps.
    assert 300 < first.engagements <= 600
    assert 40 < second.engagements <= 60
    assert figures["steps"] == second.steps == 4 * second.engagements
    assert len(report["budgets"]) == 3
    json.dumps(report, default=str)
    show_study(report)
    assert "slowest like during it" in capsys.readouterr().out


def test_what_runs_by_itself_is_timed_step_by_step(
    untouched: World, capsys: pytest.CaptureFixture[str]
) -> None:
    report = upkeep.measure(untouched, lambda _: None)
    steps = {step["step"] for step in report["steps"]}
    assert {"checkpoint", "run_audit", "record_metrics", "refresh_popular_candidates"} <= steps
    assert all(step["slowest_write_ms"] > 0 for step in report["steps"])
    with connect(untouched.url, autocommit=True) as connection:
        assert value(connection, "select count(*) from two_tower.metrics") > 0
    json.dumps(report)
    show_upkeep(report)
    assert "health, p50" in capsys.readouterr().out


def test_a_script_that_fails_is_told_by_its_error(small: World) -> None:
    with pytest.raises(CommandError, match="does not exist"):
        pgbench(small, "select * from public.nowhere;", transactions=1)


@pytest.mark.parametrize(
    "command", ["inserts", "growth", "towers", "cpu", "operations", "study", "upkeep"]
)
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
