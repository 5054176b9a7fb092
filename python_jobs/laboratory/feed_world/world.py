"""A feed world: posts that are born and die, and readers who like what is of their interest.

Everything follows from a seed. The reader likes the j-th post of interest k on a page with
probability a w_k(t) fit .9^(j-1): a is the reader's appetite, w_k(t) the weight of the interest at
that time, 1 for the heaviest, and fit how good the post is and how near to the reader's taste.
What the reader has seen before, or a copy of it, is liked with probability 0. Draws are hashes of
seed, reader, post and page: systems that show the same post on the same page get the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

DAY_S = 86400.0
PAGE = 20
TIRING = 0.9
MOOD = 2.0  # for the time of a session one interest weighs so many times as much as else
BEFORE_S = 30 * DAY_S  # half of the posts are born in the month before the feed opens


@dataclass(frozen=True)
class Scale:
    """How large a world is. texts: of a subject; pages: a session has 1 to 2 * pages - 1."""

    subjects: int
    texts: int
    readers: int
    sessions: int
    pages: int
    days: float
    authors: int
    crowds: int
    crowd: int

    @property
    def span(self) -> float:
        """Feed time in seconds."""
        return self.days * DAY_S


LARGE = Scale(
    subjects=14, texts=240, readers=80, sessions=10, pages=2, days=14,
    authors=250, crowds=4, crowd=40,
)  # fmt: skip
SMALL = Scale(
    subjects=5, texts=80, readers=8, sessions=4, pages=2, days=4, authors=40, crowds=1, crowd=20,
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """A reader asks for a page. time: seconds since the feed opened; number: of the reader's pages,
    from 0; mood: the place, among the reader's interests, of what the session is about."""

    reader: int
    time: float
    number: int
    mood: int


