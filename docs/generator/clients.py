"""What an app uses: the functions and tables of schema public."""

from __future__ import annotations

import json
import re
from typing import Any

from docs.generator.catalogue import Argument, Catalogue, Relation
from docs.generator.examples import BACK_END, EXAMPLES, Example, answer, seed
from docs.generator.house import in_order
from docs.generator.markdown import block, code, prose, table
from docs.generator.relations import columns_of
from docs.generator.section import Section
from docs.generator.signatures import call
from python_jobs.db import Connection

LINE = 80
BACK_ENDS = [each.function for each in EXAMPLES if each.role == BACK_END]
SHOWN_TIME = "2026-11-01T09:00:00+00:00"

_RIGHTS = """
    select lower(p.privilege) as verb,
      has_table_privilege('authenticated', %(table)s::oid, p.privilege) as is_whole,
      array(
        select a.attname::text from pg_attribute a
        where p.privilege <> 'DELETE' and a.attrelid = %(table)s and a.attnum > 0
          and not a.attisdropped
          and has_column_privilege('authenticated', %(table)s::oid, a.attnum, p.privilege)
        order by a.attnum
      ) as columns,
      array(
        select polname::text from pg_policy
        where polrelid = %(table)s and polcmd in (p.command, '*')
          and ('authenticated'::regrole = any (polroles) or polroles = '{0}') order by polname
      ) as policies
    from (values (1, 'SELECT', 'r'::"char"), (2, 'INSERT', 'a'), (3, 'UPDATE', 'w'),
      (4, 'DELETE', 'd')) as p (place, privilege, command)
    order by p.place
"""


def functions_section(catalogue: Catalogue, connection: Connection) -> Section:
    """Each function with its signature, a call, and the first row of what came back."""
    seed(connection)
    public = {
        each.name: each
        for each in catalogue.functions
        if each.schema == "public" and each.result != "trigger"
    }
    blocks = []
    for example in EXAMPLES:
        function = public[example.function]
        row = answer(connection, function, example.role, example.arguments)[0]
        blocks += [f"### {function.name}", prose(function.comment), block(call(function), "sql")]
        blocks += ["For example:", block(_call(example), "js")]
        blocks += [_result(catalogue.answer_of(function), row)]
    return Section(
        "What clients call",
        "For whoever writes the app. Each function acts for the signed-in user. The last"
        f" {len(BACK_ENDS)} are for back ends: the service role alone may call them. Attaching a"
        " table of posts adds `recommended_<table>` and `most_popular_<table>`; here they are those"
        " of the starter app's `posts`. The answers come from a database with `supabase/seed.sql`;"
        " times are replaced and numbers rounded.",
        blocks,
        [example.function for example in EXAMPLES],
    )


def tables_section(catalogue: Catalogue, connection: Connection) -> Section:
    """Each table with what a signed-in user may do, and its columns."""
    tables = in_order(each for each in catalogue.relations if each.schema == "public")
    blocks = []
    for each in tables:
        blocks += [f"### {each.name}", prose(each.comment), *columns_of(each)]
        if each.kind == "table":
            blocks += ["A signed-in user may:", _rights(connection, each)]
    return Section(
        "What clients read and write",
        "For whoever writes the app. What is not listed is refused; a request without a user may do"
        " nothing, the service role everything.",
        blocks,
        [each.name for each in tables],
    )


def _rights(connection: Connection, relation: Relation) -> str:
    cursor = connection.execute(_RIGHTS.encode(), {"table": relation.oid})
    allowed = []
    for row in cursor.fetchall():
        if row.policies and (row.is_whole or row.columns):
            columns = "all columns" if row.is_whole else ", ".join(map(code, row.columns))
            columns = "" if row.verb == "delete" else columns
            allowed.append([code(row.verb), columns, "; ".join(row.policies)])
    return table(["statement", "columns", "by the rule"], allowed)


def _call(example: Example) -> str:
    """The call with supabase-js."""
    arguments = f", {_javascript(example.arguments)}" if example.arguments else ""
    call = f"const {{ data }} = await supabase.rpc('{example.function}'{arguments}){example.shows}"
    return f"{call}\n// or: {_javascript(example.instead)}" if example.instead else call


def _javascript(value: Any) -> str:
    """A literal; the items of a long array stand in a line each."""
    if isinstance(value, dict):
        pairs = [f"{key}: {_javascript(each)}" for key, each in value.items()]
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        items = [_javascript(each) for each in value]
        line = f"[{', '.join(items)}]"
        lines = "".join(f"  {item},\n" for item in items)
        return line if len(line) <= LINE else f"[\n{lines}]"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


def _result(columns: list[Argument], row: dict[str, Any]) -> str:
    if not columns:
        return "It returns nothing."
    return table(
        ["column", "type", "in the first row"],
        (
            [code(each.name), code(each.type), code(_shown(each, row[each.name]))]
            for each in columns
        ),
    )


def _shown(column: Argument, value: Any) -> str:
    """A value as JSON: numbers with two digits, times of one day, vectors by how they begin."""
    if value is None:
        return "null"
    if column.type == "real[]":
        return f"[{', '.join(f'{each:.2f}' for each in value[:3])}, ...]"
    if column.type == "double precision":
        return f"{round(value, 2):g}"
    if column.type == "timestamptz":
        return json.dumps(SHOWN_TIME)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", SHOWN_TIME, json.dumps(value))
