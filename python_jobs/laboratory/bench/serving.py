"""What a page costs, and what it misses: recommend() against the bare index and exact search."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pgvector import HalfVector

from python_jobs.db import Connection, array, connect, rows, value
from python_jobs.laboratory.bench import scarce
from python_jobs.laboratory.bench.feed import ENGAGE, live_vectors, readers, user_id
from python_jobs.laboratory.bench.pgbench import Run, pgbench
from python_jobs.laboratory.bench.world import World
from python_jobs.laboratory.server import USER_ID
from python_jobs.worker.process import Worker

PAGE = 50
SAMPLE = 60  # readers of a kind whose pages are compared with exact search
INTERESTS = (1, 4)
CLIENTS = (1, 8)
WARM_UP = 100  # pages a client, before they are timed
EFS = (50, 75, 100, 150, 200, 300, 400, 600, 800, 1000)

# Recall is of nearness to one vector alone. The default settings add popular and fresh posts,
# exploration, places for interests and a bound on the posts of an author. Latencies are of them.
_RULES = {
    **{"exploration_share": 0, "popularity_weight": 0, "recency_weight": 0, "interest_share": 0},
    **{"author_share": 1, "followed_author_share": 1},
}
_NEARNESS_ALONE = "update two_tower.settings set " + ", ".join(
    f"{name} = {number}" for name, number in _RULES.items()
)
_DEFAULTS = "update two_tower.settings set " + ", ".join(f"{name} = default" for name in _RULES)
_RECOMMEND = """
\\set n 2 * random(0, {last}) + {first}
select * from two_tower.recommend_for({user_id}, {page});
"""
# One query for each interest, of which the page takes its share.
_BARE = """
\\set n 2 * random(0, {last}) + {first}
select n.post_id from public.reader_vectors r cross join lateral (
  select s.post_id from two_tower.serving_embeddings_{side} s
  order by s.embedding operator(extensions.<#>) r.vector limit {rows}) n
where r.number = :n;
"""


@dataclass
class Truth:
    """What exact search finds for readers with so many interests, as the vectors stand now.

    exact: for each reader of the sample, the PAGE nearest eligible posts.
    """

    vectors: np.ndarray
    readers: list[int]
    users: np.ndarray
    exact: list[set[int]]

    def recall(self, found: list[set[int]]) -> float:
        """Mean share of the exact posts that were found."""
        return float(np.mean([len(f & e) / len(e) for f, e in zip(found, self.exact, strict=True)]))


def find_truth(connection: Connection, vectors: np.ndarray, interests: int) -> Truth:
    """Searches all vectors under the filters of recommend()."""
    sample = list(readers(interests))[:SAMPLE]
    users, exact = [], []
    for number in sample:
        users.append(array(value(connection, "select two_tower.encode_user(%s)", user_id(number))))
        scores = vectors @ users[-1]
        ineligible = rows(
            connection,
            "select post_id - 1 as place from two_tower.user_posts where user_id = %s"
            " union select p.id - 1 from two_tower.withheld_authors a"
            "   join two_tower.posts p using (author_id) where a.user_id = %s",
            *(user_id(number), user_id(number)),
        )
        scores[[row.place for row in ineligible]] = -np.inf
        exact.append({int(i) + 1 for i in np.argpartition(-scores, PAGE)[:PAGE]})
    return Truth(vectors, sample, np.array(users), exact)


def recall_of_pages(connection: Connection, truth: Truth) -> float:
    """Of recommend(), by nearness alone."""
    connection.execute(_NEARNESS_ALONE)
    query = "select post_id from two_tower.recommend_for(%s, %s)"
    found = [
        {post.post_id for post in rows(connection, query, user_id(number), PAGE)}
        for number in truth.readers
    ]
    connection.execute(_DEFAULTS)
    return truth.recall(found)


@dataclass
class Bare:
    """The pgvector query alone, with the ef and the rows that contain as much of the truth.

    For several interests it is asked for each of them, with this ef, for its share of the rows.
    """

    ef: int
    rows: int
    recall: float


def match_bare(connection: Connection, truth: Truth, recall: float, side: int) -> Bare:
    """The cheapest search whose rows hold as many of the exact posts as pages with that recall."""
    best = Bare(0, 0, 0)
    for ef in EFS:
        connection.execute(f"set hnsw.ef_search = {ef}".encode())
        query = (
            f"select post_id from two_tower.serving_embeddings_{side}"
            f" order by embedding operator(extensions.<#>) %s limit {ef}"
        )
        found = [
            [post.post_id for post in rows(connection, query, HalfVector(user))]
            for user in truth.users
        ]
        for count in range(PAGE, ef + 1, 25):
            reached = truth.recall([set(f[:count]) for f in found])
            if reached >= recall - 0.0005:
                return Bare(ef, count, reached)
        best = Bare(ef, ef, reached)
    return best


@dataclass
class Case:
    """Pages or bare searches of readers with so many interests, by so many clients."""

    name: str
    interests: int
    clients: int
    script: str
    options: str = ""
    runs: list[Run] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Latencies in ms: p50 as the median over the rounds, the tails over all of them."""
        pooled = np.concatenate([run.latencies for run in self.runs])
        return {
            "case": self.name,
            "interests": self.interests,
            "clients": self.clients,
            "p50_ms": statistics.median(run.percentile(50) for run in self.runs),
            "p95_ms": float(np.percentile(pooled, 95)),
            "p99_ms": float(np.percentile(pooled, 99)),
            "pages_per_s": statistics.median(run.rate for run in self.runs),
        }


def measure_pages(
    world: World, rounds: int, length: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Recall and latency of pages and of bare searches, in turns, as the index stands now."""
    with connect(world.url, autocommit=True) as connection:
        side = value(connection, "select serving_side from two_tower.state")
        vectors = live_vectors(connection, world.posts)
        recalls: dict[int, float] = {}
        bares: dict[int, Bare] = {}
        cases: list[Case] = []
        for interests in INTERESTS:
            say(f"exact search for readers with {interests} interests")
            truth = find_truth(connection, vectors, interests)
            recalls[interests] = recall_of_pages(connection, truth)
            bares[interests] = match_bare(connection, truth, recalls[interests], side)
            _store_vectors(connection, interests)
            cases += _cases(interests, side, bares[interests])
        del vectors
    for case in cases:
        pgbench(
            world, case.script, clients=case.clients, transactions=WARM_UP, options=case.options
        )
    for number in range(rounds):
        for case in cases:
            say(f"round {number + 1} of {rounds}: {case.name}, {case.clients} clients")
            case.runs.append(
                pgbench(world, case.script, clients=case.clients, options=case.options, **length)
            )
    return {
        "recall": recalls,
        "bare": {interests: vars(bare) for interests, bare in bares.items()},
        "cases": [case.figures() for case in cases],
    }


def _cases(interests: int, side: int, bare: Bare) -> Iterator[Case]:
    numbers = readers(interests)
    for clients in CLIENTS:
        parts: dict[str, Any] = {
            **{"first": numbers[0], "last": len(numbers) - 1, "side": side, "page": PAGE},
            **{"user_id": USER_ID.format(":n::integer"), "rows": -(-bare.rows // interests)},
        }
        options = f"-c hnsw.ef_search={bare.ef}"
        yield Case("bare HNSW", interests, clients, _BARE.format(**parts), options)
        yield Case("recommend", interests, clients, _RECOMMEND.format(**parts))


def _store_vectors(connection: Connection, interests: int) -> None:
    """What the bare queries search for, so that they need not encode anybody."""
    connection.execute(
        "create table if not exists public.reader_vectors"
        " (number integer, vector extensions.halfvec(128))"
    )
    vectors = (
        f"select {{n}}, two_tower.encode_user({USER_ID.format('{n}')})"
        if interests == 1
        else f"select {{n}}, i.vector from two_tower.list_interests({USER_ID.format('{n}')}) i"
    )
    for number in readers(interests):
        connection.execute("delete from public.reader_vectors where number = %s", [number])
        connection.execute(f"insert into public.reader_vectors {vectors.format(n=number)}".encode())
    connection.execute("create index if not exists reader_numbers on reader_vectors (number)")
    connection.execute("analyze public.reader_vectors")


def engage(world: World, events: int, say: Callable[[str], None]) -> float:
    """So many likes at full speed, with a worker at work, until it has nothing left to do.

    Returns the seconds that took. The towers are not trained: there are no texts here.
    """
    with connect(world.url, autocommit=True) as connection:
        connection.execute(
            "update two_tower.schedules set is_enabled = false where kind like 'train%'"
        )
        connection.execute("update two_tower.settings set learned_events_per_minute = 1000000")
    began = time.monotonic()
    say(f"{events:,} likes, with a worker beside")
    with working(world):
        clients = 4
        pgbench(world, ENGAGE, clients=clients, transactions=events // (20 * clients) - 1)
    Worker(world.url).run(drain=True)
    return time.monotonic() - began


@contextmanager
def working(world: World) -> Iterator[None]:
    """A worker in a thread of its own."""
    worker = Worker(world.url)
    thread = threading.Thread(target=worker.run, args=[False])
    thread.start()
    try:
        yield
    finally:
        worker.is_stopping.set()
        thread.join()


def build(world: World) -> dict[str, Any]:
    """Builds the serving index, and says how long that took and how large it is."""
    with connect(world.url, autocommit=True) as connection:
        connection.execute("select two_tower.build_serving_index('bench')")
        query = "select seconds, index_bytes from two_tower.serving_builds order by id desc limit 1"
        (built,) = rows(connection, query)
    return dict(built._asdict())


def measure(
    world: World, events: int, rounds: int, length: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Pages on a fresh index, after so many engagements, and on a fresh index again.

    world: filled by fill_feed(). length: of one case in one round, as pgbench() takes it.
    """
    say("building the serving index")
    report: dict[str, Any] = {"versions": world.versions(), "build": build(world)}
    report["fresh"] = measure_pages(world, rounds, length, say)
    report["faiss"] = search_with_faiss(world, report["fresh"]["recall"], say)
    report["engagements"] = events
    if events:
        report["engaging_s"] = engage(world, events, say)
        report["worn"] = measure_pages(world, rounds, length, say)
        with connect(world.url, autocommit=True) as connection:
            report["index"] = value(connection, "select to_jsonb(i) from two_tower.serving_index i")
            report["builds"] = value(connection, "select count(*) from two_tower.serving_builds")
            say("building the serving index anew")
            build(world)
            vectors = live_vectors(connection, world.posts)
            report["rebuilt_recall"] = {
                interests: recall_of_pages(connection, find_truth(connection, vectors, interests))
                for interests in INTERESTS
            }
    report["scarce"] = scarce.measure(world, rounds, length, say)
    report["budgets"] = budgets(report, world.posts)
    return report


def search_with_faiss(
    world: World, recalls: dict[int, float], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """FAISS's HNSW in memory, on one core, at the same recall; None where it is not installed.

    The graph has the parameters of ours (M 16, efConstruction 200), vectors are 32-bit.
    """
    try:
        import faiss
    except ImportError:
        return None
    with connect(world.url, autocommit=True) as connection:
        vectors = live_vectors(connection, world.posts)
        truths = {k: find_truth(connection, vectors, k) for k in INTERESTS}
    say("building FAISS's index")
    index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    began = time.monotonic()
    index.add(vectors)
    report: dict[str, Any] = {"build_s": time.monotonic() - began, "interests": {}}
    report["index_bytes"] = len(faiss.serialize_index(index))
    faiss.omp_set_num_threads(1)
    for interests, truth in truths.items():
        for ef in EFS:
            index.hnsw.efSearch = ef
            count = min(ef, 2 * PAGE if interests > 1 else 4 * PAGE)
            found, times = [], []
            for user in truth.users:
                began = time.perf_counter()
                ids = index.search(user[None], count)[1][0]
                times.append(1000 * (time.perf_counter() - began))
                found.append({int(i) + 1 for i in ids})
            recall = truth.recall(found)
            if recall >= recalls[interests] - 0.0005:
                break
        report["interests"][interests] = {
            **{"ef": ef, "rows": count, "recall": recall},
            **{f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 95, 99)},
        }
    return report


def budgets(report: dict[str, Any], posts: int) -> list[dict[str, Any]]:
    """Each budget with its figure, by the number of posts."""
    is_large = posts > 500_000
    fresh = {(c["case"], c["interests"], c["clients"]): c for c in report["fresh"]["cases"]}
    lines: list[tuple[str, Any, str, float, str]] = []
    for k in INTERESTS:
        ours, bare = fresh["recommend", k, 1], fresh["bare HNSW", k, 1]
        who = f"readers with {k} interest{'s' * (k > 1)}"
        recall, wanted = report["fresh"]["recall"][k], 0.95 if is_large else 0.97
        if not is_large:
            above = ours["p50_ms"] - bare["p50_ms"]
            lines.append((f"{who}: p50 above bare HNSW", above, "at most", 3, "ms"))
        lines += [
            (f"{who}: p99", ours["p99_ms"], "at most", 15 if is_large else 10, "ms"),
            (f"{who}: recall@50", recall, "at least", wanted, ""),
        ]
        if "worn" in report:
            lost = report["rebuilt_recall"][k] - report["worn"]["recall"][k]
            lines.append(
                (f"{who}: recall lost by {report['engagements']:,}", lost, "at most", 0.02, "")
            )
    lines += [
        (f"where {case['situation']}: against an exact scan", case["ratio"], "at most", 2, "x")
        for case in report["scarce"]
    ]
    return [
        {
            "budget": name,
            "figure": figure,
            "bound": f"{word} {bound} {unit}".strip(),
            "is_kept": figure <= bound if word == "at most" else figure >= bound,
        }
        for name, figure, word, bound, unit in lines
    ]
