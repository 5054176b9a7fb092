"""A signed-in user and the rows of another one, in each table of `public`, and by each function."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.security.access import BACK_END_FUNCTIONS, CLIENT_FUNCTIONS, TABLES
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts

REAL_TABLES = [name for name in TABLES if name != "public.posts_page"]


class Two(NamedTuple):
    """Two users, each with a row in every table of `public`."""

    db: Connection
    me: str
    other: str
    posts: list[int]


@pytest.fixture
def two(db: Connection) -> Two:
    me, other = add_user(db), add_user(db)
    authors = [add_user(db), me, other]  # add_posts begins with the second
    posts = add_posts(db, 30, authors, np.random.default_rng(1))
    db.execute("update public.profiles set bio = 'sails' where user_id in (%s, %s)", [me, other])
    db.execute("insert into public.follows values (%s, %s), (%s, %s)", [me, other, other, me])
    db.execute(
        "insert into public.muted_terms select u, 'word', 'rain' from unnest(%s::uuid[]) u",
        [[me, other]],
    )
    for user, post in ((me, posts[1]), (other, posts[0])):
        for event_type in ("view", "like", "mute_author"):
            db.execute(
                "insert into public.engagement_events (user_id, post_id, event_type)"
                " values (%s, %s, %s)",
                [user, post, event_type],
            )
    return Two(db, me, other, posts)


def owners(two: Two, table: str) -> set[str]:
    """Whose rows are found."""
    found = rows(two.db, f"select distinct {TABLES[table].owner}::text as owner from {table}")
    return {each.owner for each in found}


@pytest.mark.parametrize("table", TABLES)
def test_a_user_reads_own_rows_and_those_of_others_only_where_all_may(two: Two, table: str) -> None:
    assert {two.me, two.other} <= owners(two, table)
    with as_user(two.db, two.me):
        seen = owners(two, table)
    assert two.me in seen
    assert (two.other in seen) == (TABLES[table].reads == "all")


@pytest.mark.parametrize("claims", ["", "{}", '{"sub": null}'])
@pytest.mark.parametrize("table", REAL_TABLES)
def test_claims_without_a_user_own_nothing(two: Two, table: str, claims: str) -> None:
    entry = TABLES[table]
    with as_user(two.db, None):
        two.db.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        if entry.reads == "own":
            assert value(two.db, f"select count(*) from {table}") == 0
        if entry.updates:
            column = entry.updates.split()[0]
            assert two.db.execute(f"update {table} set {column} = {column}".encode()).rowcount == 0
        if entry.deletes:
            assert two.db.execute(f"delete from {table}".encode()).rowcount == 0


@pytest.mark.parametrize("table", [name for name in REAL_TABLES if TABLES[name].updates])
def test_a_user_changes_own_rows_alone(two: Two, table: str) -> None:
    entry = TABLES[table]
    for column in entry.updates.split():
        with as_user(two.db, two.me):
            changed = two.db.execute(
                f"update {table} set {column} = {column} returning {entry.owner}::text".encode()
            ).fetchall()
        assert {row[0] for row in changed} == {two.me}


@pytest.mark.parametrize("table", [name for name in REAL_TABLES if TABLES[name].deletes])
def test_a_user_deletes_own_rows_alone(two: Two, table: str) -> None:
    with as_user(two.db, two.me):
        two.db.execute(f"delete from {table}".encode())
    left = owners(two, table)
    assert two.other in left
    assert two.me not in left


@pytest.mark.parametrize("table", [name for name in REAL_TABLES if TABLES[name].inserts])
def test_a_user_inserts_no_row_of_another(two: Two, table: str) -> None:
    """What my rows say, once more, in the other's name."""
    entry = TABLES[table]
    columns = entry.inserts.split()
    said = ", ".join("%(other)s::uuid" if each == entry.owner else each for each in columns)
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
        as_user(two.db, two.me),
    ):
        two.db.execute(
            f"insert into {table} ({', '.join(columns)}) select {said} from {table}"
            f" where {entry.owner} = %(me)s limit 1".encode(),
            {"me": two.me, "other": two.other},
        )


# Functions that name a user, with arguments beside: each is for that user alone.
ABOUT_A_USER: dict[str, dict[str, Any]] = {
    "two_tower.page_for": {"p_limit": 5},
    "two_tower.rank_for": {"p_limit": 5, "p_excluded": []},
    "two_tower.turns_for": {"p_limit": 5, "p_author_ids": []},
    "two_tower.filter_for": {"p_filter": None, "p_source": None},
    "two_tower.muted_for": {},
    "two_tower.shown_before": {"p_cursor": None},
    "two_tower.cursor_after": {"p_cursor": None, "p_post_ids": []},
    "two_tower.export_for": {"p_limit": 5},
    "two_tower.explain_post": {"p_post_id": 0},
    "two_tower.explain_copy": {"p_post_id": 0, "p_page": []},
    "two_tower.explain_readable": {"p_post_id": 0},
}


def test_the_functions_that_name_a_user_are_known(db: Connection) -> None:
    named = {
        each.name
        for each in rows(
            db,
            "select format('%%s.%%s', pronamespace::regnamespace, proname) as name from pg_proc"
            " where pronamespace in ('public'::regnamespace, 'two_tower'::regnamespace)"
            " and proargtypes::oid[] && array['uuid'::regtype::oid, 'uuid[]'::regtype::oid]",
        )
    }
    assert named & set(CLIENT_FUNCTIONS) == set(ABOUT_A_USER)
    assert not named & set(CLIENT_FUNCTIONS) & BACK_END_FUNCTIONS


@pytest.mark.parametrize("function", ABOUT_A_USER)
def test_no_function_answers_about_another_user(two: Two, function: str) -> None:
    given = ABOUT_A_USER[function]
    if "p_post_id" in given:
        given = {**given, "p_post_id": two.posts[2]}
    listed = "".join(f", {part} => %s" for part in given)
    call = f"select * from {function}(p_user_id => %s{listed})".encode()
    for user in (two.other, None):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="the caller is not user"),
            two.db.transaction(),
            as_user(two.db, two.me),
        ):
            two.db.execute(call, [user, *given.values()])
    with as_user(two.db, two.me):
        assert two.db.execute(call, [two.me, *given.values()]).fetchall()
