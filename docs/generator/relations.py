"""How a table, view, type or domain is written down."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generator.catalogue import Column, Relation
from docs.generator.markdown import code, prose, table


def columns_of(relation: Relation) -> Iterator[str]:
    """All columns, then the rules of its rows."""
    yield table(
        ["column", "type", "default", "meaning"],
        (
            [_name(relation, each), code(each.type), _default(each), _meaning(each)]
            for each in relation.columns
        ),
    )
    if relation.rules:
        yield "Rules:"
        yield "\n".join(f"- {rule}" for rule in relation.rules)


def _name(relation: Relation, column: Column) -> str:
    return code(column.name) + (" (key)" if column.name in relation.key else "")


def _default(column: Column) -> str:
    plain = ("", "required", "null", "next id")
    return column.default if column.default in plain else code(column.default)


def _meaning(column: Column) -> str:
    """Comment, limit and where it points to, as sentences."""
    parts = [prose(column.comment)]
    if column.limit:
        parts.append(f"{column.limit[0].upper()}{column.limit[1:]}.")
    if column.references:
        parts.append(f"Row of {code(column.references)}.")
    return " ".join(part for part in parts if part)
