"""Each role tries each command on each column, and each function: the catalogue says what there is.

What is allowed stands in access.py. Everything is tried by executing it as the role, in a
transaction that is rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pytest

from python_jobs.db import Connection, rows, value
from tests.security.access import (
    BACK_END_FUNCTIONS,
    CLIENT_FUNCTIONS,
    OWNER_FUNCTIONS,
    OWNER_VIEWS,
    PAGE_VIEWS,
    PRIVATE_TABLES,
    SEQUENCES,
    TABLES,
    WORKER_FUNCTIONS,
)
from tests.support.database import add_user, as_user

SCHEMAS = ("public", "two_tower")
ROLES = ("anon", "authenticated", "service_role", "two_tower_worker")

# Tries statements as whoever calls, takes each back, and answers by which SQLSTATE each ended: done
# is TT999.
DONE, DENIED = "TT999", "42501"
PROBE = f"""
  create function pg_temp.try_each(p_statements text[]) returns text[] language plpgsql as $$
  declare
    v_statement text;
    v_ends text[] := '{{}}';
  begin
    foreach v_statement in array p_statements loop
      begin
        execute v_statement;
        raise exception using errcode = '{DONE}';
      exception when others then
        v_ends := v_ends || sqlstate;
      end;
    end loop;
    return v_ends;
  end
  $$
"""
RELATIONS = """
  select format('%%s.%%s', n.nspname, c.relname) as name, c.relkind::text as kind,
    array(select a.attname::text from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by attnum) as columns,
    (select format('%%s.%%s', pn.nspname, p.relname) from pg_inherits i
      join pg_class p on p.oid = i.inhparent join pg_namespace pn on pn.oid = p.relnamespace
      where i.inhrelid = c.oid) as parent
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = any (%s) and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
  order by 1
"""
FUNCTIONS = """
  select format('%%s.%%s', n.nspname, p.proname) as name, p.oid::regprocedure::text as signature,
    format('%%I.%%I', n.nspname, p.proname) as called,
    array(select format_type(t, null) from unnest(p.proargtypes::oid[]) with ordinality u (t, i)
      order by i) as arguments,
    p.prorettype = 'trigger'::regtype as is_trigger
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = any (%s)
    and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
  order by 2
