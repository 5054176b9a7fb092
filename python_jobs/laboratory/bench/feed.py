"""A feed to search: posts around topics, readers with one and with four interests.

Synthetic: topics are random directions, and a post is its topic plus noise of the same length, so
that two posts of a topic have a cosine of about .5, as posts about one subject do, and those of
two topics one of about 0. That is harder for a graph index than real texts, whose subjects overlap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pgvector import Vector

from python_jobs.db import Connection, connect, value
from python_jobs.laboratory.bench.world import World
from python_jobs.laboratory.server import USER_ID

DIMENSIONS = 128
POSTS_A_TOPIC = 1000
AUTHORS = 2000
READERS = 400  # the odd ones have one interest, the even ones four
SEEN = 1000
BLOCKED = 20
HISTORY = 30

# COPY's binary format of a row of (bigint, vector(128)), between its header and its end.
_ROW = np.dtype(
    [
        *(("fields", ">i2"), ("id_size", ">i4"), ("id", ">i8"), ("size", ">i4")),
        *(("dimensions", ">i2"), ("unused", ">i2"), ("vector", ">f4", DIMENSIONS)),
    ]
)
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"


def user_id(number: int) -> str:
    """The id that a pgbench script makes of a number."""
    return f"00000000-0000-4000-8000-{number:012x}"


def readers(interests: int) -> range:
    """Numbers of the readers with so many interests: 1 or 4."""
    return range(1 if interests == 1 else 2, READERS + 1, 2)


def fill_feed(world: World, seed: int = 1) -> None:
    """Fills a world: posts with vectors, authors, readers with histories, seen posts and blocks.

    Users 1 to READERS read, the others are authors, who also engage (see ENGAGE). Half of what a
    reader has seen is about the reader's interests. public.topics lists the posts of each topic.
    """
    chance = np.random.default_rng(seed)
    topics = _unit(chance.normal(size=(max(8, world.posts // POSTS_A_TOPIC), DIMENSIONS)))
    topic_of = chance.integers(len(topics), size=world.posts)
    vectors = np.empty((world.posts, DIMENSIONS), np.float32)
    for start in range(0, world.posts, 100_000):
        part = topic_of[start : start + 100_000]
        noise = _unit(chance.normal(size=(len(part), DIMENSIONS)))
        vectors[start : start + len(part)] = _unit(topics[part] + noise)
    posts_of = [np.flatnonzero(topic_of == topic) for topic in range(len(topics))]
    with connect(world.superuser_url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            f"insert into auth.users (id, email) select {USER_ID.format('g')},"
            f" 'user' || g || '@example.com'"
            f" from generate_series(1, {READERS + AUTHORS}) g".encode()
        )
        connection.execute(
            f"insert into public.posts (author_id, content, created_at)"
            f" select {USER_ID.format(f'{READERS + 1} + g % {AUTHORS}')}, 'post ' || g,"
            f" now() - interval '1 day' - g * interval '1 second'"
            f" from generate_series(1, {world.posts}) g".encode()
        )
        connection.execute("select two_tower.reconcile('posts')")
        connection.execute("update two_tower.posts set encoded_hash = content_hash where true")
        _copy_vectors(connection, vectors)
        connection.execute("create table public.topics (topic int primary key, posts bigint[])")
        for topic, posts in enumerate(posts_of):
            connection.execute(
                "insert into public.topics values (%s, %s)", [topic, (posts + 1).tolist()]
            )
        for number in range(1, READERS + 1):
            interests = chance.choice(len(topics), 1 if number % 2 else 4, replace=False)
            own = np.concatenate([posts_of[topic] for topic in interests])
            _add_reader(connection, chance, number, own, vectors)
            _add_interests(connection, number, topic_of)
        connection.execute("select two_tower.reconcile('author_blocks')")
        connection.execute("grant all on public.topics to postgres")
        connection.execute("set session_replication_role = origin")
        connection.execute("vacuum (analyze)")


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / lengths, dtype=np.float32)


def _copy_vectors(connection: Connection, vectors: np.ndarray) -> None:
    connection.execute(
        "create temporary table copied (post_id bigint, embedding extensions.vector(128))"
    )
    with (
        connection.cursor() as cursor,
        cursor.copy("copy copied from stdin (format binary)") as copy,
    ):
        copy.write(_HEADER)
        for start in range(0, len(vectors), 100_000):
            part = vectors[start : start + 100_000]
            rows = np.zeros(len(part), _ROW)
            rows["fields"], rows["id_size"], rows["dimensions"] = 2, 8, DIMENSIONS
            rows["size"] = 4 + 4 * DIMENSIONS
            rows["id"] = np.arange(start + 1, start + 1 + len(part))
            rows["vector"] = part
            copy.write(rows.tobytes())
        copy.write(_END)
    connection.execute(
        "insert into two_tower.live_embeddings"
        " (slot, post_id, source_id, embedding, author_id, created_at, model_version)"
        " select 0, p.id, p.source_id, c.embedding, p.author_id, p.created_at,"
        "   two_tower.active_version('candidate_tower')"
        " from copied c join two_tower.posts p on p.id = c.post_id order by p.id"
    )
    # Copies are found by base embeddings: the same directions, so that no post is a copy.
    connection.execute(
        "insert into two_tower.base_embeddings (post_id, base_embedding) select c.post_id,"
        " (c.embedding::real[] || array_fill(0::real, array[256]))::extensions.vector"
        " from copied c order by c.post_id"
    )
    connection.execute("drop table copied")
    # A first projection would be fitted to them, and its vectors put in place of these.
    connection.execute(
        "update two_tower.model_weights set config = config - 'start'"
        " where tower = 'candidate_tower' and state = 'active'"
    )


def live_vectors(connection: Connection, posts: int) -> np.ndarray:
    """The live vectors [posts, 128] as they stand: the post with id i is row i - 1."""
    vectors = np.zeros((posts, DIMENSIONS), np.float32)
    for rows in _copied_rows(connection):
        vectors[rows["id"] - 1] = rows["vector"]
    return vectors


def _copied_rows(connection: Connection) -> Iterator[np.ndarray]:
    query = (
        "copy (select v.post_id, v.embedding from two_tower.live_embeddings v"
        " where v.slot = (select active_slot from two_tower.state)) to stdout (format binary)"
    )
    left = b""
    skip = len(_HEADER)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for block in copy:
            left += bytes(block)
            if len(left) < 2**22:
                continue
            whole = (len(left) - skip) // _ROW.itemsize
            yield np.frombuffer(left, _ROW, whole, skip)
            left, skip = left[skip + whole * _ROW.itemsize :], 0
    yield np.frombuffer(left, _ROW, (len(left) - skip) // _ROW.itemsize, skip)


def _add_reader(
    connection: Connection,
    chance: np.random.Generator,
    number: int,
    own: np.ndarray,
    vectors: np.ndarray,
) -> None:
    history = chance.choice(own, HISTORY, replace=False)
    weights = 0.9 ** np.arange(HISTORY - 1, -1, -1)
    total = weights @ vectors[history]
    reader = user_id(number)
    connection.execute("select two_tower.add_users(array[%s]::uuid[])", [reader])
    connection.execute(
        "insert into two_tower.user_embeddings (user_id, embedding, engaged_sum, recent_post_ids,"
        " recent_strengths, engagement_count)"
        " values (%s, %s, %s, %s::bigint[], array_fill(1::real, array[%s]), %s)",
        [reader, Vector(_unit(total)), Vector(total), (history + 1).tolist(), HISTORY, HISTORY],
    )
    seen = set(history.tolist())
    seen.update(chance.choice(own, min(len(own) // 2, SEEN // 2), replace=False).tolist())
    while len(seen) < min(SEEN, len(vectors) // 2):
        seen.add(int(chance.integers(len(vectors))))
    connection.execute(
        "insert into two_tower.user_posts (user_id, post_id, first_seen_at, last_event_at)"
        " select %s, p + 1, now(), now() from unnest(%s::bigint[]) p",
        [reader, list(seen)],
    )
    blocked = chance.choice(AUTHORS, BLOCKED, replace=False) + READERS + 1
    connection.execute(
        "insert into public.author_blocks (user_id, author_id, kind)"
        " select %s, unnest(%s::uuid[]), 'block_author'",
        [reader, [user_id(int(author)) for author in blocked]],
    )


def _add_interests(connection: Connection, number: int, topic_of: np.ndarray) -> None:
    """An interest for each topic of the history: all of it are positives."""
    query = "select recent_post_ids from two_tower.user_embeddings where user_id = %s"
    history = value(connection, query, user_id(number))
    topics = topic_of[np.array(history) - 1]
    interests = np.unique(topics, return_inverse=True)[1] + 1
    connection.execute(
        "update two_tower.user_embeddings set positive_ids = recent_post_ids,"
        " positive_interests = %s::smallint[] where user_id = %s",
        [interests.tolist(), user_id(number)],
    )


# Twenty likes in a statement: authors engage with posts of one of their two topics.
ENGAGE = """
insert into public.engagement_events (user_id, post_id, event_type)
select {user_id}, t.posts[1 + floor(random() * cardinality(t.posts))::int], 'like'
from (select floor(random() * {authors})::int as author, (random() * 2)::int % 2 as which
      from generate_series(1, 20)) r
  join public.topics t
    on t.topic = (7 * r.author + 13 * r.which) % (select count(*) from public.topics);
""".format(user_id=USER_ID.format(f"{READERS + 1} + r.author"), authors=AUTHORS)
