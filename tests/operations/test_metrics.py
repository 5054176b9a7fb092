"""read_metrics: a figure a row, for an exporter, as things are at the moment of the call."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts

OF_THE_SPECIFICATION = {
    "update_latency": (None, 10, None, 50),
    "cold_start_ctr": (0.01, None, 0.005, None),
    "training_pairs_per_hour": (100, None, 10, None),
    "negatives_per_positive": (5, 10, 3, 20),
    "embedding_drift": (None, 0.1, None, 0.3),
    "user_coverage": (0.9, None, 0.7, None),
}


def read(db: Connection) -> dict[str, Any]:
    """The figures by name, as the service role gets them."""
    with as_user(db, None, "service_role"):
        return {row.name: row for row in rows(db, "select * from public.read_metrics()")}


def test_each_metric_is_there_with_its_ranges_before_anything_was_recorded(db: Connection) -> None:
    figures = read(db)
    health = {row.name: row for row in rows(db, "select * from two_tower.health")}
    assert set(figures) == set(health)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in figures)
    for name, row in figures.items():
        assert row.description
        assert row.state in ("ok", "warning", "alert", "unknown")
        assert (row.unit, row.alert_high) == (health[name].unit, health[name].alert_high)
    for name, ranges in OF_THE_SPECIFICATION.items():
        assert tuple(figures[name])[3:7] == pytest.approx(ranges)
    assert (figures["metrics_age"].value, figures["training_pairs_per_hour"].state) == (
        None,
        "unknown",
    )


def test_what_waits_is_measured_at_the_moment_of_the_call(db: Connection) -> None:
    value(db, "select two_tower.record_metrics()")
    before = read(db)
    assert {name: before[name].value for name in before if "waiting" in name} == {
        **{"waiting_jobs": 0, "waiting_posts": 0, "waiting_texts": 0, "waiting_events": 0},
        **{"oldest_waiting_job": 0, "oldest_waiting_post": 0, "oldest_waiting_text": 0},
    }
    assert (before["workers"].value, before["workers"].state) == (0, "ok")
    user = add_user(db)
    add_posts(db, 3, [user])
    db.execute("update two_tower.posts set requested_at = now() - interval '90 s'")
    with as_user(db, user):
        db.execute("select public.embed_text('a boat')")
    db.execute("select two_tower.enqueue_job('test', s) from unnest('{\"\", two}'::text[]) s")
    db.execute("update two_tower.jobs set run_at = now() - interval '2 hours' where subject = ''")
    rows(db, "select * from two_tower.claim_job('a', '{other}')")
    db.execute("select two_tower.open_alert('test', '', 'a test'), two_tower.freeze('a test')")
    db.execute("update two_tower.sources set state = 'broken' where role = 'follows'")
    after = {name: (row.value, row.state) for name, row in read(db).items()}
    wanted = {
        "workers": (1, "ok"),
        "waiting_jobs": (2, "ok"),
        "waiting_posts": (3, "ok"),
        "waiting_texts": (1, "ok"),
        "oldest_waiting_job": (7200, "alert"),
        "oldest_waiting_post": (90, "warning"),
        "oldest_waiting_text": (0, "ok"),
        "broken_sources": (1, "warning"),
        "open_alerts": (before["open_alerts"].value + 1, "warning"),
        "is_frozen": (1, "warning"),
    }
    assert {name: after[name] for name in wanted} == wanted


def test_metrics_that_are_not_recorded_any_more_are_an_alert(db: Connection) -> None:
    value(db, "select two_tower.record_metrics()")
    assert (read(db)["metrics_age"].value, read(db)["metrics_age"].state) == (0, "ok")
    db.execute("update two_tower.metrics set measured_at = measured_at - interval '11 minutes'")
    assert (read(db)["metrics_age"].value, read(db)["metrics_age"].state) == (660, "alert")


def test_no_row_of_a_large_table_is_read(db: Connection) -> None:
    """However many posts, users and events there are: their numbers are Postgres's estimates."""
    user = add_user(db)
    posts = add_posts(db, 3000, [add_user(db)], np.random.default_rng(1))
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, p, 'view' from unnest(%s::bigint[]) p",
        [user, posts],
    )
    partition = value(db, "select tableoid::regclass::text from public.engagement_events limit 1")
    large = ["two_tower.posts", "two_tower.user_embeddings", partition]
    for table in large:
        db.execute(f"analyze {table}".encode())
    reads = (
        "select relname, seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables"
        " where relid = any (%s::text[]::regclass[]) order by 1"
    )
    before = db.execute(reads.encode(), [large]).fetchall()
    figures = read(db)
    assert db.execute(reads.encode(), [large]).fetchall() == before
    assert figures["posts"].value == 3000
    assert figures["events"].value == 3000
    assert figures["users"].value == value(db, "select count(*) from two_tower.user_embeddings")


