"""What the catalogue says about who may do what: nothing is exposed by oversight."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from python_jobs.db import Connection, value
from tests.support.catalogue import INLINED, READABLE
from tests.support.database import add_user, as_user

CLIENTS = ("anon", "authenticated")

# Every function of the private schema that a client role may execute, and why it may.
CLIENT_FUNCTIONS = {
    "now": "default of created_at",
    "is_operator": "called by now",
    "session_role": "called by is_operator",
    "require_user": "called by the wrappers",
    "require_caller": "called by search_posts",
    "request_text": "core of embed_text",
    "page_for": "called by every page, as the caller",
    "rank_for": "core of every page",
    "scan_limit": "called by page_for",
    "find_excluded": "called by page_for",
    "find_readable": "called by every page, as the caller",
    "find_newest_readable": "called by page_for, as the caller",
    "readable_posts": "called by find_readable, as the caller",
    "newest_readable_posts": "called by find_newest_readable, as the caller",
    "find_keys": "called by readable functions",
    "find_ids": "called by readable functions",
    "identify_post": "called by the wrappers",
    "explain_readable": "called by explain_recommendation",
    "explain_post": "core of explain_recommendation",
    "find_refused": "called by the trigger check_readable",
    "refuse_post": "called by the trigger check_readable",
    "begin_batch": "core of record_engagements",
    "store_events": "called by record_engagements, as the caller",
    "store_each": "called by record_engagements, as the caller",
    "read_event": "called by store_events",
    "read_dwell": "called by read_event",
    "is_about_the_event": "called by store_each",
    "refuse_event": "called by store_each",
    "canonical_key": "called by refuse_event",
}


def names(connection: Connection, query: str, *arguments: Any) -> list[str]:
    """The first column of a query."""
    return [row[0] for row in connection.execute(query, list(arguments))]


@pytest.mark.parametrize("role", CLIENTS)
def test_no_client_role_has_a_grant_on_a_private_table(db: Connection, role: str) -> None:
    assert (
        names(
            db,
            "select c.relname from pg_class c where c.relnamespace = 'two_tower'::regnamespace"
            " and c.relkind in ('r', 'p', 'v', 'm')"
            " and has_table_privilege(%s, c.oid, 'select,insert,update,delete,truncate')",
            role,
        )
        == []
    )


def test_clients_execute_only_the_private_functions_that_are_listed(
    db: Connection,
) -> None:
    query = (
        "select distinct proname::text from pg_proc where pronamespace = 'two_tower'::regnamespace"
        " and has_function_privilege(%s, oid, 'execute') order by 1"
    )
    assert names(db, query, "authenticated") == sorted(CLIENT_FUNCTIONS)
    assert names(db, query, "anon") == []


def test_every_table_of_the_exposed_schema_has_row_level_security(
    db: Connection,
) -> None:
    assert (
        names(
            db,
            "select relname from pg_class where relnamespace = 'public'::regnamespace"
            " and relkind in ('r', 'p') and not relrowsecurity",
        )
        == []
    )


def test_no_function_of_the_exposed_schema_is_a_definer_function(
    db: Connection,
) -> None:
    assert (
        names(
            db,
            "select proname from pg_proc where pronamespace = 'public'::regnamespace and prosecdef",
        )
        == []
    )


def test_every_function_pins_its_search_path_with_temporary_objects_last(
    db: Connection,
) -> None:
    """An empty path searches pg_temp first, for types."""
    assert names(
        db,
        "select format('%%s.%%s', pronamespace::regnamespace, proname) from pg_proc p"
        " where pronamespace in ('public'::regnamespace, 'two_tower'::regnamespace)"
        " and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)"
        " order by 1",
    ) == sorted((*INLINED, *READABLE))


@pytest.mark.parametrize(
    "call",
    [
        "select * from public.recommend(3)",
        "select * from public.popular_posts(3)",
        "select * from public.explain_recommendation(99)",
        """select * from public.record_engagements('[{"post_id": 99, "event_type": "view"}]')""",
        "insert into public.posts (content) values ('x')",
        "insert into public.engagement_events (post_id, event_type) values (99, 'like')",
    ],
)
def test_no_temporary_object_of_a_caller_runs_as_the_owner(db: Connection, call: str) -> None:
    user = add_user(db)
    db.execute("insert into public.posts (id, content) overriding system value values (99, 'a')")
    with as_user(db, user):
        for shadowed in ("text", "uuid", "int8", "float8", "jsonb", "timestamptz"):
            db.execute(
                f"""
                create function pg_temp.evil(pg_catalog.{shadowed}) returns boolean language plpgsql
                as $$ begin
                  perform set_config('evil.ran_as', current_user::pg_catalog.text, false);
                  return true;
                end $$;
                create domain pg_temp.{shadowed} as pg_catalog.{shadowed}
                  check (pg_temp.evil(value));
                """.encode()
            )
        db.execute(call.encode())
    ran_as = db.execute("select current_setting('evil.ran_as', true)").fetchone()
    assert ran_as in [(None,), ("",), ("authenticated",)]


def test_every_definer_function_says_why(db: Connection) -> None:
    assert (
        names(
            db,
            "select proname from pg_proc where pronamespace = 'two_tower'::regnamespace"
            " and prosecdef and obj_description(oid, 'pg_proc') not like '%%Definer: %%'",
        )
        == []
    )


def test_no_function_that_clients_may_call_answers_about_another_user(db: Connection) -> None:
    me, other = add_user(db), add_user(db)
    post = value(db, "insert into public.posts (content) values ('open') returning id")
    functions = names(
        db,
        "select oid::regproc::text from pg_proc where pronamespace = 'two_tower'::regnamespace"
        " and has_function_privilege('authenticated', oid, 'execute')"
        " and proargtypes::oid[] @> array['uuid'::regtype::oid]",
    )
    given = {"p_limit": 5, "p_excluded": [], "p_post_id": post}
    arguments = {
        "page_for": ["p_limit"],
        "rank_for": ["p_limit", "p_excluded"],
        "explain_post": ["p_post_id"],
        "explain_readable": ["p_post_id"],
    }
    assert set(functions) == {f"two_tower.{name}" for name in arguments}
    for name, parts in arguments.items():
        listed = "".join(f", {part} => %s" for part in parts)
        call = f"select * from two_tower.{name}(p_user_id => %s{listed})".encode()
        for user in (other, None):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege),
                db.transaction(),
                as_user(db, me),
            ):
                db.execute(call, [user, *(given[part] for part in parts)])
        with as_user(db, me):
            assert db.execute(call, [me, *(given[part] for part in parts)]).fetchall()


@pytest.mark.parametrize(
    "statement",
    [
        "select * from two_tower.settings",
        "select * from two_tower.user_embeddings",
        "update two_tower.signals set strength = 3",
        "select two_tower.recommend_for(gen_random_uuid())",
        "select public.recommend_for(gen_random_uuid())",
        "select public.explain_for(gen_random_uuid(), 1)",
        "select * from public.read_metrics()",
        "select two_tower.tick()",
        "select two_tower.freeze('because')",
        "select * from two_tower.claim_job('me')",
        "select two_tower.store_base_embeddings('{}', '{}')",
        "select * from two_tower.requested_texts",
        "select * from two_tower.texts_to_encode()",
        "select nextval('public.posts_id_seq')",
        "insert into public.author_blocks (author_id, kind) values (gen_random_uuid(), 'mute_author')",  # noqa: E501
        "truncate public.engagement_events",
        "delete from public.posts",
    ],
)
@pytest.mark.parametrize("role", CLIENTS)
def test_a_client_is_refused(db: Connection, role: str, statement: str) -> None:
    user = add_user(db)
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        as_user(db, user, role),
    ):
        db.execute(statement)


def test_a_client_can_not_set_the_clock(db: Connection) -> None:
    user = add_user(db)
    db.execute("select set_config('two_tower.now', '2020-01-01', true)")
    row = db.execute("select two_tower.now() < '2021-01-01'").fetchone()
    assert row == (True,)
    with as_user(db, user):
        row = db.execute("select two_tower.now() = pg_catalog.now()").fetchone()
    assert row == (True,)
    with as_user(db, None, "service_role"):
        row = db.execute("select two_tower.now() < '2021-01-01'").fetchone()
    assert row == (True,)


def test_a_change_of_a_setting_is_kept_with_who_made_it(db: Connection) -> None:
    with as_user(db, None, "service_role"):
        db.execute("update two_tower.signals set strength = 1.2 where event_type = 'like'")
    row = db.execute(
        "select changed_by, table_name,"
        " old_row ->> 'strength' as old, new_row ->> 'strength' as new"
        " from two_tower.setting_changes order by id desc limit 1"
    ).fetchone()
    assert row == ("service_role", "signals", "1", "1.2")


@pytest.mark.parametrize(
    "assignment",
    [
        "learning_rule = 'magic'",
        "negatives_per_positive = 4",
        "negatives_per_positive = 11",
        "literal_learning_rate = 0.02",
        "temperature = 0",
        "long_dwell_ms = 1",
        "history_decay = 'NaN'",
    ],
)
def test_a_setting_out_of_range_is_refused(db: Connection, assignment: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(f"update two_tower.settings set {assignment}")  # type: ignore[call-overload]


def test_the_service_role_stores_what_a_user_tower_learned(db: Connection) -> None:
    author = add_user(db)
    db.execute("select two_tower.add_users(array[%s]::uuid[])", [author])
    with as_user(db, None, "service_role"):
        db.execute(
            "with version as ("
            "  insert into two_tower.model_weights (tower) values ('user_tower') returning version"
            "), author as ("
            "  insert into two_tower.model_authors (version, author_id, embedding)"
            "  select version, %s, array_fill(0.5::real, array[64])::extensions.vector from version"
            "), action as ("
            "  insert into two_tower.model_tensors (version, name, row_index, row)"
            "  select version, 'action.weight', 2,"
            "  array_fill(1::real, array[64])::extensions.vector from version"
            ") select version from version",
            [author],
        )
        db.execute("select two_tower.activate_version(max(version)) from two_tower.model_weights")
    row = db.execute(
        "select (select count(*) from two_tower.author_embeddings where author_id = %s) as authors,"
        " (select count(*) from two_tower.action_embeddings where event_type = 'like') as actions",
        [author],
    ).fetchone()
    assert row == (1, 1)
