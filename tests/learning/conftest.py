"""A small world, and sessions of one database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from psycopg import IsolationLevel

from python_jobs.db import Connection, connect
from tests.support.learning import World


@pytest.fixture
def world(db: Connection) -> World:
    return World(db)


@pytest.fixture
def open_connection(fresh_database: Callable[[], str]) -> Iterator[Callable[..., Connection]]:
    """Factory: connections to one fresh database, in autocommit."""
    url = fresh_database()
    opened: list[Connection] = []

    def open_one(isolation: IsolationLevel | None = None) -> Connection:
        connection = connect(url, autocommit=True)
        connection.isolation_level = isolation
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.close()