def state_of(db: Connection, name: str) -> tuple[float | None, str, bool]:
    """Value and state of a metric when metrics are recorded, and whether its alert is open."""
    db.execute("select two_tower.record_metrics()")
    figure = read(db)[name]
    is_open = value(
        db,
        "select exists (select from two_tower.alerts where kind = 'metric_out_of_range'"
        " and subject = %s and closed_at is null)",
        name,
    )
    return figure.value, figure.state, is_open


def test_one_transaction_in_127_says_how_long_it_learned(
    fresh_database: Callable[[], str],
) -> None:
    add = (
        "insert into public.engagement_events (user_id, post_id, event_type) values (%s, %s, %s)"
        " returning id, txid_current_if_assigned() %% 127 = 0 as is_timed"
    )
    with connect(fresh_database(), autocommit=True) as connection:
        posts = add_posts(connection, 2, [add_user(connection)], np.random.default_rng(51))

        def timed_of(user: str, post_id: int, event_type: str) -> set[int]:
            event = rows(connection, add, user, post_id, event_type)[0]
            return {event.id} if event.is_timed else set()

        users, timed = [], set()
        while not timed or len(users) < 20:
            users.append(add_user(connection))
            timed |= timed_of(users[-1], posts[0], "like")
        samples = rows(connection, "select * from two_tower.update_latencies")
        assert {sample.event_id for sample in samples} == timed
        assert all(0 < sample.milliseconds < 600_000 for sample in samples)
        idle: set[int] = set()
        while not idle:  # learned already, and viewed: nothing is updated
            idle |= timed_of(users[0], posts[0], "like") | timed_of(users[0], posts[1], "view")
        assert value(connection, "select count(*) from two_tower.update_latencies") == len(timed)


def test_slow_updates_raise_an_alert_that_closes_by_itself(db: Connection) -> None:
    assert state_of(db, "update_latency") == (None, "unknown", False)
    add = (
        "insert into two_tower.update_latencies (event_id, milliseconds, measured_at)"
        " select n, %s, two_tower.now() - %s::interval from generate_series(%s::int, %s::int) n"
    )
    db.execute(add, [90, "61 minutes", 1, 100])
    db.execute(add, [5, "1 minute", 101, 194])
    db.execute(add, [60, "1 minute", 195, 200])
    latency, state, is_open = state_of(db, "update_latency")
    assert latency == pytest.approx(60)
    assert (state, is_open) == ("alert", True)
    assert value(db, "select count(*) from two_tower.update_latencies") == 100
    db.execute(add, [5, "1 minute", 201, 300])
    assert state_of(db, "update_latency") == (5, "ok", False)


def test_who_viewed_a_new_post_and_engaged_counts_once(db: Connection) -> None:
    db.execute("update two_tower.settings set exploration_age = '100 years'")
    posts = add_posts(db, 3, [add_user(db)], np.random.default_rng(52))
    db.execute("select two_tower.follow_events()")
    readers = [add_user(db) for _ in range(4)]
    send = "insert into public.engagement_events (user_id, post_id, event_type) values (%s, %s, %s)"
    for reader in readers:
        for kind in ("view", "view"):
            db.execute(send, [reader, posts[0], kind])
    db.execute(send, [readers[0], posts[0], "like"])
    db.execute(send, [readers[0], posts[0], "reply"])
    db.execute(send, [readers[1], posts[0], "skip"])
    db.execute("select two_tower.follow_events()")
    db.execute(send, [readers[2], posts[0], "view"])  # engaged with: no new post any more
    db.execute(send, [readers[2], posts[0], "like"])
    db.execute("select two_tower.follow_events()")
    (counts,) = rows(db, "select impressions, engagements from two_tower.cold_start_counts")
    assert tuple(counts) == (4, 1)


def test_new_posts_that_nobody_engages_with_raise_an_alert_that_closes_by_itself(
    db: Connection,
) -> None:
    assert state_of(db, "cold_start_ctr") == (None, "unknown", False)
    count = "select two_tower.count_cold_start(%s, %s)"
    db.execute(count, [999, 0])
    assert state_of(db, "cold_start_ctr") == (None, "unknown", False)
    db.execute(count, [1, 4])
    assert state_of(db, "cold_start_ctr") == (pytest.approx(0.004), "alert", True)
    db.execute(count, [0, 4])
    assert state_of(db, "cold_start_ctr") == (pytest.approx(0.008), "warning", False)
    db.execute("update two_tower.cold_start_counts set hour = hour - interval '49 hours'")
    db.execute(count, [1000, 20])
    assert state_of(db, "cold_start_ctr") == (pytest.approx(0.02), "ok", False)
    assert value(db, "select count(*) from two_tower.cold_start_counts") == 1
