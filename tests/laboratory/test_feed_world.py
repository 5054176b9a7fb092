"""The feed world: what readers like, what systems may show, and what is said of their pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.db import Connection, rows
from python_jobs.laboratory.feed_world import command
from python_jobs.laboratory.feed_world.command import Loops, describe, show
from python_jobs.laboratory.feed_world.database import OPENS_AT, TwoTower
from python_jobs.laboratory.feed_world.measure import (
    Page,
    interval,
    judged,
    likes_by_reader,
    run,
    summarise,
)
from python_jobs.laboratory.feed_world.systems import (
    Oracle,
    Popularity,
    Scored,
    System,
    Vectors,
    peers,
)
from python_jobs.laboratory.feed_world.texts import KEPT_APART, SUBJECTS, read_texts
from python_jobs.laboratory.feed_world.world import LARGE, PAGE, SMALL, Seen, Visit, World, earlier
from python_jobs.laboratory.server import databases

SUBJECT_NAMES = ["cats", "dogs", "fish", "birds", "bees"]


def world_of(seed: int = 1, **changes: float) -> World:
    """A small world. Its texts are of no language; their vectors lie about one of each subject."""
    scale = replace(SMALL, **changes)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    texts = {name: [f"{name} {k}" for k in range(scale.texts)] for name in SUBJECT_NAMES}
    centres = np.repeat(rng.normal(size=(len(texts), 384)), scale.texts, axis=0)
    base = (centres + rng.normal(size=centres.shape)).astype(np.float32)
    return World(seed, scale, texts, base / np.linalg.norm(base, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def world() -> World:
    return world_of()


@pytest.fixture(scope="module")
def loops(world: World) -> Loops:
    return Loops(world, {system.name: run(world, system) for system in peers(world)})


class Fixed(System):
    """Shows one page to all, every time."""

    def __init__(self, name: str, page: list[int]) -> None:
        self.name, self.fixed = name, np.array(page, dtype=int)

    def page(self, visit: Visit) -> np.ndarray:
        return self.fixed

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        pass


def test_a_world_follows_from_its_seed() -> None:
    one, same, other = world_of(1), world_of(1), world_of(2)
    assert one.visits == same.visits != other.visits
    assert np.array_equal(one.born, same.born)
    assert np.array_equal(one.closeness, same.closeness)


def test_a_post_is_liked_by_the_formula(world: World) -> None:
    visit = world.visits[0]
    weights = world.weights(visit.reader, visit.time, visit.mood)
    subject = int(np.argmax(weights))
    own = np.flatnonzero((world.post_subject == subject) & ~world.is_crowd)[:3]
    foreign = np.flatnonzero(weights[world.post_subject] == 0)[:1]
    page = np.concatenate([own, foreign])
    expected = [
        world.appetite[visit.reader]
        * world.quality[post]
        * (0.3 + 0.7 * world.closeness[visit.reader, world.post_text[post]])
        * 0.9**place
        for place, post in enumerate(own)
    ]
    assert world.expected(visit, page, Seen(world)) == pytest.approx([*expected, 0])


def test_what_was_seen_and_what_is_a_copy_is_not_liked_again(world: World) -> None:
    visit = world.visits[0]
    crowd = np.flatnonzero(world.is_crowd)[:3]
    text = world.post_text[crowd[0]]
    original = np.flatnonzero(world.post_text == text)[:1]
    seen = Seen(world)
    assert seen.is_copy(visit.reader, crowd).tolist() == [False, True, True]
    seen.add(visit.reader, original)
    assert seen.is_copy(visit.reader, crowd).all()
    assert not world.expected(visit, crowd, seen).any()
    assert not seen.is_copy((visit.reader + 1) % world.scale.readers, crowd[:1]).any()


def test_the_same_post_on_the_same_page_gets_the_same_answer(world: World) -> None:
    page = np.arange(100)
    chance = np.full(100, 0.5)
    visit = world.visits[0]
    answers = world.answers(visit, page, chance)
    turned = world.answers(visit, page[::-1], chance)[::-1]
    later = world.answers(replace(visit, number=visit.number + 1), page, chance)
    assert answers == turned
    assert answers != later
    assert 30 < answers.count("like") < 70


def test_readers_like_as_often_as_expected_and_skip_or_hide_what_is_foreign(world: World) -> None:
    visit = world.visits[0]
    page = np.arange(len(world.born))
    for chance in (0.1, 0.8):
        likes = [
            world.answers(replace(visit, number=k), page, np.full(len(page), chance)).count("like")
            for k in range(20)
        ]
        assert np.sum(likes) / 20 / len(page) == pytest.approx(chance, abs=0.02)
    found = world.answers(visit, page, np.zeros(len(page)))
    assert {"skip", "hide", ""} == set(found)


def test_interests_drift_and_a_session_has_a_mood() -> None:
    world = world_of(3, readers=100)
    opens, closes = (
        np.array([world.weights(reader, time) for reader in range(100)])
        for time in (0.0, world.scale.span)
    )
    assert opens.sum(axis=1) == pytest.approx(1)
    assert set((opens > 0).sum(axis=1)) == {1, 2, 3, 4}
    assert 0.1 < np.mean(((opens > 0) != (closes > 0)).any(axis=1)) < 0.9
    reader = int(np.argmax((opens > 0).sum(axis=1)))
    calm, keen = world.weights(reader, 0.0), world.weights(reader, 0.0, mood=0)
    first = world.interests[reader, 0]
    assert keen[first] > calm[first]
    assert np.argmax(keen / np.maximum(calm, 1e-9)) == first


def test_posts_are_born_and_die_and_a_crowd_has_one_text() -> None:
    world = world_of(4)
    assert (np.diff(world.born) >= 0).all()
    assert (world.dies > world.born).all()
    assert 0.3 < np.mean(world.born < 0) < 0.6
    assert 0.05 < np.mean(world.dies < world.scale.span) < 0.3
    assert world.is_crowd.sum() == SMALL.crowd
    assert len(set(world.post_text[world.is_crowd])) == 1
    assert len(set(world.author[world.is_crowd])) == SMALL.crowd


def test_earlier_counts_what_stands_before() -> None:
    assert earlier(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert earlier(np.array([], dtype=int)).tolist() == []


def test_no_system_shows_what_is_not_there_or_was_seen(loops: Loops) -> None:
    for pages in loops.pages.values():
        shown: set[tuple[int, int]] = set()
        for page in pages:
            assert loops.world.alive(page.visit.time)[page.posts].all()
            pairs = {(page.visit.reader, int(post)) for post in page.posts}
            assert len(pairs) == len(page.posts)
            assert not pairs & shown
            shown |= pairs


def test_no_page_is_expected_to_get_more_likes_than_the_oracles(world: World) -> None:
    """Of one page: what a system shows leads it elsewhere later."""
    rng = np.random.default_rng(5)
    for visit in world.visits[:40]:
        best = Oracle(world).page(visit)
        highest = world.expected(visit, best, Seen(world)).sum()
        left = np.flatnonzero(world.alive(visit.time))
        interests = np.flatnonzero(world.weights(visit.reader, visit.time)[world.post_subject] > 0)
        for among in (left, np.intersect1d(left, interests)):
            for _ in range(20):
                page = rng.choice(among, min(PAGE, len(among)), replace=False)
                assert world.expected(visit, page, Seen(world)).sum() <= highest + 1e-9


def test_systems_stand_in_the_order_of_what_they_know(loops: Loops) -> None:
    likes = {name: likes_by_reader(loops.world, p)[:, 0].sum() for name, p in loops.pages.items()}
    assert likes["recency"] < likes["pgvector by hand"] < likes["oracle"]
    assert likes["pgvector by hand"] < likes["labels known"] < likes["oracle"]


def test_a_decayed_vector_forgets_and_an_average_does_not(world: World) -> None:
    visit = world.visits[0]
    old, new = (np.flatnonzero(world.post_subject == subject)[:6] for subject in (0, 1))
    forgetting, keeping = Vectors(world, "decayed", 0.5), Vectors(world, "average", 1.0)
    for system in (forgetting, keeping):
        system.learn(visit, old, ["like"] * 6)
        system.learn(visit, new[:3], ["like"] * 3)
    for system, expected in ((forgetting, 1), (keeping, 0)):
        assert world.post_subject[int(np.argmax(system.scores(visit)))] == expected


def test_popularity_fades(world: World) -> None:
    system = Popularity(world)
    visit = world.visits[0]
    system.learn(replace(visit, time=0.0), np.array([3, 3]), ["like", "like"])
    system.learn(replace(visit, time=6 * 86400.0), np.array([5, 6]), ["like", "skip"])
    assert system.counts[5] > system.counts[3] > system.counts[6] == 0


def pages_of(world: World, posts: list[int], count: int) -> list[Page]:
    """The same page `count` times to reader 0 in the late half of feed time, all liked."""
    page = np.array(posts)
    time = world.scale.span / 2
    return [
        Page(Visit(0, time + k, k, 0), page, np.full(len(page), 0.5), ["like"] * len(page),
             np.zeros(len(page), dtype=bool))
        for k in range(count)
    ]  # fmt: skip


def test_figures_are_those_counted_by_hand(world: World) -> None:
    one, other = (np.flatnonzero(world.post_subject == subject)[:10].tolist() for subject in (0, 1))
    pages = pages_of(world, one + other, 5)
    figures = summarise(world, pages)
    assert figures["likes"] == 10
    assert figures["kept"] == 1
    assert figures["short"] == 0
    assert figures["copies"] == 0
    span = world.scale.span
    lives = world.dies > span / 5
    assert figures["coverage"] == pytest.approx(lives[one + other].sum() / lives.sum())
    ages = np.tile((span / 2 - world.born[one + other]) / 86400, 5)
    assert figures["age_days"] == pytest.approx(np.median(ages), abs=1e-3)
    assert summarise(world, [*pages, *pages_of(world, one, 1)])["short"] == pytest.approx(1 / 6)


def test_an_interest_that_leaves_the_page_is_not_kept(world: World) -> None:
    one, other = (np.flatnonzero(world.post_subject == subject)[:10].tolist() for subject in (0, 1))
    likes = pages_of(world, one + other, 3)
    turned = summarise(world, [*likes, *pages_of(world, one + one, 2)])
    assert turned["kept"] == 0


def test_the_first_view_of_a_new_post_is_timed(world: World) -> None:
    span = world.scale.span
    new = (world.born > span / 5) & (world.born < span * 4 / 5) & ~world.is_crowd
    posts = np.flatnonzero(new)
    pages = [
        Page(Visit(0, float(world.born[post]) + 1800, k, 0), np.array([post]), np.array([0.0]),
             [""], np.array([False]))
        for k, post in enumerate(posts)
    ]  # fmt: skip
    figures = summarise(world, pages)
    assert figures["first_hours"] == pytest.approx(0.5)
    wanted = [
        world.weights(0, page.visit.time)[world.post_subject[page.posts[0]]] > 0 for page in pages
    ]
    assert figures["within_hour"] == pytest.approx(np.mean(wanted))


def test_the_first_fifth_is_not_judged(loops: Loops) -> None:
    pages = loops.pages["recency"]
    late = judged(loops.world, pages)
    assert 0 < len(late) < len(pages)
    assert likes_by_reader(loops.world, pages)[:, 1].sum() == len(late)


def test_the_interval_draws_seeds_and_readers_again() -> None:
    alike = [np.ones((2, 10, 2))] * 3
    assert interval(alike, lambda of: of[0] / of[1]) == (1, 1)
    apart = [np.stack([np.full((10, 2), [value, 1.0]), np.ones((10, 2))]) for value in (1.0, 3.0)]
    low, high = interval(apart, lambda of: of[0])
    assert (low, high) == (1, 3)


def test_the_way_to_the_oracle_is_from_the_best_other(world: World) -> None:
    visits = world.visits
    found = {
        name: [Page(v, np.arange(20), np.full(20, likes / 20), [""] * 20, np.zeros(20, dtype=bool))
               for v in visits]
        for name, likes in (("two-tower", 4.0), ("recency", 1.0), ("popularity", 2.0),
                            ("labels known", 3.0), ("oracle", 6.0))
    }  # fmt: skip
    report = describe([Loops(world, found)])
    assert report["best_other"] == "popularity"
    assert report["progress"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert report["systems"][0]["of_oracle"] == pytest.approx(2 / 3)


def test_the_table_fits_80_columns(loops: Loops, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"two-tower": loops.pages["recency"], **loops.pages}
    show(describe([Loops(loops.world, named)]))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)
    assert set(named) <= {line.strip().split("  ")[0] for line in lines}


def test_texts_are_real_sentences_of_one_subject_each() -> None:
    chosen = {name: SUBJECTS[name] for name in ("geometry", "fonts")}
    texts = read_texts(chosen, 100)
    every = [text for own in texts.values() for text in own]
    assert [len(own) for own in texts.values()] == [100, 100]
    assert len(set(every)) == 200
    assert texts == read_texts(chosen, 100)
    assert all("\n" not in text and len(text) <= 200 for text in every)
    assert "point" in " ".join(texts["geometry"])
    assert "glyph" in " ".join(texts["fonts"])


def test_what_is_kept_apart_shares_no_folder_with_what_is_chosen_by() -> None:
    used, apart = (
        {place for places in subjects.values() for place in places.split()}
        for subjects in (SUBJECTS, KEPT_APART)
    )
    assert not used & apart
    assert len(SUBJECTS) == len(KEPT_APART) == LARGE.subjects >= 12


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with ExitStack() as on_exit, databases() as new_database:
        yield new_database(on_exit)


class Watched(Scored):
    """Ours, with the rules of all others checked on each page, and the store at the end."""

    def __init__(self, world: World, ours: TwoTower) -> None:
        super().__init__(world)
        self.ours, self.name = ours, ours.name
        self.events: list[tuple[int, int, str]] = []

    def scores(self, visit: Visit) -> np.ndarray:
        raise NotImplementedError

    def page(self, visit: Visit) -> np.ndarray:
        page = self.ours.page(visit)
        assert self.world.alive(visit.time)[page].all()
        assert not self.seen.posts[visit.reader, page].any()
        left = np.sum(self.world.alive(visit.time) & ~self.seen.posts[visit.reader])
        # Withheld are only what a block or mute hides, and here nobody blocks.
        assert len(page) == len(set(page.tolist())) == min(PAGE, left)
        return page

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        super().learn(visit, page, answers)
        self.ours.learn(visit, page, answers)
        for post, answer in zip(page.tolist(), answers, strict=True):
            self.events += [(visit.reader, post, kind) for kind in ("view", answer) if kind]


def test_our_pages_are_full_fresh_and_eligible_and_what_came_of_them_is_stored(
    world: World, connection: Connection
) -> None:
    ours = Watched(world, TwoTower(world, connection, {}))
    run(world, ours)
    stored = rows(
        connection,
        "select right(user_id::text, 12) as reader, post_id, event_type,"
        " extract(epoch from created_at)::float8 as at from public.engagement_events order by id",
    )
    assert [(int(e.reader, 16) - 1_000_000, e.post_id - 1, e.event_type) for e in stored] == (
        ours.events
    )
    assert 0 <= stored[0].at - OPENS_AT <= stored[-1].at - OPENS_AT <= world.scale.span + 3600


@pytest.fixture
def _encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runs of a command read and encode the same texts."""
    encode: Callable[..., Any] = command._encode
    kept: list[Any] = []

    def once(*of: Any) -> Any:
        if not kept:
            kept.append(encode(*of))
        return kept[0]

    monkeypatch.setattr(command, "_encode", once)


@pytest.mark.usefixtures("_encoded_once")
def test_the_command_prints_all_systems_and_pages_as_texts() -> None:
    small = ["evaluate", "--feed", "--small", "--seeds", "1"]
    answer = CliRunner().invoke(main, [*small, "--json", "--set", "cold_until=2"])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.output[answer.output.index("{\n") :])
    likes = {row["name"]: row["likes"] for row in report["systems"]}
    assert list(likes) == [
        "two-tower", "popularity", "recency", "decayed vector", "pgvector by hand",
        "labels known", "oracle",
    ]  # fmt: skip
    assert 0 < likes["two-tower"] < likes["oracle"]
    assert report["progress"]["low"] <= report["progress"]["value"] <= report["progress"]["high"]
    answer = CliRunner().invoke(main, [*small, "--pages"])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.count("the reader's interests") > 3
    assert any(subject in answer.stdout for subject in SUBJECTS)
