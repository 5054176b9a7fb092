"""How fast a page becomes personal follows from what new readers engage with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, base_vectors, insert_events, store
from tests.support.reference import START, Event

LEARN = "select two_tower.learn_warmth()"
TENTHS = np.arange(11) / 10
Curve = np.ndarray[Any, Any]


def curve(db: Connection) -> Curve:
    """Warmth after 0 to 20 engagements."""
    return np.array(
        [row.warmth for row in rows(db, "select warmth from two_tower.warmth order by engagements")]
    )


def evidence(db: Connection) -> dict[int, tuple[float, list[float]]]:
    """Trials and wins, by engagements."""
    query = "select * from two_tower.warmth_evidence where trials > 0"
    return {row.engagements: (row.trials, row.wins) for row in rows(db, query)}


def prior(cold_until: int = 3) -> Curve:
    """The curve before any evidence."""
    return np.sqrt(np.clip(np.arange(21) / cold_until, 0.1, 1))


class Sender:
    """Events a second after one another."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        self.now = START

    def send(self, user: str, kind: str, posts: Iterable[int]) -> None:
        for post in posts:
            self.now += timedelta(seconds=1)
            insert_events(self.db, [Event(user, int(post), kind, None, self.now)])


@pytest.fixture
def feed(db: Connection) -> Sender:
    """A feed in which each account has its full weight at once, and vectors stay."""
    db.execute(
        "update two_tower.settings set account_weight_days = 1, contrastive_learning_rate = 0,"
        " popularity_weight = 0"
    )
    return Sender(db)


def write(db: Connection, vectors: list[list[float]]) -> list[int]:
    """Posts with these base embeddings."""
    posts = add_posts(db, len(vectors), [add_user(db)])
    store(db, posts, vectors)
    return posts


def read_popular(feed: Sender, readers: int) -> None:
    """All like a few hits, whatever they say, and leave alone what nobody likes."""
    random = np.random.default_rng(1)
    posts = write(feed.db, base_vectors(random, 68))
    hits, others = posts[:8], posts[8:]
    feed.send(add_user(feed.db), "like", hits)
    for _ in range(readers):
        reader = add_user(feed.db)
        for hit in random.permutation(hits)[:3]:
            feed.send(reader, "view", random.permutation(others)[:3])
            feed.send(reader, "like", [hit])


def read_personal(feed: Sender, readers: int) -> None:
    """Each likes what is near to the first like, and leaves hits alone."""
    random = np.random.default_rng(2)
    centres = np.array(base_vectors(random, 12))
    posts = [
        write(feed.db, [list(map(float, v)) for v in c + 0.03 * random.normal(size=(20, 384))])
        for c in centres
    ]
    hits = write(feed.db, base_vectors(random, 8))
    for _ in range(2):
        feed.send(add_user(feed.db), "like", hits)
    for _ in range(readers):
        reader = add_user(feed.db)
        for post in random.permutation(posts[random.integers(12)])[:3]:
            feed.send(reader, "view", random.permutation(hits)[:3])
            feed.send(reader, "like", [post])


@pytest.mark.parametrize(("read", "cold_until"), [(read_popular, 1), (read_personal, 10)])
def test_the_curve_is_longer_where_popularity_predicts_better_and_shorter_where_vectors_do(
    feed: Sender, read: Callable[[Sender, int], None], cold_until: int
) -> None:
    feed.db.execute("update two_tower.settings set cold_until_prior = %s", [cold_until])
    assert curve(feed.db) == pytest.approx(prior(cold_until))
    read(feed, 120)
    value(feed.db, "select two_tower.refresh_popular_candidates()")
    value(feed.db, LEARN)
    learned = curve(feed.db)
    (row,) = rows(feed.db, "select * from two_tower.warmth where engagements = 1")
    assert row.trials >= 120
    if read == read_popular:
        assert np.all(learned[1:3] < prior(cold_until)[1:3] - 0.05)
        assert row.popular > row.personal + 10
    else:
        assert np.all(learned[1:3] > prior(cold_until)[1:3] + 0.05)
        assert row.personal > row.popular + 10
    # What serves is this curve.
    newcomer = add_user(feed.db)
    warmth = "select (two_tower.load_reader(%s)).warmth"
    assert value(feed.db, warmth, newcomer) == 0
    (post,) = write(feed.db, base_vectors(np.random.default_rng(3), 1))
    feed.send(newcomer, "like", [post])
    assert value(feed.db, warmth, newcomer) == pytest.approx(learned[1])


def test_an_operator_pins_the_curve(feed: Sender) -> None:
    read_popular(feed, 40)
    value(feed.db, LEARN)
    learned = curve(feed.db)
    feed.db.execute("update two_tower.settings set cold_until = 8")
    value(feed.db, LEARN)
    assert curve(feed.db) == pytest.approx(prior(8))
    feed.db.execute("update two_tower.settings set cold_until = null")
    assert curve(feed.db) == pytest.approx(learned)


