"""A user is deleted: all that is personal goes in bounded steps; posts keep what they learned."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, delete_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.reference import START, Event

# Every column that names a user, from the catalogue: a table added later is looked at too.
USER_COLUMNS = """
  select c.oid::regclass::text, a.attname
  from pg_class c join pg_attribute a on a.attrelid = c.oid
    join pg_namespace n on n.oid = c.relnamespace
  where n.nspname in ('public', 'two_tower') and c.relkind in ('r', 'p') and not c.relispartition
    and a.atttypid = 'uuid'::regtype and not a.attisdropped
    and (a.attname in ('user_id', 'author_id', 'follower_id', 'followed_id')
      or c.oid = 'two_tower.users'::regclass)
    and c.relname <> 'users_to_erase'
"""


def mentions(db: Connection, user_id: str) -> dict[str, int]:
    """Rows of each table that name the user."""
    found = {}
    for table, column in db.execute(USER_COLUMNS).fetchall():
        row = db.execute(
            f"select count(*) from {table} where {column} = %s",  # type: ignore[arg-type]
            [user_id],
        ).fetchone()
        if row and row[0]:
            found[f"{table}.{column}"] = row[0]
    return found


def live_vectors(db: Connection, user_id: str) -> list[tuple[Any, ...]]:
    """The live vectors of the posts, by id."""
    return db.execute(
        "select post_id, embedding::text, engagement_count from two_tower.post_embeddings"
        " order by post_id"
    ).fetchall()


def test_a_deleted_user_leaves_nothing_but_what_posts_learned(db: Connection) -> None:
    rng = np.random.default_rng(31)
    user, other = add_user(db), add_user(db)
    posts = add_posts(db, 60, [other, user], rng)
    kinds = ["view", "like", "skip", "click", "like", "unlike", "mute_author", "like"]
    for who in (user, other):
        for number in range(200):
            at = START + timedelta(seconds=7 * number)
            post = posts[(number // 2) % 60]
            insert_events(db, [Event(who, post, kinds[number % 8], None, at)])
    db.execute("update public.profiles set bio = 'me' where user_id = %s", [user])
    db.execute(
        "insert into public.follows (follower_id, followed_id) values (%s, %s), (%s, %s)",
        [user, other, other, user],
    )
    db.execute("insert into public.muted_terms values (%s, 'word', 'rain')", [user])
    db.execute("select two_tower.freeze('a test')")
    insert_events(db, [Event(user, posts[1], "reply", None, START + timedelta(hours=1))])
    personal = mentions(db, user)
    assert {
        "engagement_events.user_id",
        "two_tower.user_posts.user_id",
        "two_tower.training_examples.user_id",
        "two_tower.unlearned_events.user_id",
        "two_tower.user_embeddings.user_id",
        "two_tower.deferred_events.user_id",
        "author_blocks.user_id",
        "muted_terms.user_id",
        "profiles.user_id",
        "posts.author_id",
    } <= {name.removeprefix("public.") for name in personal}
    others = {
        name: count
        for name, count in mentions(db, other).items()
        if "follows" not in name and "block" not in name
    }
    vectors = live_vectors(db, user)

    db.execute("delete from auth.users where id = %s", [user])
    value(db, "select two_tower.apply_post_changes()")
    # A statement of the user's that was still running has a minute to end.
    assert db.execute("select two_tower.erase_users(100)").fetchone() == (0,)
    db.execute(
        "select set_config('two_tower.now', %s, false)",
        [(datetime.now(UTC) + timedelta(minutes=2)).isoformat()],
    )
    steps = 0
    while (row := db.execute("select two_tower.erase_users(100)").fetchone()) != (0,):
        assert row is not None
        assert 0 < row[0] <= 100
        steps += 1
    assert steps > 3
    assert mentions(db, user) == {}
    assert db.execute("select from two_tower.users_to_erase").fetchall() == []
    assert live_vectors(db, user) == vectors
    left = mentions(db, other)
    assert {name: left[name] for name in others} == others


def test_a_tick_erases_without_being_told(db: Connection) -> None:
    user = add_user(db)
    posts = add_posts(db, 3, [add_user(db)], np.random.default_rng(32))
    insert_events(db, [Event(user, posts[0], "view"), Event(user, posts[1], "like")])
    db.execute("delete from auth.users where id = %s", [user])
    db.execute(
        "update two_tower.users_to_erase set requested_at = two_tower.now() - interval '1 hour'"
    )
    db.execute("update two_tower.schedules set is_enabled = false")
    for _ in range(6):
        db.execute("select two_tower.tick()")
    assert mentions(db, user) == {}


@pytest.mark.parametrize(
    "leaves",
    [
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, min(id), 'view' from public.posts",
        "insert into public.profiles (user_id, bio) values (%s, 'me')",
    ],
)
def test_whatever_a_user_leaves_first_is_known_to_the_erasure(db: Connection, leaves: str) -> None:
    add_posts(db, 1, [add_user(db)], np.random.default_rng(33))
    user = add_user(db)
    db.execute(leaves.encode(), [user])
    db.execute("delete from auth.users where id = %s", [user])
    assert db.execute("select user_id::text from two_tower.users_to_erase").fetchall() == [(user,)]


def test_one_table_of_the_engine_refers_to_accounts_and_no_trigger_lies_on_them(
    db: Connection,
) -> None:
    """A dump of a project leaves out the schema auth, and with it triggers on its tables."""
    keys = db.execute(
        "select conrelid::regclass::text from pg_constraint where contype = 'f'"
        " and confrelid = 'auth.users'::regclass and connamespace = 'two_tower'::regnamespace"
    ).fetchall()
    assert keys == [("two_tower.users",)]
    triggers = db.execute(
        "select t.tgname from pg_trigger t join pg_proc p on p.oid = t.tgfoid"
        " where t.tgrelid = 'auth.users'::regclass and p.pronamespace = 'two_tower'::regnamespace"
    ).fetchall()
    assert triggers == []


def test_new_users_in_batches_of_opposite_order_do_not_wait_for_each_other_for_ever(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection, ThreadPoolExecutor(8) as pool:
        posts = add_posts(connection, 5, [add_user(connection)], np.random.default_rng(34))
        users = [add_user(connection) for _ in range(80)]

        def view(turn: int) -> None:
            order = users if turn % 2 else users[::-1]
            kind = ("view", "like")[turn // 2 % 2]
            with connect(url, autocommit=True) as session:
                insert_events(session, [Event(user, posts[turn % 5], kind) for user in order])

        list(pool.map(view, range(16)))
        query = "select count(*) from two_tower.users"
        assert value(connection, query) == len(users) + 1


def test_vectors_of_a_post_that_is_gone_go_after_deleted_posts_kept_for(
    db: Connection,
) -> None:
    user, author = add_user(db), add_user(db)
    posts = add_posts(db, 30, [author], np.random.default_rng(34))
    insert_events(db, [Event(user, posts[0], "like"), Event(user, posts[1], "like")])
    delete_posts(db, [posts[0]], rows=True)
    delete_posts(db, [posts[1]])
    live = "select count(*) from two_tower.live_embeddings where post_id = any (%s)"
    assert value(db, "select two_tower.purge_posts()") == 0
    db.execute("update two_tower.posts set deleted_at = deleted_at - interval '31 days'")
    with db.transaction(force_rollback=True):
        db.execute("update two_tower.sources set state = 'detached'")
        assert value(db, "select two_tower.purge_posts()") == 0
    with db.transaction(force_rollback=True):
        db.execute("update two_tower.settings set deleted_posts_kept_for = '32 days'")
        assert value(db, "select two_tower.purge_posts()") == 0
    assert value(db, "select two_tower.purge_posts()") == 1
    assert value(db, live, posts[:1]) == 0
    assert value(db, live, posts[1:]) == 29
    assert_consistent(db)
    # Those who liked it are served, and go on learning.
    assert len(db.execute("select from two_tower.recommend_for(%s, 10)", [user]).fetchall()) == 10
    insert_events(db, [Event(user, posts[2], "like")])
    assert_consistent(db)


STRANGER = "00000000-0000-4000-8000-00000000dead"


def test_a_user_without_an_account_is_refused_unless_imported(db: Connection) -> None:
    post, *_ = add_posts(db, 3, [add_user(db)], np.random.default_rng(35))
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught, db.transaction():
        insert_events(db, [Event(STRANGER, post, "like")])
    assert "import_users()" in str(caught.value.diag.message_hint)
    assert value(db, "select two_tower.import_users(%s)", [STRANGER, STRANGER, None]) == 1
    assert value(db, "select two_tower.import_users(%s)", [STRANGER]) == 0
    insert_events(db, [Event(STRANGER, post, "like")])
    assert mentions(db, STRANGER)["two_tower.training_examples.user_id"] == 1
    assert len(db.execute("select * from public.recommend_for(%s, 3)", [STRANGER]).fetchall()) == 2


@pytest.mark.parametrize("way", ["account", "row"])
def test_an_imported_user_is_erased_with_the_account_or_by_the_row(
    db: Connection, way: str
) -> None:
    post, *_ = add_posts(db, 3, [add_user(db)], np.random.default_rng(36))
    db.execute("select two_tower.import_users(%s)", [[STRANGER]])
    insert_events(db, [Event(STRANGER, post, "like")])
    if way == "account":
        db.execute("insert into auth.users (id) values (%s)", [STRANGER])
        assert value(db, "select two_tower.link_accounts()") == 1
        assert value(db, "select two_tower.link_accounts()") == 0
        db.execute("delete from auth.users where id = %s", [STRANGER])
    else:
        db.execute("delete from two_tower.users where id = %s", [STRANGER])
    db.execute(
        "update two_tower.users_to_erase set requested_at = two_tower.now() - interval '1 hour'"
    )
    for _ in range(6):
        db.execute("select two_tower.erase_users()")
    assert mentions(db, STRANGER) == {}
