"""Checkpoints, audits, the freeze by itself, and the way back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from psycopg import errors

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, Connection, connect, value
from python_jobs.errors import CommandError
from python_jobs.operations.switch import finish_switch
from tests.support.database import add_user, as_user
from tests.support.engagements import Stream, add_posts, base_vectors, insert_events, store
from tests.support.invariants import assert_consistent
from tests.support.learning import copy_tower
from tests.support.patience import wait_until
from tests.support.reference import START, Event


def learned(connection: Connection) -> dict[str, list[Any]]:
    """All that learning moves: posts that were engaged with, and users."""
    return {
        "posts": connection.execute(
            "select post_id, embedding::text, engagement_count, popularity"
            " from two_tower.post_embeddings where not is_pretrained order by 1"
        ).fetchall(),
        "users": connection.execute(
            "select user_id, embedding::text, engaged_sum::text, prior::text, prior_weight,"
            " recent_post_ids, recent_strengths, positive_ids, positive_interests,"
            " interest_sums::text, engagement_count"
            " from two_tower.user_embeddings order by 1"
        ).fetchall(),
    }


def finish_rollback(connection: Connection) -> None:
    """What ticks do until the slots have flipped."""
    for _ in range(100):
        if value(connection, "select filling_checkpoint is null from two_tower.state"):
            return
        value(connection, "select two_tower.take_step()")
    raise AssertionError("the rollback does not end")


class World:
    """Users, posts, and a stream of engagements."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rng = np.random.default_rng(51)
        self.users = [add_user(connection) for _ in range(12)]
        self.posts = add_posts(connection, 120, self.users[:3], self.rng)
        self.stream = Stream(self.rng, self.users, self.posts[:60])

    def learn(self, events: int = 150) -> None:
        insert_events(self.connection, self.stream.next(events))
        value(self.connection, "select two_tower.fold_steps(null)")


@pytest.fixture
def world(db: Connection) -> World:
    return World(db)


def test_a_rollback_restores_vectors_users_and_weights_together(world: World) -> None:
    db = world.connection
    world.learn()
    wanted = learned(db)
    weights = value(db, "select two_tower.active_version('candidate_tower')")
    number = value(db, "select two_tower.checkpoint('operator')")
    world.learn()
    newcomer = add_user(db)
    insert_events(db, [Event(newcomer, world.posts[70], "like", None, world.stream.now)])
    late = add_posts(db, 3, world.users[:1], world.rng)
    insert_events(db, [Event(world.users[5], late[0], "like", None, world.stream.now)])
    assert learned(db) != wanted
    pushed = value(db, "select count(*) from two_tower.deferred_steps")
    assert pushed > 0

    assert value(db, "select two_tower.rollback()") == number
    assert value(db, "select frozen_reason from two_tower.state") == (
        f"rollback to checkpoint {number}"
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState), db.transaction():
        db.execute("select two_tower.resume()")
    finish_rollback(db)
    now = learned(db)
    assert now["posts"] == wanted["posts"]
    assert [row for row in now["users"] if str(row[0]) != newcomer] == wanted["users"]
    assert not np.any(
        np.array(
            value(
                db,
                "select embedding::real[] from two_tower.user_embeddings where user_id = %s",
                newcomer,
            )
        )
    )
    assert value(db, "select two_tower.active_version('candidate_tower')") == weights
    # Posts that nobody had engaged with are projections of their text again, the new ones too.
    assert value(
        db,
        "select bool_and(embedding operator(extensions.<#>)"
        "  two_tower.run_candidate_tower(base_embedding) < -0.99999)"
        " from two_tower.post_embeddings where is_pretrained",
    )
    encoded = "select count(*) from two_tower.post_embeddings where embedding is not null"
    assert value(db, encoded) == 123
    # What was queued before is void.
    value(db, "select two_tower.fold_steps(null)")
    assert learned(db)["posts"] == wanted["posts"]


