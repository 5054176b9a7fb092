"""Test, then train: ranks of positives before they are learned, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from python_jobs.laboratory.evaluate.interactions import Stream
from python_jobs.laboratory.evaluate.systems import System

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

    numbers, users: int [q]; user_history, item_history: positives of the user and the item before;
    events: so many the stream has.
    """

    numbers: np.ndarray
    users: np.ndarray
    user_history: np.ndarray
    item_history: np.ndarray
    events: int

    @property
    def is_tail(self) -> np.ndarray:
        """bool [q]: in the last fifth of the stream."""
        return np.asarray(self.numbers >= (1 - TAIL) * self.events)


def choose_questions(stream: Stream, count: int | None) -> Questions:
    """All items that a user comes to like, reply to or repost, or an even sample of so many.

    Each is asked for before the user's first engagement with it: a like follows a view, and what
    was viewed is not recommended again.
    """
    is_positive = stream.is_positive
    pairs = list(zip(stream.users.tolist(), stream.items.tolist(), strict=True))
    wanted = {pair for pair, positive in zip(pairs, is_positive, strict=True) if positive}
    user_seen = np.zeros(stream.user_count, dtype=int)
    item_seen = np.zeros(len(stream.texts), dtype=int)
    found = []
    for number, pair in enumerate(pairs):
        if pair in wanted:
            wanted.remove(pair)
            found.append((number, pair[0], user_seen[pair[0]], item_seen[pair[1]]))
        user_seen[pair[0]] += is_positive[number]
        item_seen[pair[1]] += is_positive[number]
    if count is not None and count < len(found):
        found = [found[k] for k in np.linspace(0, len(found) - 1, count).astype(int)]
    numbers, users, of_user, of_item = np.array(found).T
    return Questions(numbers, users, of_user, of_item, len(stream.users))


def run(
    system: System,
    stream: Stream,
    questions: Questions,
    advance: Callable[[int], None] = lambda number: None,
) -> Answers:
    """Asks the system before each chosen engagement, and tells it every one after that."""
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
    """Metrics of the whole stream ("all") and of its tail; a part without questions is left out.

    Each has its coverage@10 (the share of items that were in a top ten) and the metrics by cold and
    warm users and items: fewer than WARM_FROM positives before the question, or not.
    """
    found: dict[str, Any] = {"name": answers.name}
    for name, part in (
        ("all", np.ones(len(answers.ranks), dtype=bool)),
        ("tail", questions.is_tail),
    ):
        if not part.any():
            continue
        shown = [top for top, chosen in zip(answers.tops, part, strict=True) if chosen]
        warm_user = questions.user_history >= WARM_FROM
        warm_item = questions.item_history >= WARM_FROM
        found[name] = {
            **_metrics(answers, part),
            "coverage_10": len(np.unique(np.concatenate(shown))) / items,
            "cold_users": _metrics(answers, part & ~warm_user),
            "warm_users": _metrics(answers, part & warm_user),
            "cold_items": _metrics(answers, part & ~warm_item),
            "warm_items": _metrics(answers, part & warm_item),
        }
    return found


def _metrics(answers: Answers, chosen: np.ndarray) -> dict[str, Any]:
    ranks = np.array(answers.ranks)[chosen]
    if not len(ranks):
        return {"questions": 0}
    return {
        "questions": len(ranks),
        "hit_rate_10": float(np.mean((ranks > 0) & (ranks <= 10))),
        "hit_rate_50": float(np.mean((ranks > 0) & (ranks <= 50))),
        "ndcg_10": float(answers.ndcg()[chosen].mean()),
        "mrr": float(np.mean(np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0))),
    }


def compare(
    ours: Answers, other: Answers, questions: Questions, part: np.ndarray, seed: int = 1
) -> dict[str, float]:
    """NDCG@10 of ours over the other's in a part, with a paired bootstrap interval of 95 %.

    part: bool [q]. Users are drawn again, each with all questions: those of one user are alike, and
    drawing them one by one would make the interval too narrow.
    """
    users, place = np.unique(questions.users[part], return_inverse=True)
    a, b = (np.bincount(place, answers.ndcg()[part], len(users)) for answers in (ours, other))
    picks = np.random.default_rng(seed).integers(0, len(users), (RESAMPLES, len(users)))
    ratios = a[picks].sum(axis=1) / np.maximum(b[picks].sum(axis=1), 1e-12)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {
        "ratio": float(a.sum() / max(b.sum(), 1e-12)),
        "low": float(low),
        "high": float(high),
    }


def over_time(answers: Answers, questions: Questions, parts: int = 20) -> list[float]:
    """NDCG@10 in equal parts of the questions, in order of time."""
    return [float(part.mean()) for part in np.array_split(answers.ndcg(), parts) if len(part)]
