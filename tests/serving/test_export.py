"""export_my_data(): all that is stored about the caller, in pages, and nothing about others."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.security.access import TABLES
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts
from tests.support.learning import World, rng

# Tables of the engine that name a user and are not returned, and why.
NOT_ABOUT_THE_USER = {
    "two_tower.posts": "the app's posts: the app has them",
    "two_tower.live_embeddings": "of a post, by whom it is",
    "two_tower.popular_candidates": "of a post, by whom it is",
    "two_tower.users_to_erase": "of users who are gone",
    "two_tower.undos": "how far a walk has come",
    "two_tower.state": "how far a walk has come",
}
NAME_A_USER = """
  select distinct format('%%s.%%s', c.relnamespace::regnamespace, c.relname) as name
  from pg_class c join pg_attribute a on a.attrelid = c.oid
  where c.relnamespace in ('two_tower'::regnamespace, 'public'::regnamespace)
    and c.relkind in ('r', 'p') and not c.relispartition and not a.attisdropped
    and a.atttypid in ('uuid'::regtype, 'uuid[]'::regtype) and a.attname <> 'client_event_id'
"""
LISTED = """
  select format('%%s.%%s', c.relnamespace::regnamespace, c.relname) as name, t.user_column,
    t.key_columns
  from two_tower.personal_tables t join pg_class c on c.oid = t.relation order by t.place
