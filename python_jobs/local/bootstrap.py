"""Turns an empty Postgres database into what a fresh Supabase project looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from psycopg import sql

from python_jobs.db import connect

Grants = Literal["new", "old"]
LOGIN_ROLES = ("postgres", "authenticator")

# Projects made before the change grant everything that role postgres creates in public.
_OLD_GRANTS = """
    alter default privileges for role postgres in schema public
      grant all on {objects} to anon, authenticated, service_role
"""
_NO_GRANTS = """
    alter default privileges for role postgres in schema public
      revoke all on {objects} from anon, authenticated, service_role
"""


def bootstrap(
    superuser_url: str,
    password: str,
    grants: Grants = "new",
    vector_schema: str = "extensions",
) -> None:
    """Creates Supabase's roles, schemas and auth tables in the database of `superuser_url`.

    password: given to the login roles `postgres` and `authenticator`.
    grants:   what the API roles get on later objects in schema public: "new" projects give them
              nothing (beyond Postgres' own EXECUTE for everybody), "old" ones everything.
    vector_schema: where pgvector sits, owned by `postgres`. Hosted projects let `postgres` create
              it; a plain Postgres does not, so the migration's `if not exists` finds it made.
    """
    if grants not in get_args(Grants):
        raise ValueError(f"grants must be one of {get_args(Grants)}, not {grants!r}")
    script = Path(__file__).with_name("bootstrap.sql").read_text()
    with connect(superuser_url) as connection:
        connection.execute(script.encode())
        # A superuser within this transaction only: extensions cannot change owners later.
        connection.execute("alter role postgres superuser")
        connection.execute("set local role postgres")
        connection.execute(
            sql.SQL("create schema if not exists {}").format(sql.Identifier(vector_schema))
        )
        connection.execute(
            sql.SQL("create extension if not exists vector with schema {}").format(
                sql.Identifier(vector_schema)
            )
        )
        connection.execute("reset role")
        connection.execute("alter role postgres nosuperuser")
        for role in LOGIN_ROLES:
            connection.execute(
                sql.SQL("alter role {} password {}").format(sql.Identifier(role), password)
            )
        for objects in ("tables", "sequences", "functions"):
            statement = _OLD_GRANTS if grants == "old" else _NO_GRANTS
            connection.execute(sql.SQL(statement).format(objects=sql.SQL(objects)))
