"""Study: what it repeats, what it moves and by how much, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from python_jobs.worker.jobs import HANDLERS
from python_jobs.worker.study import SHORTEST_MOVE, Step, Study
from tests.support.engagements import insert_events
from tests.support.learning import World
from tests.support.reference import START, Event, norm

LIVE = """
  select post_id, embedding::real[] as vector, is_pretrained, engagement_count
  from two_tower.post_embeddings order by post_id
"""


def vectors(connection: Connection) -> dict[int, np.ndarray]:
    """The live vectors of all posts."""
    return {row.post_id: np.array(row.vector, float) for row in rows(connection, LIVE)}


def touched_posts(connection: Connection) -> set[int]:
    """The posts that somebody engaged with."""
    return {row.post_id for row in rows(connection, LIVE) if not row.is_pretrained}


def set_clock(connection: Connection, at: datetime) -> None:
    connection.execute("select set_config('two_tower.now', %s, false)", [at.isoformat()])


def engage(world: World, count: int, start: datetime = START, seed: int = 3) -> list[Event]:
    """Engagements of all users, a minute after one another, with the first two thirds of the posts:
    the others stay untouched. Then it is an hour later."""
    rng = np.random.default_rng(seed)
    types = ["like", "like", "reply", "repost", "click", "skip", "view", "unlike"]
    events = [
        Event(
            world.user_ids[int(rng.integers(len(world.user_ids)))],
            world.post_ids[int(len(world.post_ids) * 2 / 3 * rng.random() ** 2)],
            str(rng.choice(types)),
            None,
            start + timedelta(minutes=number),
        )
        for number in range(count)
    ]
    insert_events(world.connection, events)
    value(world.connection, "select two_tower.fold_steps(null)")
    set_clock(world.connection, start + timedelta(minutes=count, hours=1))
    return events


@pytest.fixture
def world(db: Connection) -> World:
    """Twelve users who engaged with forty of sixty posts."""
    world = World(db, users=12, posts=60)
    engage(world, 500)
    return world


def begin(connection: Connection) -> Any:
    return rows(connection, "select * from two_tower.begin_study()")[0]


def steps_of(connection: Connection, study: Any) -> list[Any]:
    """The steps of all of a study's window."""
    window = rows(connection, "select * from two_tower.study_window(%s)", study.id)
    return rows(
        connection,
        "select s.*, e.user_id::text from two_tower.study_steps(%s, %s::bigint[],"
        " %s::timestamptz[]) s join public.engagement_events e on e.id = s.event_id",
        study.id,
        [event.event_id for event in window],
        [event.created_at for event in window],
    )


def studied(connection: Connection) -> tuple[dict[str, Any], list[list[Step]]]:
    """Does a study. Returns its result, and the batches of steps that it took."""
    batches: list[list[Step]] = []
    take = Study.take

    def record(self: Study, steps: Sequence[Step]) -> int:
        batches.append(list(steps))
        return take(self, steps)

    with patch.object(Study, "take", record):
        return HANDLERS["study"](connection), batches


def refer(
    before: dict[int, np.ndarray],
    engagements: dict[int, int],
    batches: list[list[Step]],
    rate: float,
    temperature: float,
) -> dict[int, np.ndarray]:
    """Where the steps lead, step by step and post by post, in float64."""
    now = dict(before)
    slow = {post: (1 + count / 10) ** -0.25 for post, count in engagements.items()}
    for batch in batches:
        moved: dict[int, np.ndarray] = {}
        for step in batch:
            user = np.zeros(128) if step.prior is None else np.array(step.prior, float)
            for post, weight in zip(step.history_ids, step.history_weights, strict=True):
                user = user + weight * now[post]
            if np.linalg.norm(user) < 1e-9 or not step.negative_ids:
                continue
            user = norm(user)
            named = [step.post_id, *step.negative_ids]
            odds = [np.exp(now[post] @ user / temperature) for post in named]
            gradient = np.zeros(128)
            for place, post in enumerate(named):
                error = (place == 0) - odds[place] / sum(odds)
                gradient += error * now[post]
                change = rate * step.strength * slow[post] * error * user
                moved[post] = moved.get(post, 0) + change
            gradient -= (gradient @ user) * user
            total = sum(abs(weight) for weight in step.history_weights)
            for post, weight in zip(step.history_ids, step.history_weights, strict=True):
                change = rate * step.strength * slow[post] * weight / total * gradient
                moved[post] = moved.get(post, 0) + change
        now.update({post: norm(now[post] + change) for post, change in moved.items()})
    return now