"""
COMMANDS = {
    "select": "select {column} from {table} limit 0",
    "insert": "insert into {table} ({column}) overriding system value select null where false",
    "update": "update {table} set {column} = default where false",
}
WHOLE = {
    "delete": "delete from {table} where false",
    "truncate": "truncate {table}",
}


@dataclass(frozen=True)
class Probe:
    """A statement that a role tries, and whether it may."""

    statement: str
    is_allowed: bool


def _may(role: str, table: str, command: str, column: str) -> bool:
    """Whether access.py allows a command on a column (on the table: "")."""
    if role == "service_role":
        return (
            command != "select"
            if table in OWNER_VIEWS
            else (table not in PAGE_VIEWS or command == "select")
        )
    if role != "authenticated" or table not in TABLES:
        return False
    entry = TABLES[table]
    return {
        "select": True,
        "insert": column in entry.inserts.split(),
        "update": column in entry.updates.split(),
        "delete": entry.deletes,
        "truncate": False,
    }[command]


# Refused to everybody before rights are looked at: views that take no writes, computed columns.
IMPOSSIBLE = {"55000", "0A000", "42809", "428C9"}


def _attempts(role: str, table: str, columns: Sequence[str]) -> Iterator[Probe]:
    for command, column in product(COMMANDS, columns):
        statement = COMMANDS[command].format(table=table, column=f'"{column}"')
        yield Probe(statement, _may(role, table, command, column))
    for command, statement in WHOLE.items():
        yield Probe(statement.format(table=table), _may(role, table, command, ""))


def surprises(connection: Connection, role: str, probes: Iterable[Probe]) -> list[str]:
    """Tries all as the role; says what was allowed and should not be, and the other way round."""
    listed = list(probes)
    with as_user(connection, ME, role):
        connection.execute("set local statement_timeout = 0")
        ends = value(
            connection, "select pg_temp.try_each(%s)", [probe.statement for probe in listed]
        )
    return [
        f"{role}: {probe.statement} -- {end}"
        for probe, end in zip(listed, ends, strict=True)
        if (end == DENIED) == probe.is_allowed and end not in IMPOSSIBLE
    ]


ME = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def prober(db: Connection) -> Connection:
    """A connection that may act as any role."""
    db.execute("grant two_tower_worker to postgres")
    db.execute(PROBE)
    return db


def test_every_table_and_function_has_an_entry(db: Connection) -> None:
    relations = {each.name for each in rows(db, RELATIONS, list(SCHEMAS)) if each.parent is None}
    assert relations == {*TABLES, *PRIVATE_TABLES}
    functions = {each.name for each in rows(db, FUNCTIONS, list(SCHEMAS))}
    private = {name for name in functions if name.startswith("two_tower.")}
    named = {*CLIENT_FUNCTIONS, *BACK_END_FUNCTIONS, *WORKER_FUNCTIONS}
    assert named <= functions
    assert {n for n in functions - private - named if not _is_the_owners(n)} == set()


@pytest.mark.parametrize("role", ROLES)
def test_a_role_does_with_each_column_what_it_may_and_nothing_else(
    prober: Connection, role: str
) -> None:
    found: list[str] = []
    tried = 0
    for relation in rows(prober, RELATIONS, list(SCHEMAS)):
        if relation.parent and role == "service_role":
            continue  # it goes by the parent
        probes = list(_attempts(role, relation.name, relation.columns))
        tried += len(probes)
        found += surprises(prober, role, probes)
    print(f"{role}: {tried} probes of columns and tables")
    assert not found, "\n".join(found)
    assert tried > 500


def _is_the_owners(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in OWNER_FUNCTIONS)


def _may_call(role: str, name: str) -> bool:
    if _is_the_owners(name):
        return False
    return {
        "anon": False,
        "authenticated": name in CLIENT_FUNCTIONS,
        "service_role": True,
        "two_tower_worker": name in WORKER_FUNCTIONS,
    }[role]


def _call(name: str, arguments: Sequence[str]) -> str:
    """A call that asks for the right and runs nothing; the planner foresees no argument."""
    nulls = ", ".join(f"null::{each} as a{n}" for n, each in enumerate(arguments)) or "1"
    passed = ", ".join(f"a{n}" for n in range(len(arguments)))
    return f"select {name}({passed}) from (select {nulls} offset 0) x where random() < 0"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_calls_what_it_may_and_nothing_else(prober: Connection, role: str) -> None:
    probes = [
        Probe(_call(each.called, each.arguments), _may_call(role, each.name))
        for each in rows(prober, FUNCTIONS, list(SCHEMAS))
        # Nobody can call what triggers call. What attaching wrote before the grants, back ends may.
        if not each.is_trigger and not (role == "service_role" and _is_the_owners(each.name))
    ]
    print(f"{role}: {len(probes)} probes of functions")
    assert surprises(prober, role, probes) == []
    assert len(probes) > 200


@pytest.mark.parametrize("role", ROLES)
def test_a_role_draws_from_the_sequences_that_it_may(prober: Connection, role: str) -> None:
    names = rows(
        prober,
        "select format('%%s.%%s', schemaname, sequencename) as name from pg_sequences"
        " where schemaname = any (%s)",
        list(SCHEMAS),
    )
    probes = [
        Probe(
            f"select nextval('{each.name}')",
            each.name.startswith("two_tower.")
            and (role == "service_role" or (role == "authenticated" and each.name in SEQUENCES)),
        )
        for each in names
    ]
    assert surprises(prober, role, probes) == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_creates_nothing_in_a_schema_of_the_engine(prober: Connection, role: str) -> None:
    probes = [
        Probe(f"create {what}", False)
        for schema in (*SCHEMAS, "extensions")
        for what in (
            f"table {schema}.evil (id integer)",
            f"function {schema}.evil() returns integer language sql return 1",
            f"domain {schema}.evil as text",
        )
    ]
    assert surprises(prober, role, probes) == []


def test_the_service_role_stores_what_a_user_tower_learned(db: Connection) -> None:
    author = add_user(db)
    db.execute("select two_tower.add_users(array[%s]::uuid[])", [author])
    with as_user(db, None, "service_role"):
        db.execute(
            "with version as ("
            "  insert into two_tower.model_weights (tower) values ('user_tower') returning version"
            "), author as ("
            "  insert into two_tower.model_authors (version, author_id, embedding)"
            "  select version, %s, array_fill(0.5::real, array[64])::extensions.vector from version"
            "), action as ("
            "  insert into two_tower.model_tensors (version, name, row_index, row)"
            "  select version, 'action.weight', 2,"
            "  array_fill(1::real, array[64])::extensions.vector from version"
            ") select version from version",
            [author],
        )
        db.execute("select two_tower.activate_version(max(version)) from two_tower.model_weights")
    row = db.execute(
        "select (select count(*) from two_tower.author_embeddings where author_id = %s) as authors,"
        " (select count(*) from two_tower.action_embeddings where event_type = 'like') as actions",
        [author],
    ).fetchone()
    assert row == (1, 1)
