"""What is in the way of the engine in a database, all of it, before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from python_jobs.db import Connection
from python_jobs.errors import CommandError
from python_jobs.migrations.files import Migration

OLDEST_POSTGRES = 150000
OLDEST_PGVECTOR = [0, 8]
# Older ones can corrupt an HNSW index under concurrent insert and vacuum.
SAFE_PGVECTOR = [0, 8, 4]

_QUERY = Path(__file__).with_name("preflight.sql")

Say = Callable[[str], None]


class InTheWayError(CommandError):
    """Something is in the way of the engine; nothing was changed. `findings`: a line for each."""

    def __init__(self, findings: list[str]) -> None:
        count = "one thing is" if len(findings) == 1 else f"{len(findings)} things are"
        self.findings = findings
        self.summary = f"Nothing was changed: {count} in the way."
        super().__init__(" ".join([self.summary, *findings]))

    def format_message(self) -> str:
        """The findings as a list, for a terminal."""
        return "\n".join([self.summary, *map(bullet, self.findings)])


def bullet(line: str) -> str:
    """An item of a list on a terminal of 80 columns."""
    return click.wrap_text(line, 79, initial_indent="- ", subsequent_indent="  ")


def examine(connection: Connection, pending: Iterable[Migration], *, is_first: bool) -> list[str]:
    """The warnings about a database that shall take these files of the engine, as written for it.

    is_first: nothing of the engine is in the database. Raises InTheWayError with all else.
    """
    files = list(pending)
    starter = [each for each in files if each.is_starter]
    found = connection.execute(
        _QUERY.read_bytes(),
        {
            "is_first": is_first,
            "oldest_postgres": OLDEST_POSTGRES,
            "oldest_pgvector": OLDEST_PGVECTOR,
            "safe_pgvector": SAFE_PGVECTOR,
            "vector_schemas": sorted({each.vector_schema for each in files}),
            "relations": [name for each in files for name in each.relations()],
            "starter": [name for each in starter for name in each.relations()],
            "functions": [name for each in files for name in each.functions()],
        },
    ).fetchall()
    if errors := [row.finding for row in found if row.is_error]:
        raise InTheWayError(errors)
    return [row.finding for row in found]
