"""A dump as the platform makes it, restored elsewhere: the schema auth is left out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.database import add_user
from tests.support.dumps import restore_dump
from tests.support.engagements import Stream, add_posts, base_vectors, insert_events, store
from tests.support.invariants import assert_consistent
from tests.support.servers import chosen_binaries

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
# A block counts from the next statement on. So events are learned again in the batches of before.
BATCH = 50
# What does not depend on what was drawn.
LEARNED = """
  select u.user_id, u.post_id, u.signals, u.is_engaged, u.is_hidden, e.engagement_count
  from two_tower.user_posts u join two_tower.user_embeddings e using (user_id) order by 1, 2
"""


def fill(connection: Connection) -> list[str]:
    """Users who engaged, some of it folded, some waiting; a checkpoint in the middle."""
    rng = np.random.default_rng(61)
    users = [add_user(connection) for _ in range(10)]
    posts = add_posts(connection, 60, users[:3], rng)
    stream = Stream(rng, users, posts)
    for _ in range(3):
        insert_events(connection, stream.next(BATCH))
    value(connection, "select two_tower.fold_steps(50)")
    value(connection, "select two_tower.checkpoint('operator')")
    insert_events(connection, stream.next(BATCH))
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


def test_rows_restored_without_the_schema_are_learned_once_more(
    fresh_database: Callable[[], str], cluster: Cluster
) -> None:
    source, target = fresh_database(), fresh_database()
    with connect(source, autocommit=True) as connection:
        users = fill(connection)
        value(connection, "select two_tower.fold_steps(null)")
        learned = rows(connection, LEARNED)
        accounts = rows(connection, "select id, email from auth.users order by id")
    name, other = (url.rsplit("/", 1)[1] for url in (source, target))
    tables = ("posts", "engagement_events", "engagement_events_*")
    binaries = chosen_binaries()
    dump = subprocess.run(
        [
            binaries.program("pg_dump"),
            *("--data-only", "--load-via-partition-root", cluster.url(name, SUPERUSER)),
            *(
                f"--table={schema}.{table}"
                for schema in ("public", "two_tower")
                for table in tables
            ),
            "--exclude-table=two_tower.posts",
        ],
        capture_output=True,
        check=True,
    )
    with connect(target, autocommit=True) as connection:
        for account in accounts:
            connection.execute("insert into auth.users (id, email) values (%s, %s)", list(account))
    loaded = subprocess.run(
        [binaries.program("psql"), "--set=ON_ERROR_STOP=1", cluster.url(other, SUPERUSER)],
        input=b"set session_replication_role = replica;" + dump.stdout,
        capture_output=True,
    )
    assert loaded.returncode == 0, loaded.stderr.decode()

    with connect(target, autocommit=True) as connection:
        assert value(connection, "select count(*) from two_tower.posts") == 0
        value(connection, "select two_tower.reconcile('posts')")
        ids = [row.id for row in rows(connection, "select id from two_tower.posts order by id")]
        store(connection, ids, base_vectors(np.random.default_rng(1), len(ids)))
        while value(connection, "select two_tower.learn_history(%s)", BATCH):
            pass
        value(connection, "select two_tower.fold_steps(null)")
        assert rows(connection, LEARNED) == learned
        assert_consistent(connection)
        # New events come after the restored ones, and what was learned is not learned again.
        last = value(connection, "select max(id) from public.engagement_events")
        insert = (
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'view') returning id"
        )
        assert value(connection, insert, users[0], ids[0]) > last
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            value(connection, "select two_tower.learn_history()")


def test_restored_events_find_posts_whose_ids_are_new_by_their_keys(db: Connection) -> None:
    users = [add_user(db) for _ in range(3)]
    value(db, "select two_tower.detach('public.posts')")
    db.execute("create table public.songs (slug text primary key, title text)")
    db.execute("insert into public.songs select 'song ' || n, 'song' from generate_series(1, 9) n")
    db.execute("alter table public.engagement_events disable trigger user")
    insert = (
        "insert into public.engagement_events (user_id, post_id, post_key, post_source, event_type)"
        " values (%s, %s, %s, %s, 'like')"
    )
    for user in users:
        db.execute(insert, [user, -70, "song 7", "songs"])  # the id that it had
        db.execute(insert, [user, -80, "song 8", None])
        db.execute(insert, [user, -1, None, None])  # nobody knows which song that was
        db.execute(insert, [user, -1, "song 10", "songs"])  # it is gone
        db.execute(insert, [user, -99, "song 1", "films"])  # so is its table
    db.execute("alter table public.engagement_events enable trigger user")
    value(db, "select two_tower.attach_posts('public.songs', content => '{title}')")
    value(db, "select two_tower.reconcile('songs')")
    taken = [value(db, "select two_tower.learn_history(2)") for _ in range(9)]
    assert taken == [2] * 7 + [1, 0]
    learned = rows(
        db,
        "select p.key, count(*) as users from two_tower.user_posts u"
        " join two_tower.posts p on p.id = u.post_id group by p.key order by p.key",
    )
    assert [tuple(row) for row in learned] == [("song 7", 3), ("song 8", 3)]
    moved = (
        "select count(*) from public.engagement_events e join two_tower.posts p on p.id = e.post_id"
    )
    assert value(db, f"{moved} and p.key = e.post_key") == 6
