"""Versions of weights between the database and the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, Vectors, array, call, call_rows, value
from python_jobs.worker.towers.weights import TrainingResult, from_rows, to_rows


@dataclass(frozen=True)
class Origin:
    """Where a training began: its parent's version, and the events [first, t0) of its data."""

    parent: int | None
    trained_from: int | None
    held_out_from: int | None


def matrix(vectors: list[Any], width: int) -> np.ndarray:
    """Vectors as rows [n, width]; for none, [0, width]."""
    return np.array([array(v) for v in vectors], dtype=np.float32).reshape(-1, width)


def load(connection: Connection, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of a version. Raises ValueError when rows of a tensor are missing."""
    stored = call_rows(
        connection, "select name, row_index, row from two_tower.read_tensors(%s)", version
    )
    config = value(connection, "select config from two_tower.read_version(%s)", version)
    return from_rows((name, index, array(row)) for name, index, row in stored), config


def load_authors(connection: Connection, version: int) -> dict[Any, np.ndarray]:
    """What a version of the user tower learned of authors [64] each."""
    query = "select author_id, embedding from two_tower.read_model_authors(%s)"
    found = call_rows(connection, query, version)
    return {author: array(embedding) for author, embedding in found}


def store(
    connection: Connection,
    tower: str,
    result: TrainingResult,
    origin: Origin,
    authors: dict[Any, np.ndarray] | None = None,
    metrics: dict[str, Any] | None = None,
) -> int | None:
    """Stores a candidate and returns its version; None when it was not finite and is `rejected`.

    authors: what a user tower learned of each. metrics: more than the training's.

    Raises psycopg.DatabaseError with SQLSTATE TT004
    for tensors of another shape than the tower's.
    """
    where = (origin.parent, origin.trained_from, origin.held_out_from)
    authors = authors or {}
    if not result.is_finite or not all(np.isfinite(v).all() for v in authors.values()):
        finite = {k: v if np.isfinite(v) else str(v) for k, v in result.metrics.items()}
        value(
            connection,
            "select two_tower.reject_training(%s, 'weights that are not finite', %s, %s, %s, %s,"
            " %s)",
            tower, Jsonb(result.config), Jsonb(finite), *where,
        )  # fmt: skip
        return None
    names, indexes, tensor_rows = zip(*to_rows(result.tensors), strict=True)
    version = call(
        connection,
        "select two_tower.store_weights(%s, %s::text[], %s::integer[], %s, %s, %s, %s, %s, %s,"
        " %s::uuid[], %s)",
        tower, list(names), list(indexes), Vectors(tensor_rows), Jsonb(result.config),
        Jsonb({**result.metrics, **(metrics or {})}), *where, list(authors),
        Vectors(authors.values()),
    )  # fmt: skip
    assert isinstance(version, int)
    return version
