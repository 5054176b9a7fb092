"""Applies supabase/migrations: by the Supabase CLI where Node is, by psycopg where it is not.

Both ways apply the same texts, write the same history table, supabase_migrations.schema_migrations,
and leave the same catalogue, so that a database may be migrated by one today and by the other
tomorrow. What of the engine is installed says two_tower.installed_files; the history of an app's
own migrations is left alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg

from python_jobs.db import Connection, connect, explain
from python_jobs.errors import CommandError
from python_jobs.migrations.database import Database, lacking, read_database
from python_jobs.migrations.files import (
    VECTOR_SCHEMA,
    Migration,
    engine_files,
    find_migrations,
    stamps_after,
)
from python_jobs.migrations.preflight import Say, examine
from python_jobs.migrations.statements import Statement
from python_jobs.project import project_dir

_HISTORY = """
    create schema if not exists supabase_migrations;
    create table if not exists supabase_migrations.schema_migrations (
      version text not null primary key
    );
    alter table supabase_migrations.schema_migrations add column if not exists statements text[];
    alter table supabase_migrations.schema_migrations add column if not exists name text;
"""


class Cli(Protocol):
    """Runs the Supabase CLI with these arguments in a folder, whatever its exit status."""

    def __call__(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]: ...


class MigrationError(CommandError):
    """A migration was refused by the database; nothing of that file is left there."""


def migrate(
    database_url: str,
    project: Path | None = None,
    *,
    cli: Cli | None = None,
    warn: Say = lambda line: None,
) -> list[str]:
    """Applies what the database lacks and returns the names of the applied files.

    project: the folder with supabase/migrations.
    cli:     runs the Supabase CLI; without it psycopg applies the files.
    warn:    takes a line for each thing that an operator should know, and that stops nothing.
    Each file is one transaction. Raises InTheWayError before the first one, MigrationError with
    file, line and SQLSTATE, and CommandError when the database cannot be reached or has a newer
    engine.
    """
    project = project or project_dir()
    migrations = find_migrations(project)
    if not migrations:
        folder = project / "supabase" / "migrations"
        raise CommandError(f"No migrations in {folder}: run this in the project.")
    with connect(database_url) as connection:
        try:
            database, pending = _look(connection, migrations, warn)
        except psycopg.Error as error:
            raise CommandError(explain(error)) from error
    if not pending:
        return []
    if cli is not None:
        _apply_by_cli(database_url, database, pending, cli)
    else:
        _apply_by_psycopg(database_url, pending)
    return [migration.path.name for migration in pending]


def _look(
    connection: Connection, migrations: list[Migration], warn: Say
) -> tuple[Database, list[Migration]]:
    """What the database has, and what it lacks, as written for it. Nothing is in the way of that.

    Raises CommandError for a newer engine, and InTheWayError.
    """
    database = read_database(connection)
    if engine := engine_files(migrations):
        database.refuse_newer(engine.values(), "supabase/migrations")
        for line in database.other_contents(engine.values()):
            warn(f"Warning: {line}")
    schema = database.vector_schema or VECTOR_SCHEMA
    pending = [each.written(schema) for each in lacking(migrations, database)]
    if new := [each for each in pending if each.number]:
        for line in examine(connection, new, is_first=not database.installed):
            warn(f"Warning: {line}")
    # After a removal of the engine, the history has the stamps of the files that were removed.
    if any(database.has_version(each.version) for each in pending):
        stamps = stamps_after(database.last_version())
        pending = [each.stamped(next(stamps)) for each in pending]
    return database, pending


def _apply_by_psycopg(database_url: str, pending: list[Migration]) -> None:
    with connect(database_url, autocommit=True) as connection:
        connection.execute(_HISTORY)
        for migration in pending:
            statements = migration.statements()
            with connection.transaction():
                for statement in statements:
                    try:
                        connection.execute(statement.text.encode())
                    except psycopg.Error as error:
                        message = error.diag.message_primary or str(error)
                        raise _refused(migration, statement, error.sqlstate, message) from error
                connection.execute(
                    "insert into supabase_migrations.schema_migrations (version, name, statements)"
                    " values (%s, %s, %s)",
                    [migration.version, migration.name, [each.text for each in statements]],
                )


def _apply_by_cli(
    database_url: str, database: Database, pending: list[Migration], cli: Cli
) -> None:
    """Pushes the files from a folder of their own, in which what was applied before is empty."""
    with tempfile.TemporaryDirectory(prefix="two-tower-") as name:
        folder = Path(name) / "supabase" / "migrations"
        folder.mkdir(parents=True)
        for applied in database.history:
            (folder / f"{applied.version}_applied.sql").touch()
        for migration in pending:
            (folder / migration.path.name).write_text(migration.text)
        done = cli(
            *("db", "push", "--yes", "--include-all", f"--remote={with_sslmode(database_url)}"),
            *("--output-format", "json", "--workdir", name),
            cwd=Path(name),
        )
    if done.returncode == 0:
        return
    try:
        message = str(json.loads(done.stdout)["error"]["message"])
    except (json.JSONDecodeError, KeyError):
        raise CommandError(f"supabase db push failed: {done.stderr or done.stdout}") from None
    begun = re.findall(r"Applying migration (\S+\.sql)", done.stderr)
    failed = re.search(r"ERROR: (.*) \(SQLSTATE (\w{5})\).*At statement: (\d+)", message, re.S)
    current = [migration for migration in pending if begun and migration.path.name == begun[-1]]
    if not failed or not current:
        raise CommandError(f"supabase db push failed: {message}")
    statement = current[0].statements()[int(failed[3])]
    raise _refused(current[0], statement, failed[2], failed[1])


def _refused(
    migration: Migration, statement: Statement, sqlstate: str | None, message: str
) -> MigrationError:
    return MigrationError(
        f"{migration.path.name}, line {statement.line}: {message} (SQLSTATE {sqlstate});"
        " nothing of this file was applied: mend it and run two-tower migrate again."
    )


def with_sslmode(database_url: str) -> str:
    """The URL with sslmode=disable for a server on this machine that does not say otherwise.

    The CLI asks for TLS by default; a local Postgres has none.
    """
    parts = urlsplit(database_url)
    query = dict(parse_qsl(parts.query))
    if parts.hostname in ("127.0.0.1", "localhost", "::1"):
        query.setdefault("sslmode", "disable")
    return urlunsplit(parts._replace(query=urlencode(query)))
