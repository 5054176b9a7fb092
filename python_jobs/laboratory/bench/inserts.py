"""What an event costs: plain inserts against ours, in turns within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from python_jobs.db import connect, rows, value
from python_jobs.laboratory.bench.pgbench import Run, pgbench
from python_jobs.laboratory.bench.world import World, wal_position
from python_jobs.laboratory.server import USER_ID

# Posts as feeds have them: few are met often. A number to the third power, or Zipf in pgbench.
_SINGLE = """
\\set u random(1, {users})
\\set p random_zipfian(1, {posts}, 1.05)
insert into public.{table} (user_id, post_id, event_type) values ({user_id}, {post}, '{kind}');
"""
_BATCH = """
insert into public.{table} (user_id, post_id, event_type)
select {user_id}, {post}, '{kind}'
from (select 1 + floor(random() * {users})::int as u,
             1 + floor({posts} * power(random(), 3))::bigint as p
      from generate_series(1, {rows})) r;
"""
VIRAL_POST = 777
WARM_UP = 50  # transactions a client: caches, plans, first versions of rows


@dataclass(frozen=True)
class Case:
    """One line of the table: what is inserted, how many rows a statement, by how many clients."""

    kind: str
    clients: int = 1
    rows: int = 1
    viral: bool = False

    @property
    def name(self) -> str:
        """For people."""
        where = ", one viral post" if self.viral else ""
        batch = f", {self.rows} rows" if self.rows > 1 else ""
        return f"{self.kind}{batch}, {self.clients} client{'s' * (self.clients > 1)}{where}"

    def script(self, world: World) -> str:
        """What pgbench runs."""
        single = self.rows == 1
        post = VIRAL_POST if self.viral else (":p" if single else "r.p")
        return (_SINGLE if single else _BATCH).format(
            table="plain_events" if self.kind == "plain" else "engagement_events",
            kind="like" if self.kind == "plain" else self.kind,
            users=world.users,
            posts=world.posts,
            rows=self.rows,
            post=post,
            user_id=USER_ID.format(":u::integer" if single else "r.u"),
        )


CASES = [
    *(Case(kind, clients) for clients in (1, 8, 16) for kind in ("plain", "view", "like")),
    *(Case(kind, 16, 20) for kind in ("plain", "view", "like")),
    Case("like", 16, viral=True),
]


@dataclass
class Result:
    """All rounds of one case."""

    case: Case
    runs: list[Run] = field(default_factory=list)
    wal_bytes: list[float] = field(default_factory=list)

    def median(self, of: Callable[[Run], float]) -> float:
        """The median over the rounds."""
        return statistics.median(of(run) for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Figures of the case: latencies in ms, events a second, WAL bytes an event."""
        return {
            "case": self.case.name,
            "p50_ms": self.median(lambda run: run.percentile(50)),
            "p95_ms": self.median(lambda run: run.percentile(95)),
            "p99_ms": self.median(lambda run: run.percentile(99)),
            "events_per_s": self.median(lambda run: run.rate * self.case.rows),
            "wal_bytes_per_event": statistics.median(self.wal_bytes),
        }


