"""What a user would have instead: a service beside the database, or pgvector by hand.

The service does what the specification lists, over psycopg, with numpy: it reads both vectors,
moves and stores them, and writes the training pairs, statement by statement, a transaction a like.
By hand a like is an insert, and a page is nearest to the mean of the last thirty likes. All three
are asked by the same driver, on the same server, in turns.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector

from python_jobs.db import Connection, array, connect, value
from python_jobs.laboratory.bench import serving
from python_jobs.laboratory.bench.feed import user_id
from python_jobs.laboratory.bench.world import World

CLIENTS = 8
PAGE = 50
VIRAL_POST = 1
LEARNING_RATE, MOST_ALPHA, NEGATIVES = 0.01, 0.1, 5  # the specification's

Act = Callable[[Connection, int, int], Any]  # of a user on a post, by their numbers

_TABLES = """
  create table public.other_posts (
    id bigint primary key, embedding extensions.vector(128) not null,
    engagement_count integer not null default 0);
  create table public.other_users (
    id uuid primary key, embedding extensions.vector(128) not null,
    engagement_count integer not null default 0);
  create table public.other_events (
    id bigint generated always as identity primary key, user_id uuid not null,
    post_id bigint not null, event_type text not null,
    created_at timestamptz not null default now());
  create table public.other_pairs (
    user_id uuid not null, post_id bigint not null, user_emb extensions.vector(128) not null,
    post_emb extensions.vector(128) not null, label boolean not null,
    created_at timestamptz not null default now());
  insert into public.other_posts (id, embedding)
    select post_id, embedding from two_tower.live_embeddings where slot = 0;
  insert into public.other_users (id, embedding)
    select user_id, embedding from two_tower.user_embeddings;
  insert into public.other_events (user_id, post_id, event_type, created_at)
    select u.user_id, r.post_id, 'like', now() - interval '1 day'
    from two_tower.user_embeddings u cross join unnest(u.recent_post_ids) as r (post_id);
  create index on public.other_events (user_id, created_at);
  create index on public.other_posts using hnsw (embedding extensions.vector_ip_ops);
  grant all on public.other_posts, public.other_users, public.other_events, public.other_pairs
    to postgres;
  analyze public.other_posts, public.other_users, public.other_events;
"""
_VIEWED = """
  select v.post_id, p.embedding from public.other_events v
    join public.other_posts p on p.id = v.post_id
  where v.user_id = %s and v.event_type = 'view'
    and v.created_at between now() - interval '1 hour' and now()
    and v.post_id not in (select e.post_id from public.other_events e
      where e.user_id = %s and e.event_type in ('like', 'reply', 'repost'))
  order by random() limit %s
"""
_MEAN = """
  select p.id from public.other_posts p
  where not exists (select from public.other_events e where e.user_id = %s and e.post_id = p.id)
  order by p.embedding operator(extensions.<#>) (
    select extensions.avg(q.embedding)
    from (select e.post_id from public.other_events e where e.user_id = %s
            and e.event_type = 'like' order by e.created_at desc limit 30) l
      join public.other_posts q on q.id = l.post_id) limit %s
"""
_PAIR = """
  insert into public.other_pairs (user_id, post_id, user_emb, post_emb, label)
  values (%s, %s, %s, %s, %s)
