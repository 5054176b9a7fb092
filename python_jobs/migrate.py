"""Applies supabase/migrations: by the Supabase CLI where Node is, by psycopg where it is not.

Both ways write the same history table, supabase_migrations.schema_migrations, and leave the same
catalogue, so that a database may be migrated by one today and by the other tomorrow.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg

from python_jobs.db import connect, rows, value
from python_jobs.errors import CommandError
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


@dataclass(frozen=True)
class Statement:
    """One SQL statement of a file, as the CLI stores it, and the line on which its SQL begins."""

    text: str
    line: int


@dataclass(frozen=True)
class Migration:
    """One file, called <version>_<name>.sql."""

    path: Path
    version: str
    name: str

    def statements(self) -> list[Statement]:
        """The file's statements in order."""
        return split_statements(self.path.read_text())


def find_migrations(project: Path) -> list[Migration]:
    """The project's migrations by version; files with other names are no migrations."""
    found = []
    for path in sorted((project / "supabase" / "migrations").glob("*.sql")):
        if match := re.fullmatch(r"(\d+)_(.*)\.sql", path.name):
            found.append(Migration(path, match[1], match[2]))
    if not found:
        raise CommandError(
            f"No migrations in {project / 'supabase' / 'migrations'}: run this in the project."
        )
    return found


def migrate(database_url: str, project: Path | None = None, *, cli: Cli | None = None) -> list[str]:
    """Applies what the database lacks and returns the names of the applied files.

    project: the folder with supabase/migrations.
    cli:     runs the Supabase CLI; without it psycopg applies the files.
    Each file is one transaction. Raises MigrationError with file, line and SQLSTATE, and
    CommandError when the database cannot be reached or has another history.
    """
    project = project or project_dir()
    pending = _pending(database_url, find_migrations(project))
    if not pending:
        return []
    if cli is not None:
        _apply_by_cli(database_url, project, cli, pending)
    else:
        _apply_by_psycopg(database_url, pending)
    return [migration.path.name for migration in pending]


def _pending(database_url: str, migrations: list[Migration]) -> list[Migration]:
    with connect(database_url) as connection:
        table = "supabase_migrations.schema_migrations"
        exists = value(connection, f"select to_regclass('{table}') is not null")
        found = rows(connection, f"select version from {table}") if exists else []
    applied = {row.version for row in found}
    if unknown := applied - {migration.version for migration in migrations}:
        raise CommandError(
            f"The database has migration {min(unknown)}, which supabase/migrations lacks:"
            " update the checkout, or use another database."
        )
    pending = [migration for migration in migrations if migration.version not in applied]
    if pending and applied and pending[0].version < max(applied):
        raise CommandError(
            f"{pending[0].path.name} is older than migrations that the database already has:"
            " give it a later version."
        )
    return pending


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


def _apply_by_cli(database_url: str, project: Path, cli: Cli, pending: list[Migration]) -> None:
    target = f"--remote={with_sslmode(database_url)}"
    arguments = ("db", "push", "--yes", target, "--output-format", "json")
    done = cli(*arguments, "--workdir", str(project), cwd=project)
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


# Whatever may hide a semicolon, then the semicolon itself. A dollar quote ends at its own tag.
_TOKENS = re.compile(
    r"""
      (?P<line_comment>--[^\n]*)
    | (?P<block_comment>/\*)
    | (?P<escape_string>\b[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<identifier>"(?:[^"]|"")*")
    | (?P<dollar>(?<![\w$])\$(?P<tag>[^\W\d]\w*)?\$.*?\$(?P=tag)\$|(?<![\w$])\$\$.*?\$\$)
    | (?P<atomic>\bbegin\s+atomic\b)
    | (?P<case>\bcase\b)
    | (?P<end>\bend\b)
    | (?P<semicolon>;)
    """,
    re.X | re.S | re.I,
)


def split_statements(script: str) -> list[Statement]:
    """Splits a script at the semicolons that end statements, as the Supabase CLI does.

    Comments belong to the statement that follows. Strings, quoted names, dollar quotes, nested
    block comments and `begin atomic ... end` bodies may contain semicolons.
    """
    pieces: list[tuple[int, int]] = []
    start = position = depth = 0
    while token := _TOKENS.search(script, position):
        position = token.end()
        kind = token.lastgroup
        if kind == "block_comment":
            position = _end_of_comment(script, token.start())
        elif kind == "atomic" or (kind == "case" and depth):
            depth += 1
        elif kind == "end" and depth:
            depth -= 1
        elif kind == "semicolon" and not depth:
            pieces.append((start, token.start()))
            start = position
    pieces.append((start, len(script)))
    statements = []
    for begin, end in pieces:
        text = script[begin:end].strip()
        if text:
            line = script.count("\n", 0, _start_of_code(script, begin)) + 1
            statements.append(Statement(text, line))
    return statements


def _start_of_code(script: str, start: int) -> int:
    """The first position from `start` on that is neither blank nor comment."""
    while found := re.compile(r"\s+|--[^\n]*|/\*").match(script, start):
        start = _end_of_comment(script, start) if found[0] == "/*" else found.end()
    return start


def _end_of_comment(script: str, start: int) -> int:
    """Where the block comment that begins at `start` ends; they nest in SQL."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", script[start:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return start + mark.end()
    return len(script)
