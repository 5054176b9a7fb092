"""The command line: what every command says of itself."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.testing import CliRunner

from python_jobs.cli import COMMANDS, main


def paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that call a command, and those of all below it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from paths(below, (*path, name))


def test_every_help_fits_80_columns_and_no_line_of_it_is_cut() -> None:
    found = list(paths(main))
    assert len(found) > len(COMMANDS), "commands of groups are among them"
    for path in found:
        shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=80)
        assert shown.exit_code == 0, (path, shown.output)
        # click ends the line of usage of a group with "[ARGS]..."
        lines = [line for line in shown.output.splitlines() if not line.startswith("Usage:")]
        assert [line for line in lines if len(line) > 80 or line.endswith("...")] == [], path


def test_every_option_has_a_help() -> None:
    for path in paths(main):
        command: click.Command = main
        for name in path:
            assert isinstance(command, click.Group)
            below = command.get_command(click.Context(command), name)
            assert below is not None
            command = below
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert [each.name for each in options if not each.help] == [], path