def test_after_a_rollback_learning_goes_on_and_what_was_learned_is_not_learned_again(
    world: World,
) -> None:
    db = world.connection
    world.learn()
    value(db, "select two_tower.checkpoint()")
    liked = Event(world.users[3], world.posts[90], "like", None, world.stream.now)
    insert_events(db, [liked])
    value(db, "select two_tower.rollback()")
    # An event during the freeze waits, as one of any freeze does.
    insert_events(db, [Event(world.users[3], world.posts[91], "like", None, world.stream.now)])
    finish_rollback(db)
    before = learned(db)
    value(db, "select two_tower.resume(0.5)")
    assert value(db, "select two_tower.learn_deferred()") == 1
    assert learned(db) != before
    insert_events(db, [liked])
    reasons = db.execute("select reason from two_tower.unlearned_events order by event_id desc")
    assert reasons.fetchone() == ("repeated",)
    seen = value(
        db,
        "select is_engaged from two_tower.user_posts where (user_id, post_id) = (%s, %s)",
        liked.user_id,
        liked.post_id,
    )
    assert seen


def test_what_a_rollback_undid_is_not_taken_back_once_more(world: World) -> None:
    db = world.connection
    world.learn()
    user, post = world.users[3], world.posts[90]
    for event_type in ("click", "repost"):
        insert_events(db, [Event(user, post, event_type, None, world.stream.now)])
    value(db, "select two_tower.fold_steps(null)")
    value(db, "select two_tower.checkpoint()")
    wanted = learned(db)
    insert_events(db, [Event(user, post, "like", None, world.stream.now)])
    value(db, "select two_tower.rollback()")
    finish_rollback(db)
    db.execute("select two_tower.resume()")
    insert_events(db, [Event(user, post, "unlike", None, world.stream.now)])
    value(db, "select two_tower.fold_steps(null)")
    assert learned(db) == wanted
    # What the checkpoint holds can still be taken back.
    insert_events(db, [Event(user, post, "unrepost", None, world.stream.now)])
    assert learned(db) != wanted


def test_a_rollback_brings_back_the_towers_of_the_checkpoint(world: World) -> None:
    db = world.connection
    world.learn()
    first = value(db, "select two_tower.active_version('candidate_tower')")
    number = value(db, "select two_tower.checkpoint()")
    second = copy_tower(db)  # put in place as the gate does it
    value(db, "select two_tower.begin_switch(%s)", second)
    for _ in range(10):
        value(db, "select two_tower.take_step()")
    assert value(db, "select two_tower.active_version('candidate_tower')") == second
    # A promotion asks for a checkpoint of its own, which says why it was made.
    started = value(db, "select two_tower.start_due_schedules()")
    assert "checkpoint" in started
    reason = "select reason from two_tower.checkpoints order by id desc limit 1"
    assert value(db, reason) == "promotion"
    value(db, "select two_tower.rollback(%s)", number)
    finish_rollback(db)
    assert value(db, "select two_tower.active_version('candidate_tower')") == first
    states = dict(db.execute("select version, state from two_tower.model_weights").fetchall())
    assert states == {first: "active", second: "archived"}


def test_a_rollback_overtakes_a_promotion_that_is_under_way(world: World) -> None:
    db = world.connection
    world.learn()
    wanted = learned(db)
    value(db, "select two_tower.checkpoint()")
    second = copy_tower(db)
    value(db, "select two_tower.begin_switch(%s)", second)
    value(db, "select two_tower.fill_slot(10)")
    world.learn(40)
    value(db, "select two_tower.rollback()")
    finish_rollback(db)
    assert learned(db) == wanted
    verdict = "select verdict from two_tower.model_weights where version = %s"
    assert value(db, verdict, second) == "rejected: overtaken by a rollback"


