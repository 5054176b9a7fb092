"""Tensors as rows: a matrix [r, c] is r rows of c values, a bias is one row."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

Rows = list[tuple[str, int, np.ndarray]]


@dataclass
class TrainingResult:
    """What a training gives back: tensors to store, what was measured, how it was done."""

    tensors: dict[str, np.ndarray]
    metrics: dict[str, Any]
    config: dict[str, Any]

    @property
    def is_finite(self) -> bool:
        """Whether the training converged to anything: weights and losses are numbers."""
        return all(np.isfinite(tensor).all() for tensor in self.tensors.values()) and all(
            np.isfinite(value) for value in self.metrics.values()
        )


def device() -> torch.device:
    """Where to train: CUDA where there is a device, else the CPU.

    On CUDA, sums are then made in one order throughout the process, so that the same data and seed
    give the same weights; torch warns of an operation that has no such way.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda")


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

    Raises ValueError, naming the tensor, when a row is missing, given twice, or of another width.
    """
    collected: dict[str, dict[int, np.ndarray]] = {}
    for name, index, row in rows:
        if index in collected.setdefault(name, {}):
            raise ValueError(f"{name} has its row {index} twice.")
        collected[name][index] = np.asarray(row, dtype=np.float32)
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
        shape = tuple(parameter.shape)
        # A bias comes back from its row as a matrix of one row.
        if stored is None or stored.shape not in (shape, (1, *shape)):
            raise ValueError(f"{name} is missing or has another shape than {shape}.")
        if not np.isfinite(stored).all():
            raise ValueError(f"{name} holds values that are not finite.")
        parameter.data.copy_(Tensor(stored.reshape(tuple(parameter.shape))))


def dump(module: nn.Module) -> dict[str, np.ndarray]:
    """A module's parameters as float32 arrays, by name."""
    return {name: p.detach().cpu().numpy().copy() for name, p in module.named_parameters()}


def export_file(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors to a safetensors file, with text about them (version, tower, metrics ...).

    Raises OSError when it cannot be written.
    """
    to_rows(tensors)  # refuses what could not be imported again
    ready = {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}
    try:
        save_file(ready, path, metadata or {})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def import_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a file of `export_file`. Raises ValueError when it is none."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    to_rows(tensors)
    return tensors, metadata
