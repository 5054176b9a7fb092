"""What is in the way of the engine is told at once, before anything changes, with what to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from python_jobs.errors import CommandError
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from python_jobs.migrations import preflight
from python_jobs.migrations.preflight import InTheWayError
from tests.support.catalogue import describe
from tests.support.database import PROJECT, reachable_folder

VECTOR_VERSION = "update pg_extension set extversion = '{}' where extname = 'vector'"


def as_superuser(url: str, statements: str) -> None:
    """Changes what the owner of a project cannot change."""
    with psycopg.connect(url.replace("//postgres:", f"//{SUPERUSER}:")) as connection:
        connection.execute("set allow_system_table_mods = on")
        connection.execute(statements.encode())


def findings(url: str) -> list[str]:
    """What migrate refuses. It changes nothing."""
    with psycopg.connect(url) as connection:
        before = describe_schemas(connection)
    found = refused(url)
    with psycopg.connect(url) as connection:
        assert describe_schemas(connection) == before
    return found


def refused(url: str) -> list[str]:
    """The findings with which migrate is refused."""
    with pytest.raises(InTheWayError) as refusal:
        migrate(url, PROJECT)
    lines = refusal.value.format_message().splitlines()
    assert [line for line in lines if len(line) > 80] == []
    return refusal.value.findings


def describe_schemas(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    connection.execute("create schema if not exists supabase_migrations")
    connection.execute(
        "create table if not exists supabase_migrations.schema_migrations"
        " (version text primary key, name text, statements text[])"
    )
    connection.commit()
    return describe(connection)


@pytest.mark.parametrize(
    ("obstacle", "finding"),
    [
        (
            "create table public.engagement_events (id int)",
            "Table public.engagement_events exists: rename it: the engine's own has this name.",
        ),
        (
            "create view public.author_blocks as select 1 as a",
            "View public.author_blocks exists: rename it: the engine's own has this name.",
        ),
        (
            "create type public.author_blocks as enum ('a')",
            "Type public.author_blocks exists: rename it: the engine's own has this name.",
        ),
        (
            "create function public.recommend(text) returns text language sql as 'select $1'",
            "Function public.recommend exists: rename it:"
            " clients could not tell it from the engine's.",
        ),
        (
            "create schema two_tower",
            "Schema two_tower exists and is not the engine's: rename it,"
            " as in alter schema two_tower rename to tower_of_two.",
        ),
        (
            "drop function auth.uid()",
            "Function auth.uid() that returns uuid is missing:"
            " a user is auth.uid(): use Supabase Auth.",
        ),
        (
            "drop function auth.uid();"
            " create function auth.uid() returns text language sql as 'select null::text'",
            "Function auth.uid() that returns uuid is missing:"
            " a user is auth.uid(): use Supabase Auth.",
        ),
        (
            "drop table auth.users cascade",
            "Table auth.users is missing: users are those of Supabase Auth: switch it on.",
        ),
        (
            "drop table auth.users cascade; create table auth.users (id bigint primary key);"
            " grant all on auth.users to postgres",
            "auth.users.id is bigint, not uuid:"
            " users are known by a uuid: this Auth cannot be used.",
        ),
        (
            VECTOR_VERSION.format("0.7.4"),
            "pgvector 0.7.4 is too old: alter extension vector update; it must be 0.8 or newer.",
        ),
    ],
)
def test_an_obstacle_is_told_with_what_to_do(
    obstacle: str, finding: str, create_database: Callable[..., str]
) -> None:
    url = create_database()
    as_superuser(url, obstacle)
    assert finding in findings(url)


def test_all_obstacles_are_told_at_once_and_only_what_is_in_the_way_is(
    create_database: Callable[..., str],
) -> None:
    url = create_database()
    as_superuser(
        url,
        "create table public.engagement_events (id int); create schema two_tower;"
        "create table public.articles (id int);"
        "create function public.recommended() returns int language sql as 'select 1';"
        "create function public.explain_for() returns int language sql as 'select 1'",
    )
    assert [finding.split(":")[0] for finding in findings(url)] == [
        "Schema two_tower exists and is not the engine's",
        "Table public.engagement_events exists",
        "Function public.explain_for exists",
    ]


def test_an_old_pgvector_that_works_is_warned_of(create_database: Callable[..., str]) -> None:
    url = create_database()
    as_superuser(url, VECTOR_VERSION.format("0.8.0"))
    warnings: list[str] = []
    assert migrate(url, PROJECT, warn=warnings.append)
    assert warnings == [
        "Warning: pgvector 0.8.0 can corrupt an HNSW index under concurrent writes:"
        " update it to 0.8.4 when the server offers it."
    ]


def test_an_old_postgres_is_refused(
    create_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Postgres of the tests is too old for the engine: here the engine asks for one to come."""
    monkeypatch.setattr(preflight, "OLDEST_POSTGRES", 990000)
    (finding,) = findings(create_database())
    assert finding.startswith("Postgres 1")
    assert finding.endswith(" is too old: upgrade the project to Postgres 99 or newer.")


