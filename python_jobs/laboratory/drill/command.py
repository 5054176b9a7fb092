"""`two-tower drill`: what an operator sees and types when learning goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from python_jobs.laboratory.drill.script import Step, Typed, run_drill
from python_jobs.laboratory.server import server
from python_jobs.operations.status import MARKS, STYLES
from python_jobs.operations.verdict import ALERT, OK


@click.command()
def drill() -> None:
    """Practise an incident: a wave of spam, and the way back.

    On a Postgres of its own, gone afterwards; your data is not touched. Takes a minute. Exits with
    1 where a step does not do what it promises.
    """
    console = Console()
    is_broken = False
    waiting = Console(stderr=True).status("starting a Postgres for the drill")
    with waiting, server({"fsync": "off"}) as cluster:
        waiting.update("a day of the feed")
        for number, step in enumerate(run_drill(cluster.url()), 1):
            console.print(describe(number, step))
            waiting.update(f"after step {number}")
            is_broken = is_broken or bool(step.broken)
    if is_broken:
        sys.exit(1)


def describe(number: int, step: Step) -> Group:
    """A step for people: what happened, what was seen and typed, what was promised."""
    return Group(
        Rule(f"{number}  {step.title}", align="left", style="dim"),
        Text(step.happened),
        *(_alert(row) for row in step.seen),
        *(part for typed in step.typed for part in _typed(typed)),
        Text(""),
        *(Text.assemble(_mark(OK if is_kept else ALERT), what) for what, is_kept in step.promises),
        Text(""),
    )


def _alert(row: Any) -> RenderableType:
    more = f"  and {row.alerts - 1:,} like it" if row.alerts > 1 else ""
    head = Text.assemble(
        "\n", _mark(ALERT), ("Alert ", STYLES[ALERT]), (f"{row.kind} {row.subject}", "bold"), more
    )
    return Group(head, Padding(Text(f"{row.message} {row.advice}"), (0, 0, 0, 2), expand=False))


def _typed(typed: Typed) -> Iterator[RenderableType]:
    is_command = isinstance(typed.answer, str)
    yield Text.assemble("\n", ("$ " if is_command else "=> ", "dim"), (typed.what, "bold"))
    answer = Text(typed.answer) if isinstance(typed.answer, str) else _table(typed.answer)
    yield Padding(answer, (0, 0, 0, 2), expand=False)


def _table(found: list[Any]) -> RenderableType:
    if not found:
        return Text("no row")
    table = Table(*found[0]._fields, box=None, pad_edge=False, header_style="dim")
    for row in found:
        table.add_row(*map(str, row))
    return table


def _mark(state: str) -> tuple[str, str]:
    return f"{MARKS[state]} ", STYLES[state]
