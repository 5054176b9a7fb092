"""How long tests wait: they look again and again, so only what never happens takes all of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# A worker is nice to others: beside ten busy programs it gets some hundredths of a core, and what
# takes it ten seconds elsewhere takes as many minutes.
PATIENCE_S = 900.0


def wait_until(check: Callable[[], Any]) -> Any:
    """The first truthy answer; fails when there is none in time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")
