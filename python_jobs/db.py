"""The database: which one, as whom, what to say when there is none, and reading of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import psycopg
from pgvector.psycopg.halfvec import register_halfvec_info
from pgvector.psycopg.vector import register_vector_info
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import namedtuple_row
from psycopg.types import TypeInfo

from python_jobs.errors import CommandError
from python_jobs.state import read_state

URL_VARIABLE = "TWO_TOWER_DATABASE_URL"
CONNECT_TIMEOUT_S = 10

Connection = psycopg.Connection[Any]


def database_url() -> str:
    """URL of the database to work on: TWO_TOWER_DATABASE_URL, else the local stack's.

    Raises CommandError when there is neither.
    """
    if url := os.environ.get(URL_VARIABLE):
        return url
    if state := read_state():
        return state.database_url
    raise CommandError(f"There is no database yet: run two-tower up, or set {URL_VARIABLE}.")


def connect(url: str | None = None, **options: Any) -> Connection:
    """Opens a connection that knows pgvector's types and gives rows as named tuples.

    url: default database_url(). options: psycopg's.
    Raises CommandError, in one line without the password, when the database cannot be reached.
    """
    url = url or database_url()
    options = {"connect_timeout": CONNECT_TIMEOUT_S, "row_factory": namedtuple_row, **options}
    try:
        connection = psycopg.connect(url, **options)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise CommandError(_explain(url, str(error))) from error
    _register_vectors(connection)
    return connection


def connect_as_service(url: str) -> Connection:
    """The same in autocommit, acting as the service role where the login may."""
    connection = connect(url, autocommit=True)
    if value(connection, "select pg_catalog.pg_has_role(session_user, 'service_role', 'member')"):
        connection.execute("set role service_role")
    return connection


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
        register_vector_info(connection, TypeInfo.fetch(connection, f"{schema}.vector"))
        if halfvec := TypeInfo.fetch(connection, f"{schema}.halfvec"):
            register_halfvec_info(connection, halfvec)
    if was_idle and not connection.autocommit:
        connection.rollback()


def _explain(url: str, message: str) -> str:
    """What to do about a failed connection, with host and role named and the password left out."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return f"{URL_VARIABLE} is no connection URL: it reads postgresql://user:password@host/db."
    host, port = parts.get("host") or "the local socket", parts.get("port") or 5432
    user, dbname = parts.get("user") or "the current user", parts.get("dbname") or "postgres"
    server = f"{host}:{port}"
    if "password" in message:
        return f"Wrong password for role {user} at {server}: correct it in {URL_VARIABLE}."
    if "refused" in message or "No such file" in message:
        return (
            f"No Postgres answers at {server}: start the local one (two-tower up),"
            f" or correct {URL_VARIABLE}."
        )
    if any(mark in message for mark in ("translate host", "resolve host", "not known")):
        return f"The host {host} is unknown: correct {URL_VARIABLE}."
    if f'database "{dbname}" does not exist' in message:
        return f"Postgres at {server} has no database {dbname}: correct {URL_VARIABLE}."
    if f'role "{user}" does not exist' in message:
        return f"Postgres at {server} has no role {user}: correct {URL_VARIABLE}."
    if "timeout" in message:
        return f"No answer from {server} within {CONNECT_TIMEOUT_S} s: check network and firewall."
    return f"Cannot connect to {server}: {message.splitlines()[-1].strip()}"
