"""The operator's connection: each statement is committed, each refusal is one line with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from python_jobs.db import Connection, connect
from python_jobs.errors import CommandError

_ABSENT = (errors.InvalidSchemaName, errors.UndefinedFunction, errors.UndefinedTable)


@contextmanager
def open_database() -> Iterator[Connection]:
    """A connection in autocommit. Within the block, an error of Postgres becomes a CommandError."""
    with connect(autocommit=True) as connection:
        try:
            yield connection
        except psycopg.Error as error:
            raise CommandError(_explain(error)) from error


def _explain(error: psycopg.Error) -> str:
    if isinstance(error, _ABSENT):
        return "Two-Tower is not in this database: two-tower migrate."
    message = error.diag.message_primary or str(error)
    if isinstance(error, errors.InsufficientPrivilege):
        return f"{message}: connect as the database's owner."
    return f"{message}. {error.diag.message_hint or ''}".strip()
