"""Which migration makes what, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TypeVar

from docs.generator.catalogue import Function, Relation
from tests.support.migrations import statements

Thing = TypeVar("Thing", Relation, Function, Relation | Function)

ATTACHING = "Written for an attached table"


@cache
def _files() -> dict[str, str]:
    """Qualified name to file, in the order of statements. A function is with a table so named."""
    files: dict[str, str] = {}
    for each in statements():
        if each.makes:
            files.setdefault(each.makes, each.file)
    return files


def in_order(things: Iterable[Thing]) -> list[Thing]:
    """Things in the order in which the migrations make them; what attaching writes comes last."""
    places = {makes: place for place, makes in enumerate(_files())}
    return sorted(things, key=lambda each: places.get(f"{each.schema}.{each.name}", len(places)))


def file_of(thing: Relation | Function) -> str:
    """The name of the file that makes it, without its number. ATTACHING for what a call writes."""
    file = _files().get(f"{thing.schema}.{thing.name}")
    return file.split("_", 4)[4] if file else ATTACHING
