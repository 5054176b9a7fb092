"""The command line. Each command imports what it needs when it runs: torch takes seconds."""

from __future__ import annotations

import importlib

import click

# command -> (module, function); the function is a click command.
COMMANDS = {
    "up": ("python_jobs.local.commands", "up"),
    "down": ("python_jobs.local.commands", "down"),
    "migrate": ("python_jobs.local.commands", "migrate"),
    "types": ("python_jobs.local.commands", "types"),
    "install": ("python_jobs.operations.install", "install"),
    "uninstall": ("python_jobs.operations.uninstall", "uninstall"),
    "worker": ("python_jobs.worker.process", "worker"),
    "replay": ("python_jobs.laboratory.replay.command", "replay"),
    "demo": ("python_jobs.laboratory.demo", "demo"),
    "feed": ("python_jobs.laboratory.feed.command", "feed"),
    "status": ("python_jobs.operations.status", "status"),
    "metrics": ("python_jobs.operations.metrics", "metrics"),
    "report": ("python_jobs.operations.report.command", "report"),
    "checkpoint": ("python_jobs.operations.safety", "checkpoint"),
    "freeze": ("python_jobs.operations.safety", "freeze"),
    "resume": ("python_jobs.operations.safety", "resume"),
    "rollback": ("python_jobs.operations.safety", "rollback"),
    "undo": ("python_jobs.operations.undo", "undo"),
    "weights": ("python_jobs.operations.weights", "weights"),
    "drill": ("python_jobs.laboratory.drill.command", "drill"),
    "evaluate": ("python_jobs.laboratory.evaluate.command", "evaluate"),
    "bench": ("python_jobs.laboratory.bench.command", "bench"),
}


class LazyGroup(click.Group):
    """Knows the names of the commands, and imports the module of one only to run or explain it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="two-tower")
def main() -> None:
    """A recommendation engine inside a Supabase project."""
