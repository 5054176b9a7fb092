"""What no crowd can do: move a post as far as it likes, hide it by pushes, make others wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, connect, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.learning import reasons
from tests.support.patience import PATIENCE_S
from tests.support.reference import DIMENSIONS, START, Event, Vector, norm
from tests.support.twin import Twin

LIMIT = 0.2


def vectors(connection: Connection) -> dict[int, Vector]:
    """The live vectors by post."""
    return {
        post_id: np.array(vector, float)
        for post_id, vector in connection.execute(
            "select post_id, embedding::real[] from two_tower.post_embeddings"
        )
    }


def give_taste(connection: Connection, user_id: str, direction: Vector) -> None:
    """A user who wants just one thing: a prior in that direction."""
    connection.execute("select two_tower.add_users(array[%s]::uuid[])", [user_id])
    connection.execute(
        "insert into two_tower.user_embeddings"
        " (user_id, embedding, prior, prior_weight, prior_source)"
        " values (%s, %s::real[]::extensions.vector, %s::real[]::extensions.vector, 1, 'profile')",
        [user_id, direction.tolist(), direction.tolist()],
    )


def crowd(connection: Connection, size: int) -> tuple[list[str], list[int], Vector]:
    """Users who all want the same, posts, and what they want."""
    rng = np.random.default_rng(11)
    author = add_user(connection)
    posts = add_posts(connection, 40, [author], rng)
    direction = norm(rng.normal(size=DIMENSIONS))
    users = [add_user(connection) for _ in range(size)]
    for user_id in users:
        give_taste(connection, user_id, direction)
    return users, posts, direction


def alerts(connection: Connection, kind: str) -> list[tuple[Any, ...]]:
    """Open alerts of a kind: subject and how often."""
    return connection.execute(
        "select subject, occurrences from two_tower.alerts where kind = %s and closed_at is null",
        [kind],
    ).fetchall()


@pytest.mark.parametrize("signal", ["like", "not_interested"])
def test_a_crowd_moves_a_post_by_a_bounded_amount_an_hour_and_an_alert_says_so(
    db: Connection, signal: str
) -> None:
    db.execute("update two_tower.settings set movement_per_hour = %s", [LIMIT])
    users, posts, _ = crowd(db, 40)
    start = vectors(db)[posts[0]]
    insert_events(db, [Event(u, posts[0], signal) for u in users[:20]])
    after_hour = vectors(db)[posts[0]]
    assert 0.5 * LIMIT < np.linalg.norm(after_hour - start) <= LIMIT
    assert alerts(db, "post_moved_in_concert") == [(str(posts[0]), 1)]
    # More of the same hour moves nothing; what the users wanted is learned of them all the same.
    insert_events(db, [Event(u, posts[0], signal) for u in users[20:30]])
    assert np.allclose(vectors(db)[posts[0]], after_hour)
    assert value(db, "select count(*) from two_tower.unlearned_events") == 0
    learned = "select count(*) from two_tower.user_embeddings where engagement_count = 1"
    assert value(db, learned) == 30
    # Another post, and another hour, have bounds of their own.
    insert_events(db, [Event(users[0], posts[1], signal)])
    assert alerts(db, "post_moved_in_concert") == [(str(posts[0]), 1)]
    later = START + timedelta(hours=1)
    insert_events(db, [Event(u, posts[0], signal, None, later) for u in users[30:]])
    assert 0 < np.linalg.norm(vectors(db)[posts[0]] - after_hour) <= LIMIT
    assert_consistent(db)


def test_like_and_unlike_in_turn_leave_a_post_and_its_hour_to_others(db: Connection) -> None:
    """One account cannot use up what a post may move in an hour: what is taken back counts not."""
    db.execute("update two_tower.settings set movement_per_hour = %s", [LIMIT])
    users, posts, _ = crowd(db, 5)
    start = vectors(db)[posts[0]]
    for number in range(30):
        at = START + timedelta(seconds=number)
        insert_events(db, [Event(users[0], posts[0], ("like", "unlike")[number % 2], None, at)])
    assert reasons(db) == {"withdrawn_often": 12, "nothing_to_withdraw": 12}
    assert np.linalg.norm(vectors(db)[posts[0]] - start) < 0.1 * LIMIT
    for user_id in users[1:]:
        insert_events(db, [Event(user_id, posts[0], "reply", None, START + timedelta(minutes=5))])
    assert 0.9 * LIMIT < np.linalg.norm(vectors(db)[posts[0]] - start) <= 1.1 * LIMIT


def test_a_like_does_not_wait_for_another_like_of_the_same_post(
    fresh_database: Callable[[], str],
) -> None:
    """The step on the held post is queued, bounded as any other, and folded in once."""
    url = fresh_database()
    with connect(url, autocommit=True) as watcher, connect(url) as holder:
        users, posts, _ = crowd(watcher, 20)
        watcher.execute("update two_tower.settings set movement_per_hour = %s", [LIMIT])
        insert_events(holder, [Event(users[0], posts[0], "like")])
        before = vectors(watcher)[posts[0]]
        watcher.execute("set lock_timeout = '1s'")
        for user_id in users[1:]:
            insert_events(watcher, [Event(user_id, posts[0], "reply")])
        assert np.array_equal(vectors(watcher)[posts[0]], before)
        waiting = "select count(*) from two_tower.deferred_steps where post_id = %s"
        assert value(watcher, waiting, posts[0]) == 19
        assert_consistent(watcher)
        holder.commit()
        value(watcher, "select two_tower.fold_steps(null)")
        count = "select engagement_count from two_tower.post_embeddings where post_id = %s"
        assert value(watcher, count, posts[0]) == 20
        assert 0.5 * LIMIT < np.linalg.norm(vectors(watcher)[posts[0]] - before) <= LIMIT
        assert alerts(watcher, "post_moved_in_concert") == [(str(posts[0]), 1)]
        popularity = "select popularity from two_tower.post_embeddings where post_id = %s"
        likes = (1 + 19 * 1.5) / 3  # on its first day an account weighs a third
        wanted = value(
            watcher,
            "select two_tower.compute_popularity(%s::real, two_tower.read_popularity_clock(%s, s))"
            " from two_tower.state s",
            likes,
            START,
        )
        assert value(watcher, popularity, posts[0]) == pytest.approx(wanted)
        assert_consistent(watcher)


def test_a_withdrawal_from_a_held_post_waits_in_the_queue_too(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as watcher, connect(url) as holder:
        users, posts, _ = crowd(watcher, 2)
        start = vectors(watcher)[posts[0]]
        insert_events(watcher, [Event(users[0], posts[0], "like")])
        holder.execute(
            "select from two_tower.live_embeddings where post_id = %s for no key update",
            [posts[0]],
        )
        watcher.execute("set lock_timeout = '1s'")
        insert_events(watcher, [Event(users[0], posts[0], "unlike")])
        assert_consistent(watcher)
        holder.rollback()
        # Pushes of the like itself move other posts only.
        value(watcher, "select two_tower.fold_steps(null)")
        assert np.abs(vectors(watcher)[posts[0]] - start).max() < 1e-3
        assert_consistent(watcher)


def test_a_step_that_waits_while_a_slot_is_filled_reaches_both_slots(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as watcher, connect(url) as holder:
        users, posts, _ = crowd(watcher, 2)
        version = value(watcher, "select two_tower.active_version('candidate_tower')")
        watcher.execute("update two_tower.state set filling_version = %s", [version])
        while value(watcher, "select two_tower.fill_slot(10)"):
            pass
        holder.execute(
            "select from two_tower.live_embeddings where post_id = %s for no key update",
            [posts[0]],
        )
        insert_events(watcher, [Event(users[0], posts[0], "like")])
        holder.rollback()
        value(watcher, "select two_tower.fold_steps(null)")
        rows = watcher.execute(
            "select embedding::text, engagement_count, is_pretrained, moved"
            " from two_tower.live_embeddings where post_id = %s",
            [posts[0]],
        ).fetchall()
        assert len(rows) == 2
        assert rows[0] == rows[1]
        assert rows[0][1:3] == (1, False)


def test_no_push_moves_a_post_that_nobody_engaged_with(db: Connection) -> None:
    users, posts, _ = crowd(db, 3)
    start = vectors(db)
    for user_id in users:
        for post_id in posts[:20]:
            insert_events(db, [Event(user_id, post_id, "like")])
    value(db, "select two_tower.fold_steps(null)")
    moved = vectors(db)
    compared = value(
        db,
        "select array_agg(distinct p) from two_tower.training_examples x"
        " cross join unnest(x.pushed_ids, x.push_factors) as n (p, f) where n.f = 0",
    )
    assert set(compared) >= set(posts[20:])
    assert all(np.array_equal(moved[post_id], start[post_id]) for post_id in posts[20:])
    assert all(np.abs(moved[post_id] - start[post_id]).max() > 1e-4 for post_id in posts[:20])
    assert_consistent(db)


def test_a_fold_asks_again_whether_a_post_is_untouched(db: Connection) -> None:
    """It lost its vector since the draw, and was encoded anew."""
    users, posts, direction = crowd(db, 1)
    untouched, engaged = posts[:2]
    insert_events(db, [Event(users[0], engaged, "like")])
    db.execute("truncate two_tower.deferred_steps")
    start = vectors(db)
    for sign in (1, -1):
        db.execute(
            "insert into two_tower.deferred_steps"
            " (event_id, user_id, epoch, user_vector, pushed_ids, push_factors, created_at)"
            " values (nextval('two_tower.engagement_event_ids'), %s, 0,"
            " %s::real[]::extensions.vector, %s, %s, now())",
            [users[0], direction.tolist(), [untouched, engaged], [0.1 * sign, 0.01]],
        )
        value(db, "select two_tower.fold_steps(null)")
    moved = vectors(db)
    assert np.array_equal(moved[untouched], start[untouched])
    assert np.linalg.norm(moved[engaged] - start[engaged]) > 0.01


def test_the_reference_bounds_what_the_database_bounds(db: Connection) -> None:
    """The same numbers, event by event: with limits that are reached all the time."""
    db.execute("update two_tower.settings set movement_per_hour = 0.1")
    twin = Twin(db, np.random.default_rng(12), users=20, posts=60)
    twin.reference.movement_per_hour = 0.1
    rng = np.random.default_rng(13)
    for number in range(80):
        at = START + timedelta(minutes=3 * number)
        events = [
            Event(
                twin.user_ids[int(rng.integers(20))],
                twin.post_ids[int(rng.integers(5))],
                str(rng.choice(["like", "reply", "skip", "unlike"])),
                None,
                at,
            )
            for _ in range(4)
        ]
        twin.insert(events)
        if number % 10 == 9:
            twin.fold()
    twin.fold()
    assert twin.difference() < 1e-5
    assert len(alerts(db, "post_moved_in_concert")) == 5


@pytest.mark.parametrize("deletes_first", [True, False])
def test_a_post_removed_for_good_while_a_batch_is_at_work_on_it_breaks_neither(
    fresh_database: Callable[[], str], deletes_first: bool
) -> None:
    url = fresh_database()
    with connect(url) as one, connect(url) as other, connect(url, autocommit=True) as watcher:
        users, posts, _ = crowd(watcher, 6)
        batch = [Event(u, p, kind) for u in users for p in posts[:3] for kind in ("view", "like")]
        remove = "delete from public.posts where id = %s"
        with ThreadPoolExecutor(1) as pool:
            if deletes_first:
                one.execute(remove, [posts[0]])
                insert_events(other, batch)  # waits for nobody
                other.commit()
                one.commit()
            else:
                insert_events(one, batch)
                waiting = pool.submit(other.execute, remove, [posts[0]])
                one.commit()
                waiting.result(timeout=PATIENCE_S)
                other.commit()
        value(watcher, "select two_tower.fold_steps(null)")
        value(watcher, "select two_tower.apply_post_changes()")
        listed = "select is_listed from two_tower.live_embeddings where post_id = %s"
        assert value(watcher, listed, posts[0]) is False
        assert value(watcher, "select count(*) from public.engagement_events") == len(batch)
        assert value(watcher, "select count(*) from two_tower.deferred_steps") == 0
        assert_consistent(watcher)
        # Users who liked it are served all the same.
        pages = watcher.execute(
            "select count(*) from two_tower.recommend_for(%s, 10)", [users[0]]
        ).fetchone()
        assert pages == (10,)
