"""What an engagement adds to the popularity of a post: by whom, when, and up to which bound."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from python_jobs.db import Connection, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.learning import World, live, reasons, rng
from tests.support.reference import START, Event
from tests.support.twin import Twin


def likes(db: Connection, post_id: int, at: datetime = START) -> float:
    """The popularity of a post, in likes of an account of full weight at that time."""
    return float(
        value(
            db,
            "select two_tower.popularity_in_likes(p.popularity,"
            "   two_tower.read_popularity_clock(%s, s))"
            " from two_tower.post_embeddings p cross join two_tower.state s"
            " where p.post_id = %s",
            at,
            post_id,
        )
    )


def test_an_account_weighs_more_on_each_of_its_first_days(world: World) -> None:
    weights = []
    for day in range(5):
        at = START + timedelta(days=day)
        world.send("like", world.post_ids[day], created_at=at)
        weights.append(likes(world.connection, world.post_ids[day], at))
        world.send("click", world.post_ids[day + 10], created_at=at + timedelta(hours=1))
    assert weights == pytest.approx([1 / 3, 2 / 3, 1, 1, 1], rel=1e-4)
    days = "select active_days from two_tower.user_embeddings where user_id = %s"
    assert value(world.connection, days, world.user) == 5


def test_days_of_an_import_count_once_and_in_their_order_only(world: World) -> None:
    for day in (10, 2, 10, 1, 11):
        world.send("click", world.post_ids[day], created_at=START + timedelta(days=day))
    days = "select active_days from two_tower.user_embeddings where user_id = %s"
    assert value(world.connection, days, world.user) == 2


def test_what_an_account_gave_is_what_its_unlike_takes(world: World) -> None:
    """The weight has grown since: what is taken back is what was given."""
    db, post = world.connection, world.post_ids[0]
    world.send("like", post, world.user_ids[1])
    before = likes(db, post)
    world.send("like", post)
    assert likes(db, post) == pytest.approx(before + 1 / 3, rel=1e-4)
    for day in range(1, 4):
        world.send("click", world.post_ids[day], created_at=START + timedelta(days=day))
    world.send("unlike", post, created_at=START + timedelta(days=3, hours=1))
    assert likes(db, post) == pytest.approx(before, rel=1e-4)
    world.send("unlike", post, world.user_ids[1], created_at=START + timedelta(days=3, hours=2))
    assert likes(db, post) < 1e-9


def test_a_crowd_of_new_accounts_moves_popularity_by_a_bounded_amount_an_hour(
    db: Connection,
) -> None:
    """200 accounts made for it, with all that they can send, weigh as much as 30 honest likes."""
    users = [add_user(db) for _ in range(200)]
    author = add_user(db)
    posts = add_posts(db, 20, [author], rng())
    per_hour = value(db, "select popularity_per_hour from two_tower.settings")
    for user_id in users:
        insert_events(
            db,
            [Event(user_id, posts[0], kind, 9000) for kind in ("like", "reply", "repost", "dwell")],
        )
    value(db, "select two_tower.fold_steps(null)")
    gained = likes(db, posts[0])
    print(f"200 accounts, 800 events in an hour: {gained:.1f} likes; unbounded it were 266.7")
    assert gained == pytest.approx(per_hour, rel=1e-3)
    ledger = "select sum(popularity) from two_tower.training_examples"
    assert value(db, ledger) == pytest.approx(per_hour, rel=1e-3)
    later = START + timedelta(hours=1)
    for user_id in users:
        insert_events(db, [Event(user_id, posts[0], "click", None, later)])
    value(db, "select two_tower.fold_steps(null)")
    assert likes(db, posts[0], later) == pytest.approx(2 * per_hour, rel=5e-3)
    assert_consistent(db)


@pytest.mark.parametrize("year", [1997, 2026, 2060, 2525])
def test_popularity_halves_in_any_century(db: Connection, year: int) -> None:
    at = datetime(year, 3, 1, 12, tzinfo=UTC)
    of_one_like = "select two_tower.read_popularity_clock(%s, s) from two_tower.state s"
    one, later = (value(db, of_one_like, at + timedelta(days)) for days in (0, 7))
    assert value(db, "select two_tower.compute_popularity(2, %s)", one) == pytest.approx(one + 1)
    assert later - one == pytest.approx(1)
    both = value(db, "select two_tower.add_popularity(%s, %s)", one, later)
    in_likes = "select two_tower.popularity_in_likes(%s, %s)"
    assert value(db, in_likes, both, later) == pytest.approx(1.5)
    left = value(db, "select two_tower.subtract_popularity(%s, %s)", both, one)
    assert value(db, in_likes, left, later) == pytest.approx(1)
    nothing = float("-inf")
    assert value(db, "select two_tower.add_popularity(%s, %s)", nothing, nothing) == nothing
    assert value(db, "select two_tower.add_popularity(%s, %s)", nothing, one) == one
    assert value(db, "select two_tower.subtract_popularity(%s, %s)", one, one) == nothing
    assert value(db, in_likes, nothing, one) < 1e-300


@pytest.mark.parametrize(("days", "left"), [(7, 1 / 2), (14, 1 / 2**0.5)])
def test_the_popular_part_of_a_score_halves_with_the_clock(
    world: World, days: int, left: float
) -> None:
    db, (old, new) = world.connection, world.post_ids[:2]
    set_half_life(db, days)
    db.execute("update two_tower.settings set account_weight_days = 1, popularity_weight = 0")
    world.send("like", old, created_at=START)
    world.send("like", new, created_at=START + timedelta(days=7))
    db.execute("select two_tower.refresh_popular_candidates()")
    popular = dict(
        db.execute(
            "select post_id, popular from two_tower.score_posts(two_tower.load_reader(%s), %s)",
            [add_user(db), [old, new]],
        ).fetchall()
    )
    # The logarithm, in likes of now, over the largest; of a reader who is cold.
    assert popular[new] == pytest.approx(1)
    assert popular[old] == pytest.approx(np.log1p(left) / np.log(2))


def half_life_days(db: Connection) -> float:
    return float(
        value(db, "select extract(epoch from popularity_half_life) / 86400 from two_tower.state")
    )


def set_half_life(db: Connection, days: float) -> None:
    db.execute(
        "update two_tower.state set popularity_half_life = make_interval(days => %s)", [days]
    )


def set_clock(db: Connection, now: datetime) -> float:
    """What a tick at that time makes of the half-life, in days."""
    db.execute("select set_config('two_tower.now', %s, false)", [now.isoformat()])
    db.execute("select two_tower.set_popularity_clock()")
    return half_life_days(db)


@pytest.mark.parametrize("start", [1, 200])
def test_a_half_life_comes_to_hold_three_positives_a_post(db: Connection, start: int) -> None:
    """Six likes a day among 40 posts, each by somebody else."""
    world, random = World(db, users=120), rng(5)
    set_half_life(db, start)
    given: list[tuple[datetime, int]] = []
    longest = []
    for day in range(60):
        for number in range(6):
            at = START + timedelta(days=day, hours=4 * number)
            post = world.post_ids[int(random.integers(40))]
            user = world.user_ids[(6 * day + number) % 120]
            if (user, post) not in given:
                world.send("like", post, user, created_at=at)
                given.append((at, post))
        longest.append(set_clock(db, START + timedelta(days=day, hours=22)))
    assert all(0.499 < b / a < 2.001 for a, b in zip([start, *longest], longest, strict=False))
    last = [post for at, post in given if at > given[-1][0] - timedelta(days=longest[-1])]
    print(f"{longest[-1]:.1f} days hold {len(last)} likes of {len(set(last))} posts")
    assert 2.5 < len(last) / len(set(last)) < 3.5


def test_the_clock_goes_on_without_a_jump_as_the_reference_says(db: Connection) -> None:
    twin, random = Twin(db, rng(6), users=20, posts=40), rng(7)
    for step in range(60):
        at = START + timedelta(hours=7 * step)
        twin.insert(
            [
                Event(
                    twin.user_ids[int(random.integers(20))],
                    twin.post_ids[int(random.integers(12))],
                    str(random.choice(["like", "reply", "click", "skip", "unlike"])),
                    None,
                    at,
                )
                for _ in range(4)
            ]
        )
        if step % 3 == 2:
            before = [likes(db, post_id, at) for post_id in twin.post_ids]
            twin.set_clock(at)
            after = [likes(db, post_id, at) for post_id in twin.post_ids]
            assert after == pytest.approx(before, rel=1e-6)
        twin.fold()
    assert twin.difference() < 1e-5
    assert half_life_days(db) != 7


@pytest.mark.parametrize(
    ("rule", "exponent"),
    [("contrastive", 0.0), ("contrastive", 0.6), ("contrastive", 2.0), ("literal", 0.6)],
)
def test_the_softmax_knows_how_popular_posts_are(
    db: Connection, rule: str, exponent: float
) -> None:
    """By the total of the last tick, within a statement too; the literal rule asks nothing.

    Nothing is summed up where the softmax asks for no popularity.
    """
    twin, random = Twin(db, rng(8), users=15, posts=40, rule=rule), rng(9)
    db.execute("update two_tower.settings set popularity_in_logits = %s", [exponent])
    twin.reference.popularity_in_logits = exponent
    for step in range(40):
        at = START + timedelta(hours=step)
        twin.insert(
            [
                Event(
                    twin.user_ids[int(random.integers(15))],
                    twin.post_ids[int(40 * random.random() ** 3)],
                    str(random.choice(["like", "reply", "repost", "skip", "unlike"])),
                    None,
                    at,
                )
                for _ in range(int(random.integers(1, 9)))
            ]
        )
        if step % 10 == 9:
            twin.set_clock(at)
        if step % 4 == 3:
            twin.fold()
    total = value(
        db,
        "select two_tower.popularity_in_likes(popularity_total,"
        " two_tower.read_popularity_clock(two_tower.now(), s)) from two_tower.state s",
    )
    expected = sum(likes(db, p, at) for p in twin.post_ids) if exponent > 0 else 0
    assert total == pytest.approx(expected, rel=1e-6)
    assert twin.difference() < 1e-5


def test_an_unlike_takes_what_was_added_when_the_clock_ran_otherwise(world: World) -> None:
    db, post = world.connection, world.post_ids[0]
    world.send("like", post, world.user_ids[1])
    before = value(db, "select popularity from two_tower.post_embeddings where post_id = %s", post)
    world.send("like", post, created_at=START + timedelta(days=2))
    for day in (3, 4, 5):
        world.send("like", world.post_ids[day], created_at=START + timedelta(days=day))
        set_clock(db, START + timedelta(days=day))
    assert half_life_days(db) > 10
    world.send("unlike", post, created_at=START + timedelta(days=6))
    after = value(db, "select popularity from two_tower.post_embeddings where post_id = %s", post)
    assert after == pytest.approx(before, abs=1e-6)


def test_a_half_life_changes_at_most_twice_a_day_between_a_day_and_three_years(
    world: World,
) -> None:
    db = world.connection
    world.send("like", world.post_ids[-1], created_at=START - timedelta(days=365))
    found = []
    for day in (1, 1.5, 2.5, 12.5):
        at = START + timedelta(days=day)
        # One like of each of them, the first a year ago: no time is long enough.
        world.send("like", world.post_ids[len(found)], created_at=at - timedelta(seconds=1))
        found.append(set_clock(db, at))
    assert found == pytest.approx([14, 14 * 2**0.5, 28 * 2**0.5, 56 * 2**0.5], rel=1e-6)
    assert set_clock(db, START + timedelta(days=13.5)) == found[-1]  # nobody did anything
    set_half_life(db, 1000)
    world.send("like", world.post_ids[10], created_at=START + timedelta(days=14))
    assert set_clock(db, START + timedelta(days=14)) == pytest.approx(1096)
    set_half_life(db, 1)
    db.execute("truncate public.engagement_events")
    world.send("like", world.post_ids[11], created_at=START + timedelta(days=15, hours=-1))
    assert set_clock(db, START + timedelta(days=15)) == pytest.approx(1)


def test_a_clock_waits_for_engagements_to_count(db: Connection) -> None:
    World(db)
    assert set_clock(db, START) == 7
    assert value(db, "select popularity_clock_at from two_tower.state").year == 1970


def test_who_is_blocked_teaches_nothing_on_the_posts_of_who_blocked(world: World) -> None:
    db, post = world.connection, world.post_ids[0]
    world.send("like", world.post_ids[1])
    world.send("like", post)
    (own,) = add_posts(db, 1, [world.user], rng(3))
    world.send("mute_author", own, world.author)
    world.send("repost", post)
    assert reasons(db) == {}
    world.send("block_author", own, world.author)
    value(db, "select two_tower.fold_steps(null)")
    before = live(db, post)
    for event_type in ("click", "reply", "not_interested", "hide"):
        world.send(event_type, post)
    assert reasons(db) == {"blocked": 4}
    assert (live(db, post) == before).all()
    # What was given before can be taken back.
    world.send("unlike", post)
    assert reasons(db) == {"blocked": 4}
    assert (live(db, post) != before).any()
    assert_consistent(db)
