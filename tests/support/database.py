"""Databases of tests, and acting in them as somebody."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from python_jobs.db import Connection

PROJECT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A temporary folder that the server's user can reach: pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="two-tower-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_user(
    connection: Connection,
    user_id: uuid.UUID | str | None,
    role: str = "authenticated",
) -> Iterator[Connection]:
    """Within the block the connection is what PostgREST makes of a request: role and claims.

    user_id: the `sub` claim; None for a request without a user (role `anon` or `service_role`).
    A failed statement inside is left to the caller, in a transaction of its own or a savepoint.
    """
    claims: dict[str, str] = {"role": role}
    if user_id is not None:
        claims["sub"] = str(user_id)
    connection.execute(
        "select set_config('request.jwt.claims', %s, true) as claims,"
        " set_config('role', %s, true) as role,"
        " set_config('statement_timeout', coalesce((select split_part(setting, '=', 2)"
        "   from pg_catalog.pg_roles, unnest(rolconfig) as setting"
        "   where rolname = %s and setting like 'statement_timeout=%%'), '0'), true) as timeout",
        [json.dumps(claims), role, role],
    )
    try:
        yield connection
    finally:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
            connection.execute(
                "select set_config('role', 'none', true) as role,"
                " set_config('request.jwt.claims', '', true) as claims,"
                " set_config('statement_timeout', '0', true) as timeout"
            )


def add_user(connection: Connection, user_id: uuid.UUID | str | None = None) -> str:
    """Inserts a user into auth.users, as a sign-up does, and returns the id."""
    new_id = str(user_id or uuid.uuid4())
    connection.execute(
        "insert into auth.users (id, email) values (%s, %s)", [new_id, f"{new_id}@example.com"]
    )
    return new_id
