"""The demo's replay at a small size: real Postgres, real HTTP, a real worker."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from rich.progress import Progress

from python_jobs.db import connect
from python_jobs.errors import CommandError
from python_jobs.laboratory.movielens import Film, MovieLens, Rating
from python_jobs.laboratory.replay import stages
from python_jobs.laboratory.replay.report import hit_rates
from python_jobs.laboratory.replay.stages import Access, Replay
from tests.support.api import Api
from tests.support.patience import PATIENCE_S
from tests.support.workers import running_worker

TOPICS = {
    "Sea": ["sailing boat", "storm on the ocean", "lighthouse", "whales", "harbour at night"],
    "Law": ["tax return", "court of appeal", "contract", "patent dispute", "inheritance"],
}


def small_feed() -> MovieLens:
    """Forty posts of two topics and 600 engagements of users who like one of them."""
    chance = random.Random(0)
    films = [
        Film(f"{topic}{n}", f"{TOPICS[topic][n % 5]}, part {n}.", topic)
        for topic in TOPICS
        for n in range(20)
    ]
    ratings = []
    for second in range(600):
        user = chance.randrange(30)
        topic = "Sea" if (user % 2 == 0) == (chance.random() < 0.95) else "Law"
        film = f"{topic}{chance.randrange(20)}"
        liked = (topic == "Sea") == (user % 2 == 0)
        ratings.append(Rating(f"u{user}", film, "like" if liked else "skip", float(60 * second)))
    return MovieLens(films, ratings)


def test_a_replay_learns_beats_popularity_and_reports_it(
    fresh_database: Callable[[], str],
    start_api: Callable[[str], Api],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "ENCODING_STALLED_S", PATIENCE_S)
    monkeypatch.setattr(stages, "TRAINING_STALLED_S", PATIENCE_S)
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        connection.execute("update two_tower.settings set gate_minimum_events = 20")
    api = start_api(url)
    with running_worker(url), Progress(disable=True) as progress:
        access = Access(api.url, api.anon_key)
        report = Replay(url, access, small_feed(), progress, 60, 100).run()
        with pytest.raises(CommandError, match="holds posts already"):
            Replay(url, access, small_feed(), progress, 60, 100).run()
    assert (report.events, report.http_events, report.posts, report.asked) == (540, 60, 40, 100)
    assert report.hits["two-tower"] > report.hits["popularity"]
    assert "popularity" in hit_rates(report)
    assert len(report.shown) == 3
    assert all(user["recommended"] for user in report.shown)
    with connect(url) as connection:
        counts = connection.execute(
            "select (select count(*) from public.engagement_events) as events,"
            " (select count(*) from two_tower.deferred_events) as deferred,"
            " (select count(*) from two_tower.training_pairs where label) > 100 as has_pairs,"
            " (select count(distinct tower) from two_tower.model_weights) as towers,"
            " (select count(*) from two_tower.jobs where state = 'dead') as dead"
        ).fetchone()
    assert counts == (600, 0, True, 2, 0)
