"""The queue: claims, leases, retries, dead jobs, schedules; and workers as real processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import psycopg
import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.worker.jobs import HANDLERS
from python_jobs.worker.process import Worker
from tests.support.database import add_user
from tests.support.engagements import insert_events
from tests.support.learning import World
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.reference import Event
from tests.support.workers import RunningWorker


def set_clock(connection: Connection, offset: str) -> None:
    """Moves two_tower.now() of this transaction by an interval from the real time."""
    connection.execute(
        "select set_config('two_tower.now', (pg_catalog.now() + %s::interval)::text, true)",
        [offset],
    )


def claim(connection: Connection, worker: str = "a") -> Any:
    """The id of a claimed job, or None."""
    query = "select id from two_tower.claim_job(%s, '{test}', '1 minute')"
    claimed = rows(connection, query, worker)
    return claimed[0].id if claimed else None


def test_one_job_of_a_kind_and_subject_is_pending(db: Connection) -> None:
    assert value(db, "select two_tower.enqueue_job('test')") is not None
    assert value(db, "select two_tower.enqueue_job('test')") is None
    assert value(db, "select two_tower.enqueue_job('test', 'other')") is not None


def test_a_claimed_job_is_claimed_by_nobody_else_until_its_lease_ends(
    db: Connection,
) -> None:
    job = value(db, "select two_tower.enqueue_job('test')")
    assert claim(db, "a") == job
    assert claim(db, "b") is None
    set_clock(db, "59 seconds")
    assert claim(db, "b") is None
    set_clock(db, "61 seconds")
    assert claim(db, "b") == job
    with pytest.raises(psycopg.errors.DatabaseError) as caught:
        db.execute("select two_tower.complete_job(%s, 'a')", [job])
    assert caught.value.sqlstate == "TT003"
    assert caught.value.diag.message_hint


def test_a_heartbeat_extends_the_lease(db: Connection) -> None:
    job = value(db, "select two_tower.enqueue_job('test')")
    claim(db, "a")
    set_clock(db, "50 seconds")
    db.execute("select two_tower.heartbeat_job(%s, 'a', '1 minute')", [job])
    set_clock(db, "100 seconds")
    assert claim(db, "b") is None


def test_a_failed_job_waits_longer_each_time_and_is_dead_after_its_last_attempt(
    db: Connection,
) -> None:
    job = value(db, "select two_tower.enqueue_job('test')")
    waits = []
    for attempt in range(5):
        set_clock(db, f"{attempt + 1} hours")
        assert claim(db) == job
        state = value(db, "select two_tower.fail_job(%s, 'a', 'broken')", job)
        waits.append(
            value(
                db,
                "select extract(epoch from run_at - two_tower.now())::integer"
                " from two_tower.jobs where id = %s",
                job,
            )
        )
    assert state == "dead"
    assert waits[:4] == [4, 8, 16, 32]
    assert value(db, "select last_error from two_tower.jobs where id = %s", job) == "broken"
    set_clock(db, "10 hours")
    assert claim(db) is None


def test_a_job_whose_last_lease_ended_is_dead(db: Connection) -> None:
    job = value(db, "select two_tower.enqueue_job('test')")
    db.execute("update two_tower.jobs set max_attempts = 1 where id = %s", [job])
    assert claim(db) == job
    set_clock(db, "2 minutes")
    assert claim(db) is None
    assert value(db, "select state from two_tower.jobs where id = %s", job) == "dead"


def test_two_workers_at_once_get_different_jobs(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with connect(url) as one, connect(url) as two:
        one.execute("select two_tower.enqueue_job('test', n::text) from generate_series(1, 2) n")
        one.commit()
        first, second = claim(one, "a"), claim(two, "b")
        assert first is not None
        assert second is not None
        assert first != second


def test_one_job_of_a_kind_and_subject_runs_at_a_time(db: Connection) -> None:
    first = value(db, "select two_tower.enqueue_job('test')")
    assert claim(db, "a") == first
    second = value(db, "select two_tower.enqueue_job('test')")
    assert claim(db, "b") is None
    value(db, "select two_tower.complete_job(%s, 'a')", first)
    assert claim(db, "b") == second


def test_a_post_does_not_wait_for_a_training(fresh_database: Callable[[], str]) -> None:
    """While the training lane is busy, the other one encodes: both run at one moment."""
    started, may_end = threading.Event(), threading.Event()

    def training(connection: Connection) -> dict[str, Any]:
        started.set()
        assert may_end.wait(PATIENCE_S)
        return {}

    url = fresh_database()
    process = Worker(url)
    with patch.dict(HANDLERS, {"train_user_tower": training}):
        running = threading.Thread(target=process.run, args=[False])
        running.start()
        try:
            with connect(url, autocommit=True) as connection:
                value(connection, "select two_tower.enqueue_job('train_user_tower')")
                assert started.wait(PATIENCE_S)
                connection.execute(
                    "insert into public.posts (author_id, content) values (null, 'a boat')"
                )
                encoded = (
                    "select count(*) from two_tower.post_embeddings where embedding is not null"
                )
                wait_until(lambda: value(connection, encoded))
                state = "select state from two_tower.jobs where kind = 'train_user_tower'"
                assert value(connection, state) == "running"
        finally:
            may_end.set()
            process.is_stopping.set()
            running.join()


def test_a_schedule_by_time_makes_up_for_missed_runs_once(db: Connection) -> None:
    assert "record_metrics" in value(db, "select two_tower.start_due_schedules()")
    assert value(db, "select two_tower.start_due_schedules()") == []
    set_clock(db, "10 hours")
    assert "train_user_tower" in value(db, "select two_tower.start_due_schedules()")
    assert value(db, "select two_tower.start_due_schedules()") == []
    jobs = value(db, "select count(*) from two_tower.jobs where kind = 'train_user_tower'")
    assert jobs == 1


TRAINS = "select 'train_candidate_tower' = any (two_tower.start_due_schedules())"


def train_after(db: Connection, engagements: int) -> None:
    db.execute(
        "update two_tower.schedules set every_events = %s where every_events is not null",
        [engagements],
    )
    db.execute("update two_tower.settings set account_weight_days = 1")


def test_a_schedule_by_engagements_counts_those_that_were_learned(db: Connection) -> None:
    train_after(db, 5)
    world = World(db, posts=9)
    for post in world.post_ids[:4]:
        world.send("like", post)
        world.send("view", post)
        for _ in range(3):
            world.send("like", post)
    assert not value(db, TRAINS)
    world.send("like", world.post_ids[4])
    assert value(db, TRAINS)
    assert not value(db, TRAINS)


def test_one_account_starts_a_training_by_a_share_however_much_it_likes(db: Connection) -> None:
    train_after(db, 100)
    db.execute("update two_tower.settings set account_share = 0.05")
    world = World(db, users=81, posts=200)
    *honest, busy = world.user_ids
    for post in world.post_ids:
        world.send("like", post, busy)
    for user in honest[:70]:
        world.send("like", world.post_ids[0], user)
    assert not value(db, TRAINS)  # 70, and a share of 5 of 200
    insert_events(db, [Event(u, world.post_ids[1], "like", None, world.now) for u in honest[:24]])
    assert not value(db, TRAINS)
    world.send("like", world.post_ids[2], honest[0])
    assert value(db, TRAINS)


def test_new_accounts_start_a_training_by_their_weight(db: Connection) -> None:
    train_after(db, 10)
    db.execute("update two_tower.settings set account_weight_days = 3")
    world = World(db, users=29, posts=10)
    for user in world.user_ids:
        world.send("like", user_id=user)
    assert not value(db, TRAINS)
    for user in world.user_ids[:2]:
        world.send("like", world.post_ids[1], user)
    assert value(db, TRAINS)


def test_a_flood_of_events_that_teach_nothing_is_counted_in_bounded_steps(db: Connection) -> None:
    train_after(db, 5)
    world = World(db, posts=10)
    now = world.now
    repeated = [Event(world.user, world.post_ids[0], "like", None, now) for _ in range(60)]
    insert_events(db, repeated)
    for post in world.post_ids[1:5]:
        world.send("like", post)
    counted = "select coalesce(sum(engagements), 0) from two_tower.schedule_counts"
    for wanted in (1, 1, 1, 5, 5):
        db.execute("select two_tower.count_engagements('train_candidate_tower', 20)")
        assert value(db, counted) == wanted
    assert value(db, TRAINS)
    assert value(db, counted) == 0


def test_the_job_of_a_killed_worker_is_finished_by_another(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'post number ' || n from generate_series(1, 400) n"
        )
        killed = RunningWorker(url, "--lease", "2")
        running = (
            "select worker from two_tower.jobs where kind = 'encode_posts' and state = 'running'"
        )
        ((victim,),) = wait_until(lambda: rows(connection, running))
        killed.kill()
        missing = "select count(*) from two_tower.post_embeddings where embedding is null"
        assert value(connection, missing) > 0, "it was killed too late to prove anything"

        heir = RunningWorker(url)  # its own lease is long: a busy machine takes no job from it
        done = (
            "select worker from two_tower.jobs"
            " where kind = 'encode_posts' and state = 'done' and attempts = 2"
        )
        assert wait_until(lambda: rows(connection, done)) != [(victim,)]
        assert value(connection, missing) == 0
        heir.stop()
        assert not heir.said("Traceback")


def test_a_drained_worker_leaves_posts_and_profiles_encoded_and_ends(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        user = add_user(connection)
        # A page of one post is now and then all exploration.
        connection.execute("update two_tower.settings set exploration_share = 0")
        connection.execute(
            "insert into public.profiles (user_id, bio, interests)"
            " values (%s, 'I sail', '{boats}')",
            [user],
        )
        connection.execute(
            "insert into public.posts (author_id, content) values"
            " (null, 'a boat on the sea'), (null, 'tax law'), (null, repeat('x', 100000)),"
            " (null, ''), (null, '🙂 καλημέρα こんにちは')"
        )
        worker = RunningWorker(url, "--drain")
        assert worker.end() == 0, worker.lines
        missing = "select array_agg(post_id) from two_tower.post_embeddings where embedding is null"
        blank = "select array_agg(id) from public.posts where content = ''"
        assert value(connection, missing) == value(connection, blank)
        first = value(
            connection,
            "select p.content from two_tower.recommend_for(%s, 1) r"
            " join public.posts p on p.id = r.post_id",
            user,
        )
        assert first == "a boat on the sea"


def test_an_edit_during_the_encoding_is_not_overwritten_by_the_old_text(
    db: Connection,
) -> None:
    post = value(
        db, "insert into public.posts (author_id, content) values (null, 'a') returning id"
    )
    waiting = "select content_hash from two_tower.posts_to_encode()"
    old = value(db, waiting)
    db.execute("update public.posts set content = 'b' where id = %s", [post])
    vector = str([1.0] + [0.0] * 383)
    store = "select two_tower.store_base_embeddings(array[%s::bigint], array[%s::extensions.vector], array[%s::bigint])"  # noqa: E501
    assert value(db, store, post, vector, old) == 0
    new = value(db, waiting)
    assert new != old
    assert value(db, store, post, vector, new) == 1
    assert value(db, "select count(*) from two_tower.posts_to_encode()") == 0


def test_only_a_change_of_the_text_asks_for_another_encoding(db: Connection) -> None:
    post = value(
        db, "insert into public.posts (author_id, content) values (null, 'a') returning id"
    )
    waiting = "select count(*) from two_tower.posts_to_encode()"
    db.execute(
        "select two_tower.store_base_embeddings(array[%s::bigint], array[%s::extensions.vector])",
        [post, str([1.0] + [0.0] * 383)],
    )
    db.execute("update public.posts set deleted_at = now() where id = %s", [post])
    db.execute("update public.posts set content = 'a', deleted_at = null where id = %s", [post])
    assert value(db, waiting) == 0
    db.execute("update public.posts set content = 'b' where id = %s", [post])
    assert value(db, waiting) == 1


def test_done_jobs_go_after_a_day_and_dead_ones_after_thirty(db: Connection) -> None:
    for state, age in (
        ("done", "23 hours"),
        ("done", "25 hours"),
        ("dead", "29 days"),
        ("dead", "31 days"),
    ):
        db.execute(
            "insert into two_tower.jobs (kind, subject, state, finished_at)"
            " values ('encode_posts', %s, %s, two_tower.now() - %s::interval)",
            [age, state, age],
        )
    assert value(db, "select two_tower.prune_jobs(1)") == 1
    assert value(db, "select two_tower.prune_jobs()") == 1
    left = db.execute("select subject from two_tower.jobs where finished_at is not null")
    assert {subject for (subject,) in left} == {"23 hours", "29 days"}
