"""What the catalogue knows of the two schemas: functions, and tables, views and types."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from docs.generator.expressions import (
    readable_default,
    readable_limit,
    readable_rule,
    readable_type,
    readable_values,
)
from python_jobs.db import Connection, rows


@dataclass(frozen=True)
class Argument:
    """An argument of a function, or a column of what it returns."""

    name: str
    type: str
    default: str


@dataclass(frozen=True)
class Function:
    """A function. `result` is a type, or "table"; then `columns` says of what."""

    schema: str
    name: str
    comment: str
    arguments: list[Argument]
    columns: list[Argument]
    result: str


@dataclass(frozen=True)
class Column:
    """A column. `limit` says what its checks allow, `references` what its foreign key points to."""

    name: str
    type: str
    default: str
    comment: str
    limit: str
    references: str


@dataclass(frozen=True)
class Relation:
    """A table, view, type, domain or enum, as `kind` says.

    key: the columns of the primary key. rules: checks that are no limits of one column.
    """

    oid: int
    schema: str
    name: str
    kind: str
    comment: str
    key: list[str]
    rules: list[str]
    columns: list[Column]


@dataclass(frozen=True)
class Catalogue:
    """All of both schemas but partitions, which come and go."""

    functions: list[Function]
    relations: list[Relation]

    def relation(self, schema: str, name: str) -> Relation:
        """The table, view or type of that name."""
        return next(each for each in self.relations if (each.schema, each.name) == (schema, name))

    def answer_of(self, function: Function) -> list[Argument]:
        """The columns of the rows that a function returns; none for a value or for nothing."""
        kind = function.result.removeprefix("setof ")
        named = (
            each for each in self.relations if kind in (each.name, f"{each.schema}.{each.name}")
        )
        columns = [each for found in named for each in found.columns]
        return function.columns or [Argument(each.name, each.type, "") for each in columns]


# Functions are written for each attached table: those for the table of posts stand for all.
_FUNCTIONS = """
    select n.nspname as schema, regexp_replace(p.proname, '_source_[0-9]+$', '_source_N') as name,
      coalesce(obj_description(p.oid, 'pg_proc'), '') as comment,
      pg_get_function_result(p.oid) as result,
      array(
        select array[
          coalesce(p.proargmodes[place]::text, 'i'), coalesce(p.proargnames[place], ''),
          format_type(type, null), coalesce(pg_get_function_arg_default(p.oid, place::integer), '')]
        from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]))
          with ordinality as argument (type, place)
        order by place
      ) as arguments
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('public', 'two_tower') and not exists (
      select from two_tower.sources s
      where s.role <> 'posts' and p.proname ~ ('_source_' || s.id || '$'))
    order by schema, name, pg_get_function_identity_arguments(p.oid)
"""

_RELATIONS = """
    select c.oid, n.nspname as schema, c.relname as name,
      case c.relkind when 'v' then 'view' when 'c' then 'type' else 'table' end as kind,
      coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type'), '')
        as comment,
      array(
        select a.attname::text
        from pg_index i
          cross join unnest(i.indkey::smallint[]) with ordinality as part (number, place)
          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = part.number
        where i.indrelid = c.oid and i.indisprimary order by part.place
      ) as key
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('public', 'two_tower') and c.relkind in ('r', 'p', 'v', 'c')
      and not c.relispartition
    order by schema, name
"""

# Those of domains too.
_CHECKS = """
    select coalesce(nullif(conrelid, 0), contypid) as relation, conname as name,
      pg_get_constraintdef(oid, true) as definition, coalesce(cardinality(conkey), 0) as width,
      (select attname::text from pg_attribute where attrelid = conrelid and attnum = conkey[1])
        as column
    from pg_constraint
    where contype = 'c' and coalesce(nullif(conrelid, 0), contypid) = any (%s)
    order by conname
"""

_DOMAINS = """
    select t.oid, n.nspname as schema, t.typname as name,
      case t.typtype when 'd' then 'domain' else 'enum' end as kind,
      coalesce(obj_description(t.oid, 'pg_type'), '') as comment,
      case t.typtype when 'd' then format_type(t.typbasetype, t.typtypmod) else 'enum' end as base,
      array(select enumlabel::text from pg_enum where enumtypid = t.oid order by enumsortorder)
        as labels
    from pg_type t join pg_namespace n on n.oid = t.typnamespace
    where n.nspname in ('public', 'two_tower') and t.typtype in ('d', 'e')
    order by schema, name