class World:
    """Posts and readers of a seed.

    Posts, in order of birth: text, subject, author (int [p]), born and dies (float [p], seconds
    since the feed opened), quality (float [p]). Posts of a crowd have the same text.
    Readers: appetite (float [r]), interests (int [r, 4], subjects), start and end (float [r, 4]:
    weights of the interests when the feed opens and closes, 0 for none).
    """

    def __init__(self, seed: int, scale: Scale, texts: dict[str, list[str]], base: np.ndarray):
        """texts: by subject; base: base embeddings of all texts in that order, float32 [n, 384]."""
        self.seed, self.scale, self.base = seed, scale, base
        self.subjects = list(texts)
        self.texts = [text for of_subject in texts.values() for text in of_subject]
        self.text_subject = np.repeat(np.arange(len(texts)), [len(t) for t in texts.values()])
        rng = np.random.default_rng(seed)
        self._make_posts(rng)
        self._make_readers(rng)
        self.visits = self._make_visits(rng)

    def _make_posts(self, rng: np.random.Generator) -> None:
        scale, count = self.scale, len(self.texts)
        born = np.where(
            rng.random(count) < 0.5,
            -rng.random(count) * BEFORE_S,
            rng.random(count) * scale.span,
        )
        # An author writes about one subject, some more than others.
        each = scale.authors // len(self.subjects)
        place = (rng.random(count) ** 2 * each).astype(int)
        author = self.text_subject + len(self.subjects) * place
        text = np.arange(count)
        # A crowd of accounts, each with this one post, within an hour.
        for crowd in range(scale.crowds):
            copied = np.full(scale.crowd, rng.integers(count))
            at = (0.1 + 0.8 * rng.random()) * scale.span + rng.random(scale.crowd) * 3600
            accounts = scale.authors + crowd * scale.crowd + np.arange(scale.crowd)
            text = np.concatenate([text, copied])
            born, author = np.concatenate([born, at]), np.concatenate([author, accounts])
        order = np.argsort(born, kind="stable")
        self.post_text, self.author, self.born = text[order], author[order], born[order]
        self.post_subject = self.text_subject[self.post_text]
        self.is_crowd = self.author >= scale.authors
        # One in four is gone within the time of a feed; what is gone before it opens was not there.
        life = np.where(rng.random(len(text)) < 0.25, scale.span, 1e12) * rng.random(len(text))
        self.dies = np.maximum(self.born, 0) + life
        self.quality = rng.uniform(0.5, 1, len(text))[self.post_text]

    def _make_readers(self, rng: np.random.Generator) -> None:
        readers, subjects = self.scale.readers, len(self.subjects)
        self.appetite = rng.uniform(0.6, 1, readers)
        count = rng.integers(1, 5, readers)
        self.interests = np.argsort(rng.random((readers, subjects)), axis=1)[:, :4]
        has = np.arange(4) < count[:, None]
        self.start, self.end = (
            np.where(has, rng.gamma(3, size=(readers, 4)) + 1, 0) for _ in range(2)
        )
        # Half of the readers come to something new, in the place of one of their interests.
        changes = (rng.random(readers) < 0.5) & (count < 4)
        new = np.flatnonzero(changes)
        self.end[new, count[new]] = self.end[new, 0]
        self.end[new, 0] = np.where(count[new] > 1, 0, self.end[new, 0])
        for weights in (self.start, self.end):
            weights /= weights.sum(axis=1, keepdims=True)
        # Within a subject, a reader is nearest to one text, and the others follow by likeness.
        self.closeness = np.zeros((readers, len(self.texts)))
        for reader in range(readers):
            for subject in self.interests[reader]:
                own = np.flatnonzero(self.text_subject == subject)
                near = self.likeness[own, rng.choice(own)]
                self.closeness[reader, own] = np.argsort(np.argsort(near)) / (len(own) - 1)

    def _make_visits(self, rng: np.random.Generator) -> list[Visit]:
        scale = self.scale
        visits = []
        for reader in range(scale.readers):
            # A fifth of the readers come later.
            joined = scale.span * (0.6 * rng.random() if rng.random() < 0.2 else 0)
            number = 0
            for opened in np.sort(joined + rng.random(scale.sessions) * (scale.span - joined)):
                weights = self._drifted(reader, opened)
                mood = int(rng.choice(4, p=weights))
                for page in range(rng.integers(1, 2 * scale.pages)):
                    visits.append(Visit(reader, float(opened + 120 * page), number, mood))
                    number += 1
        return sorted(visits, key=lambda visit: visit.time)

    def _drifted(self, reader: int, time: float) -> np.ndarray:
        share = min(1.0, time / self.scale.span)
        return np.asarray((1 - share) * self.start[reader] + share * self.end[reader])

    def weights(self, reader: int, time: float, mood: int | None = None) -> np.ndarray:
        """Weights of all subjects for a reader: float [subjects], sum 1. mood: of a visit."""
        weights = self._drifted(reader, time)
        if mood is not None:
            weights[mood] *= MOOD
        found = np.zeros(len(self.subjects))
        found[self.interests[reader]] = weights / weights.sum()
        return found

    def fit(self, reader: int, posts: np.ndarray) -> np.ndarray:
        """How well posts fit a reader who is interested in their subjects: 0 to 1."""
        near = 0.3 + 0.7 * self.closeness[reader, self.post_text[posts]]
        return np.asarray(self.quality[posts] * near)

    def alive(self, time: float) -> np.ndarray:
        """bool [p]: the posts that are there."""
        return np.asarray((self.born <= time) & (time < self.dies))

    def expected(self, visit: Visit, page: np.ndarray, seen: Seen) -> np.ndarray:
        """The probability that each post of a page is liked: float [page]."""
        weights = self.weights(visit.reader, visit.time, visit.mood)
        subjects = self.post_subject[page]
        tired = TIRING ** earlier(subjects)
        likes = weights[subjects] / weights.max() * self.fit(visit.reader, page)
        likes *= self.appetite[visit.reader]
        return np.asarray(np.where(seen.is_copy(visit.reader, page), 0, likes * tired))

    def answers(self, visit: Visit, page: np.ndarray, expected: np.ndarray) -> list[str]:
        """What the reader does with each post beyond viewing it: like, skip, hide or nothing.

        Of what is not of interest, a quarter is skipped and a fiftieth hidden."""
        draws = _draws(self.seed, visit.reader, page, visit.number)
        is_foreign = expected == 0
        return [
            "like" if draw < chance
            else "hide" if foreign and draw > 0.98
            else "skip" if foreign and draw > 0.73 else ""
            for draw, chance, foreign in zip(draws, expected, is_foreign, strict=True)
        ]  # fmt: skip

    @cached_property
    def likeness(self) -> np.ndarray:
        """Cosines of all texts with each other: float32 [n, n]."""
        return np.asarray(self.base @ self.base.T)


class Seen:
    """What the readers of a closed loop have been shown."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.posts = np.zeros((world.scale.readers, len(world.born)), dtype=bool)
        self.texts = np.zeros((world.scale.readers, len(world.texts)), dtype=bool)

    def add(self, reader: int, page: np.ndarray) -> None:
        """The reader saw a page."""
        self.posts[reader, page] = True
        self.texts[reader, self.world.post_text[page]] = True

    def is_copy(self, reader: int, page: np.ndarray) -> np.ndarray:
        """bool [page]: the text was shown before, on an earlier page or further up on this one."""
        texts = self.world.post_text[page]
        return np.asarray(self.texts[reader, texts] | (earlier(texts) > 0))


def earlier(values: np.ndarray) -> np.ndarray:
    """How often each value stands before its place: int [n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    found = np.empty(len(values), dtype=int)
    found[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return found


def _draws(seed: int, reader: int, posts: np.ndarray, page: int) -> np.ndarray:
    """Uniform numbers in [0, 1), hashes of their arguments (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = np.full(len(posts), seed, dtype=np.uint64)
        for part in (reader, posts, page):
            mixed = mixed + np.asarray(part, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)) / 2.0**53)