"""
STARTER = {"public.profiles", "public.posts", "public.follows"}


def export(db: Connection, user: str, limit: int | None = None) -> list[Any]:
    """All pages, as the user gets them."""
    found: list[Any] = []
    with as_user(db, user):
        while page := rows(
            db,
            "select * from public.export_my_data(%s, %s)",
            limit,
            found[-1].cursor if found else None,
        ):
            assert len(page) <= (limit or 100)
            found += page
    return found


def canonical(contents: list[Any]) -> list[str]:
    """Rows, whatever their order."""
    return sorted(json.dumps(each, sort_keys=True) for each in contents)


@pytest.fixture
def world(db: Connection) -> World:
    """Two users who did all that users can do, and a checkpoint with them."""
    world = World(db)
    me, other = world.user_ids[:2]
    (mine,) = add_posts(db, 1, [me], rng(2))
    of_others = add_posts(db, 2, [add_user(db), add_user(db)], rng(3))
    for user in (me, other):
        for kind in ("view", "like", "like", "reply", "hide"):
            world.send(kind, world.post_ids[len(kind)], user)
        world.send("mute_author", of_others[0], user)
        world.send("block_author", of_others[1], user)
        with as_user(db, user):
            value(db, "select public.set_interests('{boats}', array[%s])", str(world.post_ids[9]))
            value(db, "select public.embed_text('a boat')")
            db.execute("insert into public.muted_terms (kind, term) values ('word', 'tax')")
            db.execute("insert into public.muted_terms (kind, term) values ('tag', 'tax')")
        db.execute("update public.profiles set bio = 'sails' where user_id = %s", [user])
    db.execute("insert into public.follows values (%s, %s), (%s, %s)", [me, other, other, me])
    world.send("like", mine, other)
    value(db, "select two_tower.checkpoint('operator')")
    value(db, "select two_tower.freeze('a test')")
    for user in (me, other):
        world.send("like", world.post_ids[20], user)
    return world


def test_every_table_that_names_a_user_is_returned_or_is_not_about_the_user(
    db: Connection,
) -> None:
    named = {row.name for row in rows(db, NAME_A_USER)}
    listed = rows(db, LISTED)
    assert {row.name for row in listed} | set(NOT_ABOUT_THE_USER) | STARTER == named
    assert set(TABLES) >= STARTER
    for row in listed:
        unique = value(
            db,
            "select exists (select from pg_index i where i.indrelid = %s::regclass"
            " and i.indisunique and i.indpred is null and array(select a.attname::text"
            "   from pg_attribute a where a.attrelid = i.indrelid and a.attnum = any (i.indkey))"
            " <@ %s::text[])",
            row.name,
            [row.user_column, *row.key_columns],
        )
        assert unique, f"{row.name} is not told apart by {row.key_columns}"


def test_a_user_gets_every_row_of_every_table_once_and_vectors_too(world: World) -> None:
    db = world.connection
    me, other = world.user_ids[:2]
    found = export(db, me)
    by_table: dict[str, list[Any]] = {}
    for row in found:
        by_table.setdefault(row.table_name, []).append(row.content)
    owners = {row.name: row.user_column for row in rows(db, LISTED)}
    db.execute("set timezone = 'UTC'")
    for name, column in owners.items():
        stored = rows(db, f"select to_jsonb(t) as content from {name} t where {column} = %s", me)
        assert canonical(by_table.get(name, [])) == canonical([row.content for row in stored])
    assert {
        *("two_tower.users", "public.engagement_events", "two_tower.user_posts"),
        *("two_tower.training_examples", "two_tower.unlearned_events", "public.muted_terms"),
        *("two_tower.deferred_events", "two_tower.user_embeddings", "two_tower.follows"),
        *("two_tower.checkpoint_users", "two_tower.told_interests", "two_tower.blocks"),
        *("two_tower.requested_texts", "two_tower.profile_embeddings", "public.author_blocks"),
    } <= set(by_table)
    (taste,) = by_table["two_tower.user_embeddings"]
    assert len(json.loads(taste["embedding"])) == 128
    assert "a boat" in {row["content"] for row in by_table["two_tower.requested_texts"]}
    assert {row.content[owners[row.table_name]] for row in found} == {me}
    assert other in {row["followed_id"] for row in by_table["two_tower.follows"]}


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_of_any_size_are_the_same_rows_in_the_same_order(world: World, limit: int) -> None:
    db, me = world.connection, world.user_ids[0]
    whole = [(row.table_name, row.content) for row in export(db, me, 500)]
    assert [(row.table_name, row.content) for row in export(db, me, limit)] == whole


def test_a_page_has_at_most_five_hundred_rows(world: World) -> None:
    db, me = world.connection, world.user_ids[0]
    for _ in range(30):
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, post_id, 'view' from two_tower.live_embeddings where slot = 0",
            [me],
        )
    with as_user(db, me):
        query = "select * from public.export_my_data(100000)"
        assert len(rows(db, query)) == 500
        assert len(rows(db, "select * from public.export_my_data(-5)")) == 1
    assert len(export(db, me, 500)) > 1200


def test_back_ends_get_it_by_id_and_nobody_else_does(world: World) -> None:
    db = world.connection
    me, other = world.user_ids[:2]
    query = "select * from public.export_user_data(%s, 500)"
    with as_user(db, None, "service_role"):
        found = rows(db, query, me)
        assert rows(db, query, "00000000-0000-4000-8000-00000000dead") == []
    assert [row.content for row in found] == [row.content for row in export(db, me, 500)]
    for user in (other, me):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            db.transaction(),
            as_user(db, user),
        ):
            rows(db, query, me)
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        db.transaction(),
        as_user(db, None),
    ):
        rows(db, "select * from public.export_my_data()")


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "5", "{}", "[]x", "[1]", "[2, 1]", '[2, "x", "y"]', "[99, 1]", '["x"]'),
        *("[3, null, null]", "[99999]", '[13, "word"]', '[3, "x\'); drop table posts; --"]'),
    ],
)
def test_a_text_that_is_no_cursor_is_refused(world: World, cursor: str) -> None:
    db = world.connection
    with (
        pytest.raises(psycopg.errors.InvalidParameterValue, match="not a cursor"),
        db.transaction(),
        as_user(db, world.user),
    ):
        rows(db, "select * from public.export_my_data(10, %s)", cursor)