def test_posts_move_as_an_independent_reference_says(world: World) -> None:
    db = world.connection
    db.execute("update two_tower.settings set study_movement_limit = 0.5, study_rate = 0.5")
    before = vectors(db)
    counts = {row.post_id: row.engagement_count for row in rows(db, LIVE)}
    begin(db)
    db.execute("update two_tower.studies set batch_steps = 40")
    job = "python_jobs.worker.jobs.study"
    with patch(f"{job}.POSTS_READ", 7), patch(f"{job}.POSTS_APPLIED", 7):
        result, batches = studied(db)
    study = rows(db, "select * from two_tower.studies")[0]
    wanted = refer(before, counts, batches, 0.08 * 0.5, 0.15)
    after = vectors(db)
    assert study.state == "done"
    assert result["moved"] == study.moved_posts > 20
    assert sum(len(batch) for batch in batches) == study.steps > 100
    assert {len(batch) for batch in batches[:-1]} == {40}
    lengths = {post: np.linalg.norm(wanted[post] - before[post]) for post in before}
    for post in before:
        if lengths[post] > 1.01 * SHORTEST_MOVE:
            assert after[post] == pytest.approx(wanted[post], abs=1e-5)
        elif lengths[post] < 0.99 * SHORTEST_MOVE:
            assert np.array_equal(after[post], before[post])
    distances = [1 - before[post] @ after[post] for post in before]
    assert study.movement == pytest.approx(sum(distances), abs=1e-4)


def test_a_step_is_made_of_what_the_user_had_done_by_then(world: World) -> None:
    db = world.connection
    study = begin(db)
    steps = steps_of(db, study)
    strengths = {"like": 1, "reply": 1.5, "repost": 1, "click": 0.5, "skip": -0.3 * 0.3}
    in_force = rows(
        db,
        "select e.id, e.user_id::text, e.post_id, e.event_type from public.engagement_events e"
        " where not exists (select from two_tower.unlearned_events x where x.event_id = e.id)"
        " and not exists (select from two_tower.user_posts u where u.user_id = e.user_id"
        "   and u.post_id = e.post_id and u.was_withdrawn)"
        " order by e.id",
    )
    in_force = [event for event in in_force if event.event_type in strengths]
    assert len(steps) > 100
    for step in steps:
        earlier = [
            event
            for event in in_force
            if event.user_id == step.user_id
            and event.id < step.event_id
            and event.post_id != step.post_id
        ][::-1][:30]
        assert step.history_ids == [event.post_id for event in earlier]
        wanted = [0.85**age * strengths[event.event_type] for age, event in enumerate(earlier)]
        assert step.history_weights == pytest.approx(wanted, rel=1e-5)
    assert {step.strength for step in steps} == {1, 1.5}


def test_a_short_dwell_is_history_where_a_long_one_is_worth_nothing(world: World) -> None:
    db = world.connection
    db.execute("update two_tower.signals set strength = 0, label = null where event_type = 'dwell'")
    user, later = world.user_ids[0], START + timedelta(hours=12)
    fresh = sorted(set(world.post_ids) - touched_posts(db))
    insert_events(
        db,
        [
            Event(user, fresh[0], "dwell", 500, later),
            Event(user, fresh[1], "like", None, later + timedelta(minutes=1)),
        ],
    )
    value(db, "select two_tower.fold_steps(null)")
    set_clock(db, later + timedelta(hours=1))
    (step,) = [step for step in steps_of(db, begin(db)) if step.post_id == fresh[1]]
    assert step.history_ids[0] == fresh[0]
    assert step.history_weights[0] == pytest.approx(-0.3 * 0.3, rel=1e-5)


