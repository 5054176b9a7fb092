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

EACH = 20  # events of a round: the machine's own pace changes between longer ones
FOLDED_EVERY = 100  # rounds
EXTREMES = 4  # a quarter of the rounds at either end is left out
BARE = "bare"
MOST_OF_A_SAMPLE_US = 5
_LEARNS = "select pg_get_functiondef('two_tower.learn_from_events()'::regprocedure)"
_ASKS = re.compile(
    r"case when txid_current_if_assigned\(\) % (\d+) = 0 then (clock_timestamp\(\)) end"
)


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

    def define(self, function: str) -> None:
        """Makes the trigger's function anew. The likes that plan it anew are not counted."""
        self.connection.execute(function.encode())
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


@dataclass(frozen=True)
class Difference:
    """What an event costs more by one of two functions, in CPU microseconds."""

    us: float
    error: float

    def share(self, share: float) -> Difference:
        """Of that, where only some events cost it."""
        return Difference(self.us * share, self.error * share)

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.us + other.us, math.hypot(self.error, other.error))


def measure(world: World, likes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What events cost, and what the sample adds to a like, in two parts.

    Each statement asks whether it is timed: views tell what that costs, since they cost little
    else. A timed one writes how long it took: likes that are all timed tell what that costs.

    likes: so many that are timed, and so many that are not. As many views ask, and do not.
    """
    with connect(world.cluster.url("template1", SUPERUSER), autocommit=True) as server:
        server.execute(f"create database {BARE} template postgres owner postgres".encode())
    with (
        connect(world.url, autocommit=True, prepare_threshold=0) as connection,
        connect(world.cluster.url(BARE), autocommit=True, prepare_threshold=0) as other,
    ):
        asks = str(value(connection, _LEARNS))
        times, never, timed_share = _variants_of(asks)
        senders = (Sender(world, connection), Sender(world, other))
        rounds = max(2, likes // EACH // 2)
        asking = _compare(senders, Case("view"), (asks, never), rounds, say)
        timing = _compare(senders, Case("like"), (times, never), rounds, say)
        senders[0].define(asks)
        costs = _costs(senders[0], max(2, rounds // 10), say)
    sample = asking + timing.share(timed_share)
    return {
        "versions": world.versions(),
        "events": costs,
        "sample": {
            "likes": 2 * rounds * EACH, "us": sample.us, "asking_us": asking.us,
            "timing_us": timing.us, "timed_share": timed_share,
            "low_us": sample.us - 1.96 * sample.error, "high_us": sample.us + 1.96 * sample.error,
        },
        "budgets": at_most(
            [("what the sample of latencies adds to a like", sample.us, MOST_OF_A_SAMPLE_US, "us")]
        ),
    }  # fmt: skip


def _costs(sender: Sender, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """The median of rounds of each case, in turns."""
    found: dict[str, list[float]] = {case.name: [] for case in CASES}
    for number in range(rounds):
        say(f"all kinds of events, round {number + 1} of {rounds}")
        for case in CASES:
            found[case.name].append(sender.cost(case))
        if number % FOLDED_EVERY == 0:
            sender.fold()
    return {name: statistics.median(costs) for name, costs in found.items()}


def _compare(
    senders: tuple[Sender, Sender],
    case: Case,
    functions: tuple[str, str],
    rounds: int,
    say: Callable[[str], None],
) -> Difference:
    """What the first function costs more than the second.

    The two go to two copies of the database at once, in turns, so that what disturbs the machine
    disturbs both. Each copy has each function for one half of the rounds: how its pages lie in
    memory costs more than what is looked for.
    """
    halves = []
    for half, (one, other) in enumerate((senders, senders[::-1])):
        one.define(functions[0])
        other.define(functions[1])
        more = []
        for number in range(rounds):
            say(f"{case.name}s, round {half * rounds + number + 1} of {2 * rounds}")
            turn = (one, other) if number % 2 else (other, one)
            found = {sender: sender.cost(case) for sender in turn}
            more.append(found[one] - found[other])
            if number % FOLDED_EVERY == 0:
                for sender in turn:
                    sender.fold()
        halves.append(_mean(more))
    return (halves[0] + halves[1]).share(1 / 2)


def _mean(found: list[float]) -> Difference:
    """The trimmed mean of rounds and its error, by Tukey and McLaughlin (1963).

    Rounds in which somebody else was at work on one of the two say nothing.
    """
    found, cut = sorted(found), len(found) // EXTREMES
    low, high = found[cut], found[-cut - 1]
    winsorized = [min(max(each, low), high) for each in found]
    kept = found[cut : len(found) - cut]
    error = statistics.stdev(winsorized) * math.sqrt(len(found)) / len(kept)
    return Difference(statistics.mean(kept), error)


def _variants_of(asks: str) -> tuple[str, str, float]:
    """The trigger's function that times each statement, the one that times none, and the share.

    asks: the function as it is, which asks of each statement whether it is timed.
    """
    found = _ASKS.search(asks)
    if found is None:
        raise CommandError("learn_from_events() takes its sample in another way than is known.")
    one_in, clock = found.groups()
    never = _ASKS.sub("null::timestamptz", asks)
    return _ASKS.sub(clock, asks), never, 1 / int(one_in)
