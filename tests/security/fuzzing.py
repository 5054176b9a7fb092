"""How often properties are tried, and that the same examples come each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings

FEW, MANY = 60, 2000

# The number of examples, as an argument of a test: few in `make test`, many in `make test-long`.
SHORT_AND_LONG = [
    pytest.param(FEW, id="short"),
    pytest.param(MANY, id="long", marks=pytest.mark.long),
]


def run_each(test: Callable[..., None], examples: int) -> None:
    """Tries a property on so many examples, the same ones each time."""
    settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(test)()
