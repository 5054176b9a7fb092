"""Data for the towers in which something is planted that can be learned."""

from __future__ import annotations

import numpy as np
import torch

from python_jobs.worker.towers import weights
from python_jobs.worker.towers.candidate import (
    CandidateData,
    CandidateTower,
)
from python_jobs.worker.towers.histories import History, Pool
from python_jobs.worker.towers.user import UserConfig, train_user

RANDOM = np.random.default_rng(0)
# Threads that wait for each other on shared cores make these small matrices several times slower.
torch.set_num_threads(1)


def unit(*shape: int) -> np.ndarray:
    """Random vectors of norm 1."""
    vectors = RANDOM.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def planted_pairs(count: int) -> CandidateData:
    """Positives whose users lie where a fixed random map sends the text, and random negatives."""
    plan = RANDOM.normal(size=(384, 128))
    base = unit(count, 384)
    user = base @ plan
    user /= np.linalg.norm(user, axis=1, keepdims=True)
    own = np.arange(count)
    return CandidateData(
        base=np.concatenate([base, unit(5 * count, 384)]),
        user=user,
        positive=own,
        negatives=count + RANDOM.permutation(5 * count).reshape(count, 5),
        mask=np.ones((count, 5), bool),
        anchor=own,
        anchor_live=user,
        anchor_weight=np.ones(count),
    )


def untrained() -> dict[str, np.ndarray]:
    """Tensors to start from."""
    torch.manual_seed(1)
    return weights.dump(CandidateTower())


def planted_histories(users: int, topics: np.ndarray) -> list[History]:
    """Users who stay with one topic."""
    histories = []
    for _ in range(users):
        posts = topics[RANDOM.integers(len(topics))] + 0.3 * unit(8, 128)
        posts /= np.linalg.norm(posts, axis=1, keepdims=True)
        histories.append(
            History(
                posts,
                RANDOM.integers(10**9, size=8),
                RANDOM.integers(0, 3, 8),
                RANDOM.integers(0, 2, 8),
                np.arange(8.0),
                np.ones(8, bool),
            )
        )
    return histories


def train(
    histories: list[History],
    pool: np.ndarray,
    config: UserConfig,
    start: dict[str, np.ndarray] | None = None,
) -> weights.TrainingResult:
    """Three authors, two actions."""
    return train_user(histories, pool_of(pool), start or {}, 3, 2, config)


def pool_of(posts: np.ndarray) -> Pool:
    """Posts of one moment each, with ids that no planted history has."""
    return Pool(10**9 + np.arange(len(posts)), posts, np.arange(float(len(posts))))
