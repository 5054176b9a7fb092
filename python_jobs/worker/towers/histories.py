"""What the user tower is trained on: histories, their windows, and posts for negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from python_jobs.worker.towers.checks import check_arrays

OUTPUT = 128
PERIOD = 64  # posts of the pool around a target in time, which count as of the same period


@dataclass
class History:
    """One user's engagements, oldest first: vectors [t, 128] and ids [t] of posts, authors [t] and
    actions [t] as rows of the tables of their embeddings, times [t] in hours, is_positive [t]."""

    posts: np.ndarray
    post_ids: np.ndarray
    authors: np.ndarray
    actions: np.ndarray
    hours: np.ndarray
    is_positive: np.ndarray

    def validate(self, authors: int, actions: int) -> None:
        """Raises ValueError for shapes that do not fit, values that are not finite, times that
        run backwards (the future would be read as the past), and rows outside of the tables."""
        length = len(self.hours)
        check_arrays(self, "a history", {
            "posts": (length, OUTPUT), "post_ids": (length,), "authors": (length,),
            "actions": (length,), "hours": (length,), "is_positive": (length,),
        })  # fmt: skip
        if (np.diff(self.hours) < 0).any():
            raise ValueError("hours of a history must not decrease: oldest first.")
        for name, count in (("authors", authors), ("actions", actions)):
            values = getattr(self, name)
            if length and not (values.min() >= 0 and values.max() < count):
                raise ValueError(f"{name} of a history must be rows of a table of {count}.")


class Histories:
    """All histories in one table, from which windows [b, t] of engagements are cut."""

    def __init__(self, histories: list[History], length: int) -> None:
        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(h, name) for h in histories])

        self.length = length
        self.ends = np.cumsum([len(h.hours) for h in histories])
        self.starts = self.ends - [len(h.hours) for h in histories]
        self.posts = joined("posts").astype(np.float32)
        self.post_ids, self.hours = joined("post_ids"), joined("hours")
        self.authors, self.actions = joined("authors"), joined("actions")
        self.is_positive = joined("is_positive").astype(bool)

    def window(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [b, t] of the last `length` engagements from `start` on and before `end`, and where
        there is one; never `end` itself."""
        rows = end[:, None] + np.arange(-self.length, 0)
        is_there = rows >= start[:, None]
        return np.maximum(rows, 0), is_there

    def targets(self) -> list[np.ndarray]:
        """By user, the positives with an engagement with another post before them."""
        found = []
        for start, end in zip(self.starts, self.ends, strict=True):
            rows = start + 1 + np.flatnonzero(self.is_positive[start + 1 : end])
            begin = np.full(len(rows), start)
            found.append(rows[self.before(begin, rows)[1].any(axis=1)])
        return [rows for rows in found if len(rows)]

    def before(self, start: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The window before a target without the engagements with the target's own post: a click
        before the like of a post would give the answer away."""
        rows, is_there = self.window(start, target)
        return rows, is_there & (self.post_ids[rows] != self.post_ids[target][:, None])

    def inputs(self, rows: np.ndarray, is_there: np.ndarray, device: torch.device) -> list[Tensor]:
        """Arguments of `UserTower.forward`. Each row needs an engagement."""
        # The newest engagement must be last, also where the last places are masked.
        order = np.argsort(is_there, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        is_there = np.take_along_axis(is_there, order, axis=1)
        if not is_there[:, -1].all():
            raise ValueError("A history is empty.")
        ages = np.maximum(0.0, self.hours[rows[:, -1:]] - self.hours[rows]) * is_there
        return [
            torch.as_tensor(part, device=device)
            for part in (
                self.posts[rows], self.authors[rows], self.actions[rows],
                ages.astype(np.float32), is_there,
            )
        ]  # fmt: skip


@dataclass
class Pool:
    """Posts to draw negatives from: ids [m], vectors [m, 128], and when they were created [m], in
    hours, on the clock of the histories."""

    post_ids: np.ndarray
    posts: np.ndarray
    hours: np.ndarray

    def validate(self) -> None:
        """Raises ValueError, naming it, for a part that does not fit or is not finite."""
        count = len(self.post_ids)
        shapes = {"post_ids": (count,), "posts": (count, OUTPUT), "hours": (count,)}
        check_arrays(self, "the pool", shapes)


class Negatives:
    """The pool on a device, with how often a step is expected to meet each post as a negative.

    A post comes from the pool, of which a step draws IN_STEP, or is another user's target; what
    corrects both is the sum of what is expected (the balance heuristic of Veach and Guibas, 1995).
    targets: by user, the ids of the posts of which one is drawn, of users of whom count are drawn.
    """

    IN_STEP = 256

    def __init__(
        self, pool: Pool, targets: list[np.ndarray], count: int, device: torch.device
    ) -> None:
        order = np.argsort(pool.hours, kind="stable")
        self.hours, self.post_ids = pool.hours[order], pool.post_ids[order]
        self.posts = torch.as_tensor(pool.posts[order], dtype=torch.float32, device=device)
        self.in_step = min(self.IN_STEP, len(order))
        chances = np.concatenate([np.full(len(ids), 1 / len(ids)) for ids in targets])
        self.known, place = np.unique(
            np.concatenate([*targets, self.post_ids]), return_inverse=True
        )
        self.expected = np.bincount(place, np.concatenate([
            chances * count / len(targets), np.full(len(order), self.in_step / len(order))
        ]))  # fmt: skip

    def log_expected(self, post_ids: np.ndarray) -> np.ndarray:
        """Of each of the posts [n], float32."""
        expected = self.expected[np.searchsorted(self.known, post_ids)]
        return np.asarray(np.log(expected), dtype=np.float32)

    def draw(self, draw: np.random.Generator) -> np.ndarray:
        """Rows of posts, none twice."""
        return draw.permutation(len(self.post_ids))[: self.in_step]

    def of_the_period(self, hours: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """For each time a row, at random from around it."""
        width = min(PERIOD, len(self.hours))
        first = np.searchsorted(self.hours, hours) - width // 2
        first = np.clip(first, 0, len(self.hours) - width)
        return np.asarray(first + draw.integers(width, size=len(hours)))
