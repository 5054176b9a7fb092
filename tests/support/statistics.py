"""Whether what was drawn at random was drawn evenly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection


def chi_square_bound(degrees: int) -> float:
    """Exceeded by chance once in a million (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 4.753 * spread**0.5) ** 3


def assert_uniform(drawn: Counter[int], candidates: Collection[int]) -> None:
    """Only candidates were drawn, each about as often as any other (chi-square)."""
    assert set(drawn) <= set(candidates)
    expected = sum(drawn.values()) / len(candidates)
    statistic = sum((drawn[one] - expected) ** 2 / expected for one in candidates)
    assert statistic < chi_square_bound(len(candidates) - 1)
