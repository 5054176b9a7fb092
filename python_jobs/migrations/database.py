"""What a database has of the engine, and what it has gone through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from python_jobs.db import Connection, rows, value
from python_jobs.errors import CommandError
from python_jobs.migrations.files import (
    UNINSTALL,
    Migration,
    number_of,
    quote_schema,
    since_uninstall,
)

_VECTOR_SCHEMA = """
    select n.nspname from pg_catalog.pg_extension x
    join pg_catalog.pg_namespace n on n.oid = x.extnamespace where x.extname = 'vector'
"""
# Tables that old versions of the CLI made have no names.
_HISTORY = """
    select h.version, coalesce(to_jsonb(h) ->> 'name', '') as name
    from supabase_migrations.schema_migrations h order by h.version
"""


@dataclass(frozen=True)
class Applied:
    """A row of supabase_migrations.schema_migrations."""

    version: str
    name: str


@dataclass(frozen=True)
class Database:
    """What is in a database, by its own word.

    installed:     number of each file of the engine -> hash of its text; None where the file was
                   pushed from a checkout by the Supabase CLI and did not record itself.
    vector_schema: where pgvector lies, as an identifier; None where it is not installed.
    """

    history: list[Applied]
    installed: Mapping[str, str | None]
    vector_schema: str | None

    def has_version(self, version: str) -> bool:
        """True when the history has a file of that stamp."""
        return any(each.version == version for each in self.history)

    def last_version(self) -> str:
        """The newest stamp of the history, or an empty string."""
        return self.history[-1].version if self.history else ""

    def without(self, files: Iterable[Migration]) -> list[Migration]:
        """Those files of the engine that are not installed."""
        return [each for each in files if each.number not in self.installed]

    def refuse_newer(self, files: Iterable[Migration], where: str) -> None:
        """Raises CommandError when a file of the engine is installed that is not among these."""
        known = {each.number for each in files}
        if unknown := sorted(set(self.installed) - known):
            raise CommandError(
                f"The database has file {unknown[0]} of a newer Two-Tower, which {where} lacks:"
                " update the checkout, or use another database."
            )

    def other_contents(self, files: Iterable[Migration]) -> list[str]:
        """A line for each of these files that is installed from another text."""
        return [
            f"{each.title} is installed, from another text than {each.path.name} has."
            for each in files
            if each.number and self.installed.get(each.number) not in (None, each.hash)
        ]


# What is known where no database was asked.
NO_DATABASE = Database([], {}, None)


def read_database(connection: Connection) -> Database:
    """Asks the database; it may be any, with or without the engine."""
    vector = rows(connection, _VECTOR_SCHEMA)
    history = []
    if _exists(connection, "supabase_migrations.schema_migrations"):
        history = [Applied(row.version, row.name) for row in rows(connection, _HISTORY)]
    return Database(
        history=history,
        installed=_installed(connection, history),
        vector_schema=quote_schema(vector[0].nspname) if vector else None,
    )


def _installed(connection: Connection, history: list[Applied]) -> dict[str, str | None]:
    if not value(connection, "select pg_catalog.to_regnamespace('two_tower') is not null"):
        return {}
    found: dict[str, str | None] = {}
    for applied in since_uninstall(history):
        if number := number_of(applied):
            found[number] = None
    if _exists(connection, "two_tower.installed_files"):
        for row in rows(connection, "select number, hash from two_tower.installed_files"):
            found[row.number] = row.hash
    return found


def _exists(connection: Connection, table: str) -> bool:
    return bool(value(connection, "select pg_catalog.to_regclass(%s) is not null", table))


def lacking(migrations: list[Migration], database: Database) -> list[Migration]:
    """The files of a project that the database lacks, in order.

    Files of the engine are found by number, all others by stamp. Those before a removal of the
    engine which the database went through are not wanted any more.
    """
    found: list[Migration] = []
    numbers = set(database.installed)
    for each in migrations:
        if each.number:
            is_there = each.number in numbers
            numbers.add(each.number)
        else:
            is_there = database.has_version(each.version)
        if not is_there:
            found.append(each)
        if each.name == UNINSTALL:
            if is_there:
                found = [other for other in found if not other.number]
            numbers = set(database.installed) if is_there else set()
    return found