def test_the_prior_is_what_cold_until_prior_says_and_weighs_its_trials(feed: Sender) -> None:
    feed.db.execute("update two_tower.settings set cold_until_prior = 10")
    assert curve(feed.db) == pytest.approx(prior(10))
    read_personal(feed, 60)
    value(feed.db, LEARN)
    learned = curve(feed.db)
    assert learned[2] > prior(10)[2] + 0.05
    feed.db.execute("update two_tower.settings set cold_until_prior_trials = 1000000")
    value(feed.db, LEARN)
    assert np.abs(curve(feed.db) - prior(10)).max() <= 0.05 + 1e-9  # the nearest tenth


def fit(trials: Curve, wins: Curve, weight: float) -> Curve:
    """The reference: the best warmth of each, then pooled adjacent violators."""
    blocks: list[list[float]] = []
    for count, won, first in zip(trials, wins, prior(), strict=True):
        number = len([each for block in blocks for each in block[2:]])
        best = TENTHS[np.argmax(won - 0.1 * weight * np.abs(TENTHS - first))] if count else first
        best = max(best, np.sqrt(number / 20))
        blocks.append([best, weight + count, number])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, total, *numbers = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * total) / (before[1] + total)
            before[1] += total
            before += numbers
    return np.array([block[0] for block in blocks for _ in block[2:]])


@pytest.mark.parametrize("seed", range(8))
def test_the_curve_is_the_rising_one_nearest_to_what_won_most(db: Connection, seed: int) -> None:
    random = np.random.default_rng(seed)
    trials = random.integers(0, 2, size=21) * random.exponential(400, size=21)
    wins = trials[:, None] * random.uniform(0.4, 0.9, size=(21, 11))
    for number in range(21):
        db.execute(
            "update two_tower.warmth_evidence set trials = %s, wins = %s where engagements = %s",
            [trials[number], wins[number].tolist(), number],
        )
    value(db, LEARN)
    learned = curve(db)
    assert learned == pytest.approx(fit(trials, wins, 100))
    assert np.all(np.diff(learned) >= 0)
    assert np.all(learned >= np.sqrt(np.arange(21) / 20) - 1e-12)
    assert learned[20] == 1


def test_a_trial_is_scored_as_a_page_scores(db: Connection) -> None:
    """Against the formula in float64, of vectors from before the first event about the post."""
    random = np.random.default_rng(5)
    posts = write(db, base_vectors(random, 40))
    feed = Sender(db)
    readers = [add_user(db) for _ in range(12)]
    for reader in readers:
        for _ in range(4):
            chosen = random.permutation(posts)
            feed.send(reader, "view", chosen[:4])
            feed.send(reader, "click", chosen[4 : 4 + random.integers(2)])
            feed.send(reader, "like", chosen[4:5])
    value(db, "select two_tower.fold_steps(null)")
    value(db, "select two_tower.refresh_popular_candidates()")
    found: dict[int, list[Any]] = {}
    for row in rows(
        db,
        "select c.* from two_tower.compare_positives(array("
        " select x from two_tower.find_new_positives(0, 500) x)) c order by c.event_id, c.warmth",
    ):
        found.setdefault(row.event_id, []).append(row)
    assert len(found) > 25
    (known,) = rows(
        db,
        "select r.popularity_unit, r.popularity_scale, s.popularity_weight, s.recency_weight,"
        " extract(epoch from s.recency_half_life)::float8 as half_life"
        " from two_tower.load_reader(null) r cross join two_tower.settings s",
    )
    live = {
        row.post_id: row
        for row in rows(db, "select post_id, popularity, created_at from two_tower.live_embeddings")
    }
    examples = rows(
        db,
        "select event_id, user_id, post_id, label, created_at, negative_ids, viewed_negative_count,"
        " user_emb::extensions.vector::real[] as user_emb,"
        " post_emb::extensions.vector::real[] as post_emb, array(select"
        "  n::extensions.vector::real[]::text from unnest(negative_embs) n) as negative_embs,"
        " popularity, popularity_clock from two_tower.training_examples order by event_id",
    )
    engaged = {(each.user_id, each.post_id) for each in examples}

    def score(warmth: float, cosine: float, likes: float, age: float) -> float:
        return float(
            warmth * cosine
            + (1 - warmth + known.popularity_weight) * np.log1p(likes) / known.popularity_scale
            + known.recency_weight * 0.5 ** (age / known.half_life)
        )

    for example in (each for each in examples if each.event_id in found):
        own = [e for e in examples if (e.user_id, e.post_id) == (example.user_id, example.post_id)]
        user = np.array(own[0].user_emb, float)
        given = sum(e.popularity * 2 ** (e.popularity_clock - known.popularity_unit) for e in own)
        before = sum(e.user_id == example.user_id and e.event_id < own[0].event_id
                     for e in examples)  # fmt: skip
        others = [
            (post, np.array(vector.strip("{}").split(","), float))
            for post, vector in zip(example.negative_ids, example.negative_embs, strict=True)
        ][: example.viewed_negative_count or None]
        for row, warmth in zip(found[example.event_id], TENTHS, strict=True):

            def of(post: int, vector: Any, taken: float, warmth: float = warmth) -> float:
                likes = 2 ** (live[post].popularity - known.popularity_unit) - taken
                age = (example.created_at - live[post].created_at).total_seconds()  # noqa: B023
                return score(warmth, user @ vector, max(0, likes), age)  # noqa: B023

            positive = of(example.post_id, np.array(own[0].post_emb, float), given)
            share = np.mean(
                [
                    (1 + np.sign(positive - of(post, vector, 0))) / 2
                    for post, vector in others
                    if (example.user_id, post) not in engaged
                ]
            )
            assert row.win_share == pytest.approx(share)
            assert row.engagements == min(20, before)
            assert row.weight == pytest.approx(1 / 3)  # of an account on its first day


