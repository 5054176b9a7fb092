"""Alerts are for incidents: each metric of the specification is driven into its alert and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from python_jobs.db import Connection, rows, value
from tests.operations.test_safety import World
from tests.support.database import PROJECT, add_user
from tests.support.engagements import add_posts

SEND = "insert into public.engagement_events (user_id, post_id, event_type) values (%s, %s, %s)"
FORGET = "update two_tower.training_examples set created_at = created_at - interval '2 hours'"
LEASE = (
    "insert into two_tower.jobs (kind, state, worker, lease_until)"
    " values ('encode_posts', 'running', 'a', two_tower.now() + interval '1 minute')"
)


def like(db: Connection, users: Sequence[str], posts: Sequence[int]) -> None:
    """Each user likes each post."""
    for user in users:
        for post in posts:
            db.execute(SEND, [user, post, "like"])


def state(db: Connection, name: str, call: str = "record_metrics") -> tuple[str, bool]:
    """State of a metric when it is measured now, and whether its alert is open."""
    db.execute("delete from two_tower.metrics where name = %s", [name])
    db.execute(f"select two_tower.{call}()".encode())
    graded = value(db, "select state from two_tower.health where name = %s", name)
    return graded, name in opened(db)


def opened(db: Connection) -> set[str]:
    """Metrics whose alert is open. That this pgvector is an old one is none of them."""
    found = rows(
        db,
        "select subject from two_tower.open_alerts"
        " where kind = 'metric_out_of_range' and subject <> 'pgvector'",
    )
    return {row.subject for row in found}


def note(db: Connection, name: str) -> Any:
    return value(db, "select note from two_tower.health where name = %s", name)


def test_a_new_database_has_no_alert(db: Connection) -> None:
    for call in ("record_metrics", "run_audit", "checkpoint", "record_metrics"):
        db.execute(f"select two_tower.{call}()".encode())
    assert rows(db, "select * from two_tower.open_alerts where subject <> 'pgvector'") == []


def test_a_small_app_at_night_has_no_alert(db: Connection) -> None:
    users = [add_user(db) for _ in range(5)]
    posts = add_posts(db, 6, users[:1], np.random.default_rng(61))
    like(db, users, posts[:3])
    for call in ("record_metrics", "checkpoint", "record_metrics"):
        db.execute(f"select two_tower.{call}()".encode())
    assert opened(db) == set()
    db.execute(FORGET)
    assert state(db, "training_pairs_per_hour") == ("ok", False)


def test_events_that_teach_nothing_are_an_alert_and_a_quiet_hour_is_none(db: Connection) -> None:
    users = [add_user(db) for _ in range(30)]
    posts = add_posts(db, 60, users[:1], np.random.default_rng(62))
    like(db, users[1:], posts[:1])
    assert state(db, "training_pairs_per_hour") == ("ok", False)
    with db.transaction(force_rollback=True):
        db.execute("update public.engagement_events set created_at = created_at - interval '2 h'")
        db.execute(FORGET)
        assert state(db, "training_pairs_per_hour") == ("ok", False)
        assert note(db, "training_pairs_per_hour") == "Few users engage at this hour."
    db.execute(FORGET)
    assert state(db, "training_pairs_per_hour") == ("alert", True)
    with db.transaction(force_rollback=True):
        db.execute("select two_tower.freeze('a test')")
        assert state(db, "training_pairs_per_hour") == ("ok", False)
    like(db, users[1:], posts[1:2])
    assert state(db, "training_pairs_per_hour") == ("ok", False)


def test_where_clicks_alone_come_in_health_says_that_towers_learn_nothing(db: Connection) -> None:
    users = [add_user(db) for _ in range(30)]
    posts = add_posts(db, 60, users[:1], np.random.default_rng(65))
    click = "insert into public.engagement_events (user_id, post_id, event_type)"
    for user in users[1:]:
        db.execute((click + " values (%s, %s, 'click')").encode(), [user, posts[0]])
    assert state(db, "training_pairs_per_hour") == ("ok", False)
    assert "towers learn nothing" in note(db, "training_pairs_per_hour")
    db.execute("update two_tower.signals set label = true where event_type = 'click'")
    for user in users[1:]:
        db.execute((click + " values (%s, %s, 'click')").encode(), [user, posts[1]])
    assert state(db, "training_pairs_per_hour") == ("ok", False)
    assert note(db, "training_pairs_per_hour") is None


def test_positives_without_negatives_are_an_alert(db: Connection) -> None:
    users = [add_user(db) for _ in range(30)]
    posts = add_posts(db, 60, users[:1], np.random.default_rng(63))
    like(db, users[1:], posts[:1])
    db.execute("update two_tower.training_examples set negative_ids = negative_ids[:2]")
    assert state(db, "negatives_per_positive") == ("alert", True)
    like(db, users[1:], posts[1:2])
    assert state(db, "negatives_per_positive") == ("ok", False)


def test_users_without_a_vector_are_an_alert(db: Connection) -> None:
    users = [add_user(db) for _ in range(12)]
    like(db, users[1:], add_posts(db, 60, users[:1], np.random.default_rng(64))[:1])
    zero = "update two_tower.user_embeddings set embedding = two_tower.zero_vector()"
    with db.transaction(force_rollback=True):
        db.execute(zero.encode())
        assert state(db, "user_coverage") == ("alert", True)
    assert state(db, "user_coverage") == ("ok", False)


def test_posts_without_a_vector_are_an_alert_unless_a_worker_encodes_them(db: Connection) -> None:
    posts = add_posts(db, 8, [add_user(db)])
    db.execute("update two_tower.posts set created_at = two_tower.now()")
    # What a trigger did not meet looks encoded, and has no vector.
    db.execute("update two_tower.posts set encoded_hash = content_hash where id = %s", [posts[0]])
    rows(db, "select * from two_tower.claim_job('a', '{other}')")
    assert state(db, "post_coverage") == ("alert", True)
    db.execute(LEASE)
    assert state(db, "post_coverage") == ("ok", False)
    assert note(db, "post_coverage") == "A worker is encoding them."


def test_work_without_a_worker_is_one_alert(db: Connection) -> None:
    add_posts(db, 8, [add_user(db)])
    db.execute("update two_tower.posts set requested_at = requested_at - interval '2 hours'")
    for kind in ("test", "encode_posts"):
        db.execute("select two_tower.enqueue_job(%s)", [kind])
    db.execute("update two_tower.jobs set run_at = run_at - interval '2 hours'")
    assert state(db, "unattended_work") == ("alert", True)
    assert opened(db) == {"unattended_work"}
    rows(db, "select * from two_tower.claim_job('a', '{other}')")
    assert state(db, "unattended_work") == ("ok", False)
    assert {"oldest_waiting_job", "oldest_waiting_post", "post_coverage"} <= opened(db)
    rows(db, "select * from two_tower.claim_job('a', '{encode_posts}')")
    assert state(db, "post_coverage") == ("ok", False)
    assert opened(db) == {"oldest_waiting_job"}
    db.execute("delete from two_tower.jobs where kind = 'test'")
    db.execute("select two_tower.record_metrics()")
    assert opened(db) == set()


def test_the_audit_compares_with_a_week_ago(db: Connection) -> None:
    world = World(db)
    world.learn()
    assert state(db, "week_cosine", "run_audit") == ("unknown", False)
    db.execute("select two_tower.checkpoint()")
    db.execute("update two_tower.checkpoints set made_at = made_at - interval '7 days'")
    assert state(db, "week_cosine", "run_audit") == ("ok", False)
    turn = (
        "update two_tower.live_embeddings set embedding = array_fill(-1::real, array[128])"
        "::extensions.vector operator(extensions.*) embedding where not is_pretrained"
    )
    db.execute(turn.encode())
    assert state(db, "week_cosine", "run_audit") == ("alert", True)
    # It says nothing of a single checkpoint: those of the week that follows are no worse for it.
    good = value(db, "select is_good from two_tower.audits order by id desc limit 1")
    assert good == (value(db, "select two_tower.measure_drift()") is None)
    db.execute(turn.encode())
    assert state(db, "week_cosine", "run_audit") == ("ok", False)


def test_the_audit_weighs_positives_against_negatives(db: Connection) -> None:
    world = World(db)
    world.learn()
    assert state(db, "training_balance", "run_audit")[1] is False
    with db.transaction(force_rollback=True):
        db.execute("update two_tower.training_examples set negative_ids = '{}'")
        db.execute("update two_tower.training_examples set label = null where not label")
        db.execute("update two_tower.training_examples set negative_ids = '{1}' where event_id = 1")
        db.execute(
            "update two_tower.training_examples set negative_ids = '{1}' where event_id = ("
            " select min(event_id) from two_tower.training_examples where label)"
        )
        assert state(db, "training_balance", "run_audit") == ("alert", True)
    assert state(db, "training_balance", "run_audit")[1] is False


def test_partitions_that_run_out_are_an_alert(db: Connection) -> None:
    assert state(db, "partition_runway") == ("ok", False)
    db.execute(
        "update two_tower.partitions set starts_at = '2000-01-01', ends_at = now() + '2 hours'"
        " where partition_name in (select partition_name from two_tower.partitions"
        " where table_name = 'public.engagement_events'::regclass"
        " order by ends_at desc limit 1)"
    )
    db.execute("delete from two_tower.partitions where ends_at > now() + interval '1 day'")
    assert state(db, "partition_runway") == ("alert", True)
    db.execute("update two_tower.partitions set ends_at = ends_at + interval '9 days'")
    assert state(db, "partition_runway") == ("ok", False)


def test_an_alert_of_which_nothing_is_measured_any_more_closes(db: Connection) -> None:
    db.execute(
        "insert into two_tower.update_latencies (event_id, milliseconds)"
        " select n, 60 from generate_series(1, 100) n"
    )
    assert state(db, "update_latency") == ("alert", True)
    db.execute("delete from two_tower.update_latencies")
    assert state(db, "update_latency") == ("unknown", False)


def test_each_alert_says_what_to_do_and_where_the_documents_say_more(db: Connection) -> None:
    raised = {
        kind
        for path in PROJECT.glob("supabase/migrations/*.sql")
        for kind in re.findall(r"open_alert\('(\w+)'", path.read_text())
    }
    kinds = {row.kind: row for row in rows(db, "select * from two_tower.alert_kinds")}
    assert raised == set(kinds)
    for row in kinds.values():
        page, anchor = row.page.split("#")
        headings = re.findall(r"^#+ (.*)$", (PROJECT / page).read_text(), re.MULTILINE)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    db.execute("select two_tower.open_alert('metric_out_of_range', 'mean_cosine', 'a test')")
    db.execute("select two_tower.open_alert('post_held', '1', 'a test')")
    advice = {row.kind: row.advice for row in rows(db, "select * from two_tower.open_alerts")}
    assert advice["metric_out_of_range"].startswith("Roll back")
    assert advice["post_held"] == kinds["post_held"].advice
