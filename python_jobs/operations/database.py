"""The operator's connection: each statement is committed, each refusal is one line with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from python_jobs.db import Connection, connect, explain, given_database_url
from python_jobs.errors import CommandError


@contextmanager
def open_database() -> Iterator[Connection]:
    """A connection in autocommit. Within the block, an error of Postgres becomes a CommandError."""
    with connect(autocommit=True) as connection:
        try:
            yield connection
        except psycopg.Error as error:
            raise CommandError(explain(error)) from error


@contextmanager
def open_given_database() -> Iterator[Connection | None]:
    """open_database() of TWO_TOWER_DATABASE_URL; None where it is not set."""
    if given_database_url() is None:
        yield None
    else:
        with open_database() as connection:
            yield connection
