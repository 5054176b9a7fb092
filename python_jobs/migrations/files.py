"""The files in supabase/migrations: which are the engine's, and what is written of them, and how.

The engine's files are called <stamp>_two_tower_NNNN_name.sql. Stamps differ between projects: a
file is known by its number NNNN and the hash of its text. The last statement of a file that was
written for a project stores both in two_tower.installed_files. So a database knows what it has,
whoever applied it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from python_jobs.errors import CommandError
from python_jobs.migrations.statements import Statement, split_statements

UNINSTALL = "two_tower_uninstall"
FIRST_STARTER_NUMBER = "9900"
# Where the engine's own text has pgvector, and names nothing else.
VECTOR_SCHEMA = "extensions"

_FILE = re.compile(r"(\d+)_(.*)\.sql")
_ENGINE = re.compile(r"two_tower_(\d{4})_(\w+)")
_STAMP = "%Y%m%d%H%M%S"
_RECORD = """
-- Written by two-tower for pgvector in schema {schema}.
insert into two_tower.installed_files (number, name, hash)
values ('{number}', '{name}', '{hash}');
"""
_RECORDED = re.compile(
    r"\n-- Written by two-tower for pgvector in schema (?P<schema>.+)\.\n"
    r"insert into two_tower\.installed_files \(number, name, hash\)\n"
    r"values \('\d{4}', '\w+', '(?P<hash>[0-9a-f]{64})'\);\n"
)
_MADE = r"^create (?:or replace )?{kinds} public\.(\w+)"
_RELATIONS = re.compile(_MADE.format(kinds="(?:table|view|sequence|type|domain)"), re.M)
_FUNCTIONS = re.compile(r"^create function public\.(\w+)", re.M)
_SIGNATURES = re.compile(r"^comment on function (public\.\w+\([^)]*\))", re.M)


class Named(Protocol):
    """A file, or the row of a history that tells of one."""

    @property
    def name(self) -> str: ...


NamedT = TypeVar("NamedT", bound=Named)


def number_of(named: Named) -> str | None:
    """NNNN of a file of the engine; None of any other."""
    match = _ENGINE.fullmatch(named.name)
    return match[1] if match else None


def since_uninstall(found: Sequence[NamedT]) -> list[NamedT]:
    """Those after the last removal of the engine: what came before it is gone."""
    removals = [place for place, each in enumerate(found) if each.name == UNINSTALL]
    return list(found[removals[-1] + 1 :] if removals else found)


@dataclass(frozen=True)
class Migration:
    """One file, called <version>_<name>.sql, with its text."""

    path: Path
    version: str
    name: str
    text: str

    @property
    def number(self) -> str | None:
        """NNNN of a file of the engine."""
        return number_of(self)

    @property
    def title(self) -> str:
        """NNNN_name of a file of the engine, without stamp; else the file's name."""
        return self.name.removeprefix("two_tower_") if self.number else self.path.name

    @property
    def is_starter(self) -> bool:
        """True for a file of the starter app, which an app with tables of its own leaves out."""
        return self.number is not None and self.number >= FIRST_STARTER_NUMBER

    @property
    def hash(self) -> str:
        """sha256 of the engine's text, also of a file that was written from it."""
        recorded = _RECORDED.search(self.text)
        return recorded["hash"] if recorded else hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def vector_schema(self) -> str:
        """Where the file has pgvector, as an identifier."""
        recorded = _RECORDED.search(self.text)
        return recorded["schema"] if recorded else VECTOR_SCHEMA

    def written(self, vector_schema: str) -> Migration:
        """The engine's file as it goes into a database: it ends by recording itself.

        vector_schema: where pgvector lies, as an identifier, quoted where it must be.
        A file that was written before and a file of somebody else stay as they are.
        """
        match = _ENGINE.fullmatch(self.name)
        if match is None or _RECORDED.search(self.text):
            return self
        record = _RECORD.format(
            schema=vector_schema, number=match[1], name=match[2], hash=self.hash
        )
        return replace(self, text=rewrite(self.text, vector_schema) + record)

    def stamped(self, version: str) -> Migration:
        """The same file under another stamp."""
        path = self.path.with_name(f"{version}_{self.name}.sql")
        return replace(self, path=path, version=version)

    def statements(self) -> list[Statement]:
        """The file's statements in order."""
        return split_statements(self.text)

    def relations(self) -> list[str]:
        """Names of the tables and other relations that the file makes in schema public."""
        return _RELATIONS.findall(self.text)

    def functions(self) -> list[str]:
        """Names of the functions that the file makes in schema public, where none may be."""
        return _FUNCTIONS.findall(self.text)

    def signatures(self) -> list[str]:
        """The same functions with the types of their arguments: each has a comment."""
        return _SIGNATURES.findall(self.text)


def find_migrations(project: Path) -> list[Migration]:
    """The project's migrations in the order of the CLI; files with other names are none."""
    found = []
    for path in sorted((project / "supabase" / "migrations").glob("*.sql")):
        if match := _FILE.fullmatch(path.name):
            found.append(Migration(path, match[1], match[2], path.read_text()))
    return found


def engine_files(migrations: Iterable[Migration]) -> dict[str, Migration]:
    """The engine's files by number, in its order."""
    found = {each.number: each for each in migrations if each.number}
    return {number: found[number] for number in sorted(found)}


def read_engine(project: Path) -> dict[str, Migration]:
    """The engine's files of a checkout by number. Raises CommandError where there are none."""
    found = engine_files(find_migrations(project))
    if not found:
        raise CommandError("The engine's files are not here: run this in a checkout of Two-Tower.")
    return found


def rewrite(text: str, vector_schema: str) -> str:
    """The engine's SQL for a database with pgvector in that schema, an identifier."""
    return re.sub(rf"\b{VECTOR_SCHEMA}\b", lambda _: vector_schema, text)


def quote_schema(name: str) -> str:
    """The identifier of a schema. Raises CommandError for one that no function body can hold."""
    if not re.fullmatch(r"[\w .-]+", name):
        raise CommandError(
            f"The schema of pgvector is called {name}: rename it, to letters, digits and _."
        )
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else f'"{name}"'


def stamps_after(last: str) -> Iterator[str]:
    """Stamps that sort after `last`, a second apart, and in the past if they can.

    A migration that somebody begins a moment later sorts after all of them.
    Raises CommandError when `last` is no time and sorts after any.
    """
    moment = datetime.now(UTC) - timedelta(hours=1)
    if last >= moment.strftime(_STAMP):
        try:
            moment = datetime.strptime(last, _STAMP) + timedelta(seconds=1)
        except ValueError:
            raise CommandError(
                f"Migration {last} sorts after any time stamp: rename it to YYYYMMDDHHMMSS."
            ) from None
    while True:
        yield moment.strftime(_STAMP)
        moment += timedelta(seconds=1)
