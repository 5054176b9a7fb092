"""read_metrics: a figure a row, for an exporter, as things are at the moment of the call."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts

# Of the specification; update latency and click rate of cold posts are not measured yet.
OF_THE_SPECIFICATION = {
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
        **{"waiting_jobs": 0, "waiting_posts": 0, "waiting_texts": 0},
        **{"oldest_waiting_job": 0, "oldest_waiting_post": 0, "oldest_waiting_text": 0},
    }
    assert (before["workers"].value, before["workers"].state) == (0, "warning")
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
