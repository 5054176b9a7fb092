"""Figures against their bounds, as the reports of `two-tower bench` have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def at_most(lines: Sequence[tuple[str, float | None, float, str]]) -> list[dict[str, Any]]:
    """Budgets from name, figure, bound and unit. None, of what was too little, keeps none."""
    return [
        {
            "budget": name,
            "figure": figure,
            "bound": f"at most {bound:g} {unit}",
            "is_kept": figure is not None and figure <= bound,
        }
        for name, figure, bound, unit in lines
    ]