"""
_EVENT = "insert into public.other_events (user_id, post_id, event_type) values (%s, %s, 'like')"


def like_by_service(connection: Connection, user: int, post: int) -> None:
    """The listings "update_post_embedding", "update_user_embedding" and those of training pairs."""
    reader = user_id(user)
    with connection.transaction():
        connection.execute(_EVENT, [reader, post])
        (at, touched) = _read(connection, "posts", post)
        (taste, engaged) = _read(connection, "users", reader)
        _store(connection, "posts", post, at + LEARNING_RATE * taste, touched)
        alpha = min(MOST_ALPHA, 1 / (engaged + 1))
        _store(connection, "users", reader, (1 - alpha) * taste + alpha * at, engaged)
        pairs = [(reader, post, Vector(taste), Vector(at), True)]
        pairs += [
            (reader, row[0], Vector(taste), row[1], False)
            for row in connection.execute(_VIEWED, [reader, reader, NEGATIVES])
        ]
        with connection.cursor() as cursor:
            cursor.executemany(_PAIR, pairs)


def like_by_hand(connection: Connection, user: int, post: int) -> None:
    """An event, and nothing learned."""
    connection.execute(_EVENT, [user_id(user), post])


def like_by_us(connection: Connection, user: int, post: int) -> None:
    """An event. The trigger learns."""
    connection.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " values (%s, %s, 'like')",
        [user_id(user), post],
    )


def page_by_service(connection: Connection, user: int, _: int) -> Any:
    """The posts nearest to the stored vector of the user."""
    (taste, _) = _read(connection, "users", user_id(user))
    query = (
        "select id from public.other_posts"
        " order by embedding operator(extensions.<#>) %s::extensions.vector limit %s"
    )
    return connection.execute(query, [Vector(taste), PAGE]).fetchall()


def page_by_hand(connection: Connection, user: int, _: int) -> Any:
    """The posts nearest to the mean of the last likes, but for those met."""
    return connection.execute(_MEAN, [user_id(user), user_id(user), PAGE]).fetchall()


def page_by_us(connection: Connection, user: int, _: int) -> Any:
    """recommend_for()."""
    query = "select post_id from public.recommend_for(%s, %s)"
    return connection.execute(query, [user_id(user), PAGE]).fetchall()


WAYS: dict[str, tuple[Act, Act]] = {
    "two-tower": (like_by_us, page_by_us),
    "a service beside it": (like_by_service, page_by_service),
    "pgvector by hand": (like_by_hand, page_by_hand),
}


def measure(
    world: World, rounds: int, acts: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]] | dict[str, str]]:
    """Likes and pages of all ways in turns.

    world: of filled_world(). acts: likes, and pages, of each client in a round. Returns for each
    way latencies in ms, likes a second of CLIENTS clients, and how many of their likes of one post
    are counted at it.
    """
    say("filling the tables of the others")
    with connect(world.superuser_url, autocommit=True) as connection:
        connection.execute(_TABLES.encode())
    with connect(world.url, autocommit=True) as connection:
        connection.execute("update two_tower.settings set learned_events_per_minute = 1000000")
        if value(connection, "select two_tower.needs_serving_index()"):
            serving.build(world)
    found: dict[str, dict[str, list[Any]]] = {
        name: {"like": [], "page": [], "rate": []} for name in WAYS
    }
    for number, (name, (like, page)) in itertools.product(range(rounds), WAYS.items()):
        say(f"round {number + 1} of {rounds}: {name}")
        found[name]["like"] += _time(world, like, 1, acts, number)[0]
        found[name]["page"] += _time(world, page, 1, acts, number)[0]
        found[name]["rate"].append(_time(world, like, CLIENTS, acts, number)[1])
        world.fold()
    likes = CLIENTS * acts
    return {
        "versions": world.versions(),
        "ways": [
            {
                "way": name,
                **{f"{what}_p50_ms": statistics.median(times[what]) for what in ("like", "page")},
                **{f"{what}_p99_ms": float(np.percentile(times[what], 99))
                   for what in ("like", "page")},
                "likes_per_s": statistics.median(times["rate"]),
                "likes_of_one_post": likes,
                "counted": _count_of_one_post(world, name, acts, say),
            }
            for name, times in found.items()
        ],
    }  # fmt: skip


def _time(
    world: World, act: Act, clients: int, acts: int, seed: int = 0, viral: bool = False
) -> tuple[list[float], float]:
    """Latencies in ms, but for the first of each client, and acts a second of all clients."""

    def run(client: int) -> list[float]:
        chance = np.random.default_rng([seed, client])
        times = []
        with connect(world.url, autocommit=True) as connection:
            for number in range(acts + 1):
                if viral:  # by each user once, and not by an author: they are the first hundred
                    user, post = 101 + (number * clients + client) % (world.users - 100), VIRAL_POST
                else:
                    user = int(chance.integers(1, world.users + 1))
                    post = int(chance.integers(VIRAL_POST + 1, world.posts + 1))
                began = time.perf_counter()
                act(connection, user, post)
                times.append(1000 * (time.perf_counter() - began))
        return times[1:]

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [one for part in pool.map(run, range(clients)) for one in part]
    return times, clients * (acts + 1) / (time.perf_counter() - began)


def _count_of_one_post(world: World, name: str, acts: int, say: Callable[[str], None]) -> int:
    """How many of the likes of one post by all clients at once are counted at it."""
    say(f"likes of one post: {name}")
    count = {
        "two-tower": "select engagement_count from two_tower.post_embeddings where post_id = {}",
        "a service beside it": "select engagement_count from public.other_posts where id = {}",
        "pgvector by hand": "select count(*) from public.other_events"
        " where post_id = {} and event_type = 'like'",
    }[name].format(VIRAL_POST)
    with connect(world.url, autocommit=True) as connection:
        before = value(connection, count)
        _time(world, WAYS[name][0], CLIENTS, acts - 1, viral=True)
        world.fold()
        return int(value(connection, count) - before)


def _read(connection: Connection, table: str, key: Any) -> tuple[np.ndarray, int]:
    query = f"select embedding, engagement_count from public.other_{table} where id = %s"
    row = connection.execute(query.encode(), [key]).fetchone()
    if row is None:
        raise psycopg.DataError(f"other_{table} lacks {key}")
    return array(row[0]), row[1]


def _store(connection: Connection, table: str, key: Any, vector: np.ndarray, count: int) -> None:
    connection.execute(
        f"update public.other_{table} set embedding = %s, engagement_count = %s"
        " where id = %s".encode(),
        [Vector(vector / np.linalg.norm(vector)), count + 1, key],
    )
