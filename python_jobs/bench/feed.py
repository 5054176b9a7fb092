"""A feed to search: posts around topics, readers with one and with four interests.

Synthetic: topics are random directions, and a post is its topic plus noise of the same length, so
that two posts of a topic have a cosine of about .5, as posts about one subject do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector

from python_jobs.bench.world import USER_ID, World

DIMENSIONS = 128
POSTS_A_TOPIC = 1000
AUTHORS = 2000
READERS = 400  # half of them with one interest, half with four
SEEN = 1000
BLOCKED = 20
HISTORY = 30


@dataclass
class Feed:
    """What was put into the database, for references beside it.

    vectors: [posts, 128], of norm 1; the post with id i is row i - 1.
    """

    vectors: np.ndarray


def user_id(number: int) -> str:
    """The id that a pgbench script makes of a number."""
    return f"00000000-0000-4000-8000-{number:012x}"


def fill_feed(world: World, seed: int = 1) -> Feed:
    """Fills a world: posts with vectors, authors, readers with histories, seen posts and blocks.

    Users 1 to READERS read; the odd ones have one interest, the even ones four. The others are
    authors. Half of what a reader has seen is about the reader's interests.
    """
    chance = np.random.default_rng(seed)
    topics = _unit(chance.normal(size=(max(8, world.posts // POSTS_A_TOPIC), DIMENSIONS)))
    topic_of = chance.integers(len(topics), size=world.posts)
    vectors = np.empty((world.posts, DIMENSIONS), np.float32)
    for start in range(0, world.posts, 100_000):
        part = topic_of[start : start + 100_000]
        noise = _unit(chance.normal(size=(len(part), DIMENSIONS)))
        vectors[start : start + len(part)] = _unit(topics[part] + noise)
    by_topic = np.argsort(topic_of, kind="stable")
    bounds = np.searchsorted(topic_of[by_topic], np.arange(len(topics) + 1))
    with world.connect(superuser=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            f"insert into auth.users (id, email) select {USER_ID.format('g')},"
            f" 'user' || g || '@example.com' from generate_series(1, {READERS + AUTHORS}) g"
        )
        connection.execute(
            f"insert into public.posts (author_id, content, created_at)"
            f" select {USER_ID.format(f'{READERS + 1} + g % {AUTHORS}')}, 'post ' || g,"
            f" now() - interval '1 day' - g * interval '1 second'"
            f" from generate_series(1, {world.posts}) g"
        )
        _copy_vectors(connection, vectors, world.posts)
        for number in range(1, READERS + 1):
            interests = chance.choice(len(topics), 1 if number % 2 else 4, replace=False)
            own = np.concatenate([by_topic[bounds[t] : bounds[t + 1]] for t in interests])
            _add_reader(connection, chance, number, own, vectors)
        connection.execute("set session_replication_role = origin")
        connection.execute("vacuum (analyze)")
    return Feed(vectors)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _copy_vectors(connection: psycopg.Connection[Any], vectors: np.ndarray, posts: int) -> None:
    row = connection.execute("select two_tower.active_version('candidate_tower')").fetchone()
    assert row is not None
    connection.execute(
        "create temporary table copied (post_id bigint, embedding extensions.vector(128))"
    )
    with (
        connection.cursor() as cursor,
        cursor.copy("copy copied from stdin (format binary)") as copy,
    ):
        copy.set_types(["bigint", "vector"])
        for number in range(posts):
            copy.write_row((number + 1, Vector(vectors[number])))
    connection.execute(
        "insert into two_tower.live_embeddings"
        " (slot, post_id, embedding, author_id, created_at, model_version)"
        " select 0, p.id, c.embedding, p.author_id, p.created_at, %s"
        " from copied c join public.posts p on p.id = c.post_id order by p.id",
        row,
    )
    connection.execute("drop table copied")


def _add_reader(
    connection: psycopg.Connection[Any],
    chance: np.random.Generator,
    number: int,
    own: np.ndarray,
    vectors: np.ndarray,
) -> None:
    reader = user_id(number)
    history = chance.choice(own, HISTORY, replace=False)
    weights = 0.9 ** np.arange(HISTORY - 1, -1, -1)
    vector = _unit(weights @ vectors[history])
    connection.execute(
        "insert into two_tower.user_embeddings (user_id, embedding, engaged_sum, recent_post_ids,"
        " recent_strengths, engagement_count)"
        " values (%s, %s, %s, %s::bigint[], array_fill(1::real, array[%s]), %s)",
        [reader, Vector(vector), Vector(vector), [int(h) + 1 for h in history], HISTORY, HISTORY],
    )
    seen = {
        *history.tolist(),
        *chance.choice(own, min(len(own) // 2, SEEN // 2), replace=False).tolist(),
    }
    while len(seen) < SEEN:
        seen.add(int(chance.integers(len(vectors))))
    connection.execute(
        "insert into two_tower.user_posts (user_id, post_id, first_seen_at, last_event_at)"
        " select %s, p + 1, now(), now() from unnest(%s::bigint[]) p",
        [reader, list(seen)],
    )
    connection.execute(
        "insert into public.author_blocks (user_id, author_id, kind)"
        " select %s, unnest(%s::uuid[]), 'block_author'",
        [
            reader,
            [user_id(READERS + 1 + int(a)) for a in chance.choice(AUTHORS, BLOCKED, replace=False)],
        ],
    )
