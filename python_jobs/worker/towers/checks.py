"""What is asked of arrays before a tower sees them."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_arrays(holder: Any, what: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError, naming it, for an attribute of another shape or with values not finite."""
    for name, shape in shapes.items():
        values = getattr(holder, name)
        if values.shape != shape:
            raise ValueError(f"{name} of {what} must be {shape}, not {values.shape}.")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} of {what} holds values that are not finite.")
