"""A candidate tower for another encoder, fitted to where posts stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from python_jobs.worker.towers.candidate import BASE, HIDDEN, OUTPUT
from python_jobs.worker.towers.weights import TrainingResult

RIDGE = 1.0  # what the projection of the start weighs beside the posts, in squared base vectors
HELD_OUT = 10  # one post of so many
KEPT: list[str] = ["start", "fitted_on", "centred_on"]  # what the first projections go on from


def fit_tower(base: np.ndarray, live: np.ndarray, config: dict[str, Any]) -> TrainingResult:
    """The linear tower that maps base [n, 384] to live [n, 128], by ridge regression.

    It is pulled to an orthonormal projection, which it is where there are no posts. config: of the
    version before. Measures the mean cosine of what it makes of posts that were held out with
    where they are. Raises ValueError for arrays of other shapes.
    """
    if base.shape != (len(base), BASE) or live.shape != (len(base), OUTPUT):
        raise ValueError(f"base {base.shape} and live {live.shape} are not [n, 384] and [n, 128].")
    kept = {name: config[name] for name in KEPT if name in config}
    metrics: dict[str, Any] = {"posts": len(base)}
    held_out = np.arange(len(base)) % HELD_OUT == 0
    if held_out.sum() >= HELD_OUT:
        rows, bias = _ridge(base[~held_out], live[~held_out])
        found = base[held_out] @ rows.T + bias
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        metrics["held_out_cosine"] = round(float((found * live[held_out]).sum(1).mean()), 4)
    rows, bias = _ridge(base, live)
    return TrainingResult(_tensors(rows, bias), metrics, kept)


def _ridge(base: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W [128, 384] and b [128] that bring W x + b near to live."""
    start, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(BASE, OUTPUT)))
    start = start.T * np.sqrt(BASE / OUTPUT)
    if not len(base):
        return start, np.zeros(OUTPUT)
    base, live = base.astype(np.float64), live.astype(np.float64)
    middle, target = base.mean(0), live.mean(0)
    x, y = base - middle, live - target
    rows = start + np.linalg.solve(x.T @ x + RIDGE * np.eye(BASE), x.T @ (y - x @ start.T)).T
    return rows, target - rows @ middle


def _tensors(rows: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """relu(Wx + b) - relu(-Wx - b) = Wx + b."""
    identity = np.eye(OUTPUT)
    tensors = {
        "hidden.weight": np.concatenate([rows, -rows]),
        "hidden.bias": np.concatenate([bias, -bias]),
        "output.weight": np.concatenate([identity, -identity], axis=1),
        "output.bias": np.zeros(OUTPUT),
    }
    assert tensors["hidden.weight"].shape == (HIDDEN, BASE)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
