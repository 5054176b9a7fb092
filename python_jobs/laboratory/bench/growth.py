"""What grows: many events at full speed with tick() running, the end against the start."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from python_jobs.db import Connection, connect, rows, value
from python_jobs.errors import CommandError
from python_jobs.laboratory.bench.pgbench import Run, pgbench
from python_jobs.laboratory.bench.world import World, wal_position
from python_jobs.laboratory.server import USER_ID

ROWS = 20
CLIENTS = 4
PERCENTILES = (50, 95, 99)

# A page of a feed of one user, sent as one statement: most posts are only seen, one in ten liked.
_PAGE = """
\\set u random(1, {users})
insert into public.engagement_events (user_id, post_id, event_type)
select {user_id}, r.p, case when r.x < 0.1 then 'like' when r.x < 0.15 then 'click'
                            when r.x < 0.2 then 'skip' else 'view' end
from (select 1 + floor({posts} * power(random(), 3))::bigint as p, random() as x
      from generate_series(1, {rows})) r;
"""

# Why a table stops growing. What is not named here is one row per user, post or setting.
BOUNDED_BY = {
    "engagement_events": "settings.events_kept_for",
    "unlearned_events": "settings.events_kept_for",
    "training_examples": "settings.training_examples_kept_for",
    "user_posts": "users x posts that they saw",
    "deferred_steps": "emptied by tick()",
    "deferred_events": "emptied by tick()",
    "checkpoint_users": "settings.checkpoints_kept x users",
    "checkpoint_posts": "settings.checkpoints_kept x posts",
    "metrics": "30 days",
    "jobs": "30 days",
}

_SIZES = """
  select regexp_replace(c.relname, '_([0-9]+|history)$', '') as name,
         sum(pg_relation_size(c.oid)) as heap, sum(pg_indexes_size(c.oid)) as indexes,
         sum(coalesce(s.n_live_tup, 0)) as rows, sum(coalesce(s.n_dead_tup, 0)) as dead,
         sum(coalesce(s.autovacuum_count, 0)) as vacuums
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join pg_stat_user_tables s on s.relid = c.oid
  where c.relkind = 'r' and n.nspname in ('public', 'two_tower')
  group by 1 having sum(pg_total_relation_size(c.oid)) > 1000000 order by 2 desc
"""


@dataclass
class Sample:
    """The tables after so many events."""

    events: int
    tables: dict[str, dict[str, int]]


@dataclass
class Ticker:
    """Calls tick() all the time, as a worker does."""

    world: World
    stop: threading.Event = field(default_factory=threading.Event)
    calls: int = 0
    longest_s: float = 0
    failed: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Until stopped."""
        with connect(self.world.url, autocommit=True) as connection:
            while not self.stop.is_set():
                began = time.monotonic()
                did = value(connection, "select two_tower.tick()")
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.calls += 1
                self.failed.update(did.get("failed", "").split())
                if not any(each for step, each in did.items() if step != "started"):
                    self.stop.wait(0.2)


def measure(world: World, events: int, slices: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Sends the events in slices, and looks at the tables between them."""
    script = _PAGE.format(
        users=world.users, posts=world.posts, rows=ROWS, user_id=USER_ID.format(":u::integer")
    )
    pgbench(world, script, clients=CLIENTS, transactions=20)
    with connect(world.url, autocommit=True) as connection:
        # Nothing is encoded or trained here: the towers have measurements of their own.
        connection.execute(
            "update two_tower.schedules set is_enabled = false where runs_in = 'worker'"
        )
        ticker = Ticker(world)
        thread = threading.Thread(target=ticker.run)
        thread.start()
        runs: list[Run] = []
        try:
            wal = wal_position(connection)
            samples = [_sample(connection, 0)]
            for number in range(slices):
                say(f"slice {number + 1} of {slices}")
                each = math.ceil(events / slices / ROWS / CLIENTS)
                runs.append(pgbench(world, script, clients=CLIENTS, transactions=each))
                sent = sum(run.count for run in runs) * ROWS
                samples.append(_sample(connection, sent))
            wal = wal_position(connection) - wal
        finally:
            ticker.stop.set()
            thread.join()
        if ticker.failed:
            raise CommandError(f"tick() failed at {', '.join(sorted(ticker.failed))}.")
        queued = value(connection, "select count(*) from two_tower.deferred_steps")
    return {
        "versions": world.versions(),
        "events": sent,
        "events_per_s": sent / sum(run.seconds for run in runs),
        "latency_ms": [{f"p{p}": run.percentile(p) for p in PERCENTILES} for run in runs],
        "late_to_early": {f"p{p}": _late_to_early(runs, p) for p in PERCENTILES},
        "wal_bytes_per_event": wal / sent,
        "ticks": ticker.calls,
        "longest_tick_s": ticker.longest_s,
        "left_in_queue": queued,
        "tables": _tables(samples),
    }


def _late_to_early(runs: list[Run], percentile: int) -> float:
    """The median of the last half of the slices to that of the first: a vacuum falls in one."""
    figures = [run.percentile(percentile) for run in runs]
    half = len(runs) // 2
    return float(np.median(figures[-half:]) / np.median(figures[:half]))


def _sample(connection: Connection, events: int) -> Sample:
    tables = {
        name: dict(zip(("heap", "indexes", "rows", "dead", "vacuums"), map(int, row), strict=True))
        for name, *row in rows(connection, _SIZES)
    }
    return Sample(events, tables)


def _tables(samples: list[Sample]) -> list[dict[str, Any]]:
    """Each table over time, with bytes an event in the last half and what bounds it."""
    middle, last = samples[len(samples) // 2], samples[-1]
    lines = []
    for name, now in last.tables.items():
        sizes = [sample.tables.get(name, {"heap": 0, "indexes": 0}) for sample in samples]
        totals = [size["heap"] + size["indexes"] for size in sizes]
        grown = totals[-1] - totals[len(samples) // 2]
        lines.append(
            {
                "table": name,
                "bytes": totals,
                "index_share": now["indexes"] / max(1, totals[-1]),
                "bytes_per_event": grown / max(1, last.events - middle.events),
                "rows": now["rows"],
                "dead": now["dead"],
                "autovacuums": now["vacuums"],
                "bounded_by": BOUNDED_BY.get(name, "users and posts"),
            }
        )
    return sorted(lines, key=lambda line: -int(np.asarray(line["bytes"])[-1]))
