"""Study: whom it does not read, what makes it void, and that it is applied once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, call_rows, connect, rows, value
from python_jobs.worker.jobs import HANDLERS
from python_jobs.worker.stopping import StoppedError, leaving_when
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, insert_events
from tests.support.learning import World
from tests.support.patience import wait_until
from tests.support.reference import START, Event
from tests.support.workers import RunningWorker, running_worker, waiting_backend
from tests.worker.test_study import LIVE, begin, engage, set_clock, steps_of, studied, vectors

APPLY = "select two_tower.apply_study(%s, %s::bigint[], %s)"
WINDOW = """
  select e.user_id::text, e.post_id, e.event_type, e.id from two_tower.study_window(%s) w
    join public.engagement_events e on e.id = w.event_id
"""


@pytest.fixture
def world(db: Connection) -> World:
    """Twelve users who engaged with forty of sixty posts."""
    world = World(db, users=12, posts=60)
    engage(world, 500)
    return world


def like(world: World, user: str, post: int) -> int:
    """A like of an hour ago."""
    at = value(world.connection, "select two_tower.now()") - timedelta(hours=1)
    now = at + timedelta(hours=1)
    (event,) = insert_events(world.connection, [Event(user, post, "like", None, at)])
    set_clock(world.connection, now)
    return event


def erase(world: World, user: str) -> None:
    world.connection.execute("delete from auth.users where id = %s", [user])


def reset(world: World, user: str) -> None:
    with as_user(world.connection, user):
        value(world.connection, "select public.reset_my_feed()")


@pytest.mark.parametrize("leave", [erase, reset])
def test_nothing_is_read_of_who_is_erased_or_began_anew(
    world: World, leave: Callable[[World, str], None]
) -> None:
    db = world.connection
    study = begin(db)
    before = rows(db, WINDOW, study.id)
    (asked,) = rows(
        db,
        "select array_agg(w.event_id) as ids, array_agg(w.created_at) as times"
        " from two_tower.study_window(%s) w join public.engagement_events e on e.id = w.event_id"
        " where e.user_id = %s",
        study.id,
        world.user,
    )
    leave(world, world.user)
    after = rows(db, WINDOW, study.id)
    assert asked.ids
    assert {row.user_id for row in before} - {row.user_id for row in after} == {world.user}
    steps = "select * from two_tower.study_steps(%s, %s::bigint[], %s::timestamptz[])"
    assert rows(db, steps, study.id, asked.ids, asked.times) == []


def test_who_began_anew_is_made_of_what_came_since(world: World) -> None:
    db = world.connection
    reset(world, world.user)
    new = [
        post
        for post in world.post_ids
        if post
        not in {
            row.post_id
            for row in rows(
                db, "select post_id from two_tower.user_posts where user_id = %s", world.user
            )
        }
    ][:2]
    for post in new:
        like(world, world.user, post)
    steps = [step for step in steps_of(db, begin(db)) if step.user_id == world.user]
    assert [(step.post_id, step.history_ids) for step in steps] == [
        (new[0], []),
        (new[1], [new[0]]),
    ]


def test_what_was_ever_taken_back_is_not_repeated(world: World) -> None:
    db = world.connection
    withdrawn = rows(
        db, "select user_id::text, post_id from two_tower.user_posts where was_withdrawn"
    )
    steps = steps_of(db, begin(db))
    taught = {(step.user_id, post) for step in steps for post in (step.post_id, *step.history_ids)}
    assert withdrawn
    assert not taught & {tuple(row) for row in withdrawn}


def test_what_an_operator_undid_is_not_taught_again(world: World) -> None:
    db = world.connection

    def taught() -> set[str]:
        return {step.user_id for step in steps_of(db, begin(db))}

    assert world.user in taught()
    value(db, "select two_tower.undo('spam', array[%s]::uuid[])", world.user)
    value(db, "select two_tower.finish_undos()")
    assert taught() == {str(user) for user in world.user_ids} - {world.user}


def test_what_stands_for_less_than_ten_minutes_is_for_the_next_study(world: World) -> None:
    db = world.connection
    set_clock(db, START + timedelta(minutes=499))
    study = begin(db)
    ages = rows(
        db, "select two_tower.now() - created_at as age from two_tower.study_window(%s)", study.id
    )
    assert min(row.age for row in ages) >= timedelta(minutes=10)
    value(db, "select two_tower.end_study(%s)", study.id)
    set_clock(db, START + timedelta(minutes=600))
    later = begin(db)
    assert 0 < later.engagements < 10
    assert later.last_event_id > study.last_event_id
    assert later.steps == 4 * later.engagements


def test_one_account_has_a_share_of_the_window(db: Connection) -> None:
    world = World(db, users=101, posts=60)
    events = [
        Event(user, post, "like", None, START + timedelta(seconds=number))
        for number, (user, post) in enumerate(
            [(world.user, post) for post in world.post_ids]
            + [(user, world.post_ids[n % 7]) for n, user in enumerate(world.user_ids[1:])]
        )
    ]
    db.execute("update two_tower.settings set learned_events_per_minute = 1000")
    insert_events(db, events)
    set_clock(db, START + timedelta(hours=1))
    window = rows(db, WINDOW, begin(db).id)
    mine = sum(row.user_id == world.user for row in window)
    assert 0 < mine <= max(1, 0.02 * len(window))
    assert len(window) == 100 + mine


def roll_back(db: Connection) -> None:
    value(db, "select two_tower.rollback(two_tower.checkpoint('operator'))")


def switch_tower(db: Connection) -> None:
    db.execute(
        "with old as (update two_tower.model_weights set state = 'archived'"
        "   where state = 'active' and tower = 'candidate_tower' returning encoder)"
        " insert into two_tower.model_weights (tower, state, encoder)"
        " select 'candidate_tower', 'candidate', encoder from old"
    )
    db.execute("update two_tower.model_weights set state = 'active' where state = 'candidate'")


VOID: dict[str, Callable[[Connection], Any]] = {
    "rollback": roll_back,
    "freeze": lambda db: value(db, "select two_tower.freeze('a test')"),
    "switch of towers": switch_tower,
    "switched off": lambda db: db.execute("update two_tower.settings set study_enabled = false"),
    "ten minutes": lambda db: db.execute(
        "select set_config('two_tower.now', (two_tower.now() + interval '11 minutes')::text, false)"
    ),
}


@pytest.mark.parametrize("cause", VOID)
def test_a_study_is_void_when_the_vectors_are_others(world: World, cause: str) -> None:
    db = world.connection
    study = begin(db)
    posts = [row.post_id for row in rows(db, LIVE) if not row.is_pretrained]
    deltas = [np.full(128, 0.1, dtype=np.float32)]
    assert value(db, APPLY, study.id, posts[:1], deltas) == 1
    VOID[cause](db)
    before = vectors(db)
    assert value(db, APPLY, study.id, posts[1:2], deltas) is None
    assert all(np.array_equal(before[post], now) for post, now in vectors(db).items())
    (ended,) = rows(db, "select state, ended_at from two_tower.studies")
    assert ended.state == "void"
    for query in ("select two_tower.end_study(%s)", "select * from two_tower.study_window(%s)"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), db.transaction():
            db.execute(query.encode(), [study.id])
    assert value(db, "select count(*) from two_tower.study_posts") == 0


@pytest.mark.parametrize("cause", ["freeze", "switched off"])
def test_no_study_begins_while_none_may(world: World, cause: str) -> None:
    db = world.connection
    VOID[cause](db)
    assert HANDLERS["study"](db) == {"skipped": "nothing to study now"}
    assert value(db, "select count(*) from two_tower.studies") == 0


def test_what_a_void_study_would_have_repeated_is_for_the_next_one(world: World) -> None:
    db = world.connection
    study = begin(db)
    VOID["ten minutes"](db)
    after = begin(db)
    assert after.id > study.id
    assert after.engagements == study.engagements


def test_a_worker_that_takes_over_goes_on_with_the_same_study(world: World) -> None:
    db = world.connection
    study = begin(db)
    posts = [row.post_id for row in rows(db, LIVE) if not row.is_pretrained]
    value(db, APPLY, study.id, posts[:5], [np.full(128, 0.1, dtype=np.float32)] * 5)
    before = vectors(db)
    result = HANDLERS["study"](db)
    assert result["study"] == study.id
    after = vectors(db)
    assert all(np.array_equal(before[post], after[post]) for post in posts[:5])
    assert result["moved"] > 10
    (ended,) = rows(db, "select state, moved_posts from two_tower.studies")
    assert ended == ("done", result["moved"] + 5)


@pytest.mark.parametrize("call", ["study_steps", "study_posts", "apply_study"])
def test_a_worker_that_is_told_to_stop_leaves_a_study_to_the_next(world: World, call: str) -> None:
    db = world.connection
    told = threading.Event()

    def tell(connection: Connection, query: str, *parameters: Any) -> Any:
        if call in query:
            told.set()
        return call_rows(connection, query, *parameters)

    def tell_of_one(connection: Connection, query: str, *parameters: Any) -> Any:
        return tell(connection, query, *parameters)[0][0]

    job = "python_jobs.worker.jobs.study"
    with (
        patch(f"{job}.call_rows", tell),
        patch(f"{job}.call", tell_of_one),
        patch(f"{job}.POSTS_APPLIED", 5),
        pytest.raises(StoppedError),
        leaving_when(told),
    ):
        HANDLERS["study"](db)
    (left,) = rows(db, "select id, state, moved_posts from two_tower.studies")
    assert left.state == "open"
    assert left.moved_posts == (5 if call == "apply_study" else 0)
    assert HANDLERS["study"](db)["study"] == left.id
    (ended,) = rows(db, "select state, moved_posts > 20 from two_tower.studies")
    assert tuple(ended) == ("done", True)


def test_a_study_rests_until_study_share_is_kept(world: World) -> None:
    db = world.connection
    begun = begin(db)
    set_clock(db, begun.begun_at + timedelta(seconds=60))
    value(db, "select two_tower.end_study(%s)", begun.id)
    may = "select two_tower.may_study()"
    for share, rest in ((0.25, 180), (0.5, 60)):
        db.execute("update two_tower.settings set study_share = %s", [share])
        for later, is_time in ((rest - 1, False), (rest + 1, True)):
            set_clock(db, begun.begun_at + timedelta(seconds=60 + later))
            assert value(db, may) is is_time


@pytest.mark.parametrize(("passes", "share"), [(1, 1), (2, 2), (16, None)])
def test_a_study_repeats_study_passes_times_what_is_new(
    world: World, passes: int, share: int | None
) -> None:
    """At most the whole window: then there are fewer passes."""
    db = world.connection
    value(db, "select two_tower.end_study(%s)", begin(db).id)
    set_clock(db, START + timedelta(hours=20))
    engage(world, 60, START + timedelta(hours=20), seed=5)
    db.execute("update two_tower.settings set study_passes = %s, study_rate = 0.1", [passes])
    study = begin(db)
    window = len(rows(db, WINDOW, study.id))
    assert 10 < study.engagements < window / 2
    assert study.steps == (share * study.engagements if share else window)
    assert study.rate == pytest.approx(0.08 * 0.1)


def test_a_study_is_due_after_its_events_or_daily_after_a_twentieth(world: World) -> None:
    db = world.connection
    due = "select two_tower.is_schedule_due(s) from two_tower.schedules s where s.kind = 'study'"
    count = "select two_tower.has_engagements('study', n) from unnest('{10, 200}'::integer[]) n"
    db.execute("update two_tower.settings set account_weight_days = 1, account_share = 1")
    db.execute("select two_tower.count_engagements('study')")
    assert [row[0] for row in db.execute(count.encode())] == [True, True]
    yesterday, now = "interval '25 hours'", "interval '0'"
    for every, last, is_due in (
        (200, now, True), (4000, now, False), (4000, yesterday, True), (100000, yesterday, False),
    ):  # fmt: skip
        db.execute(
            "update two_tower.schedules set every_events = %s,"
            f" last_run_at = two_tower.now() - {last} where kind = 'study'".encode(),
            [every],
        )
        assert value(db, due) is is_due, (every, last)
    db.execute("update two_tower.settings set study_enabled = false")
    db.execute("update two_tower.schedules set every_events = 1 where kind = 'study'")
    assert value(db, due) is False


def test_back_and_forth_a_hundred_times_is_studied_once(db: Connection) -> None:
    """Nine hours apart, an account likes a post, a study comes, and it takes the like back. Others
    like other posts meanwhile, so that there is something to study."""
    world = World(db, users=12, posts=320)
    post, others = world.post_ids[315], world.post_ids[214:314]
    engage(world, 300)
    start = value(db, "select two_tower.now()")
    reach = 0.0
    for number, other in enumerate(others):
        at = start + timedelta(hours=9 * number)
        friend = world.user_ids[1 + number % 11]
        like_and_study = [Event(friend, other, "like", None, at)]
        like_and_study.append(Event(world.user, post, "like", None, at))
        insert_events(db, like_and_study)
        set_clock(db, at + timedelta(hours=1))
        result, batches = studied(db)
        assert "moved" in result
        for step in (step for batch in batches for step in batch):
            share = dict(zip(step.history_ids, step.history_weights, strict=True))
            total = sum(abs(weight) for weight in step.history_weights) or 1
            # An error is at most 1, and the gradient of a user at most 2.
            of_post = (step.post_id == post) + 2 * abs(share.get(post, 0)) / total
            reach += 0.08 * 0.15 * step.strength * of_post
        later = at + timedelta(hours=2)
        insert_events(db, [Event(world.user, post, "unlike", None, later)])
    assert 0 < reach <= 0.02


def test_drift_of_study_switches_study_off_and_learning_goes_on(world: World) -> None:
    db = world.connection
    value(db, "select two_tower.checkpoint('operator')")
    study = begin(db)
    db.execute("update two_tower.studies set moved_posts = 10, movement = 10 * 0.25")
    value(db, "select two_tower.end_study(%s)", study.id)
    metrics = dict(db.execute("select * from two_tower.measure_study()").fetchall())
    assert metrics["study_movement"] == pytest.approx(0.25)
    assert metrics["study_passes"] == pytest.approx(study.steps / study.engagements)
    assert metrics["study_lag"] < 10
    for drift, froze, is_studying in ((0.6, True, True), (0.4, False, False), (0.6, True, False)):
        with db.transaction(force_rollback=True):
            if not is_studying and froze:
                db.execute(
                    "select two_tower.open_alert('metric_out_of_range', 'embedding_drift',"
                    " 'a test', '{\"stopped_study\": true}')"
                )
            db.execute(
                "select two_tower.open_alert('metric_out_of_range', 'embedding_drift',"
                " 'a test', jsonb_build_object('value', %s::float8))",
                [drift],
            )
            assert value(db, "select two_tower.freeze_on_drift()") is froze
            assert value(db, "select frozen_at is not null from two_tower.state") is froze
            if not froze:
                assert not value(db, "select study_enabled from two_tower.settings")
                assert value(db, "select two_tower.freeze_on_drift()") is False


# Workers and writers


def busy_app(url: str, posts: int) -> None:
    """Forty users who liked posts on three days, some time ago."""
    with connect(url, autocommit=True) as db:
        author = add_user(db)
        users = [add_user(db) for _ in range(40)]
        post_ids = add_posts(db, posts, [author], np.random.default_rng(1))
        rng = np.random.default_rng(2)
        db.execute("update two_tower.settings set learned_events_per_minute = 1000")
        for day in range(3):
            insert_events(
                db,
                [
                    Event(user, post_ids[place], "like", None, START + timedelta(days=day))
                    for user in users
                    for place in sorted(rng.choice(posts, 20, replace=False))
                ],
            )
        value(db, "select two_tower.fold_steps(null)")
        db.execute("update two_tower.schedules set is_enabled = false")
        # What else ticks do with posts is done before: a tick that waits for one starts no study.
        wait_until(lambda: value(db, "select two_tower.tick()") == {"serving_refreshed": 0})
        db.execute("update two_tower.schedules set is_enabled = true where kind = 'study'")


def test_a_worker_does_the_study_that_is_due(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    busy_app(url, 100)
    with connect(url, autocommit=True) as db:
        before = vectors(db)
        worker = RunningWorker(url, "--drain")
        assert worker.end() == 0, worker.lines
        (job,) = rows(db, "select state, result from two_tower.jobs where kind = 'study'")
        (study,) = rows(db, "select * from two_tower.studies")
        after = vectors(db)
        assert (job.state, study.state) == ("done", "done")
        assert job.result["moved"] == study.moved_posts > 50
        assert sum(not np.array_equal(before[p], after[p]) for p in before) == study.moved_posts
        chords = [np.linalg.norm(after[post] - before[post]) for post in before]
        assert max(chords) <= 0.05
        assert value(db, "select count(*) from two_tower.alerts where kind = 'call_failed'") == 0


def test_a_worker_killed_between_two_batches_leaves_a_study_that_is_applied_once(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    busy_app(url, 900)
    with (
        connect(url, autocommit=True) as db,
        connect(url, autocommit=True) as watcher,
        connect(url) as holder,
    ):
        before = vectors(db)
        last = max(before)
        holder.execute(
            "select from two_tower.live_embeddings where post_id > %s for update", [last - 50]
        )
        killed = RunningWorker(url, "--lease", "5")
        pid = wait_until(lambda: waiting_backend(watcher, "apply_study"))
        killed.kill()
        (half,) = rows(db, "select * from two_tower.studies")
        between = vectors(db)
        holder.rollback()  # its call may still be applied, or not: nobody waits for the answer
        wait_until(
            lambda: (
                not rows(
                    watcher, "select from pg_stat_activity where pid = %s and state = 'active'", pid
                )
            )
        )
        with running_worker(url):
            wait_until(
                lambda: value(db, "select state = 'done' from two_tower.jobs where kind = 'study'")
            )
        (study,) = rows(db, "select * from two_tower.studies")
        after = vectors(db)
        assert half.state == "open"
        assert 0 < half.moved_posts < study.moved_posts
        assert (study.id, study.state) == (half.id, "done")
        done = [post for post in before if not np.array_equal(before[post], between[post])]
        assert len(done) == half.moved_posts
        assert all(np.array_equal(between[post], after[post]) for post in done)
        moved = sum(not np.array_equal(before[post], after[post]) for post in before)
        assert moved == study.moved_posts


def test_no_like_waits_for_a_post_that_a_study_moves(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    busy_app(url, 60)
    with connect(url, autocommit=True) as db, connect(url, autocommit=True) as worker:
        study = begin(worker)
        posts = [row.post_id for row in rows(db, LIVE)]
        user = add_user(db)
        with worker.transaction():
            deltas = [np.full(128, 0.1, dtype=np.float32)] * len(posts)
            assert value(worker, APPLY, study.id, posts, deltas) > 50
            db.execute("set lock_timeout = '60 s'")
            db.execute(
                "insert into public.engagement_events (user_id, post_id, event_type)"
                " values (%s, %s, 'like')",
                [user, posts[0]],
            )
            waiting = "select count(*) from two_tower.deferred_steps where post_id = %s"
            assert value(db, waiting, posts[0]) == 1
        value(db, "select two_tower.fold_steps(null)")
        assert value(db, waiting, posts[0]) == 0
