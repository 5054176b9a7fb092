"""What training costs: durations and peak memory of the jobs, and what readers and writers notice
of a new candidate tower being put in place."""

from __future__ import annotations

import multiprocessing
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from python_jobs.db import Connection, connect, value
from python_jobs.laboratory.bench.world import World
from python_jobs.laboratory.server import USER_ID

LIKES = 3000  # enough for 1,000 pairs beside those that are held out
CALM_S = 10.0  # readers and writers alone, to compare with
FEWEST_SAMPLES = 100  # of which a 99th percentile says something
NEW_POSTS = 10
TEXTS = 500
WORDS = (
    "the",
    "a",
    "river",
    "over",
    "small",
    "boat",
    "bread",
    "market",
    "light",
    "stone",
    "winter",
)

_BUDGETS = (
    ("candidate tower update, 1,000 pairs: s", "candidate_s", 30.0),
    ("user tower update: s", "user_s", 120.0),
    ("refresh of all posts: s", "refresh_s", 60.0),
    ("readers' p99 during it, to before", "read_p99_ratio", 3.0),
    ("new post to recommendable, slowest: s", "new_post_s", 2.0),
    ("the same while a tower is trained: s", "new_post_training_s", 2.0),
    ("CPU s for 250 texts of 32 tokens", "encode_250_s", 1.0),
)


@dataclass
class Load:
    """One reader and one writer at work; latencies in ms."""

    world: World
    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    parts: list[Future[None]] = field(default_factory=list)

    def read(self) -> None:
        """Asks for pages of random users until stopped."""
        self._repeat("select count(*) from two_tower.recommend_for({user}, 50)", self.reads, 0)

    def write(self) -> None:
        """Likes random posts, some 50 a second, until stopped."""
        self._repeat(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values ({user}, {post}, 'like')",
            self.writes,
            0.02,
        )

    def wait(self) -> None:
        """Until the like that is under way has ended. Raises what ended a reader or the writer."""
        written = len(self.writes)
        while len(self.writes) <= written:
            for part in self.parts:
                if part.done():
                    part.result()
            time.sleep(0.01)

    def _repeat(self, query: str, into: list[float], pause_s: float) -> None:
        draw = random.Random(len(query))
        with connect(self.world.url, autocommit=True) as connection:
            while not self.stop.wait(pause_s):
                user = USER_ID.format(draw.randint(1, self.world.users))
                post = draw.randint(1, self.world.posts)
                began = time.monotonic()
                connection.execute(query.format(user=user, post=post).encode())
                into.append(1000 * (time.monotonic() - began))


@contextmanager
def load(world: World, reads: bool = True) -> Iterator[Load]:
    """Writes during the block, and reads where it says so. Raises what ended one of them."""
    running = Load(world)
    parts = (running.read, running.write) if reads else (running.write,)
    with ThreadPoolExecutor(len(parts)) as pool:
        running.parts = [pool.submit(part) for part in parts]
        try:
            yield running
        finally:
            running.stop.set()
    for part in running.parts:
        part.result()


def measure(
    worlds: Callable[[int], Any], sizes: list[int], say: Callable[[str], None]
) -> dict[str, Any]:
    """A row of figures for each number of posts. worlds: makes a filled world of so many."""
    rows = []
    for posts in sizes:
        say(f"{posts:,} posts: filling")
        with worlds(posts) as world:
            fill_texts(world)
            rows.append(_measure(world, lambda what, posts=posts: say(f"{posts:,} posts: {what}")))  # type: ignore[misc]
            versions = world.versions()
    say("encoding texts")
    encode_s = in_child(_encode_texts)["result"]["cpu_s"] * 250 / TEXTS
    figures = {**rows[-1], "encode_250_s": encode_s}
    return {
        "versions": versions,
        "rows": rows,
        "texts_per_s_and_core": 250 / encode_s,
        "budgets": [
            {
                "budget": name, "figure": figures[key], "bound": f"{bound:g}",
                "is_kept": figures[key] is not None and figures[key] <= bound,
            }
            for name, key, bound in _BUDGETS
        ],
    }  # fmt: skip


def fill_texts(world: World) -> None:
    """Base embeddings of all posts, and likes to learn from."""
    with connect(world.url, autocommit=True) as connection:
        # Training is started by hand here, and so is what it is timed against.
        connection.execute("update two_tower.schedules set is_enabled = false")
        copy_texts(connection, world.posts)
        draw = random.Random(1)
        for _ in range(LIKES):
            connection.execute(
                f"insert into public.engagement_events (user_id, post_id, event_type) values"
                f" ({USER_ID.format(draw.randint(1, world.users))},"
                f" {draw.randint(1, world.posts)}, 'like')".encode()
            )
        connection.execute("analyze")
    world.fold()


def copy_texts(connection: Connection, posts: int) -> None:
    """Base embeddings of the posts 1 to `posts`."""
    columns = "two_tower.base_embeddings (post_id, base_embedding, encoded_at)"
    with connection.cursor().copy(f"copy {columns} from stdin".encode()) as copy:
        # A text a thousand posts share is as much work to project as one of their own.
        base = np.random.default_rng(0).normal(size=(1000, 384)) / np.sqrt(384)
        texts = ["[" + ",".join(f"{x:.5f}" for x in vector) + "]" for vector in base]
        for post in range(1, posts + 1):
            copy.write_row((post, texts[post % len(texts)], "now"))


