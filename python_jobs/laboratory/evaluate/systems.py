"""What is compared: each system names its best items for a user, then learns what happened."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from python_jobs.errors import CommandError
from python_jobs.laboratory.evaluate.interactions import POSITIVE, Stream

PAGE = 100
DAY_S = 86400.0
RETRAININGS = 40


class System(ABC):
    """Asked before each positive, told each engagement after it."""

    name: str

    @abstractmethod
    def top(self, user: int, now: float) -> np.ndarray:
        """The best items for the user, best first: int [at most PAGE]."""

    @abstractmethod
    def learn(self, number: int) -> None:
        """Engagement `number` of the stream happened."""


class Scored(System):
    """A system with a score for each item; items that the user has engaged with are left out."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.items = len(stream.texts)
        self.seen = np.zeros((stream.user_count, self.items), dtype=bool)

    @abstractmethod
    def scores(self, user: int, now: float) -> np.ndarray:
        """float [items], more is better."""

    def learn(self, number: int) -> None:
        """Remembers it as seen."""
        self.seen[self.stream.users[number], self.stream.items[number]] = True

    def top(self, user: int, now: float) -> np.ndarray:
        """By score; ties in order of the items."""
        scores = np.where(self.seen[user], -np.inf, self.scores(user, now))
        best = np.argsort(-scores, kind="stable")[:PAGE]
        return best[scores[best] > -np.inf]


class Popularity(Scored):
    """How often an item was engaged with positively, at half its weight after each half-life."""

    def __init__(self, stream: Stream, half_life_days: float | None) -> None:
        super().__init__(stream)
        self.name = "popularity" + (
            f", {half_life_days:g} days" if half_life_days else ", all time"
        )
        self.half_life_s = half_life_days * DAY_S if half_life_days else None
        self.counts = np.zeros(self.items)

    def learn(self, number: int) -> None:
        """Counts it, if positive. Forward decay: new ones count for more, old ones stay."""
        super().learn(number)
        if self.stream.event_types[number] in POSITIVE:
            age = self.stream.seconds[number] - self.stream.seconds[0]
            weight = 2 ** (age / self.half_life_s) if self.half_life_s else 1
            self.counts[self.stream.items[number]] += weight

    def scores(self, user: int, now: float) -> np.ndarray:
        """The same for all users."""
        return self.counts


class StaticContent(Scored):
    """The user as a moving average of the encoder's vectors of what was liked; no learning."""

    name = "static content"

    def __init__(self, stream: Stream, base: np.ndarray) -> None:
        super().__init__(stream)
        self.base = base
        self.profiles = np.zeros((stream.user_count, base.shape[1]))

    def learn(self, number: int) -> None:
        """Moves the average."""
        super().learn(number)
        if self.stream.event_types[number] in POSITIVE:
            user = self.stream.users[number]
            self.profiles[user] = 0.9 * self.profiles[user] + self.base[self.stream.items[number]]

    def scores(self, user: int, now: float) -> np.ndarray:
        """Cosines, but for a factor."""
        return np.asarray(self.base @ self.profiles[user])


class Peer(Scored):
    """A peer of the package implicit, trained anew RETRAININGS times in the stream.

    kind: ALS, whose users are folded in, or a class of implicit.nearest_neighbours. config: its
    arguments. What users liked is current at each question, whatever the model was trained on.
    """

    def __init__(self, stream: Stream, kind: str, config: dict[str, Any], every: int) -> None:
        try:
            import implicit
            import scipy.sparse as sparse
            import threadpoolctl
        except ImportError as error:
            raise CommandError("The peers need: pip install 'two-tower[eval]'.") from error
        super().__init__(stream)
        self.name = "ALS" if kind == "ALS" else "item-kNN"
        self.kind, self.config, self.every = kind, config, every
        self._implicit, self._sparse, self._threads = implicit, sparse, threadpoolctl
        self.liked: list[dict[int, float]] = [{} for _ in range(stream.user_count)]
        self.model: Any = None

    def learn(self, number: int) -> None:
        """Remembers it, and trains when it is time."""
        super().learn(number)
        if self.stream.event_types[number] in POSITIVE:
            self.liked[self.stream.users[number]][int(self.stream.items[number])] = 1.0
        if (number + 1) % self.every == 0:
            self.train()

    def train(self) -> None:
        """On all positives so far."""
        # One thread: more would only wait for each other on a busy machine. It warns of threads,
        # which are limited here, and of its own conversions.
        with self._threads.threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.kind == "ALS":
                self.model = self._implicit.als.AlternatingLeastSquares(
                    **self.config, iterations=15, num_threads=1, random_state=1
                )
            else:
                self.model = getattr(self._implicit.nearest_neighbours, self.kind)(
                    **self.config, num_threads=1
                )
            self.model.fit(self._matrix(self.liked), show_progress=False)

    def _matrix(self, liked: list[dict[int, float]]) -> Any:
        rows = [row for row, items in enumerate(liked) for _ in items]
        columns = [item for items in liked for item in items]
        return self._sparse.csr_matrix(
            (np.ones(len(rows), dtype=np.float32), (rows, columns)),
            shape=(len(liked), self.items),
        )

    def scores(self, user: int, now: float) -> np.ndarray:
        """Of the user as of now: folded in, or by neighbours of the history."""
        if self.model is None or not self.liked[user]:
            return np.zeros(self.items)
        row = self._matrix([self.liked[user]])
        if self.kind == "ALS":
            factors = self.model.recalculate_user(0, row)
            return np.asarray(self.model.item_factors @ np.asarray(factors).ravel())
        return np.asarray((row @ self.model.similarity).todense()).ravel()
