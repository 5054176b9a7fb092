"""Closed loops, and what their pages say: likes, interests kept, freshness, variety."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from python_jobs.laboratory.feed_world.systems import LABELLED, System
from python_jobs.laboratory.feed_world.world import DAY_S, PAGE, Seen, Visit, World

RESAMPLES = 2000
WARM_LIKES = 30  # a reader with as many is judged by whether the interests are kept
LIGHTEST = 0.1
WITHIN = 0.4


@dataclass(frozen=True)
class Page:
    """posts: int [n]; expected: float [n], probabilities of a like; answers: n of World.answers;
    is_copy: bool [n]."""

    visit: Visit
    posts: np.ndarray
    expected: np.ndarray
    answers: list[str]
    is_copy: np.ndarray


def run(world: World, system: System, advance: Callable[[], None] = lambda: None) -> list[Page]:
    """The closed loop of a system: each page it gives, and what became of it. In order of time."""
    seen = Seen(world)
    pages = []
    for visit in world.visits:
        posts = system.page(visit)
        expected = world.expected(visit, posts, seen)
        is_copy = seen.is_copy(visit.reader, posts)
        answers = world.answers(visit, posts, expected)
        system.learn(visit, posts, answers)
        seen.add(visit.reader, posts)
        pages.append(Page(visit, posts, expected, answers, is_copy))
        advance()
    return pages


def judged(world: World, pages: list[Page]) -> list[Page]:
    """Pages after the first fifth of feed time: the first ones are everybody's guess."""
    return [page for page in pages if page.visit.time >= world.scale.span / 5]


def likes_by_reader(world: World, pages: list[Page]) -> np.ndarray:
    """Sum of expected likes, and number of pages, of each reader: float [readers, 2]."""
    found = np.zeros((world.scale.readers, 2))
    for page in judged(world, pages):
        found[page.visit.reader] += page.expected.sum(), 1
    return found


def summarise(world: World, pages: list[Page]) -> dict[str, float]:
    """The figures of one system in one world; those of no case are nan.

    likes: expected likes a page. kept, kept_truth: see _kept. age_days: median of what is shown.
    first_hours, first_interested_hours: median of new posts until anybody, and anybody interested,
    saw them. within_hour: share of them that an interested reader saw within an hour. copies: share
    of posts that were shown before or stand further up. one_author: mean share of a page that the
    author with most posts has. coverage: share of the living that anybody saw. short: share of
    pages that are not full.
    """
    late = judged(world, pages)
    posts = np.concatenate([page.posts for page in late])
    times = np.concatenate([np.full(len(page.posts), page.visit.time) for page in late])
    lives = world.dies > world.scale.span / 5
    shown = np.zeros(len(world.born), dtype=bool)
    shown[posts] = True
    return {
        "likes": float(np.mean([page.expected.sum() for page in late])),
        **_kept(world, pages),
        "age_days": float(np.median((times - world.born[posts]) / DAY_S)),
        **_first_views(world, pages),
        "copies": float(np.mean(np.concatenate([page.is_copy for page in late]))),
        "one_author": float(np.mean([_largest_share(world.author[p.posts]) for p in late])),
        "coverage": float(np.mean(shown[lives])),
        "short": float(np.mean([len(page.posts) < PAGE for page in late])),
    }


def _largest_share(authors: np.ndarray) -> float:
    return float(np.unique(authors, return_counts=True)[1].max() / PAGE) if len(authors) else 0.0


def _kept(world: World, pages: list[Page]) -> dict[str, float]:
    """Readers with WARM_LIKES likes each of whose interests has its share of their pages.

    kept: for each interest that holds LIGHTEST or more of their last 100 likes, the share of their
    pages is within WITHIN of it. kept_truth: the same against the weights of the world. Both are
    means over the reader's pages from the moment of so many likes; a single page is too coarse.
    """
    liked: list[list[int]] = [[] for _ in range(world.scale.readers)]
    sums = np.zeros((3, world.scale.readers, len(world.subjects)))  # page, likes, truth
    for page in pages:
        reader, own = page.visit.reader, liked[page.visit.reader]
        subjects = world.post_subject[page.posts]
        if len(own) >= WARM_LIKES and len(page.posts):
            for kind, found in enumerate((subjects, np.array(own[-LABELLED:]))):
                sums[kind, reader] += np.bincount(found, minlength=len(world.subjects)) / len(found)
            sums[2, reader] += world.weights(reader, page.visit.time)
        is_liked = [answer == "like" for answer in page.answers]
        own += subjects[is_liked].tolist()
    warm = sums[:, sums[0].sum(axis=1) > 0]
    if not warm.size:
        return {"kept": np.nan, "kept_truth": np.nan}
    shares = warm / warm.sum(axis=2, keepdims=True)
    return {
        name: float(np.mean(np.all(
            (wanted < LIGHTEST) | (np.abs(shares[0] - wanted) <= WITHIN * wanted), axis=1
        )))
        for name, wanted in (("kept", shares[1]), ("kept_truth", shares[2]))
    }  # fmt: skip


def _first_views(world: World, pages: list[Page]) -> dict[str, float]:
    """Of posts born between the first and the last fifth of feed time, crowds left out."""
    first = np.full((2, len(world.born)), np.inf)
    for page in pages:
        weights = world.weights(page.visit.reader, page.visit.time)
        for kind, seen in enumerate(
            (page.posts, page.posts[weights[world.post_subject[page.posts]] > 0])
        ):
            first[kind, seen] = np.minimum(first[kind, seen], page.visit.time)
    new = (world.born > world.scale.span / 5) & (world.born < world.scale.span * 4 / 5)
    waited = (first - world.born)[:, new & ~world.is_crowd] / 3600
    return {
        "first_hours": float(np.median(waited[0])),
        "first_interested_hours": float(np.median(waited[1])),
        "within_hour": float(np.mean(waited[1] <= 1)),
    }


def interval(values: list[np.ndarray], of: Callable[[np.ndarray], Any]) -> tuple[float, float]:
    """95 % bootstrap interval of a figure over seeds and readers, both drawn again.

    values: of each seed [systems, readers, 2], as likes_by_reader; of: from the likes a page of the
    systems, float [systems, n], to the figure, n times.
    """
    rng = np.random.default_rng(1)
    sums = []
    for _ in range(RESAMPLES):
        drawn = [values[k] for k in rng.integers(len(values), size=len(values))]
        sums.append(sum(
            one[:, rng.integers(one.shape[1], size=one.shape[1])].sum(axis=1) for one in drawn
        ))  # fmt: skip
    total = np.array(sums)
    low, high = np.nanpercentile(of((total[..., 0] / total[..., 1]).T), [2.5, 97.5])
    return float(low), float(high)
