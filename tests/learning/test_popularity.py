"""What an engagement adds to the popularity of a post: by whom, when, and up to which bound."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from python_jobs.db import Connection, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.learning import World, live, reasons, rng
from tests.support.reference import START, Event


def likes(db: Connection, post_id: int, at: datetime = START) -> float:
    """The popularity of a post, in likes of an account of full weight at that time."""
    return float(
        value(
            db,
            "select two_tower.popularity_in_likes(p.popularity,"
            "   two_tower.compute_popularity(1, %s, s.popularity_half_life))"
            " from two_tower.post_embeddings p cross join two_tower.settings s"
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
    one = value(db, "select two_tower.compute_popularity(1, %s, '7 days')", at)
    later = value(db, "select two_tower.compute_popularity(1, %s, '7 days')", at + timedelta(7))
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
