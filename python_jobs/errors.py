"""The one exception for whatever the person at the keyboard can mend."""

from __future__ import annotations

import click


class CommandError(click.ClickException):
    """A problem told in one line that says what to do next; click prints it and exits with 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UnreachableError(CommandError):
    """No database answers now: it may be starting, stopping, or cut off by the network."""


class LocalStackError(CommandError):
    """The local Postgres, REST or Auth server cannot be started, reached or stopped."""
