"""Who makes the pages: simple systems in memory, and oracles. Each learns from its own pages."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from python_jobs.laboratory.feed_world.world import DAY_S, PAGE, TIRING, Seen, Visit, World

STRENGTH = {"like": 1.0, "skip": -0.1, "hide": -0.5}
LABELLED = 100


class System(ABC):
    """Asked for a page at each visit, told what came of it."""

    name: str

    @abstractmethod
    def page(self, visit: Visit) -> np.ndarray:
        """Posts for the visit, best first: int [at most PAGE]."""

    @abstractmethod
    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        """The reader viewed the page, and answered its posts: see World.answers."""


class Scored(System):
    """A system with a score for each post; shows the best ones that live and were not seen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen = Seen(world)

    @abstractmethod
    def scores(self, visit: Visit) -> np.ndarray:
        """float [p], more is better."""

    def page(self, visit: Visit) -> np.ndarray:
        """By score; of equal ones the newest."""
        left = np.flatnonzero(self.world.alive(visit.time) & ~self.seen.posts[visit.reader])[::-1]
        best = np.argsort(-self.scores(visit)[left], kind="stable")[:PAGE]
        return left[best]

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        """Remembers the page as seen."""
        self.seen.add(visit.reader, page)


class Recency(Scored):
    """The newest."""

    name = "recency"

    def scores(self, visit: Visit) -> np.ndarray:
        """Time of birth."""
        return self.world.born


class Popularity(Scored):
    """Likes, at half their weight after each half-life."""

    name = "popularity"
    half_life_s = 3 * DAY_S

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.counts = np.zeros(len(world.born))

    def scores(self, visit: Visit) -> np.ndarray:
        """The same for all readers."""
        return self.counts

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        """Forward decay: new likes count for more, old ones stay."""
        super().learn(visit, page, answers)
        liked = page[[answer == "like" for answer in answers]]
        self.counts[liked] += 2 ** (visit.time / self.half_life_s)


class Vectors(Popularity):
    """Static vectors of texts: a reader is the weighted sum of what was engaged with.

    decay: of the sum, by engagement; 1 for the average that one writes by hand with pgvector.
    Readers without a like get what is popular.
    """

    def __init__(self, world: World, name: str, decay: float) -> None:
        super().__init__(world)
        self.name, self.decay = name, decay
        # What a reader's sum scores each text with: the sum of what its parts do.
        self.sums = np.zeros((world.scale.readers, len(world.texts)))
        self.is_known = np.zeros(world.scale.readers, dtype=bool)

    def scores(self, visit: Visit) -> np.ndarray:
        """Cosines, but for a factor."""
        if not self.is_known[visit.reader]:
            return self.counts
        return np.asarray(self.sums[visit.reader, self.world.post_text])

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        """Adds each engagement."""
        super().learn(visit, page, answers)
        for post, answer in zip(page, answers, strict=True):
            if answer:
                likeness = self.world.likeness[self.world.post_text[post]]
                kept = self.decay * self.sums[visit.reader]
                self.sums[visit.reader] = kept + STRENGTH[answer] * likeness
        self.is_known[visit.reader] |= "like" in answers


class Oracle(Scored):
    """Greedy on the true probabilities: no other page of what is eligible is expected to get
    more likes."""

    name = "oracle"

    def scores(self, visit: Visit) -> np.ndarray:
        """The probability of being liked as the first one of its interest."""
        weights = self.world.weights(visit.reader, visit.time, visit.mood)
        fit = self.world.fit(visit.reader, np.arange(len(self.world.born)))
        return np.asarray(weights[self.world.post_subject] * fit)

    def page(self, visit: Visit) -> np.ndarray:
        """The best by score, each tired of those of its subject that are better."""
        scores = self.scores(visit)
        left = np.flatnonzero(self.world.alive(visit.time) & ~self.seen.posts[visit.reader])
        left = left[np.argsort(-scores[left], kind="stable")]
        left = left[~self.seen.is_copy(visit.reader, left)]
        subjects = self.world.post_subject[left]
        places = np.empty(len(left), dtype=int)
        for subject in np.unique(subjects):
            places[subjects == subject] = np.arange(np.sum(subjects == subject))
        best = np.argsort(-scores[left] * TIRING**places, kind="stable")[:PAGE]
        return np.asarray(left[best])


class Labels(Oracle):
    """Knows the subject of each post, but of the reader only the own last likes.

    Interests weigh as their share of these; within one, posts by likeness to what was liked.
    """

    name = "labels known"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.liked: list[list[int]] = [[] for _ in range(world.scale.readers)]

    def scores(self, visit: Visit) -> np.ndarray:
        """Share of the subject, times likeness."""
        world, liked = self.world, np.array(self.liked[visit.reader][-LABELLED:], dtype=int)
        share = np.full(len(world.subjects), 0.5)
        near = np.zeros(len(world.born))
        for subject in np.unique(world.post_subject[liked]):
            own = liked[world.post_subject[liked] == subject]
            share[subject] += len(own)
            is_own = world.post_subject == subject
            likeness = world.likeness[world.post_text[own]].mean(axis=0)
            near[is_own] = likeness[world.post_text[is_own]]
        return np.asarray((share / share.sum())[world.post_subject] * (1 + near))

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        """Remembers likes."""
        super().learn(visit, page, answers)
        self.liked[visit.reader] += [
            int(post) for post, answer in zip(page, answers, strict=True) if answer == "like"
        ]


def peers(world: World) -> list[System]:
    """All that is compared with, and both oracles at the end."""
    return [
        Popularity(world),
        Recency(world),
        Vectors(world, "decayed vector", 0.9),
        Vectors(world, "pgvector by hand", 1.0),
        Labels(world),
        Oracle(world),
    ]
