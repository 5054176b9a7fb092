"""Contrastive steps over positives that were learned before, in mini-batches, on vectors in memory.

A step takes a user as of an engagement, u = norm(prior + sum of weight * history post), its post p
and negatives n_j, and q = softmax over p and n_j of cosine / temperature + popularity. Then

    p   += rate * strength * (1 - q_p) * u
    n_j -= rate * strength * q_j * u
    h_k += rate * strength * weight_k / (sum of |weight|) * (g - (g.u) u)

with g = (1 - q_p) p - sum of q_j n_j: the history posts take the gradient of the user. Each rate
shrinks with the engagements of the post that moves, (1 + n / 10)^-.25. The steps of a batch read
the vectors as they stood before it; then each is of norm 1 again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 128
SHORTEST_MOVE = 0.002  # what is shorter is not worth a row that is written: nothing is lost by it
LEAST_NORM = 1e-9


@dataclass(frozen=True)
class StudyConfig:
    """rate: of a step at strength 1. popularity: weight of the log shares in the softmax."""

    rate: float
    temperature: float
    popularity: float = 0.0
    slowed_from: float = 10.0
    slowed_by: float = 0.25


@dataclass(frozen=True)
class Step:
    """A positive. history_ids and history_weights belong together; prior: [WIDTH] or None."""

    post_id: int
    strength: float
    history_ids: Sequence[int]
    history_weights: Sequence[float]
    prior: np.ndarray | None
    negative_ids: Sequence[int]

    @property
    def named(self) -> set[int]:
        """The posts that it needs."""
        return {self.post_id, *self.history_ids, *self.negative_ids}


class Study:
    """The posts of a study: where they stood when they were read, and where steps moved them."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self._places: dict[int, int] = {}
        self._start = np.zeros((0, WIDTH), dtype=np.float32)
        self._now = self._start.copy()
        self._slowness = np.zeros(0, dtype=np.float32)
        self._log_share = np.zeros(0, dtype=np.float32)

    def missing(self, steps: Sequence[Step]) -> list[int]:
        """The posts that steps name and that were not read yet."""
        return sorted(set().union(*(step.named for step in steps)) - self._places.keys())

    def add(
        self,
        post_ids: Sequence[int],
        vectors: np.ndarray,
        engagements: np.ndarray,
        log_shares: np.ndarray,
    ) -> None:
        """Posts that were read: vectors [n, WIDTH] of norm 1, engagements [n], log_shares [n]."""
        self._places.update({post_id: len(self._places) + n for n, post_id in enumerate(post_ids)})
        slowness = (1 + np.maximum(engagements, 0) / self.config.slowed_from) ** (
            -self.config.slowed_by
        )
        self._start = np.concatenate([self._start, vectors.astype(np.float32)])
        self._now = np.concatenate([self._now, vectors.astype(np.float32)])
        self._slowness = np.concatenate([self._slowness, slowness.astype(np.float32)])
        self._log_share = np.concatenate([self._log_share, log_shares.astype(np.float32)])

    def take(self, steps: Sequence[Step]) -> int:
        """Takes a batch of steps. Returns how many; passes over those of whose user nothing is
        known, whose post is gone, or that have no negative."""
        steps = [step for step in steps if self._known([step.post_id])]
        target = np.array([self._places[step.post_id] for step in steps], dtype=np.int64)
        history, weight = self._table(
            [step.history_ids for step in steps], [step.history_weights for step in steps]
        )
        negative, is_drawn = self._table([step.negative_ids for step in steps])
        user = np.einsum("bl,bld->bd", weight, self._now[history])
        for number, step in enumerate(steps):
            if step.prior is not None:
                user[number] += step.prior
        length = np.linalg.norm(user, axis=1)
        is_whole = (length > LEAST_NORM) & is_drawn.any(axis=1)
        user = user[is_whole] / length[is_whole, None]
        target, history, weight = target[is_whole], history[is_whole], weight[is_whole]
        negative, is_drawn = negative[is_whole], is_drawn[is_whole] > 0
        strength = np.array([step.strength for step in steps], dtype=np.float32)[is_whole]
        if len(target):
            self._move(user, target, negative, is_drawn, history, weight, strength)
        return len(target)

    def deltas(self, size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """What moved, in order of id, at most `size` posts at a time: ids, deltas [n, WIDTH]."""
        delta = self._now - self._start
        is_moved = np.linalg.norm(delta, axis=1) >= SHORTEST_MOVE
        moved = sorted(post_id for post_id, place in self._places.items() if is_moved[place])
        for begin in range(0, len(moved), size):
            part = moved[begin : begin + size]
            yield part, delta[[self._places[post_id] for post_id in part]]

    def _move(
        self,
        user: np.ndarray,
        target: np.ndarray,
        negative: np.ndarray,
        is_drawn: np.ndarray,
        history: np.ndarray,
        weight: np.ndarray,
        strength: np.ndarray,
    ) -> None:
        """One batch: user [b, WIDTH], target [b], negative [b, n], history and weight [b, l]."""
        config = self.config
        choice = np.concatenate([target[:, None], negative], axis=1)
        vectors = self._now[choice]
        logit = np.einsum("bkd,bd->bk", vectors, user) / config.temperature
        logit += config.popularity * self._log_share[choice]
        logit[:, 1:][~is_drawn] = -np.inf
        q = np.exp(logit - logit.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        error = -q
        error[:, 0] += 1
        rate = config.rate * strength[:, None]
        gradient = np.einsum("bk,bkd->bd", error, vectors)
        gradient -= np.sum(gradient * user, axis=1, keepdims=True) * user
        share = weight / np.maximum(np.abs(weight).sum(axis=1, keepdims=True), LEAST_NORM)
        pushes = (rate * self._slowness[choice] * error)[:, :, None] * user[:, None, :]
        pulls = (rate * self._slowness[history] * share)[:, :, None] * gradient[:, None, :]
        named = np.concatenate([choice.ravel(), history.ravel()])
        order = np.argsort(named, kind="stable")
        places, begins = np.unique(named[order], return_index=True)
        moves = np.concatenate([pushes.reshape(-1, WIDTH), pulls.reshape(-1, WIDTH)])[order]
        after = self._now[places] + np.add.reduceat(moves, begins)
        norm = np.linalg.norm(after, axis=1, keepdims=True)
        self._now[places] = np.where(
            norm > LEAST_NORM, after / np.maximum(norm, LEAST_NORM), self._now[places]
        )

    def _known(self, post_ids: Sequence[int]) -> list[int]:
        return [post_id for post_id in post_ids if post_id in self._places]

    def _table(
        self, post_ids: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places and weights [rows, longest]; 1 where none are given, 0 where there is no post."""
        longest = max((len(row) for row in post_ids), default=0)
        is_given = np.arange(longest) < np.array([len(row) for row in post_ids])[:, None]
        named = np.array([self._places.get(post_id, -1) for row in post_ids for post_id in row])
        places = np.zeros(is_given.shape, dtype=np.int64)
        found = np.zeros(is_given.shape, dtype=np.float32)
        places[is_given] = np.maximum(named, 0)
        found[is_given] = [weight for row in weights for weight in row] if weights else 1
        found[is_given] *= named >= 0
        return places, found