"""

_COLUMNS = """
    select a.attrelid as relation, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
      case when a.attidentity <> '' then 'nextval()' else pg_get_expr(d.adbin, d.adrelid) end
        as default,
      a.attnotnull as is_needed,
      coalesce(col_description(a.attrelid, a.attnum), '') as comment,
      (select o.confrelid::regclass::text from pg_constraint o
       where o.conrelid = a.attrelid and o.contype = 'f' and o.conkey = array[a.attnum]
         and o.conparentid = 0
       order by o.conname limit 1) as references
    from pg_attribute a
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = any (%s) and a.attnum > 0 and not a.attisdropped
    order by a.attrelid, a.attnum
"""


def prepare(connection: Connection) -> None:
    """Makes the catalogue speak in short names and whole units until the transaction ends."""
    connection.execute("set local search_path = pg_catalog, two_tower, public, extensions")
    connection.execute("set local intervalstyle = postgres_verbose")


def read_catalogue(connection: Connection) -> Catalogue:
    """All functions, tables, views, types and domains, without what belongs to machine or day."""
    prepare(connection)
    functions = [_function(row) for row in rows(connection, _FUNCTIONS)]
    return Catalogue(functions, [*_relations(connection), *_domains(connection)])


def _relations(connection: Connection) -> list[Relation]:
    found = rows(connection, _RELATIONS)
    kinds = {row.oid: row.kind for row in found}
    limits, rules = _checks(connection, list(kinds))
    columns: dict[int, list[Column]] = defaultdict(list)
    for row in rows(connection, _COLUMNS, list(kinds)):
        limit = limits.get((row.relation, row.name), "")
        columns[row.relation].append(_column(row, kinds[row.relation], limit))
    return [
        Relation(**row._asdict(), rules=rules[row.oid], columns=columns[row.oid]) for row in found
    ]


def _domains(connection: Connection) -> list[Relation]:
    """Domains and enums, as relations of one column."""
    found = rows(connection, _DOMAINS)
    _, rules = _checks(connection, [row.oid for row in found])
    domains = []
    for row in found:
        values = readable_values(row.labels) if row.labels else ""
        column = Column("value", readable_type(row.base), "", "", values, "")
        domain = (row.oid, row.schema, row.name, row.kind, row.comment)
        domains.append(Relation(*domain, key=[], rules=rules[row.oid], columns=[column]))
    return domains


def _checks(
    connection: Connection, oids: list[int]
) -> tuple[dict[tuple[int, str], str], dict[int, list[str]]]:
    """Limits by relation and column, and rules by relation."""
    limits: dict[tuple[int, str], str] = {}
    rules: dict[int, list[str]] = defaultdict(list)
    for row in rows(connection, _CHECKS, oids):
        limit = readable_limit(row.definition) if row.width == 1 else None
        if limit is None:
            rules[row.relation].append(readable_rule(row.name, row.definition))
        else:
            limits[row.relation, row.column] = limit
    return limits, rules


def _column(row: Any, kind: str, limit: str) -> Column:
    default = readable_default(row.default)
    if kind == "table" and not default:
        default = "required" if row.is_needed else "null"
    kind_of_value = readable_type(row.type)
    return Column(row.name, kind_of_value, default, row.comment, limit, row.references or "")


def _function(row: Any) -> Function:
    arguments: list[Argument] = []
    columns: list[Argument] = []
    for mode, name, kind, default in row.arguments:
        argument = Argument(name, readable_type(kind), readable_default(default))
        arguments += [argument] if mode in "ibv" else []
        columns += [argument] if mode in "obt" else []
    is_table = row.result.startswith("TABLE(")
    result = "table" if is_table else readable_type(row.result).replace("SETOF", "setof")
    columns = columns if is_table or result == "record" else []
    return Function(row.schema, row.name, row.comment, arguments, columns, result)