def test_a_reader_counts_once_at_each_number_of_engagements(feed: Sender) -> None:
    """However often what was learned is taken back, or the feed begun anew."""
    posts = write(feed.db, base_vectors(np.random.default_rng(6), 60))
    reader = add_user(feed.db)
    feed.send(reader, "click", posts[:1])
    for post in posts[1:25]:
        feed.send(reader, "like", [post])
        feed.send(reader, "unlike", [post])
        value(feed.db, LEARN)
    feed.db.execute("update two_tower.user_embeddings set engagement_count = 0, reset_count = 1")
    for post in posts[25:50]:
        feed.send(reader, "like", [post])
        value(feed.db, LEARN)
    counted = evidence(feed.db)
    assert {trials for number, (trials, _) in counted.items() if number < 20} <= {1.0}
    assert counted[20][0] > 20


def test_a_positive_counts_once_and_only_within_an_hour(feed: Sender) -> None:
    posts = write(feed.db, base_vectors(np.random.default_rng(7), 30))
    reader = add_user(feed.db)
    feed.send(reader, "click", posts[:1])
    feed.send(reader, "like", posts[1:2])
    feed.send(reader, "repost", posts[1:2])
    assert [value(feed.db, LEARN) for _ in range(3)] == [1, 0, 0]
    feed.send(reader, "like", posts[2:3])
    later = (feed.now + timedelta(minutes=61)).isoformat()
    feed.db.execute("select set_config('two_tower.now', %s, true)", [later])
    assert value(feed.db, LEARN) == 0


def test_evidence_halves_with_warmth_half_life(feed: Sender) -> None:
    posts = write(feed.db, base_vectors(np.random.default_rng(8), 30))
    feed.db.execute("update two_tower.settings set warmth_half_life = '10 days'")
    for _ in range(2):
        reader = add_user(feed.db)
        feed.send(reader, "click", posts[:1])
        feed.send(reader, "like", posts[1:2])
        value(feed.db, LEARN)
        feed.now += timedelta(days=10)
    trials, wins = evidence(feed.db)[1]
    assert trials == pytest.approx(1.5, rel=1e-3)
    assert max(wins) <= trials


def test_who_is_erased_leaves_sums_that_name_nobody(feed: Sender) -> None:
    posts = write(feed.db, base_vectors(np.random.default_rng(9), 30))
    reader = add_user(feed.db)
    feed.send(reader, "like", posts[:3])
    value(feed.db, LEARN)
    before = evidence(feed.db)
    assert set(before) == {1, 2}
    feed.db.execute("delete from auth.users where id = %s", [reader])
    feed.db.execute("select two_tower.erase_users(1000)")
    value(feed.db, LEARN)
    assert evidence(feed.db) == before
    types = rows(feed.db, "select distinct data_type from information_schema.columns"
        " where table_name = 'warmth_evidence'")  # fmt: skip
    assert "uuid" not in {row.data_type for row in types}


def test_ticks_learn_it(feed: Sender) -> None:
    posts = write(feed.db, base_vectors(np.random.default_rng(10), 30))
    reader = add_user(feed.db)
    feed.send(reader, "like", posts[:3])
    feed.db.execute("update two_tower.schedules set is_enabled = kind = 'learn_warmth'")
    assert value(feed.db, "select two_tower.start_due_schedules()") == ["learn_warmth"]
    assert set(evidence(feed.db)) == {1, 2}
