"""What an operator waits for: a checkpoint, an undo, a rollback, a look at health."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from python_jobs.db import Connection, call, connect, rows, value
from python_jobs.laboratory.bench import serving
from python_jobs.laboratory.bench.budgets import at_most
from python_jobs.laboratory.bench.towers import copy_texts, load
from python_jobs.laboratory.bench.world import World
from python_jobs.operations.switch import finish_switch

LIKES_OF_A_USER = 50  # within the limit of a minute
BASELINE_S = 5.0
READS = 20


def measure(world: World, events: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures a world of filled_world(). events: that an undo takes back.

    Seconds, but for slowest_write_ms: the longest wait of who likes a post, before the checkpoint
    and while it is made.
    """
    say("touching all posts")
    touch(world)
    say("building the serving index")
    built = serving.build(world)
    with connect(world.url, autocommit=True) as connection:
        figures = _checkpoint(world, connection, say)
        say(f"teaching {events:,} events")
        users = _teach(world, connection, events)
        say("undoing them")
        figures |= _undo(connection, users)
        say("rolling back")
        figures["rollback_s"] = _rollback(connection)
        say("reading health")
        figures |= {"health_ms": read_health(connection), "index_s": built["seconds"]}
    lines = [
        (f"checkpoint of {world.posts:,} posts", figures["checkpoint_s"], 10, "s"),
        (f"undo of {figures['undone']:,} events", figures["undo_s"], 60, "s"),
        (f"rollback of {world.posts:,} posts", figures["rollback_s"], 30, "s"),
        ("health, p50", figures["health_ms"], 50, "ms"),
    ]
    return {
        "versions": world.versions(),
        "figures": figures,
        "budgets": at_most(lines),
    }  # fmt: skip


def touch(world: World) -> None:
    """Each post as if it had been engaged with: a checkpoint holds it. Nothing runs by itself."""
    with connect(world.superuser_url, autocommit=True) as superuser:
        superuser.execute("set session_replication_role = replica")
        superuser.execute(
            "update two_tower.live_embeddings set is_pretrained = false, engagement_count = 1"
            " where slot = (select active_slot from two_tower.state)"
        )
        superuser.execute("vacuum (analyze) two_tower.live_embeddings")
    with connect(world.url, autocommit=True) as connection:
        connection.execute("update two_tower.schedules set is_enabled = false")
        copy_texts(connection, world.posts)
        connection.execute("analyze")


def _checkpoint(world: World, connection: Connection, say: Callable[[str], None]) -> dict[str, Any]:
    with load(world) as running:
        say("liking, for comparison")
        time.sleep(BASELINE_S)
        before = len(running.writes)
        say("making a checkpoint")
        began = time.monotonic()
        number = call(connection, "select two_tower.checkpoint('operator')")
        seconds = time.monotonic() - began
        running.wait()
        during = len(running.writes)
    held = "select posts, users from two_tower.checkpoints where id = %s"
    (made,) = rows(connection, held, number)
    world.fold()
    return {
        "checkpoint_s": seconds,
        "checkpoint_posts": made.posts,
        "checkpoint_users": made.users,
        "slowest_write_ms": max(running.writes[:before]),
        "slowest_write_during_ms": max(running.writes[before:during]),
    }


def _teach(world: World, connection: Connection, events: int) -> list[str]:
    """Likes of random posts, of a user a statement. Returns the users."""
    users = [
        f"00000000-0000-4000-8000-{number:012x}"
        for number in range(1, 1 + min(world.users, -(-events // LIKES_OF_A_USER)))
    ]
    connection.execute("update two_tower.settings set learned_events_per_minute = 1000000")
    for number, user in enumerate(users):
        connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s::uuid, 1 + (%s::bigint * 7919 + n * 104729) %% %s, 'repost'"
            " from generate_series(1, %s::int) n",
            [user, number, world.posts, -(-events // len(users))],
        )
    world.fold()
    return users


def _undo(connection: Connection, users: list[str]) -> dict[str, Any]:
    """As `two-tower undo` does it."""
    began = time.monotonic()
    number = call(connection, "select two_tower.undo('a bench', %s::uuid[])", users)
    while call(connection, "select two_tower.undo_lessons()"):
        pass
    while call(connection, "select two_tower.fold_steps(1000)"):
        pass
    seconds = time.monotonic() - began
    undone = value(connection, "select lessons from two_tower.undos where id = %s", number)
    return {"undo_s": seconds, "undone": undone}


def _rollback(connection: Connection) -> float:
    """As `two-tower rollback` does it, with the index that serves: a worker makes it anew later."""
    began = time.monotonic()
    call(connection, "select two_tower.rollback()")
    finish_switch(connection)
    return time.monotonic() - began


def read_health(connection: Connection) -> float:
    """The median of some looks at health, in ms."""
    times = []
    for _ in range(READS):
        began = time.perf_counter()
        rows(connection, "select * from two_tower.read_health()")
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)
