"""Every line of every PL/pgSQL function, checked without being run.

Debian's Postgres may have plpgsql_check, the wheels have not. Postgres 18 loads it from a folder:
that of Debian's package postgresql-18-plpgsql-check, installed, or unpacked by `dpkg -x` to where
the variable points.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from python_jobs.db import Connection
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.servers import chosen_binaries

FOLDER_VARIABLE = "TWO_TOWER_TEST_PLPGSQL_CHECK"
# What plpgsql_check says of code that is as it should be, as a pattern of `like`.
ACCEPTED = (
    # Tables of pg_cron are asked for only where they are.
    '%: relation "cron.%" does not exist: %',
    # It takes a literal such as '{}' for text; PL/pgSQL reads it by the variable's input function.
    '%: target type is different type than source type: cast "text" value to %',
    "%: composite OUT variable % is not single argument: %",
    # A list of columns that stored_columns() has quoted.
    "two_tower.create_partition(%: text type variable is not sanitized: %",
    # What attaching writes: names are quoted by format(), and expressions are those of the owner.
    "two_tower.create_source_function(%: text type variable is not sanitized: %",
    "two_tower.try_expression(%: text type variable is not sanitized: %",
    'two_tower.try_expression(%: schema "pg_temp" does not exist: %',
    'two_tower.try_expression(%: relation "pg_temp.%" does not exist: %',
    "two_tower.walk_r%: text type variable is not sanitized: %",
    "two_tower.write_page(%: text type variable is not sanitized: %",
    "two_tower.write_page_function(%: text type variable is not sanitized: %",
    "two_tower.write_triggers(%: text type variable is not sanitized: %",
    # What a function of a source returns is not known before it is called.
    '%: OUT variable "%" is maybe unmodified: cannot to determine result of dynamic SQL',
    "%: cannot determinate a result of dynamic SQL: %",
    'two_tower.walk_registry(%: record "v_last" is not assigned yet: %',
    # One function serves the four triggers of a table, of which each has its own transition tables.
    'two_tower.follow_source_%: relation "%_rows" does not exist: %',
    # Stores of all roles are called in one way.
    'two_tower.store_profiles(%: unused parameter "p_source_id": %',
    # Realtime is asked for only where it is.
    '%: schema "realtime" does not exist: %',
    # The scan's own settings end with the transaction, and a feed is read by GET: stable.
    "two_tower.%nearest_posts(%: routine is marked as STABLE, but expression is VOLATILE: %",
)
# A trigger function is checked once for each of its triggers.
FINDINGS = """
  select x.finding
  from pg_catalog.pg_proc p
    join pg_catalog.pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
    left join pg_catalog.pg_trigger t on t.tgfoid = p.oid and t.tgparentid = 0
    cross join lateral extensions.plpgsql_check_function_tb(p.oid, coalesce(t.tgrelid, 0),
      oldtable := t.tgoldtable, newtable := t.tgnewtable, security_warnings := true) c
    cross join lateral (select concat_ws(': ', concat_ws(', line ', p.oid::regprocedure, c.lineno),
      c.message, coalesce(c.detail, '')) as finding) x
  where p.pronamespace in ('public'::regnamespace, 'two_tower'::regnamespace)
    and x.finding not like all (%s)
  order by x.finding
"""


@pytest.fixture
def checker(cluster: Cluster, fresh_database: Callable[[], str]) -> Iterator[Connection]:
    """A superuser's connection to a migrated database with plpgsql_check."""
    major = str(chosen_binaries().major)
    root = Path(os.environ.get(FOLDER_VARIABLE, "/"))
    share, lib = (root / "usr" / part / "postgresql" / major for part in ("share", "lib"))
    name = fresh_database().rsplit("/", 1)[1]
    with psycopg.connect(cluster.url(name, SUPERUSER), autocommit=True) as connection:
        if int(major) >= 18:
            set_path = "select set_config(%s, %s, false)"
            connection.execute(set_path, ["extension_control_path", f"{share}:$system"])
            connection.execute(set_path, ["dynamic_library_path", f"{lib / 'lib'}:$libdir"])
        at_hand = "select from pg_available_extensions where name = 'plpgsql_check'"
        if connection.execute(at_hand).fetchone() is None:
            pytest.skip(
                f"no plpgsql_check for this Postgres {major}: for 18, install Debian's package"
                f" postgresql-18-plpgsql-check, or unpack it and set {FOLDER_VARIABLE}"
            )
        connection.execute("create extension plpgsql_check with schema extensions")
        yield connection


def test_plpgsql_check_finds_no_fault(checker: Connection) -> None:
    rows = checker.execute(FINDINGS, [list(ACCEPTED)]).fetchall()
    assert [finding for (finding,) in rows] == []


def test_plpgsql_check_would_find_one(checker: Connection) -> None:
    checker.execute(
        "create function two_tower.faulty(p_dead integer) returns bigint language plpgsql as"
        " $$ declare v_unused text; begin return (select missing from public.posts); end $$"
    )
    rows = checker.execute(FINDINGS, [list(ACCEPTED)]).fetchall()
    faulty = [finding for (finding,) in rows if finding.startswith("two_tower.faulty")]
    assert any("missing" in finding for finding in faulty)
