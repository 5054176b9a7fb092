"""Leaving a long job between two of its batches, when the process is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_UNTIL: ContextVar[threading.Event | None] = ContextVar("until", default=None)


class StoppedError(Exception):
    """The job was left in the middle: what it has stored is good, and it is to be done again."""


@contextmanager
def leaving_when(until: threading.Event) -> Iterator[None]:
    """Within the block, and in this thread, leave_if_told() raises once `until` is set."""
    token = _UNTIL.set(until)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def leave_if_told() -> None:
    """Called between two batches. Raises StoppedError when the process is told to stop."""
    until = _UNTIL.get()
    if until is not None and until.is_set():
        raise StoppedError("told to stop")
