"""What runs by itself: how long each scheduled step takes, and how long a like waits meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from python_jobs.db import Connection, call, connect, rows
from python_jobs.laboratory.bench.budgets import at_most
from python_jobs.laboratory.bench.operations import read_health, touch
from python_jobs.laboratory.bench.towers import CALM_S, Load, load
from python_jobs.laboratory.bench.world import World

TICKS = 60  # three turns of all steps
PLATFORM_S = 120  # after which the platform ends a statement


def measure(world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures a world of filled_world(): every schedule that needs no worker, then ticks.

    All posts count as touched. No serving index is built: at a million posts that takes half an
    hour, and of what is measured here its check alone would read it.
    """
    say("touching all posts")
    touch(world)
    kinds = "select kind from two_tower.schedules where runs_in <> 'worker' order by kind"
    with connect(world.url, autocommit=True) as connection:
        with load(world, reads=False) as running:
            say("liking, for comparison")
            time.sleep(CALM_S)
            calm_ms = max(running.writes)
            steps = []
            for (kind,) in rows(connection, kinds):
                say(kind)
                steps.append({"step": kind, **_time(connection, kind, running)})
            say(f"{TICKS} ticks")
            ticks = [_time(connection, "tick", running) for _ in range(TICKS)]
        say("reading health")
        health_ms = read_health(connection)
    slowest_tick = max(ticks, key=lambda tick: tick["seconds"])
    steps.append({"step": f"the slowest of {TICKS} ticks", **slowest_tick})
    lines = [
        ("the slowest step", max(step["seconds"] for step in steps), PLATFORM_S, "s"),
        ("health, p50", health_ms, 50, "ms"),
    ]
    return {
        "versions": world.versions(),
        "steps": steps,
        "slowest_write_ms": calm_ms,
        "budgets": at_most(lines),
    }  # fmt: skip


def _time(connection: Connection, function: str, running: Load) -> dict[str, float]:
    """Seconds of one call, and the longest wait of who likes a post meanwhile, in ms."""
    before = len(running.writes)
    began = time.monotonic()
    call(connection, f"select two_tower.{function}()")
    seconds = time.monotonic() - began
    running.wait()
    return {"seconds": seconds, "slowest_write_ms": max(running.writes[before:])}
