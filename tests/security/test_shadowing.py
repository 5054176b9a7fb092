"""What a caller makes in pg_temp stands in for nothing that the engine's functions name.

The shadows: a domain for each type that the engine uses, a view for each of its tables, functions
and operators. Whoever of them runs notes as whom.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from psycopg import errors

from python_jobs.db import Connection, rows, value
from tests.security.access import CLIENT_FUNCTIONS
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts

TYPES = """
  with used as (
    select unnest(p.proargtypes::oid[] || p.prorettype || coalesce(p.proallargtypes, '{}')) as id
    from pg_proc p
    where p.pronamespace in ('public'::regnamespace, 'two_tower'::regnamespace)
    union
    select a.atttypid from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace in ('public'::regnamespace, 'two_tower'::regnamespace) and a.attnum > 0
  )
  select distinct t.typname as name
  from used u join pg_type t on t.oid = u.id or t.typarray = u.id
  where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b' and t.typelem = 0
"""
TABLES = """
  select distinct relname as name from pg_class
  where relnamespace in ('public'::regnamespace, 'two_tower'::regnamespace)
    and relkind in ('r', 'p', 'v') and not relispartition
"""
NOTE = """
  begin
    if current_user operator(pg_catalog.<>) 'authenticated' then
      perform pg_catalog.set_config('evil.ran_as', current_user::pg_catalog.text, false);
    end if;
    return true;
  end
"""
# A call of each function that signed-in users may call. {post} and {me} are filled in.
CALLS = {
    "public.recommend": """(3, '{{1,x}}', '{{"authors": ["x"], "followed": true,
      "max_age": "9 years", "languages": ["en"], "tags": ["x"], "keys": ["1"]}}')""",
    "public.recommended_posts": "(3, '{{1,x}}')",
    "public.most_popular_posts": "(3, '{{1,x}}')",
    "public.popular_posts": "(3)",
    "public.similar_posts": "({post}, 3)",
    "public.search_posts": "('a boat', 3)",
    "public.recent_from_followed": "(3)",
    "public.explain_recommendation": "(p_post_key => '{post}')",
    "public.record_engagements": """('[{{"post_key": "{post}", "event_type": "like"}},
      {{"post_id": 0, "event_type": "dwell", "dwell_ms": 1.5}}]', true)""",
    "public.embed_text": "('a boat')",
    "public.reset_my_feed": "()",
    "public.set_interests": "('{{boats}}', '{{{post}}}')",
    "two_tower.tell_interests": "('{{boats}}', array[{post}])",
    "public.what_is_known_of_me": "()",
    "two_tower.list_known": "()",
    "public.export_my_data": "(10)",
    "two_tower.export_for": "('{me}', 10)",
    "public.more_from_author": "('{other}', 3)",
    "public.trending_posts": "('boats', 3)",
    "two_tower.reset_feed": "()",
    "two_tower.now": "()",
    "two_tower.is_operator": "()",
    "two_tower.session_role": "()",
    "two_tower.require_user": "()",
    "two_tower.require_caller": "()",
    "two_tower.request_text": "('a boat')",
    "two_tower.page_for": "('{me}', 3, '{{1}}', 'posts', 'similar', {post})",
    "two_tower.rank_for": "('{me}', 3, '{{1}}', 'posts', array[{post}], 'popular')",
    "two_tower.turns_for": "('{me}', 3, array['{me}']::pg_catalog.uuid[])",
    "two_tower.scan_limit": "()",
    "two_tower.find_excluded": "('{{1,x}}', 'posts')",
    "two_tower.find_readable": "(array[{post}], true)",
    "two_tower.find_newest_readable": "(3, 'posts')",
    "two_tower.readable_posts": "(array[{post}])",
    "two_tower.newest_readable_posts": "(3)",
    "two_tower.find_muted": "(array[{post}], 'boat'::pg_catalog.tsquery)",
    "two_tower.muted_in_posts": "(array[{post}], 'boat'::pg_catalog.tsquery)",
    "two_tower.fold_text": "('a boat')",
    "two_tower.filter_for": """('{me}', '{{"authors": ["x"], "max_age": "9 years",
      "tags": ["x"], "keys": ["1"]}}', 'posts')""",
    "two_tower.muted_for": "('{me}')",
    "two_tower.shown_before": "('{me}', null)",
    "two_tower.cursor_after": "('{me}', null, array[{post}])",
    "two_tower.find_keys": "(2::pg_catalog.int2, array[{post}])",
    "two_tower.find_ids": "(2::pg_catalog.int2, '{{1}}')",
    "two_tower.identify_post": "(null, '{post}', 'posts')",
    "two_tower.explain_readable": "('{me}', {post})",
    "two_tower.explain_post": "('{me}', {post})",
    "two_tower.explain_copy": "('{me}', {post}, array[{post}])",
    "two_tower.find_refused": "(array[{post}])",
    "two_tower.refuse_post": "('1')",
    "two_tower.begin_batch": "()",
    "two_tower.store_events": """(array['{{"post_id": {post}, "event_type": "view"}}'
      ::pg_catalog.jsonb], '{{1}}', pg_catalog.now())""",
    "two_tower.store_each": """(array['{{"post_id": {post}, "event_type": "click"}}'
      ::pg_catalog.jsonb], pg_catalog.now())""",
    "two_tower.read_event": """('{{"post_id": {post}, "event_type": "view"}}', 1)""",
    "two_tower.read_dwell": "('1.5')",
    "two_tower.is_about_the_event": "('42501')",
    "two_tower.refuse_event": "('{{}}', 1, '22023', 'no', 'no')",
    "two_tower.canonical_key": "('1', 'bigint')",
}
# What clients write: triggers run, some of them as the owner.
WRITES = [
    "insert into public.profiles (handle, bio, interests) values ('me', 'sails', '{{boats}}')"
    " on conflict do nothing",
    "update public.profiles set bio = 'rows', interests = '{{oars}}' where user_id = '{me}'",
    "insert into public.posts (content) values ('a text')",
    "update public.posts set content = 'another' where author_id = '{me}'",
    "insert into public.engagement_events (post_id, event_type) values ({post}, 'repost')",
    "insert into public.engagement_events (post_key, event_type) values ('{post}', 'block_author')",
    "insert into public.follows (followed_id) values ('{other}')",
    "delete from public.follows",
    "delete from public.author_blocks",
]


