"""The command line, as click knows it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from docs.generator.markdown import block, code, prose, table
from docs.generator.section import Section
from python_jobs.cli import main

NAME = "two-tower"
WIDTH = 80


def commands_section() -> Section:
    """The help of all, then each command."""
    top = click.Context(main, info_name=NAME, terminal_width=WIDTH, **main.context_settings)
    contexts = list(_leaves(top))
    blocks = [block(main.get_help(top), "text")]
    for context in contexts:
        blocks += _blocks(context)
    return Section(
        "Commands",
        "For whoever deploys, operates or measures it. Commands work on `TWO_TOWER_DATABASE_URL`,"
        " or on the local stack.",
        blocks,
        [context.command_path for context in contexts],
    )


def _leaves(context: click.Context) -> Iterator[click.Context]:
    """A context for each command that is no group."""
    command = context.command
    if not isinstance(command, click.Group):
        yield context
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from _leaves(click.Context(below, info_name=name, parent=context))


def _blocks(context: click.Context) -> Iterator[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"### {context.command_path}"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield prose(" ".join(paragraph.split()))
    yield block(usage, "sh")
    options = [each for each in command.params if isinstance(each, click.Option)]
    records = [each.get_help_record(context) for each in options]
    lines = [[code(each[0]), prose(" ".join(each[1].split()))] for each in records if each]
    if lines:
        yield table(["option", "meaning"], lines)
