"""Settings do what their comments say: each test turns one, and what happens is another thing.

Settings of which a behaviour is a subject of its own are turned where that is tested.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from python_jobs.db import Connection, value
from tests.support.database import add_user, as_user
from tests.support.engagements import base_vectors, insert_events
from tests.support.learning import World, live, rng, user_vector
from tests.support.reference import START, Event, norm

NOBODY = "00000000-0000-0000-0000-000000000000"


@contextmanager
def settings(connection: Connection, **wanted: Any) -> Iterator[None]:
    """Within the block these settings hold; at its end all that happened in it is undone."""
    with connection.transaction(force_rollback=True):
        for name, setting in wanted.items():
            connection.execute(
                sql.SQL("update two_tower.settings set {} = %s").format(sql.Identifier(name)),
                [setting],
            )
        yield


def set_clock(connection: Connection, later: timedelta) -> None:
    """It is so much later than START, until the block ends."""
    connection.execute(
        "select set_config('two_tower.now', %s, true)", [(START + later).isoformat()]
    )


def scores(connection: Connection, reader: str, posts: list[int]) -> dict[int, Any]:
    """The parts of the scores that posts have for a reader."""
    rows = connection.execute(
        "select * from two_tower.score_posts(two_tower.load_reader(%s), %s::bigint[])",
        [reader, posts],
    )
    return {row.post_id: row for row in rows}


# Events


@pytest.mark.parametrize(("tolerance", "is_stored"), [("5 minutes", False), ("1 hour", True)])
def test_an_event_lies_no_further_in_the_future_than_future_event_tolerance(
    db: Connection, tolerance: str, is_stored: bool
) -> None:
    world = World(db, posts=1)
    refused = pytest.raises(psycopg.Error, match="out of range")
    with settings(db, future_event_tolerance=tolerance), nullcontext() if is_stored else refused:
        set_clock(db, timedelta(0))
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            " values (%s, %s, 'like', %s)",
            [world.user, world.post_ids[0], START + timedelta(minutes=30)],
        )


@pytest.mark.parametrize(("short", "label"), [(2000, False), (500, None)])
def test_a_dwell_below_short_dwell_ms_is_a_skip_and_a_longer_one_a_view(
    db: Connection, short: int, label: bool | None
) -> None:
    world = World(db)
    with settings(db, short_dwell_ms=short):
        event_id = world.send("dwell", dwell_ms=1000)
        learned = [(world.post_ids[0], label, "explicit")] if label is not None else []
        assert world.pairs(event_id=event_id) == learned
        seen = value(db, "select signals from two_tower.user_posts where user_id = %s", world.user)
        signal = "select bit from two_tower.signals where event_type = %s"
        assert seen == value(db, signal, "view" if label is None else "skip")


def test_a_client_event_id_is_forgotten_after_client_event_retry_window(db: Connection) -> None:
    world = World(db, posts=1)
    key, post_id = uuid.uuid4(), world.post_ids[0]
    old = value(
        db,
        "insert into public.engagement_events"
        " (user_id, post_id, event_type, client_event_id, created_at)"
        " values (%s, %s, 'view', %s, now() - interval '1 hour') returning id",
        world.user, post_id, key,
    )  # fmt: skip
    batch = json.dumps([{"post_id": post_id, "event_type": "view", "client_event_id": str(key)}])
    record = "select event_id from public.record_engagements(%s)"
    insert = (
        "insert into public.engagement_events (post_id, event_type, client_event_id)"
        " values (%s, 'view', %s) returning id"
    )
    with settings(db, client_event_retry_window="2 hours"):
        with as_user(db, world.user):
            assert value(db, record, batch) == old
        with (
            pytest.raises(psycopg.errors.UniqueViolation),
            db.transaction(),
            as_user(db, world.user),
        ):
            value(db, insert, post_id, key)
    for query, given in ((record, [batch]), (insert, [post_id, key])):
        with (
            settings(db, client_event_retry_window="30 minutes"),
            as_user(db, world.user),
        ):
            assert value(db, query, *given) > old


@pytest.mark.parametrize(("kept_for", "is_kept"), [("30 days", True), ("7 days", False)])
def test_training_examples_are_kept_for_training_examples_kept_for(
    db: Connection, kept_for: str, is_kept: bool
) -> None:
    world = World(db)
    back = value(db, "select now() - interval '20 days'")
    event_id = world.send("like", created_at=back)
    value(db, "select two_tower.create_partitions_back_to(%s)", back)
    with settings(db, training_examples_kept_for=kept_for):
        value(db, "select two_tower.drop_old_partitions()")
        left = db.execute("select event_id from two_tower.training_examples").fetchall()
        assert left == [(event_id,)] * is_kept
        assert value(db, "select count(*) from public.engagement_events") == 1


# Training pairs


@pytest.mark.parametrize(("window", "source"), [("1 hour", "viewed"), ("10 minutes", "random")])
def test_a_view_within_viewed_negative_window_makes_a_negative(
    db: Connection, window: str, source: str
) -> None:
    # So few posts that each is a negative, one way or the other.
    world = World(db, posts=2)
    viewed, liked = world.post_ids
    with settings(db, viewed_negative_window=window):
        world.send("view", viewed, created_at=START)
        event_id = world.send("like", liked, created_at=START + timedelta(minutes=30))
        assert (viewed, False, source) in world.pairs(event_id=event_id)


def test_random_negatives_are_of_the_newest_recent_posts_pool(db: Connection) -> None:
    world = World(db, posts=300)
    reached = {}
    for pool in (10, 100):
        with settings(db, recent_posts_pool=pool):
            for post_id in world.post_ids[:20]:
                world.send("like", post_id)
            drawn = {post for post, _, source in world.pairs() if source == "random"}
            assert drawn <= set(world.post_ids[-pool:])
            reached[pool] = min(drawn)
    # Of 160 draws from a hundred, not all are from the newest ten.
    assert reached[100] < world.post_ids[-10] <= reached[10]


# What trainings read


def test_users_to_train_are_at_most_user_tower_users_those_with_the_newest_positives(
    db: Connection,
) -> None:
    world = World(db, users=4)
    for user_id in world.user_ids:
        world.send("like", user_id=user_id)
    newest = world.user_ids[::-1]
    for users in (1, 3):
        with settings(db, user_tower_users=users):
            found = db.execute("select u::text from two_tower.users_to_train(null) u").fetchall()
            assert [row[0] for row in found] == newest[:users]


@pytest.mark.parametrize(("window", "is_encoded"), [("4 days", True), ("2 days", False)])
def test_users_who_were_active_within_active_user_window_are_encoded(
    db: Connection, window: str, is_encoded: bool
) -> None:
    world = World(db)
    world.send("like")
    with settings(db, active_user_window=window):
        set_clock(db, timedelta(days=3))
        found = db.execute("select two_tower.users_to_encode(%s)::text", [NOBODY]).fetchall()
        assert found == [(world.user,)] * is_encoded


def test_where_posts_stood_is_read_from_the_newest_examples_read(db: Connection) -> None:
    world = World(db, users=51, posts=21)
    db.execute("update two_tower.settings set pushes_per_positive = 0, negatives_per_positive = 5")
    first, others = world.post_ids[0], world.post_ids[1:]
    events = [Event(world.user, first, "like")]
    events += [Event(user, post, "click") for user in world.user_ids[1:] for post in others]
    insert_events(db, events)
    assert value(db, "select count(*) from two_tower.training_examples") == 1001
    for examples, seen in ((1000, set(others)), (1001, {first, *others})):
        with settings(db, examples_read=examples):
            found = db.execute("select post_id from two_tower.posts_as_of(null)").fetchall()
            assert {row[0] for row in found} == seen


# Versions and priors


def test_a_lower_bound_may_lie_gate_tolerance_below_zero(db: Connection) -> None:
    # Mean 0.01 and standard error 0.04: the lower bound is 0.01 - 2 * 0.04.
    users = [str(uuid.UUID(int=number)) for number in (1, 2)]
    for tolerance, is_better in ((0, False), (0.06, False), (0.08, True)):
        with settings(db, gate_tolerance=tolerance, gate_standard_errors=2, gate_minimum_events=2):
            row = db.execute(
                "select is_better, metrics from two_tower.compare_versions(%s, %s::uuid[])",
                [[0.05, -0.03], users],
            ).fetchone()
            assert row is not None
            assert row.metrics["lower_bound"] == pytest.approx(-0.07)
            assert row.is_better == is_better


@pytest.mark.parametrize("weight", [0.5, 4.0])
@pytest.mark.parametrize("call", ["a new profile", "a profile that is projected again"])
def test_a_profile_is_added_to_the_engaged_sum_with_profile_weight(
    db: Connection, weight: float, call: str
) -> None:
    world = World(db)
    db.execute("insert into public.profiles (user_id, bio) values (%s, 'sailing')", [world.user])
    world.send("like")
    store = (
        "select two_tower.store_profile_embeddings(array[user_id], array[%s::extensions.vector],"
        " array[content_hash]) from two_tower.profile_embeddings where user_id = %s"
    )
    given = str(base_vectors(rng(2), 1)[0]), world.user
    if call != "a new profile":
        value(db, store, *given)
    with settings(db, profile_weight=weight):
        if call == "a new profile":
            value(db, store, *given)
        else:
            value(db, "select two_tower.project_profiles(%s)", NOBODY)
        row = db.execute(
            "select prior::real[], engaged_sum::real[] as engaged"
            " from two_tower.user_embeddings where user_id = %s",
            [world.user],
        ).fetchone()
        assert row is not None
        expected = norm(weight * np.array(row.prior) + np.array(row.engaged))
        assert np.abs(user_vector(db, world.user) - expected).max() < 1e-5


# Ranking


@pytest.mark.parametrize("weight", [0.2, 1.5])
def test_a_post_of_a_followed_author_gains_followed_weight(db: Connection, weight: float) -> None:
    world = World(db, posts=1)
    follower, other = add_user(db), add_user(db)
    db.execute("insert into public.follows values (%s, %s)", [follower, world.author])
    with settings(db, followed_weight=weight):
        (post_id,) = world.post_ids
        assert scores(db, follower, [post_id])[post_id].followed == pytest.approx(weight)
        assert scores(db, other, [post_id])[post_id].followed == 0


@pytest.mark.parametrize("weight", [0.2, 1.5])
@pytest.mark.parametrize(("half_life", "left"), [("3 days", 1 / 2), ("6 days", 1 / 2**0.5)])
def test_for_a_cold_reader_freshness_has_recency_weight_and_halves_in_recency_half_life(
    db: Connection, weight: float, half_life: str, left: float
) -> None:
    # Posts of a World are a day older than START.
    world = World(db, posts=1)
    with settings(db, recency_weight=weight, recency_half_life=half_life):
        set_clock(db, timedelta(days=2))
        (post_id,) = world.post_ids
        fresh = scores(db, add_user(db), [post_id])[post_id].fresh
        assert fresh == pytest.approx(weight * left)


# The serving index


@pytest.fixture
def indexed(db: Connection) -> World:
    """Posts that are served from an index, and a user who likes one."""
    world = World(db, posts=80)
    world.send("like")
    value(db, "select two_tower.build_serving_index()")
    db.execute("delete from two_tower.jobs")
    return world


def move(connection: Connection, posts: list[int]) -> None:
    """Live vectors go to where a crowd might have moved them, each at least 0.01 away (cosine)."""
    for post_id in posts:
        vector = live(connection, post_id)
        away = norm(vector + 0.3 * norm(rng(post_id).normal(size=128)))
        assert 0.01 < 1 - vector @ away < 0.2
        connection.execute(
            "update two_tower.live_embeddings set embedding = %s::real[]::extensions.vector"
            " where post_id = %s",
            [away.tolist(), post_id],
        )


def asks_for_a_build(connection: Connection) -> bool:
    """Whether a check of the index leaves a job."""
    value(connection, "select two_tower.check_serving_index()")
    jobs = "select count(*) from two_tower.jobs where kind = 'build_serving_index'"
    return bool(value(connection, jobs))


def test_a_copy_is_refreshed_when_it_is_serving_drift_tolerance_away(
    db: Connection, indexed: World
) -> None:
    post_id = indexed.post_ids[5]
    before = live(db, post_id)
    move(db, [post_id])
    distance = float(1 - before @ live(db, post_id))
    # Copies are kept in half precision.
    for tolerance, written in ((1.2 * distance, 0), (0.8 * distance, 1)):
        with settings(db, serving_drift_tolerance=tolerance):
            copied = value(db, "select two_tower.copy_to_serving_index(%s)", [post_id])
            assert copied == written


def test_the_index_is_rebuilt_when_its_recall_fell_by_serving_recall_tolerance(
    db: Connection, indexed: World
) -> None:
    assert not asks_for_a_build(db)
    # A search for forty finds at most forty of the nearest fifty.
    db.execute("update two_tower.settings set over_fetch = 40")
    for tolerance, is_due in ((0.3, False), (0.1, True)):
        with settings(db, serving_recall_tolerance=tolerance):
            assert asks_for_a_build(db) == is_due
            row = db.execute("select recall_when_built, recall from two_tower.serving_index")
            assert row.fetchall() == [(1, 0.8)]


def test_the_index_is_rebuilt_when_serving_rebuild_share_of_its_copies_were_replaced(
    db: Connection, indexed: World
) -> None:
    moved = indexed.post_ids[:20]
    move(db, moved)
    value(db, "select two_tower.refresh_serving_index()")
    assert value(db, "select replaced from two_tower.serving_index") == len(moved)
    for share, is_due in ((0.3, False), (0.2, True)):  # of 80 posts
        with settings(db, serving_rebuild_share=share, serving_recall_tolerance=0.5):
            assert asks_for_a_build(db) == is_due


@pytest.mark.parametrize(("limit", "taken"), [(16, "16MB"), (40, "40MB"), (1024, "64MB")])
def test_a_build_takes_at_most_serving_build_megabytes_and_no_more_than_it_needs(
    db: Connection, limit: int, taken: str
) -> None:
    World(db)
    with settings(db, serving_build_megabytes=limit):
        value(db, "select two_tower.build_serving_index()")
        assert value(db, "select current_setting('maintenance_work_mem')") == taken


@pytest.mark.parametrize("command", ["delete from", "truncate"])
def test_the_row_of_settings_is_never_gone(db: Connection, command: str) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught, db.transaction():
        db.execute(f"{command} two_tower.settings".encode())
    assert "Use an UPDATE" in str(caught.value.diag.message_hint)
    assert value(db, "select count(*) from two_tower.settings") == 1


def test_a_change_of_a_setting_is_kept_with_who_made_it(db: Connection) -> None:
    with as_user(db, None, "service_role"):
        db.execute("update two_tower.signals set strength = 1.2 where event_type = 'like'")
        db.execute("update two_tower.settings set encoder = 'a', seen_again_after = null")
    changes = db.execute(
        "select changed_by, table_name, row_key, old_values, new_values"
        " from two_tower.setting_changes order by id"
    ).fetchall()
    assert changes == [
        ("service_role", "signals", "like", {"strength": 1}, {"strength": 1.2}),
        (
            *("service_role", "settings", None),
            {"encoder": "all-MiniLM-L6-v2", "seen_again_after": "30 days"},
            {"encoder": "a", "seen_again_after": None},
        ),
    ]


@pytest.mark.parametrize(
    "assignment",
    [
        "learning_rule = 'magic'",
        "negatives_per_positive = 4",
        "negatives_per_positive = 11",
        "literal_learning_rate = 0.02",
        "temperature = 0",
        "long_dwell_ms = 1",
        "history_decay = 'NaN'",
    ],
)
def test_a_setting_out_of_range_is_refused(db: Connection, assignment: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(f"update two_tower.settings set {assignment}")  # type: ignore[call-overload]