@pytest.fixture
def hostile(db: Connection) -> dict[str, Any]:
    """A user who has made all shadows, and what the calls name."""
    me, other = add_user(db), add_user(db)
    (post, *_) = add_posts(db, 10, [other], np.random.default_rng(1))
    types, tables = (
        [row.name for row in rows(db, query.replace("%", "%%"))] for query in (TYPES, TABLES)
    )
    assert {"text", "uuid", "int8", "jsonb", "timestamptz"} <= set(types)
    assert {"settings", "posts"} <= set(tables)
    with as_user(db, me):
        for name in types:
            db.execute(
                f'create function pg_temp.evil(pg_catalog."{name}") returns pg_catalog.bool'
                f" language plpgsql as $${NOTE}$$".encode()
            )
        for name in types:
            db.execute(
                f'create domain pg_temp."{name}" as pg_catalog."{name}"'
                " check (pg_temp.evil(value))".encode()
            )
        for name in tables:
            db.execute(
                f'create view pg_temp."{name}" as select pg_temp.evil(1::pg_catalog.int4)'.encode()
            )
        for name in ("now", "current_setting", "coalesce_none", "uid", "array_position"):
            db.execute(
                f"create function pg_temp.{name}() returns pg_catalog.bool"
                f" language plpgsql as $${NOTE}$$".encode()
            )
        for name in ("text", "uuid", "int8"):
            db.execute(
                f"create function pg_temp.same(pg_catalog.{name}, pg_catalog.{name}) returns"
                f" pg_catalog.bool language plpgsql as $${NOTE}$$;"
                f" create operator pg_temp.= (leftarg = pg_catalog.{name},"
                f" rightarg = pg_catalog.{name}, function = pg_temp.same)".encode()
            )
    return {"db": db, "me": me, "other": other, "post": post}


def ran_as(hostile: dict[str, Any], statement: str) -> str:
    """As whom other than the caller a shadow ran; "" for nobody."""
    db = hostile["db"]
    refusals = errors.InvalidParameterValue, errors.ForeignKeyViolation
    with suppress(*refusals), db.transaction(), as_user(db, hostile["me"]):
        db.execute(statement.format(**hostile).encode())
    return str(value(db, "select coalesce(current_setting('evil.ran_as', true), '')"))


def test_a_careless_function_would_be_caught(hostile: dict[str, Any]) -> None:
    hostile["db"].execute(
        "create function public.careless() returns boolean language plpgsql security definer"
        " set search_path = '' as $$ begin return ('x'::text) is not null; end $$"
    )
    assert ran_as(hostile, "select public.careless()") == "postgres"


def test_each_function_of_clients_has_a_call() -> None:
    assert set(CALLS) == set(CLIENT_FUNCTIONS)


def test_no_shadow_runs_as_the_owner_in_a_call(hostile: dict[str, Any]) -> None:
    for name, arguments in CALLS.items():
        assert ran_as(hostile, f"select * from {name}{arguments}") == "", name


def test_no_shadow_runs_as_the_owner_in_a_write(hostile: dict[str, Any]) -> None:
    for statement in WRITES:
        assert ran_as(hostile, statement) == "", statement
