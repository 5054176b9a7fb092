"""A database to measure: a durable server of its own, with users who have a history, and posts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

from python_jobs.db import Connection, connect, rows, value
from python_jobs.laboratory.server import USER_ID, server
from python_jobs.local.postgres import SUPERUSER, Binaries, Cluster, find_binaries

_FILL = """
  insert into auth.users (id, email)
  select {user_id}, 'user' || g || '@example.com' from generate_series(1, {users}) g;

  insert into public.posts (author_id, content, created_at)
  select {author_id}, 'post ' || g, now() - interval '1 day' from generate_series(1, {posts}) g;
  select two_tower.reconcile('posts');

  -- Random directions: synthetic, and as spread as vectors can be.
  insert into two_tower.live_embeddings
    (slot, post_id, source_id, embedding, author_id, created_at, model_version)
  select 0, p.id, p.source_id, extensions.l2_normalize((
           select array_agg(random() - 0.5)::extensions.vector(128)
           from generate_series(1, 128) where p.id > 0)),
         p.author_id, p.created_at, two_tower.active_version('candidate_tower')
  from two_tower.posts p;
  update two_tower.posts set encoded_hash = content_hash where true;

  -- Users with a full history: their rows are as wide as rows get.
  select two_tower.add_users(array(select id from auth.users));
  insert into two_tower.user_embeddings
    (user_id, embedding, engaged_sum, recent_post_ids, recent_strengths, engagement_count)
  select u.id, v.embedding, v.embedding,
         array(select 1 + floor(random() * {posts})::bigint from generate_series(1, 30)
               where u.id is not null),
         array_fill(1::real, array[30]), 30
  from auth.users u
    cross join lateral (select 1 + floor(random() * {posts})::bigint as post_id
                        where u.id is not null) r
    join two_tower.live_embeddings v on v.slot = 0 and v.post_id = r.post_id;

  -- What an event costs where nothing is learned from it.
  create table public.plain_events (
    id bigint primary key default nextval('two_tower.engagement_event_ids'),
    user_id uuid not null, post_id bigint not null, event_type text not null, dwell_ms integer,
    client_event_id uuid, created_at timestamptz not null default now());
  grant all on public.plain_events to postgres;
"""


@dataclass
class World:
    """A running server with one migrated and filled database."""

    cluster: Cluster
    binaries: Binaries
    users: int
    posts: int

    @property
    def url(self) -> str:
        """As role postgres, the owner of the schema."""
        return self.cluster.url()

    @property
    def superuser_url(self) -> str:
        """As the superuser, who owns the server."""
        return self.cluster.url(user=SUPERUSER)

    def fold(self) -> None:
        """Folds in all that is queued, as tick() does step by step."""
        with connect(self.url, autocommit=True) as connection:
            while value(connection, "select two_tower.fold_steps(1000)"):
                pass

    def versions(self) -> dict[str, str]:
        """What was measured, and on what."""
        with connect(self.url) as connection:
            (row,) = rows(
                connection,
                "select current_setting('server_version') as postgres,"
                " (select extversion from pg_extension where extname = 'vector') as pgvector,"
                " current_setting('fsync') as fsync,"
                " current_setting('synchronous_commit') as synchronous_commit,"
                " current_setting('shared_buffers') as shared_buffers",
            )
        return {
            "two-tower": version("two-tower"),
            **row._asdict(),
            "cores": str(os.cpu_count()),
            "users": str(self.users),
            "posts": str(self.posts),
        }


@contextmanager
def world(
    users: int,
    posts: int,
    settings: dict[str, str] | None = None,
    binaries: Binaries | None = None,
) -> Iterator[World]:
    """A migrated, empty database on a server that keeps what it acknowledges, gone afterwards."""
    binaries = binaries or find_binaries()
    defaults = {
        "max_connections": "60",
        "shared_buffers": "512MB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "30min",
    }
    with server({**defaults, **(settings or {})}, binaries) as cluster:
        yield World(cluster, binaries, users, posts)


@contextmanager
def filled_world(users: int, posts: int) -> Iterator[World]:
    """The same with users who have a full history, and posts in random directions."""
    with world(users, posts) as target:
        _fill(target)
        yield target


def wal_position(connection: Connection) -> float:
    """How many bytes were written to the WAL since the server was made."""
    position = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
    return float(value(connection, position))


def _fill(target: World) -> None:
    """Users who have a full history, and posts in random directions."""
    with connect(target.superuser_url, autocommit=True) as connection:
        # Rows as if they had long been there: no trigger, no job.
        connection.execute("set session_replication_role = replica")
        statements = _FILL.format(
            user_id=USER_ID.format("g"),
            author_id=USER_ID.format("1 + g % 100"),
            users=target.users,
            posts=target.posts,
        )
        connection.execute(statements.encode())
        connection.execute("set session_replication_role = origin")
        connection.execute("vacuum (analyze)")
        connection.execute("checkpoint")