def test_readers_and_writers_go_on_while_a_rollback_is_done(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        world = World(connection)
        world.learn()
        wanted = learned(connection)
        value(connection, "select two_tower.checkpoint()")
        world.learn()
        stop, lengths, sent = threading.Event(), [], [0]

        def read() -> None:
            with connect(url, autocommit=True) as session:
                while not stop.is_set():
                    rows = session.execute(
                        "select post_id from two_tower.recommend_for(%s, 20)", [world.users[4]]
                    ).fetchall()
                    lengths.append(len(rows))

        def write() -> None:
            stream = Stream(np.random.default_rng(52), world.users, world.posts[:60])
            stream.now = world.stream.now
            with connect(url, autocommit=True) as session:
                while not stop.is_set():
                    sent[0] += len(insert_events(session, stream.next(3)))

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(read), pool.submit(write)]
            try:
                while not lengths or not sent[0]:
                    pass
                value(connection, "select two_tower.rollback()")
                for _ in range(300):
                    value(connection, "select two_tower.fill_slot(5)")
                    value(connection, "select two_tower.restore_users(2)")
                    if value(connection, "select two_tower.flip_slots()"):
                        break
            finally:
                stop.set()
            for future in futures:
                future.result()
        assert value(connection, "select filling_checkpoint is null from two_tower.state")
        assert min(lengths) == 20
        assert learned(connection) == wanted
        # All events of the freeze wait, and are learned after it.
        assert sent[0] > 0
        connection.execute("select two_tower.resume()")
        while value(connection, "select two_tower.learn_deferred()"):
            pass
        assert value(connection, "select count(*) from two_tower.deferred_events") == 0
        assert learned(connection) != wanted


