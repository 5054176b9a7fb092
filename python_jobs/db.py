"""Connections to the database: which one, as whom, and what to say when there is none."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from pgvector.psycopg.halfvec import register_halfvec_info
from pgvector.psycopg.vector import register_vector_info
from psycopg.conninfo import conninfo_to_dict
from psycopg.types import TypeInfo

from python_jobs.errors import CommandError

URL_VARIABLE = "TWO_TOWER_DATABASE_URL"
CONNECT_TIMEOUT_S = 10


def database_url() -> str:
    """URL of the database to work on: TWO_TOWER_DATABASE_URL, else the local stack's.

    Raises CommandError when there is neither.
    """
    if url := os.environ.get(URL_VARIABLE):
        return url
    from python_jobs.local.stack import Stack

    if state := Stack().read_state():
        return state.database_url
    raise CommandError(f"There is no database yet: run two-tower up, or set {URL_VARIABLE}.")


def connect(url: str | None = None, **options: Any) -> psycopg.Connection[Any]:
    """Opens a connection that reads and writes pgvector's types; `options` go to psycopg.

    Raises CommandError, in one line without the password, when the database cannot be reached.
    """
    url = url or database_url()
    options.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    try:
        connection = psycopg.connect(url, **options)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise CommandError(_explain(url, str(error))) from error
    register_vectors(connection)
    return connection


def register_vectors(connection: psycopg.Connection[Any]) -> None:
    """Registers vector and halfvec wherever the extension lies; without it, does nothing.

    pgvector's own helper finds the types only on the search path, and a pooled or service
    connection may have another one.
    """
    was_idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    row = connection.execute(
        "select extnamespace::regnamespace::text from pg_catalog.pg_extension"
        " where extname = 'vector'"
    ).fetchone()
    if row is not None:
        schema = next(iter(row.values())) if isinstance(row, dict) else row[0]
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
