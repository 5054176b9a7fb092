"""Who may do what, as docs/security.md shows it."""

from __future__ import annotations

from docs.generator.markdown import code, table
from tests.security.access import CLIENT_FUNCTIONS, TABLES

BEGIN, END = "<!-- who may do what: written by make docs -->", "<!-- end -->"


def access_tables() -> str:
    """What a signed-in user may do with each table, and which functions of the API it may call."""
    rows = []
    for name, entry in TABLES.items():
        writes = [f"insert {_codes(entry.inserts)}"] if entry.inserts else []
        writes += [f"update {_codes(entry.updates)}"] if entry.updates else []
        writes += ["delete"] if entry.deletes else []
        rows.append([code(name), f"{entry.reads} rows", "; ".join(writes) or "nothing"])
    tables = table(["table", "reads", "writes, of own rows"], rows)
    functions = table(
        ["function", "gives"],
        [[code(name), why] for name, why in CLIENT_FUNCTIONS.items() if name.startswith("public.")],
    )
    return f"{tables}\n\n{functions}"


def with_access(page: str) -> str:
    """The page with the tables between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{access_tables()}\n\n{END}{after}"


def _codes(names: str) -> str:
    return ", ".join(code(name) for name in names.split())
