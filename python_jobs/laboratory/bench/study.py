"""What a study costs: how long it takes after 1,000 engagements, and who notices it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from python_jobs.db import Connection, connect, rows, value
from python_jobs.errors import CommandError
from python_jobs.laboratory.bench import serving
from python_jobs.laboratory.bench.budgets import at_most
from python_jobs.laboratory.bench.towers import CALM_S, Load, load, percentile_99, working
from python_jobs.laboratory.bench.world import World
from python_jobs.laboratory.server import USER_ID

LIKES_A_STATEMENT = 500
VIEWS_A_LIKE = 10  # through which the study looks for the likes
PATIENCE_S = 900.0  # above the ten minutes after which a study is void

_ENGAGE = (
    "insert into public.engagement_events (user_id, post_id, event_type)"
    f" select {USER_ID.format('n.u')}, n.p, %s from unnest(%s::int[], %s::bigint[]) as n (u, p)"
)


def measure(
    world: World, window: int, engagements: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures a world of filled_world(): one study of `window` likes, then one of what is new.

    engagements: likes that are new to the second study, which is timed. Readers and a writer are
    at work before it, for comparison, and while it runs.
    """
    say("building the serving index")
    serving.build(world)
    draw = random.Random(1)
    with connect(world.url, autocommit=True) as connection, working(world):
        connection.execute("update two_tower.schedules set is_enabled = false")
        connection.execute(
            "update two_tower.settings set learned_events_per_minute = 1000000, study_share = 1"
        )
        say(f"liking {window:,} posts, and studying that")
        _like(world, draw, window)
        _study(connection)
        say(f"liking {engagements:,} posts")
        _like(world, draw, engagements)
        say("reading and writing")
        with load(world) as calm:
            time.sleep(CALM_S)
        say("studying")
        with load(world) as busy:
            study = _study(connection)
            busy.wait()
    return {"versions": world.versions(), **_report(study, calm, busy)}


def _like(world: World, draw: random.Random, likes: int) -> None:
    """Random users viewed random posts and liked some, an hour ago: what stands is studied.

    likes: how many. Views come before them.
    """
    with connect(world.url, autocommit=True) as connection:
        past = "select set_config('two_tower.now', (now() - interval '1 hour')::text, false)"
        connection.execute(past)
        for begin in range(0, likes, LIKES_A_STATEMENT):
            count = min(LIKES_A_STATEMENT, likes - begin)
            for kind, events in (("view", VIEWS_A_LIKE * count), ("like", count)):
                users = [draw.randint(1, world.users) for _ in range(events)]
                posts = [draw.randint(1, world.posts) for _ in range(events)]
                connection.execute(_ENGAGE.encode(), [kind, users, posts])
    world.fold()


def _study(connection: Connection) -> dict[str, Any]:
    """Asks the worker for a study, and waits until it has ended."""
    job = value(connection, "select two_tower.enqueue_job('study')")
    deadline = time.monotonic() + PATIENCE_S
    while not value(
        connection, "select finished_at is not null from two_tower.jobs where id = %s", job
    ):
        if time.monotonic() > deadline:
            raise CommandError("The study did not end.")
        time.sleep(0.02)
    made = rows(connection, "select * from two_tower.studies order by id desc limit 1")
    if not made or made[0].state != "done":
        raise CommandError("No study was made, or it is void: the vectors changed under it.")
    return dict(made[0]._asdict())


def _report(study: dict[str, Any], calm: Load, busy: Load) -> dict[str, Any]:
    seconds = (study["ended_at"] - study["begun_at"]).total_seconds()
    before, during = (percentile_99(part.reads) for part in (calm, busy))
    ratio = during / before if before and during else None
    slowest = max(busy.writes)
    lines = [
        (f"study after {study['engagements']:,} engagements", seconds, 10, "s"),
        ("readers' p99 during it, to before", ratio, 1.5, "x"),
        ("slowest like during it", slowest, 50, "ms"),
    ]
    return {
        "figures": {
            "study_s": seconds, "steps": study["steps"], "moved_posts": study["moved_posts"],
            "read_p99_ms": before, "read_p99_during_ms": during,
            "slowest_write_ms": max(calm.writes), "slowest_write_during_ms": slowest,
        },
        "budgets": at_most(lines),
    }  # fmt: skip
