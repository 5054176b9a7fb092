"""How long tests wait: they look again and again, so only what never happens takes all of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Enough for a machine with many times more to do than it has cores.
PATIENCE_S = 600.0


def wait_until(check: Callable[[], Any]) -> Any:
    """The first truthy answer; fails when there is none in time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")