def test_a_rollback_that_a_crash_cut_off_is_finished_by_the_next_tick(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        world = World(connection)
        world.learn()
        wanted = learned(connection)
        value(connection, "select two_tower.checkpoint()")
        world.learn()
        with connect(url) as doomed:
            value(doomed, "select two_tower.rollback()")
            doomed.rollback()
        assert value(connection, "select frozen_at is null from two_tower.state")
        value(connection, "select two_tower.rollback()")
        with connect(url) as doomed:
            value(doomed, "select two_tower.fill_slot(50)")
            value(doomed, "select two_tower.restore_users(5)")
            doomed.rollback()
        connection.execute("update two_tower.schedules set last_run_at = now()")
        for _ in range(20):
            value(connection, "select two_tower.tick()")
        assert value(connection, "select filling_checkpoint is null from two_tower.state")
        assert learned(connection) == wanted


def test_a_checkpoint_that_can_not_be_had_is_told(world: World) -> None:
    for query in ("select two_tower.rollback()", "select two_tower.rollback(99)"):
        with pytest.raises(errors.InvalidParameterValue) as caught, world.connection.transaction():
            world.connection.execute(query)
        assert caught.value.diag.message_hint
    assert value(world.connection, "select frozen_at is null from two_tower.state")


@pytest.mark.parametrize("factor", [0, -1, 1.5, None])
def test_a_factor_out_of_its_range_is_refused(db: Connection, factor: float | None) -> None:
    with pytest.raises(errors.InvalidParameterValue), db.transaction():
        db.execute("select two_tower.resume(%s::real)", [factor])


def test_old_checkpoints_go_but_never_the_newest_good_one(world: World) -> None:
    db = world.connection
    db.execute("update two_tower.settings set checkpoints_kept = 2")
    world.learn(100)
    good = value(db, "select two_tower.checkpoint()")
    assert value(db, "select is_good from two_tower.checkpoints where id = %s", good)
    # All later ones find the space collapsed.
    db.execute("update two_tower.metric_targets set alert_high = -1 where name = 'mean_cosine'")
    later = [value(db, "select two_tower.checkpoint()") for _ in range(4)]
    kept = [row[0] for row in db.execute("select id from two_tower.checkpoints order by id")]
    assert kept == [good, *later[-2:]]
    tables = db.execute(
        "select count(*) from pg_class where relname ~ '^checkpoint_(posts|users)_[0-9]+$'"
        " and relkind = 'r'"
    ).fetchone()
    assert tables == (6,)
    assert value(db, "select two_tower.rollback()") == good


def test_a_step_that_fails_stops_no_other_and_opens_an_alert(world: World) -> None:
    db = world.connection
    db.execute(
        "insert into two_tower.signals (event_type, strength, label, bit, description)"
        " values ('wave', 1, true, 1 << 20, 'of this test')"
    )
    value(db, "select two_tower.freeze('test')")
    insert_events(db, [Event(world.users[0], world.posts[0], "wave", None, world.stream.now)])
    db.execute("delete from two_tower.signals where event_type = 'wave'")
    value(db, "select two_tower.resume()")
    insert_events(db, [Event(world.users[1], world.posts[1], "like", None, world.stream.now)])

    done = [value(db, "select two_tower.take_step()") for _ in range(10)]
    assert {"failed": "learn_deferred"} in done
    assert {"fold_steps": 1} in done
    alert = db.execute(
        "select subject, message, details, occurrences from two_tower.alerts"
        " where kind = 'call_failed'"
    ).fetchall()
    assert alert == [
        (
            "learn_deferred",
            "event_type wave is not known",
            {"sqlstate": "23514"},
            done.count({"failed": "learn_deferred"}),
        )
    ]
    assert value(db, "select count(*) from two_tower.deferred_events") == 1


def test_a_slot_that_can_not_be_filled_ends_the_switch_with_an_alert(world: World) -> None:
    db = world.connection
    version = copy_tower(db)
    db.execute("select two_tower.begin_switch(%s)", [version])
    db.execute("delete from two_tower.model_tensors where version = %s", [version])
    with pytest.raises(CommandError, match="can not be filled"):
        finish_switch(db)
    assert value(db, "select subject from two_tower.alerts where kind = 'call_failed'") == (
        "fill_slot"
    )


def test_an_audit_finds_a_collapsed_space_and_opens_an_alert(world: World) -> None:
    db = world.connection
    world.learn()
    value(db, "select two_tower.run_audit()")
    row = db.execute("select findings, is_good from two_tower.audits").fetchone()
    assert row is not None
    findings, is_good = row
    assert is_good
    vectors = np.array(
        [
            json.loads(vector)
            for (vector,) in db.execute(
                "select embedding::text from two_tower.post_embeddings where engagement_count > 0"
            )
        ]
    )
    cosines = vectors @ vectors.T
    count = len(vectors)
    wanted = (cosines.sum() - count) / (count * (count - 1))
    assert findings["mean_cosine"]["value"] == pytest.approx(wanted, abs=1e-5)
    assert findings["norm_error"]["value"] < 1e-5
    assert findings["post_coverage"]["value"] is None or findings["post_coverage"]["value"] == 1

    one = value(db, "select embedding from two_tower.live_embeddings limit 1")
    db.execute("update two_tower.live_embeddings set embedding = %s", [one])
    value(db, "select two_tower.run_audit()")
    good = [r[0] for r in db.execute("select is_good from two_tower.audits order by id")]
    assert good == [True, False]
    alerts = db.execute(
        "select subject from two_tower.alerts where kind = 'metric_out_of_range'"
        " and closed_at is null"
    ).fetchall()
    assert ("mean_cosine",) in alerts
    state = db.execute("select value, state from two_tower.health where name = 'mean_cosine'")
    assert state.fetchone() == (pytest.approx(1), "alert")


def drift(world: World) -> None:
    """Every post that somebody engages with now is suddenly elsewhere."""
    db = world.connection
    value(db, "select two_tower.checkpoint()")
    world.learn(60)
    db.execute(
        "update two_tower.live_embeddings set embedding = array_fill(-1::real, array[128])"
        "::extensions.vector operator(extensions.*) embedding where not is_pretrained"
    )


def test_while_a_freeze_waits_for_a_long_statement_all_others_go_on_learning(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        world = World(connection)
    like = "insert into public.engagement_events (user_id, post_id, event_type) values (%s, %s, %s)"
    with ThreadPoolExecutor() as pool, connect(url) as slow, connect(url, autocommit=True) as other:
        slow.execute(like, [world.users[4], world.posts[70], "like"])
        with connect(url, autocommit=True) as operator:
            freezing = pool.submit(value, operator, "select two_tower.freeze('a test')")
            waits = (
                "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
            )
            wait_until(lambda: value(other, waits))
            other.execute(like, [world.users[5], world.posts[71], "like"])
            assert not freezing.done()
            slow.commit()
            freezing.result()
        assert value(other, "select frozen_at is not null from two_tower.state")
        assert value(other, "select count(*) from two_tower.training_examples") == 2


def test_drift_opens_an_alert_and_freezes_once(world: World) -> None:
    db = world.connection
    world.learn()
    drift(world)
    assert value(db, "select two_tower.measure_drift()") > 1
    # As ticks do, in this order: that posts are held takes nothing from what has happened.
    assert value(db, "select two_tower.hold_posts()") > 0
    assert value(db, "select two_tower.hold_posts()") == 0
    value(db, "select two_tower.record_metrics()")
    db.execute("update two_tower.schedules set is_enabled = false")
    assert value(db, "select two_tower.take_step()") == {"froze": 1}
    assert "embedding_drift" in value(db, "select frozen_reason from two_tower.state")
    before = learned(db)
    insert_events(db, world.stream.next(10))
    assert learned(db) == before
    # The operator's word counts: the same alert does not freeze again.
    value(db, "select two_tower.resume()")
    value(db, "select two_tower.record_metrics()")
    assert "froze" not in value(db, "select two_tower.take_step()")
    assert value(db, "select frozen_at is null from two_tower.state")
    # A day later, with nothing moved since a newer checkpoint, the alert closes by itself.
    value(db, "select two_tower.learn_deferred(100)")
    value(db, "select two_tower.checkpoint()")
    insert_events(db, [Event(add_user(db), world.posts[0], "like", None, world.stream.now)])
    db.execute(
        "select set_config('two_tower.now', %s, true)",
        [(datetime.now(UTC) + timedelta(days=1)).isoformat()],
    )
    value(db, "select two_tower.record_metrics()")
    open_alerts = db.execute(
        "select from two_tower.alerts where subject = 'embedding_drift' and closed_at is null"
    ).fetchall()
    assert open_alerts == []


def test_twenty_accounts_in_concert_freeze_nothing_and_a_collapse_does(db: Connection) -> None:
    users = [add_user(db) for _ in range(220)]
    honest, concert = users[:200], users[200:]
    posts = add_posts(db, 300, [add_user(db)], np.random.default_rng(52))
    hot, hit, bait = posts[:12], posts[40:100], posts[100]
    now = START
    for post in hot + hit:
        now += timedelta(seconds=1)
        insert_events(db, [Event(honest[post % 200], posts[101 + post % 99], "like", None, now)])
        insert_events(db, [Event(honest[post % 200], post, "like", None, now)])
    value(db, "select two_tower.checkpoint()")
    insert_events(db, [Event(u, hot[n % 12], "click", None, now) for n, u in enumerate(honest)])
    insert_events(db, [Event(user, bait, "like", None, now) for user in concert])
    for kind in ("reply", "like", "repost"):
        now += timedelta(hours=1)
        for post in hit:
            now += timedelta(seconds=2)
            insert_events(db, [Event(user, post, kind, None, now) for user in concert])
    moved = """
      select avg(1 + (v.embedding operator(extensions.<#>) c.embedding))
      from two_tower.checkpoint_posts c join two_tower.live_embeddings v using (post_id)
      where v.slot = 0 and v.engagement_count <> c.engagement_count"""
    assert value(db, moved) > 0.3  # the mean, which would freeze
    assert value(db, "select two_tower.measure_drift()") < 0.2
    value(db, "select two_tower.record_metrics()")
    assert not value(db, "select two_tower.freeze_on_drift()")
    db.execute(
        "update two_tower.live_embeddings set embedding = (select embedding from"
        " two_tower.live_embeddings where post_id = %s limit 1) where not is_pretrained",
        [bait],
    )
    value(db, "select two_tower.record_metrics()")
    assert value(db, "select two_tower.freeze_on_drift()")


def test_a_post_that_a_crowd_moves_is_held_until_the_next_checkpoint(db: Connection) -> None:
    crowd, honest = ([add_user(db) for _ in range(20)] for _ in range(2))
    posts = add_posts(db, 120, [add_user(db)], np.random.default_rng(53))
    hit, other, baits = posts[0], posts[1], posts[2:22]
    now = START
    for user, post in [(honest[0], hit), (honest[1], other)]:
        insert_events(db, [Event(user, post, "like", None, now)])
    for user in crowd:  # all of them stand where the baits are
        insert_events(db, [Event(user, bait, "like", None, now) for bait in baits[:6]])
    value(db, "select two_tower.checkpoint()")
    db.execute("update two_tower.settings set post_movement_limit = 0.26")
    place = """
      select 1 + (v.embedding operator(extensions.<#>) c.embedding)
      from two_tower.checkpoint_posts c join two_tower.live_embeddings v using (post_id)
      where v.slot = 0 and post_id = %s order by checkpoint_id limit 1"""

    def attack(kind: str) -> float:
        nonlocal now
        now += timedelta(hours=1)
        insert_events(db, [Event(user, hit, kind, 9000, now) for user in crowd])
        value(db, "select two_tower.hold_posts()")
        return float(value(db, place, hit))

    moved = [attack(kind) for kind in ("reply", "like", "repost", "click")]
    assert moved[0] < 0.26 < moved[1] == moved[2] == moved[3], moved
    insert_events(db, [Event(honest[0], other, "like", None, now)])
    assert value(db, place, other) > 0  # no other post is held
    alert = "select count(*) from two_tower.alerts where kind = 'post_held' and closed_at is null"
    assert value(db, alert) == 1
    assert value(db, "select two_tower.measure_drift()") < 0.1
    value(db, "select two_tower.checkpoint()")
    assert value(db, alert) == 0
    assert attack("dwell") > moved[3]


def test_drift_freezes_nothing_where_the_setting_says_so(world: World) -> None:
    db = world.connection
    db.execute("update two_tower.settings set freeze_on_drift = false")
    world.learn()
    drift(world)
    value(db, "select two_tower.record_metrics()")
    assert not value(db, "select two_tower.freeze_on_drift()")
    assert value(db, "select frozen_at is null from two_tower.state")


def test_a_promotion_is_not_drift(world: World) -> None:
    db = world.connection
    world.learn()
    drift(world)
    db.execute("update two_tower.model_weights set state = 'archived' where state = 'active'")
    db.execute(
        "insert into two_tower.model_weights (tower, state) values ('candidate_tower', 'active')"
    )
    assert value(db, "select two_tower.measure_drift()") is None


def test_tensors_of_versions_long_past_go_and_those_of_checkpoints_stay(world: World) -> None:
    db = world.connection
    first = value(db, "select two_tower.active_version('candidate_tower')")
    value(db, "select two_tower.checkpoint()")
    db.execute("update two_tower.settings set weight_versions_kept = 3")
    versions = [
        value(
            db,
            "insert into two_tower.model_weights (tower, state, verdict)"
            " values ('candidate_tower', 'rejected', 'a test') returning version",
        )
        for _ in range(6)
    ]
    for version in versions:
        db.execute(
            "insert into two_tower.model_tensors select %s, name, row_index, row"
            " from two_tower.model_tensors where version = %s limit 3",
            [version, first],
        )
    assert value(db, "select two_tower.prune_weights()") == 3
    left = db.execute("select distinct version from two_tower.model_tensors order by 1").fetchall()
    assert [row[0] for row in left] == [first, *versions[3:]]
    assert value(db, "select count(*) from two_tower.model_weights") == 7


def test_workers_who_own_no_table_make_checkpoints_and_partitions(db: Connection) -> None:
    db.execute("update two_tower.partitioned_tables set ahead = ahead + 1")
    db.execute(
        "select two_tower.create_partition('public.engagement_events', '2020-01-01', '2020-02-01')"
    )
    with as_user(db, None, "service_role"):
        # Either returns 0 where an autovacuum is in the way, and is called again by the next tick.
        calls = ("create_partitions_ahead", "drop_old_partitions")
        done = [[value(db, f"select two_tower.{call}()") for _ in range(5)] for call in calls]
        assert max(done[0]) > 0
        assert sum(done[1]) == 1
        assert value(db, "select two_tower.checkpoint()") > 0
        db.execute("select two_tower.rollback()")
        finish_rollback(db)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize(
    "call",
    [
        "select two_tower.checkpoint()",
        "select two_tower.rollback()",
        "select two_tower.restore_users()",
        "select two_tower.run_audit()",
        "select two_tower.resume()",
        "select two_tower.start_experiment('x')",
        "select * from two_tower.checkpoint_users",
        "select * from two_tower.alerts",
        "select * from two_tower.experiment_results",
    ],
)
def test_a_client_reaches_none_of_it(db: Connection, role: str, call: str) -> None:
    user = add_user(db) if role == "authenticated" else None
    with as_user(db, user, role), pytest.raises(errors.InsufficientPrivilege), db.transaction():
        db.execute(call.encode())


def command(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={URL_VARIABLE: url})


def test_the_commands_of_an_operator(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        world = World(connection)
        assert command(url, "rollback", "--yes").output.strip() == (
            "Error: No checkpoint is good, not empty, and older than what went wrong:"
            " two-tower report shows all."
        )
        world.learn()
        wanted = learned(connection)
        assert "Checkpoint 1; its audit found nothing." in command(url, "checkpoint").output
        world.learn()
        assert command(url, "freeze", " ").exit_code == 1
        assert command(url, "freeze", "a test").exit_code == 0
        assert command(url, "resume", "--factor", "2").exit_code == 1
        assert command(url, "resume", "--skip").exit_code == 0
        answer = command(url, "rollback", "--checkpoint", "1", "--yes")
        assert answer.exit_code == 0, answer.output
        assert "Checkpoint 1 serves again" in answer.output
        assert learned(connection) == wanted
        report = json.loads(command(url, "report", "--json").output)
        assert report["Learning"][0]["frozen_reason"] == "rollback to checkpoint 1"
        assert [row["id"] for row in report["Checkpoints"]] == [1]
        assert command(url, "report").exit_code == 0
        assert command(url, "resume").exit_code == 0
        world.learn()
        assert_consistent_but_for_what_was_rolled_back(connection)


def assert_consistent_but_for_what_was_rolled_back(connection: Connection) -> None:
    """Norms hold in any case; counts are those of the checkpoint and later."""
    worst = value(
        connection,
        "select max(abs(extensions.vector_norm(embedding) - 1)) from two_tower.live_embeddings",
    )
    assert worst < 1e-5


def test_a_database_without_two_tower_is_told(create_database: Callable[..., str]) -> None:
    url = create_database()
    for arguments in (["checkpoint"], ["report"], ["freeze", "x"], ["rollback", "--yes"]):
        answer = command(url, *arguments)
        assert answer.exit_code == 1
        assert "two-tower migrate" in answer.output


def test_encoding_goes_on_during_a_rollback(world: World) -> None:
    db = world.connection
    world.learn()
    value(db, "select two_tower.checkpoint()")
    value(db, "select two_tower.rollback()")
    value(db, "select two_tower.fill_slot(1000)")
    (late,) = add_posts(db, 1, world.users[:1])
    store(db, [late], base_vectors(world.rng, 1))
    finish_rollback(db)
    is_there = "select embedding is not null from two_tower.post_embeddings where post_id = %s"
    assert value(db, is_there, late)
    value(db, "select two_tower.resume()")
    insert_events(db, [Event(world.users[1], late, "like", None, world.stream.now)])
    assert_consistent(db)
