"""A dump as the platform makes it, restored elsewhere: the schema auth is left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import Cluster
from tests.support.database import add_user
from tests.support.dumps import restore_dump
from tests.support.engagements import Stream, add_posts, insert_events
from tests.support.invariants import assert_consistent

COUNTS = """
  select (select count(*) from public.engagement_events) as events,
    (select count(*) from two_tower.training_examples) as examples,
    (select count(*) from two_tower.deferred_steps) as steps,
    (select count(*) from two_tower.user_posts) as user_posts,
    (select md5(string_agg(v.embedding::text, '' order by v.post_id))
      from two_tower.live_embeddings v where v.slot = 0) as posts,
    (select md5(string_agg(u.embedding::text, '' order by u.user_id))
      from two_tower.user_embeddings u) as users
"""


def fill(connection: Connection) -> list[str]:
    """Users who engaged, some of it folded, some waiting; a checkpoint in the middle."""
    rng = np.random.default_rng(61)
    users = [add_user(connection) for _ in range(10)]
    posts = add_posts(connection, 60, users[:3], rng)
    stream = Stream(rng, users, posts)
    insert_events(connection, stream.next(150))
    value(connection, "select two_tower.fold_steps(50)")
    value(connection, "select two_tower.checkpoint('operator')")
    insert_events(connection, stream.next(50))
    return users


def test_a_restored_dump_is_whole_goes_on_learning_and_erases_its_users(
    cluster: Cluster,
    fresh_database: Callable[[], str],
    create_database: Callable[..., str],
) -> None:
    source, target = fresh_database(), create_database()
    with connect(source, autocommit=True) as connection:
        users = fill(connection)
        before = rows(connection, COUNTS)
    restore_dump(cluster, source, target)

    with connect(target, autocommit=True) as connection:
        assert rows(connection, COUNTS) == before
        assert value(connection, "select two_tower.find_missing_parts()") == []
        assert_consistent(connection)
        post = value(connection, "select min(id) from public.posts")
        late = add_user(connection)
        connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'like')",
            [late, post],
        )
        learned = "select engagement_count from two_tower.user_embeddings where user_id = %s"
        assert value(connection, learned, late) == 1
        connection.execute("delete from auth.users where id = %s", [users[5]])
        waiting = "select user_id::text from two_tower.users_to_erase"
        assert rows(connection, waiting) == [(users[5],)]
