"""The database: which one, what to say when there is none or it refuses, and reading of it.

Nothing here leaves state on a connection: behind a transaction pooler the next statement may run on
another one, and the next client gets this one. So nothing is prepared, roles and settings are set
for a transaction, and nothing listens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from pgvector.psycopg.halfvec import register_halfvec_info
from pgvector.psycopg.vector import register_vector_info
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import namedtuple_row
from psycopg.types import TypeInfo
from psycopg.types.array import ListBinaryDumper

from python_jobs.errors import CommandError, UnreachableError
from python_jobs.state import read_state

URL_VARIABLE = "TWO_TOWER_DATABASE_URL"
CONNECT_TIMEOUT_S = 10
# A server that is gone without a word is given up after a minute; the system would wait for hours.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "row_factory": namedtuple_row,
    "prepare_threshold": None,
    "tcp_user_timeout": 60_000,
    **_KEEPALIVE,
}
_ABSENT = (errors.InvalidSchemaName, errors.UndefinedFunction, errors.UndefinedTable)
_NO_ENGINE = "Two-Tower is not in this database: two-tower migrate."

Connection = psycopg.Connection[Any]


class Vectors(list[Any]):
    """Vectors, or None in places, as one parameter of type vector[].

    They go in binary: a plain list goes as text, which takes twenty times as long. A list of None
    alone is a vector[] too.
    """


def given_database_url() -> str | None:
    """TWO_TOWER_DATABASE_URL, or None where it is not set."""
    return os.environ.get(URL_VARIABLE) or None


def database_url() -> str:
    """URL of the database to work on: TWO_TOWER_DATABASE_URL, else the local stack's.

    Raises CommandError when there is neither.
    """
    if url := given_database_url():
        return url
    if state := read_state():
        return state.database_url
    raise CommandError(f"There is no database yet: run two-tower up, or set {URL_VARIABLE}.")


def connect(url: str | None = None, **options: Any) -> Connection:
    """Opens a connection that knows pgvector's types and gives rows as named tuples.

    url: default database_url(). options: psycopg's.
    Raises, in one line without the password, UnreachableError when no database answers, which may
    pass, and CommandError when the URL is wrong or the server refuses it.
    """
    url = url or database_url()
    try:
        connection = psycopg.connect(url, **{**_OPTIONS, **options})
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise _refusal(url, str(error)) from error
    try:
        _register_vectors(connection)
    except psycopg.Error as error:
        connection.close()
        if isinstance(error, psycopg.ProgrammingError):
            raise CommandError(explain(error)) from error
        raise _refusal(url, str(error)) from error
    return connection


def require_engine(connection: Connection) -> None:
    """Raises CommandError when the migrations are not in this database."""
    if not value(connection, "select pg_catalog.to_regnamespace('two_tower') is not null"):
        raise CommandError(_NO_ENGINE)


def explain(error: psycopg.Error) -> str:
    """What a refusal of Postgres says, with its hint."""
    if isinstance(error, _ABSENT):
        return _NO_ENGINE
    message = error.diag.message_primary or str(error)
    if isinstance(error, errors.InsufficientPrivilege):
        return f"{message}: connect as the database's owner."
    return f"{message}. {error.diag.message_hint or ''}".strip()


@contextmanager
def without_time_limit(connection: Connection) -> Iterator[None]:
    """A transaction in which no statement is cancelled for taking long.

    A hosted database cancels what takes two minutes, and a server's own limit holds for the whole
    statement: a function cannot lift it for itself.
    """
    with connection.transaction():
        connection.execute("set local statement_timeout = 0")
        yield


def call(connection: Connection, query: str, *parameters: Any) -> Any:
    """value() of a call that may take long, in a transaction of its own without a time limit."""
    with without_time_limit(connection):
        return value(connection, query, *parameters)


def call_rows(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    """rows() of a call that may take long, in a transaction of its own without a time limit."""
    with without_time_limit(connection):
        return rows(connection, query, *parameters)


def value(connection: Connection, query: str, *parameters: Any) -> Any:
    """The first column of a query's first row. Raises LookupError when it has no row."""
    row = connection.execute(query.encode(), list(parameters)).fetchone()
    if row is None:
        raise LookupError(f"No row: {query}")
    return row[0]


def rows(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    """All rows of a query, in binary: a vector is then copied, not parsed."""
    with connection.cursor(binary=True) as cursor:
        return cursor.execute(query.encode(), list(parameters)).fetchall()


def array(vector: Any) -> np.ndarray:
    """A vector that was read, as float32: pgvector gives arrays in binary, else its own class."""
    return vector if isinstance(vector, np.ndarray) else np.asarray(vector.to_numpy())


def _register_vectors(connection: Connection) -> None:
    """Registers vector and halfvec wherever the extension lies; without it, does nothing.

    pgvector's own helper finds the types only on the search path, and a pooled or service
    connection may have another one.
    """
    was_idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    query = "select extnamespace::regnamespace::text from pg_extension where extname = 'vector'"
    for (schema,) in rows(connection, query):
        vector = TypeInfo.fetch(connection, f"{schema}.vector")
        register_vector_info(connection, vector)
        if vector:
            oids = {"oid": vector.array_oid, "element_oid": vector.oid}
            dumper = type("VectorsDumper", (ListBinaryDumper,), oids)
            connection.adapters.register_dumper(Vectors, dumper)
        if halfvec := TypeInfo.fetch(connection, f"{schema}.halfvec"):
            register_halfvec_info(connection, halfvec)
    if was_idle and not connection.autocommit:
        connection.rollback()


def _refusal(url: str, message: str) -> CommandError:
    """What to do about a failed connection, with host and role named and the password left out."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return CommandError(
            f"{URL_VARIABLE} is no connection URL: it reads postgresql://user:password@host/db."
        )
    host, port = parts.get("host") or "the local socket", parts.get("port") or 5432
    user, dbname = parts.get("user") or "the current user", parts.get("dbname") or "postgres"
    server = f"{host}:{port}"
    if "password" in message:
        return CommandError(
            f"Wrong password for role {user} at {server}: correct it in {URL_VARIABLE}."
        )
    if f'database "{dbname}" does not exist' in message:
        return CommandError(
            f"Postgres at {server} has no database {dbname}: correct {URL_VARIABLE}."
        )
    if f'role "{user}" does not exist' in message:
        return CommandError(f"Postgres at {server} has no role {user}: correct {URL_VARIABLE}.")
    return UnreachableError(_silence(host, server, message))


def _silence(host: object, server: str, message: str) -> str:
    """Why no database answers, and what to do about it."""
    if "refused" in message or "No such file" in message:
        return (
            f"No Postgres answers at {server}: start the local one (two-tower up),"
            f" or correct {URL_VARIABLE}."
        )
    if any(mark in message for mark in ("translate host", "resolve host", "not known")):
        return f"The host {host} is unknown: correct {URL_VARIABLE}."
    if "timeout" in message:
        return f"No answer from {server} within {CONNECT_TIMEOUT_S} s: check network and firewall."
    if "server closed the connection" in message:
        return f"Postgres at {server} closed the connection: it is being stopped, or restarts."
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"Cannot connect to {server}: {lines[-1] if lines else 'no message'}"