def test_a_server_without_pgvector_is_refused(
    cluster: Cluster, create_database: Callable[..., str]
) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        if connection.info.server_version < 180000:
            pytest.skip("a server before Postgres 18 cannot hide an extension")
    as_superuser(url, "drop extension vector")
    database = sql.Identifier(url.rsplit("/", 1)[1])
    with psycopg.connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
        connection.execute(
            sql.SQL("alter database {} set extension_control_path = '/nowhere'").format(database)
        )
    assert findings(url) == [
        "pgvector is missing on this server:"
        " install it (package postgresql-NN-pgvector), 0.8.4 or newer."
    ]


def test_a_role_that_may_not_do_it_is_told_what_it_lacks(
    cluster: Cluster, create_database: Callable[..., str]
) -> None:
    role, url = f"weak_{uuid.uuid4().hex[:8]}", create_database()
    as_superuser(url, f"create role {role} login password '{cluster.password}'")
    as_superuser(url, "drop extension vector")
    asked = url.replace("//postgres:", f"//{role}:")
    told = [
        finding.removeprefix(f"Role {role} ").split(":")[0]
        for finding in refused(asked)
        if finding.startswith("Role ")
    ]
    assert told == [
        "may not create the extension pgvector",
        "is bound by row level security",
        f"may not create schemas in database {url.rsplit('/', 1)[1]}",
        "may not create tables in schema public",
        "may not refer to auth.users",
    ]
    as_superuser(url, f"drop role {role}")


def test_an_engine_of_another_role_is_not_upgraded(
    cluster: Cluster, fresh_database: Callable[[], str]
) -> None:
    role, url = f"other_{uuid.uuid4().hex[:8]}", fresh_database()
    as_superuser(
        url,
        f"create role {role} login bypassrls createrole password '{cluster.password}';"
        f"grant create on schema public to {role};"
        f"grant select on two_tower.installed_files to {role}; grant usage on schema two_tower,"
        f" extensions, auth to {role}; grant all on auth.users to {role};"
        f"grant create on database {url.rsplit('/', 1)[1]} to {role};"
        f"grant usage on schema supabase_migrations to {role};"
        f"grant select on supabase_migrations.schema_migrations to {role};"
        "delete from two_tower.installed_files where name = 'policies';"
        "delete from supabase_migrations.schema_migrations where name like '%_policies'",
    )
    assert refused(url.replace("//postgres:", f"//{role}:")) == [
        "Schema two_tower belongs to role postgres: connect as that role."
    ]


def test_a_role_that_may_not_even_look_is_told_so_in_one_line(
    cluster: Cluster, fresh_database: Callable[[], str]
) -> None:
    role, url = f"blind_{uuid.uuid4().hex[:8]}", fresh_database()
    as_superuser(
        url,
        f"create role {role} login password '{cluster.password}';"
        f"grant usage on schema extensions to {role}",
    )
    with pytest.raises(
        CommandError, match=r"permission denied .*: connect as the database's owner"
    ):
        migrate(url.replace("//postgres:", f"//{role}:"), PROJECT)


def test_a_server_that_is_no_supabase_project_is_told_so() -> None:
    with reachable_folder() as folder:
        cluster = Cluster(folder / "postgres", free_port(), settings={"fsync": "off"})
        cluster.start()
        try:
            owner = cluster.url(user=SUPERUSER)
            assert [each.split(":")[0] for each in refused(owner)] == [
                "Role anon is missing",
                "Role authenticated is missing",
                "Role service_role is missing",
                "Function auth.uid() that returns uuid is missing",
                "Table auth.users is missing",
            ]
            as_superuser(owner, f"create role app login bypassrls password '{cluster.password}'")
            assert any(
                each.startswith("Role app may not create role two_tower_worker:")
                for each in refused(cluster.url(user="app"))
            )
        finally:
            cluster.stop("immediate")