@pytest.mark.parametrize("apart", ["10 ms", "0 ms"])
def test_a_step_reads_what_it_is_made_of_whatever_its_user_or_others_did(
    world: World, apart: str
) -> None:
    db = world.connection
    flooder = world.user_ids[0]
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
        " select %s, %s, 'view', %s + n * %s::interval from generate_series(1, 20000) n",
        [flooder, world.post_ids[0], START + timedelta(minutes=1), apart],
    )
    db.execute(
        "insert into two_tower.user_posts (user_id, post_id, signals, first_seen_at, last_event_at)"
        " select %s, 1000000000 + n, two_tower.view_bit(), now(), now()"
        " from generate_series(1, 20000) n",
        [flooder],
    )
    study = begin(db)
    steps = steps_of(db, study)
    read = (
        "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) from pg_stat_xact_all_tables"
        " where relname ~ '^(engagement_events|user_posts|training_examples|unlearned)'"
    )
    ask = "select * from two_tower.study_steps(%s, %s::bigint[], (select array_agg(e.created_at"
    ask += " order by e.id) from public.engagement_events e where e.id = any (%s)))"
    for is_flooder, most in ((False, 1000), (True, 5000)):
        some = [step for step in steps if (step.user_id == flooder) == is_flooder][-3:]
        ids = sorted(step.event_id for step in some)
        assert len(ids) == 3
        for _ in range(6):  # the last ones have generic plans
            before = value(db, read)
            assert len(rows(db, ask, study.id, ids, ids)) == 3
            assert value(db, read) - before <= 3 * most


def test_negatives_are_touched_posts_that_the_user_left_alone(world: World) -> None:
    db = world.connection
    db.execute("update two_tower.settings set study_negatives = 20")
    touched = touched_posts(db)
    engaged: dict[str, set[int]] = {}
    for row in rows(
        db, "select user_id::text, post_id from two_tower.user_posts where is_engaged or is_hidden"
    ):
        engaged.setdefault(row.user_id, set()).add(row.post_id)
    drawn: set[int] = set()
    for step in steps_of(db, begin(db)):
        assert len(step.negative_ids) <= 20
        assert set(step.negative_ids) <= touched - engaged[step.user_id]
        drawn.update(step.negative_ids)
    assert len(drawn) > len(touched) / 2


def test_untouched_and_held_posts_stay_where_they_are(world: World) -> None:
    db = world.connection
    held = [row.post_id for row in rows(db, LIVE) if row.engagement_count > 5][:3]
    db.execute(
        "update two_tower.live_embeddings set is_held = true where post_id = any (%s)", [held]
    )
    untouched = [row.post_id for row in rows(db, LIVE) if row.is_pretrained]
    before = vectors(db)
    study = begin(db)
    everywhere = [np.full(128, 0.1, dtype=np.float32)] * len(before)
    moved = value(
        db, "select two_tower.apply_study(%s, %s::bigint[], %s)", study.id, list(before), everywhere
    )
    after = vectors(db)
    still = {post for post in before if np.array_equal(before[post], after[post])}
    assert len(held) == 3
    assert untouched
    assert still == {*untouched, *held}
    assert moved == len(before) - len(still)


@pytest.mark.parametrize("limit", [0.05, 0.01])
def test_a_study_moves_a_post_by_at_most_study_movement_limit(world: World, limit: float) -> None:
    db = world.connection
    db.execute("update two_tower.settings set study_movement_limit = %s", [limit])
    before = vectors(db)
    study = begin(db)
    rng = np.random.default_rng(1)
    deltas = [np.float32(length * rng.normal(size=128)) for length in (0.0001, 1, 1000)]
    posts = [row.post_id for row in rows(db, LIVE) if not row.is_pretrained][:3]
    apply = "select two_tower.apply_study(%s, %s::bigint[], %s)"
    assert value(db, apply, study.id, posts, deltas) == 3
    after = vectors(db)
    chords = [np.linalg.norm(after[post] - before[post]) for post in posts]
    assert chords[0] < chords[1]
    assert chords[1:] == pytest.approx([limit] * 2, rel=0.05)
    assert max(chords) <= limit
    assert value(db, apply, study.id, posts, deltas) == 0, "a post is moved once by a study"
    assert all(np.array_equal(vectors(db)[post], after[post]) for post in posts)


def test_more_than_a_batch_is_refused(world: World) -> None:
    db = world.connection
    study = begin(db)
    assert study.batch_steps == 512
    for query, arguments in (
        (
            "select * from two_tower.study_steps(%s, %s::bigint[], %s::timestamptz[])",
            [list(range(513)), [START] * 513],
        ),
        ("select * from two_tower.study_posts(%s, %s::bigint[])", [list(range(16_385))]),
        (
            "select two_tower.apply_study(%s, %s::bigint[], %s)",
            [list(range(1001)), [np.ones(128, dtype=np.float32)] * 1001],
        ),
        (
            "select two_tower.apply_study(%s, %s::bigint[], %s)",
            [[1, 2], [np.ones(128, dtype=np.float32)]],
        ),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as caught, db.transaction():
            db.execute(query.encode(), [study.id, *arguments])
        assert caught.value.diag.message_hint
