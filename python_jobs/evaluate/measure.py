"""Test, then train: ranks of positives before they are learned, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from python_jobs.evaluate.interactions import Stream
from python_jobs.evaluate.systems import System

TAIL = 0.2
WARM_FROM = 10
RESAMPLES = 2000


@dataclass
class Answers:
    """What one system answered: rank of the positive (0: not among those named) and its top ten."""

    name: str
    ranks: list[int] = field(default_factory=list)
    tops: list[np.ndarray] = field(default_factory=list)

    def ndcg(self) -> np.ndarray:
        """NDCG@10 of each question: one item is right, so 1 / log2(rank + 1)."""
        ranks = np.array(self.ranks)
        found = (ranks > 0) & (ranks <= 10)
        return np.where(found, 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0)


@dataclass(frozen=True)
class Questions:
    """The positives that are asked for: their places in the stream, and what is known then.

    numbers: int [q]; user_history, item_history: positives of the user and the item before.
    """

    numbers: np.ndarray
    user_history: np.ndarray
    item_history: np.ndarray
    events: int

    @property
    def is_tail(self) -> np.ndarray:
        """bool [q]: in the last fifth of the stream."""
        return np.asarray(self.numbers >= (1 - TAIL) * self.events)


def choose_questions(stream: Stream, count: int | None) -> Questions:
    """All positives but each user's first event, or an even sample of so many."""
    positives = np.flatnonzero(stream.is_positive)
    user_seen: dict[int, int] = {}
    item_seen: dict[int, int] = {}
    users, items = [], []
    for number in positives:
        user, item = int(stream.users[number]), int(stream.items[number])
        users.append(user_seen.get(user, 0))
        items.append(item_seen.get(item, 0))
        user_seen[user] = users[-1] + 1
        item_seen[item] = items[-1] + 1
    picked = np.arange(len(positives))
    if count is not None and count < len(positives):
        picked = np.unique(np.linspace(0, len(positives) - 1, count).astype(int))
    return Questions(
        positives[picked], np.array(users)[picked], np.array(items)[picked], len(stream.users)
    )


def run(
    system: System, stream: Stream, questions: Questions, advance: Callable[[int], None]
) -> Answers:
    """Asks the system before each chosen positive, and tells it every engagement."""
    asked = set(questions.numbers.tolist())
    answers = Answers(system.name)
    for number in range(len(stream.users)):
        if number in asked:
            top = system.top(int(stream.users[number]), float(stream.seconds[number]))
            place = np.flatnonzero(top == stream.items[number])
            answers.ranks.append(int(place[0]) + 1 if len(place) else 0)
            answers.tops.append(top[:10])
        system.learn(number)
        if number % 500 == 0:
            advance(number)
    return answers


def summarise(answers: Answers, questions: Questions, items: int) -> dict[str, Any]:
    """Metrics over the whole stream and its tail, by cold and warm users and items."""
    ranks = np.array(answers.ranks)
    tail = questions.is_tail
    parts = {
        "all": np.ones(len(ranks), dtype=bool),
        "tail": tail,
        "tail_cold_users": tail & (questions.user_history < WARM_FROM),
        "tail_warm_users": tail & (questions.user_history >= WARM_FROM),
        "tail_cold_items": tail & (questions.item_history < WARM_FROM),
        "tail_warm_items": tail & (questions.item_history >= WARM_FROM),
    }
    ndcg = answers.ndcg()
    found: dict[str, Any] = {"name": answers.name}
    for name, chosen in parts.items():
        if not chosen.any():
            continue
        found[name] = {
            "questions": int(chosen.sum()),
            "hit_rate_10": float(np.mean((ranks[chosen] > 0) & (ranks[chosen] <= 10))),
            "hit_rate_50": float(np.mean(ranks[chosen] > 0)),
            "ndcg_10": float(ndcg[chosen].mean()),
            "mrr": float(np.mean(np.where(ranks[chosen] > 0, 1 / np.maximum(ranks[chosen], 1), 0))),
        }
    shown = np.concatenate(
        [top for top, is_tail in zip(answers.tops, tail, strict=True) if is_tail] or [np.array([])]
    )
    found["coverage_10"] = len(np.unique(shown)) / items
    return found


def compare(ours: Answers, other: Answers, questions: Questions, seed: int = 1) -> dict[str, float]:
    """NDCG@10 of ours over the other's in the tail, with a paired bootstrap interval of 95 %."""
    tail = questions.is_tail
    a, b = ours.ndcg()[tail], other.ndcg()[tail]
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(a), (RESAMPLES, len(a)))
    ratios = a[picks].mean(axis=1) / np.maximum(b[picks].mean(axis=1), 1e-12)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {
        "ratio": float(a.mean() / max(b.mean(), 1e-12)),
        "low": float(low),
        "high": float(high),
    }


def over_time(answers: Answers, questions: Questions, parts: int = 20) -> list[float]:
    """NDCG@10 in equal parts of the questions, for a plot."""
    return [float(part.mean()) for part in np.array_split(answers.ndcg(), parts) if len(part)]
