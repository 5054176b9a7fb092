"""CPU time of the server an event, and what the sample of latencies adds to a like.

CPU time is the backend's: neither disk nor client nor a neighbour is in it.
"""

from __future__ import annotations

import math
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_jobs.db import Connection, connect, value
from python_jobs.errors import CommandError
from python_jobs.laboratory.bench.budgets import at_most
from python_jobs.laboratory.bench.world import World
from python_jobs.local.postgres import SUPERUSER

EACH = 100  # events of a round
FOLDED_EVERY = 20  # rounds
EXTREMES = 20  # a 20th of the rounds at either end is left out
BARE = "bare"
MOST_OF_A_SAMPLE_US = 5
_LEARN_EVENTS = (
    "select pg_get_functiondef('two_tower.learn_events(two_tower.event[],boolean)'::regprocedure)"
)
_SAMPLE = re.compile(r"(v_began timestamptz) := case when .*? end;", re.DOTALL)


def backend_cpu_us(connection: Connection) -> float:
    """What the backend has used. Where the system does not say, all time counts."""
    time.sleep(0.002)  # The figure of a process that still runs is old.
    path = Path(f"/proc/{connection.info.backend_pid}/schedstat")
    if not path.exists():
        return time.perf_counter() * 1e6
    return int(path.read_text().split()[0]) / 1000


@dataclass(frozen=True)
class Case:
    """Events of a kind, by statements of so many rows."""

    kind: str
    rows: int = 1

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind}{f', {self.rows} rows' if self.rows > 1 else ''}"


CASES = (Case("view"), Case("view", 20), Case("like"), Case("like", 20))


class Sender:
    """A session that sends events of random users about random posts: of a seed, the same ones."""

    def __init__(self, world: World, connection: Connection) -> None:
        self.world, self.connection = world, connection
        self._draw = random.Random(1)
        connection.execute("update two_tower.settings set learned_events_per_minute = 1000000")

    def define(self, learn_events: str) -> None:
        """Makes the function anew. The likes after that plan anew, and are not counted."""
        self.connection.execute(learn_events.encode())
        self.cost(Case("like"))

    def cost(self, case: Case, events: int = EACH) -> float:
        """CPU microseconds an event."""
        query = (
            b"insert into public.engagement_events (user_id, post_id, event_type) select u, p, %s"
            b" from unnest(%s::uuid[], %s::bigint[]) with ordinality as x (u, p, n) order by n"
        )
        statements = max(1, events // case.rows)
        before = backend_cpu_us(self.connection)
        for _ in range(statements):
            users = [
                f"00000000-0000-4000-8000-{self._draw.randint(1, self.world.users):012x}"
                for _ in range(case.rows)
            ]
            posts = [self._draw.randint(1, self.world.posts) for _ in range(case.rows)]
            self.connection.execute(query, [case.kind, users, posts])
        return (backend_cpu_us(self.connection) - before) / (statements * case.rows)

    def fold(self) -> None:
        """Folds in all that is queued."""
        while value(self.connection, "select two_tower.fold_steps(1000)"):
            pass


def measure(world: World, likes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Likes with and without the sample, in turns; the other kinds of events beside.

    likes: of each of the two. They go to two copies of the database, so that what disturbs the
    machine disturbs both. Each copy takes the sample in one half of the rounds: how its pages lie
    in memory can cost a like more than the sample.
    """
    with connect(world.cluster.url("template1", SUPERUSER), autocommit=True) as server:
        server.execute(f"create database {BARE} template postgres owner postgres".encode())
    costs: dict[Case, list[float]] = {case: [] for case in CASES}
    rounds = max(2, likes // EACH // 2)
    halves = []
    with (
        connect(world.url, autocommit=True, prepare_threshold=0) as connection,
        connect(world.cluster.url(BARE), autocommit=True, prepare_threshold=0) as other,
    ):
        with_sample = str(value(connection, _LEARN_EVENTS))
        first, second = Sender(world, connection), Sender(world, other)
        for half, (sampled, bare) in enumerate(((first, second), (second, first))):
            sampled.define(with_sample)
            bare.define(_without_sample(with_sample))
            more = []
            for number in range(rounds):
                say(f"round {half * rounds + number + 1} of {2 * rounds}")
                turn = (sampled, bare) if number % 2 else (bare, sampled)
                found = {sender: sender.cost(Case("like")) for sender in turn}
                more.append(found[sampled] - found[bare])
                if number % FOLDED_EVERY == 0:
                    for case in CASES:
                        costs[case].append(sampled.cost(case))
                        bare.cost(case)
                    for sender in turn:
                        sender.fold()
            halves.append(_mean_and_error(more))
    mean = statistics.mean(mean for mean, _ in halves)
    error = math.hypot(*(error for _, error in halves)) / 2
    return {
        "versions": world.versions(),
        "events": {case.name: statistics.median(found) for case, found in costs.items()},
        "sample": {
            "likes": 2 * rounds * EACH, "us": mean,
            "low_us": mean - 1.96 * error, "high_us": mean + 1.96 * error,
        },
        "budgets": at_most(
            [("what the sample of latencies adds to a like", mean, MOST_OF_A_SAMPLE_US, "us")]
        ),
    }  # fmt: skip


def _mean_and_error(found: list[float]) -> tuple[float, float]:
    """Without the rounds in which somebody else was at work on one of the two: they say nothing."""
    cut = len(found) // EXTREMES
    kept = sorted(found)[cut : len(found) - cut]
    return statistics.mean(kept), statistics.stdev(kept) / math.sqrt(len(kept))


def _without_sample(learn_events: str) -> str:
    """The statement that makes learn_events(), without the sample."""
    bare, count = _SAMPLE.subn(r"\1;", learn_events)
    if count != 1:
        raise CommandError("learn_events() takes its sample in another way than is known here.")
    return bare