def measure(
    world: World, rounds: int, length: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Rounds of all cases in turn, so that what disturbs the machine disturbs all of them.

    length: of one case in one round, as pgbench() takes it: seconds or transactions.
    """
    results = [Result(case) for case in CASES]
    for result in results:
        pgbench(world, result.case.script(world), clients=result.case.clients, transactions=WARM_UP)
    world.fold()
    before = _updates(world)
    for number in range(rounds):
        for result in results:
            say(f"round {number + 1} of {rounds}: {result.case.name}")
            start = _position(world)
            case = result.case
            run = pgbench(world, case.script(world), clients=case.clients, **length)
            result.runs.append(run)
            wal = _position(world) - start
            result.wal_bytes.append(wal / max(1, run.count * result.case.rows))
        world.fold()
    return {
        "versions": world.versions(),
        "cases": _with_ratios(results),
        "updates_in_place": _shares(before, _updates(world)),
        "verdicts": _verdicts(world),
        "parts_of_a_like_us": parts_of(world, "like"),
        "wal_of_a_like_bytes": wal_of(world, "like"),
        "budgets": budgets({result.case: result for result in results}),
    }


def _with_ratios(results: list[Result]) -> list[dict[str, Any]]:
    """The figures of all cases, with p50 against the plain insert of as many rows and clients."""
    plain = {
        (result.case.clients, result.case.rows): result.as_json()["p50_ms"]
        for result in results
        if result.case.kind == "plain"
    }
    figures = []
    for result in results:
        base = plain.get((result.case.clients, result.case.rows))
        one = result.as_json()
        figures.append({**one, "p50_to_plain": one["p50_ms"] / base if base else None})
    return figures


def budgets(results: dict[Case, Result]) -> list[dict[str, Any]]:
    """Each budget with its figure."""

    def p50(kind: str) -> float:
        return results[Case(kind)].median(lambda run: run.percentile(50))

    def p99(case: Case) -> float:
        return results[case].median(lambda run: run.percentile(99))

    def rate(kind: str) -> float:
        return results[Case(kind, 16, 20)].median(lambda run: run.rate * 20)

    def saturated(kind: str) -> float:
        return results[Case(kind, 8)].median(lambda run: run.rate)

    share = saturated("like") / saturated("plain")
    lines = [
        ("view, one client, p50 against plain", p50("view") / p50("plain"), "at most", 1.6, "x"),
        ("like, one client, p50 against plain", p50("like") / p50("plain"), "at most", 2.5, "x"),
        ("likes a second, 8 clients, against plain inserts", share, "at least", 0.167, "x"),
        ("like, 8 clients, p99", p99(Case("like", 8)), "at most", 10, "ms"),
        ("likes a second, 20 rows, 16 clients", rate("like"), "at least", 6000, "/s"),
        ("views a second, 20 rows, 16 clients", rate("view"), "at least", 20000, "/s"),
        ("one viral post, 16 clients, p99", p99(Case("like", 16, 1, True)), "at most", 10, "ms"),
    ]
    return [
        {
            "budget": name,
            "figure": figure,
            "bound": f"{word} {bound} {unit}",
            "is_kept": figure <= bound if word == "at most" else figure >= bound,
        }
        for name, figure, word, bound, unit in lines
    ]


def parts_of(world: World, kind: str, events: int = 500) -> dict[str, float]:
    """Microseconds of one event in each function by itself, from pg_stat_user_functions."""
    script = Case(kind).script(world)
    with connect(world.superuser_url, autocommit=True) as watcher:
        watcher.execute("alter database postgres set track_functions = 'all'")
        pgbench(world, script, transactions=WARM_UP)
        watcher.execute("select pg_stat_reset()")
        pgbench(world, script, transactions=events)
        watcher.execute("alter database postgres reset track_functions")
        found = rows(
            watcher,
            "select funcname, self_time * 1000 / %s from pg_stat_user_functions"
            " where schemaname = 'two_tower' and calls > 0 order by 2 desc",
            events,
        )
    return {name: round(float(time), 1) for name, time in found}


def wal_of(world: World, kind: str, events: int = 300) -> dict[str, float]:
    """WAL bytes of one event by table or index; {} where pg_walinspect is not installed.

    Without full pages, which a checkpoint shortly before would put into it.
    """
    script = Case(kind).script(world)
    with connect(world.superuser_url, autocommit=True) as watcher:
        if not rows(watcher, "select from pg_available_extensions where name = 'pg_walinspect'"):
            return {}
        watcher.execute("create extension if not exists pg_walinspect")
        start = value(watcher, "select pg_current_wal_insert_lsn()")
        pgbench(world, script, transactions=events)
        found = rows(
            watcher,
            "select regexp_replace(coalesce(c.relname, 'commits, locks'), '_[0-9]+(_|$)', '\\1'),"
            "  sum(b.record_length - coalesce(b.block_fpi_length, 0)) / %s"
            " from pg_get_wal_block_info(%s::pg_lsn, pg_current_wal_insert_lsn()) b"
            " left join pg_class c on pg_relation_filenode(c.oid) = b.relfilenode"
            " where b.block_id = 0 group by 1 order by 2 desc",
            events,
            start,
        )
    return {name: round(float(size), 1) for name, size in found if size >= 1}


def _position(world: World) -> float:
    with connect(world.url, autocommit=True) as connection:
        return wal_position(connection)


def _updates(world: World) -> dict[str, tuple[int, int]]:
    """By table: rows updated, and of those within their page (HOT)."""
    with connect(world.url, autocommit=True) as connection:
        found = rows(
            connection,
            "select regexp_replace(relname, '_[0-9]+$', '') as name, sum(n_tup_upd) as updates,"
            " sum(n_tup_hot_upd) as hot"
            " from pg_stat_user_tables where schemaname = 'two_tower' group by 1",
        )
    return {row.name: (int(row.updates), int(row.hot)) for row in found}


def _shares(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> dict[str, float]:
    """The HOT share of the updates of each table that had a thousand or more."""
    shares = {}
    for name, (updates, hot) in after.items():
        was_updates, was_hot = before.get(name, (0, 0))
        if updates - was_updates >= 1000:
            shares[name] = (hot - was_hot) / (updates - was_updates)
    return shares


def _verdicts(world: World) -> dict[str, int]:
    """How many of the events taught something: a repeated like is cheaper than a first one."""
    with connect(world.url, autocommit=True) as connection:
        query = "select reason, count(*) from two_tower.unlearned_events group by 1"
        unlearned = dict(rows(connection, query))
        learned = value(connection, "select count(*) from two_tower.training_examples")
    return {"learned": learned, **unlearned}
