"""Tensors as rows: a matrix [r, c] is r rows of c values, a bias is one row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

Rows = list[tuple[str, int, np.ndarray]]


@dataclass
class TrainingResult:
    """What a training gives back: tensors to store, what was measured, how it was done."""

    tensors: dict[str, np.ndarray]
    metrics: dict[str, Any]
    config: dict[str, Any]


def to_rows(tensors: dict[str, np.ndarray]) -> Rows:
    """Rows (name, row index, float32 values) of tensors of one or two dimensions.

    Raises ValueError, naming the tensor, for other shapes and for values that are not finite.
    """
    rows: Rows = []
    for name, tensor in tensors.items():
        if tensor.ndim not in (1, 2):
            raise ValueError(f"{name} has {tensor.ndim} dimensions; 1 or 2 can be stored.")
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are not finite.")
        rows += [
            (name, index, row) for index, row in enumerate(np.atleast_2d(tensor).astype(np.float32))
        ]
    return rows


def from_rows(rows: Iterable[tuple[str, int, Any]]) -> dict[str, np.ndarray]:
    """The tensors, all as matrices, of rows in any order.

    Raises ValueError, naming the tensor, when a row is missing or of another width.
    """
    collected: dict[str, dict[int, np.ndarray]] = {}
    for name, index, row in rows:
        collected.setdefault(name, {})[index] = np.asarray(row, dtype=np.float32)
    tensors = {}
    for name, parts in collected.items():
        if sorted(parts) != list(range(len(parts))) or len({p.size for p in parts.values()}) != 1:
            raise ValueError(f"{name} lacks rows, or has rows of different widths.")
        tensors[name] = np.stack([parts[index] for index in range(len(parts))])
    return tensors


def load(module: nn.Module, tensors: dict[str, np.ndarray]) -> None:
    """Sets a module's parameters from `from_rows`. Raises ValueError, naming what does not fit."""
    for name, parameter in module.named_parameters():
        stored = tensors.get(name)
        if stored is None or stored.size != parameter.numel():
            raise ValueError(
                f"{name} is missing or has another shape than {tuple(parameter.shape)}."
            )
        parameter.data.copy_(Tensor(stored.reshape(tuple(parameter.shape))))


def dump(module: nn.Module) -> dict[str, np.ndarray]:
    """A module's parameters as float32 arrays, by name."""
    return {name: p.detach().cpu().numpy().copy() for name, p in module.named_parameters()}