def _measure(world: World, say: Callable[[str], None]) -> dict[str, Any]:
    say("training the candidate tower")
    candidate = in_child(_run_job, world.url, "train_candidate_tower")
    say("training the user tower")
    user = in_child(_run_job, world.url, "train_user_tower")
    say("reading and writing")
    settle(world)
    with load(world) as calm:
        time.sleep(CALM_S)
    say("putting a candidate tower in place")
    _begin_switch(world)
    with load(world) as busy:
        refresh = in_child(_drain, world.url)
    say("posting")
    idle, training = _new_posts(world)
    calm_p99, busy_p99 = (percentile_99(part.reads) for part in (calm, busy))
    return {
        "posts": world.posts,
        "candidate_s": candidate["seconds"], "candidate_cpu_s": candidate["cpu_s"],
        "candidate_mb": candidate["peak_mb"],
        "pairs": candidate["result"].get("pairs"),
        "user_s": user["seconds"], "user_cpu_s": user["cpu_s"],
        "user_mb": user["peak_mb"],
        "users": user["result"].get("users"),
        "start_mb": candidate["start_mb"],
        "refresh_s": refresh["seconds"], "refresh_mb": refresh["peak_mb"],
        "read_p99_ms": calm_p99, "read_p99_during_ms": busy_p99,
        "read_p99_ratio": busy_p99 / calm_p99 if calm_p99 and busy_p99 else None,
        "slowest_write_ms": max(calm.writes),
        "slowest_write_during_ms": max(busy.writes, default=None),
        "new_post_s": idle, "new_post_training_s": training,
    }  # fmt: skip


def percentile_99(latencies: list[float]) -> float | None:
    """In ms; None of too few."""
    return float(np.percentile(latencies, 99)) if len(latencies) >= FEWEST_SAMPLES else None


def settle(world: World) -> None:
    """Lets a worker do what is due."""
    in_child(_drain, world.url)


def _begin_switch(world: World) -> None:
    """A version a little off the active one, as if the gate had accepted it."""
    with connect(world.url, autocommit=True) as connection:
        parent = value(connection, "select two_tower.active_version('candidate_tower')")
        version = value(
            connection,
            "insert into two_tower.model_weights (tower, parent_version, verdict)"
            " values ('candidate_tower', %s, 'a bench') returning version",
            parent,
        )
        connection.execute(
            "insert into two_tower.model_tensors (version, name, row_index, row)"
            " select %s, name, row_index, case when name = 'output.bias'"
            " then array_fill(0.01::real, array[128])::extensions.vector else row end"
            " from two_tower.model_tensors where version = %s",
            [version, parent],
        )
        connection.execute("select two_tower.begin_switch(%s)", [version])


def _new_posts(world: World) -> tuple[float, float]:
    """The slowest of some posts, from insert to live vector: idle, and beside a training."""
    with working(world), connect(world.url, autocommit=True) as connection:
        _time_post(connection)  # the encoder is loaded by then
        idle = max(_time_post(connection) for _ in range(NEW_POSTS))
        connection.execute("select two_tower.enqueue_job('train_user_tower')")
        beside = max(_time_post(connection) for _ in range(NEW_POSTS))
    return idle, beside


@contextmanager
def working(world: World) -> Iterator[None]:
    """A worker is at work during the block, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_work, args=[world.url], daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _time_post(connection: Connection) -> float:
    text = " ".join(random.choices(WORDS, k=24))
    began = time.monotonic()
    insert = "insert into public.posts (author_id, content) values (null, %s) returning id"
    post = value(connection, insert, text)
    query = (
        "select exists (select from two_tower.live_embeddings where post_id = %s and slot ="
        " (select active_slot from two_tower.state))"
    )
    while not value(connection, query, post):
        time.sleep(0.02)
    return time.monotonic() - began


def in_child(task: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Runs a function in a process of its own: seconds, of them its CPU, memory in MB, result."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (task, *arguments))


def _timed(task: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    from python_jobs.worker.process import leave_cores_to_postgres

    leave_cores_to_postgres()
    start_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu_began = time.process_time()
    seconds, result = task(*arguments)
    return {
        "seconds": seconds,
        "cpu_s": time.process_time() - cpu_began,
        "start_mb": start_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "result": result,
    }


def _run_job(url: str, kind: str) -> tuple[float, dict[str, Any]]:
    from python_jobs.worker.jobs import HANDLERS

    with connect(url, autocommit=True) as connection:
        began = time.monotonic()
        result = HANDLERS[kind](connection)
        return time.monotonic() - began, result


def _drain(url: str) -> tuple[float, dict[str, Any]]:
    from python_jobs.worker.process import Worker

    began = time.monotonic()
    jobs = Worker(url).run(drain=True)
    return time.monotonic() - began, {"jobs": jobs}


def _work(url: str) -> None:
    from python_jobs.worker.process import Worker, leave_cores_to_postgres

    leave_cores_to_postgres()
    Worker(url).run(drain=False)


def _encode_texts() -> tuple[float, dict[str, Any]]:
    import torch

    from python_jobs.worker.encoder import Encoder

    torch.set_num_threads(1)
    encoder = Encoder()
    # 30 short words are 30 word pieces; with both ends of a text, 32.
    texts = [" ".join(random.choices(WORDS, k=30)) for _ in range(TEXTS)]
    encoder.encode(texts[:32])
    began, cpu_began = time.monotonic(), time.process_time()
    encoder.encode(texts)
    return time.monotonic() - began, {"cpu_s": time.process_time() - cpu_began}
