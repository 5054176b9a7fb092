"""Rows of queries for people, and as JSON."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from python_jobs.db import rows
from python_jobs.operations.database import open_database


def read_sections(queries: dict[str, str]) -> dict[str, list[Any]]:
    """The rows of each query, by its title."""
    with open_database() as connection:
        return {title: rows(connection, query) for title, query in queries.items()}


def print_json(found: dict[str, list[Any]] | list[Any]) -> None:
    """Rows as objects: a list of them, or one for each title."""
    if isinstance(found, dict):
        plain: Any = {title: [row._asdict() for row in part] for title, part in found.items()}
    else:
        plain = [row._asdict() for row in found]
    click.echo(json.dumps(plain, default=str, indent=2))


def print_sections(sections: dict[str, list[Any]]) -> None:
    """A table for each title, or a line where there is no row."""
    console = Console()
    for title, found in sections.items():
        console.print(_table(title, found) if found else f"{title}: none")


def _table(title: str, found: list[Any]) -> Table:
    table = Table(*found[0]._fields, title=title, title_justify="left")
    for row in found:
        table.add_row(*("" if each is None else str(each) for each in row))
    return table
