"""Events above their user's bound of a minute: learned later, in their order, once, never not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from python_jobs.db import Connection, connect, value
from python_jobs.local.postgres import Cluster
from tests.support.database import as_user
from tests.support.engagements import Stream, delete_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.learning import TOLERANCE, World, reasons, rng
from tests.support.reference import START, Event
from tests.support.twin import Twin

MINUTE = timedelta(minutes=1)
LATER = START + timedelta(hours=1)


def limit(connection: Connection, learned: int, waiting: int = 1000) -> None:
    connection.execute(
        "update two_tower.settings"
        " set learned_events_per_minute = %s, waiting_events_per_user = %s",
        [learned, waiting],
    )


def waiting(connection: Connection) -> list[int]:
    """Events that wait for a minute, in order."""
    return [
        row[0]
        for row in connection.execute(
            "select event_id from two_tower.deferred_events where reason = 'minute_full' order by 1"
        )
    ]


def learned(connection: Connection, user_id: str) -> list[int]:
    """Learned events of a user that are in force, in order of id."""
    return [
        row[0]
        for row in connection.execute(
            "select event_id from two_tower.training_examples"
            " where user_id = %s and not is_withdrawn order by 1",
            [user_id],
        )
    ]


def step(connection: Connection, now: datetime, count: int = 500) -> int:
    """What a tick does at this moment."""
    connection.execute("select set_config('two_tower.now', %s, false)", [now.isoformat()])
    taken: int = value(connection, "select two_tower.learn_waiting(%s)", count)
    return taken


def likes(world: World, posts: range, now: datetime = LATER, user: int = 0) -> list[int]:
    """Likes of one statement."""
    return insert_events(
        world.connection,
        [Event(world.user_ids[user], world.post_ids[n], "like", None, now) for n in posts],
    )


def test_every_event_is_learned_in_its_order_a_bounded_number_a_minute(world: World) -> None:
    db = world.connection
    limit(db, 7)
    ids = likes(world, range(20))
    assert learned(db, world.user) == ids[:7]
    assert waiting(db) == ids[7:]
    assert step(db, LATER) == 0
    for minute, wanted in ((1, 14), (2, 20), (3, 20)):
        step(db, LATER + minute * MINUTE)
        # Within the minute there is no more to be had.
        step(db, LATER + minute * MINUTE + timedelta(seconds=50))
        assert learned(db, world.user) == ids[:wanted]
        assert_consistent(db)
    recent = value(
        db, "select recent_post_ids from two_tower.user_embeddings where user_id = %s", world.user
    )
    assert recent == world.post_ids[:20]
    assert value(db, "select count(waits_until) from two_tower.user_embeddings") == 0
    assert reasons(db) == {}


def test_a_late_tick_learns_no_more_in_its_minute_than_any(world: World) -> None:
    limit(world.connection, 5)
    ids = likes(world, range(20))
    much_later = LATER + timedelta(hours=9)
    assert sum(step(world.connection, much_later) for _ in range(5)) == 5
    assert learned(world.connection, world.user) == ids[:10]


def test_what_comes_while_others_wait_waits_behind_them_and_views_do_not(world: World) -> None:
    db = world.connection
    limit(db, 3)
    ids = likes(world, range(5))
    later = LATER + 2 * MINUTE
    ids += likes(world, range(5, 6), later)
    view = insert_events(db, [Event(world.user, world.post_ids[6], "view", None, later)])
    others = likes(world, range(2), later, user=1)
    assert waiting(db) == ids[3:]
    assert value(db, "select count(*) from two_tower.user_posts where signals & 1 <> 0") == 1
    assert len(learned(db, world.user_ids[1])) == len(others)
    assert step(db, later) == 3
    assert learned(db, world.user) == ids
    assert view[0] not in waiting(db)
    # Nothing waits any more, but the minute is full.
    ids += likes(world, range(7, 8), later)
    assert waiting(db) == ids[-1:]
    assert_consistent(db)


def test_the_queue_of_a_user_is_bounded_and_what_it_does_not_take_is_recorded(
    world: World,
) -> None:
    db = world.connection
    limit(db, 3, 4)
    ids = likes(world, range(10))
    assert waiting(db) == ids[3:7]
    assert reasons(db) == {"rate_limited": 3}
    assert len(likes(world, range(10, 12), user=1)) == 2
    assert reasons(db) == {"rate_limited": 3}
    step(db, LATER + MINUTE)
    more = likes(world, range(12, 16), LATER + MINUTE)
    assert waiting(db) == [ids[6], *more[:3]]
    assert reasons(db) == {"rate_limited": 4}
    assert_consistent(db)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("queue", [100, 3])
def test_an_unlike_ends_the_like_that_waits_at_once_also_where_the_queue_is_full(
    world: World, batched: bool, queue: int
) -> None:
    db = world.connection
    limit(db, 2, queue)
    user, posts = world.user, world.post_ids
    kinds = [
        *((posts[n], "like") for n in (0, 1, 2)),
        (posts[2], "reply"),
        (posts[3], "like"),
        *((posts[n], "unlike") for n in (3, 2, 1, 9)),
    ]
    events = [Event(user, post_id, kind, None, LATER) for post_id, kind in kinds]
    ids: list[int] = []
    for some in [events] if batched else [[event] for event in events]:
        ids += insert_events(db, some)
    # The reply to a post whose like was taken back waits on, and the post stays engaged with.
    assert waiting(db) == [ids[3]]
    assert reasons(db) == {"withdrawn": 2, "nothing_to_withdraw": 3}
    assert learned(db, user) == ids[:1]
    engaged = db.execute("select post_id from two_tower.user_posts where is_engaged").fetchall()
    assert {row[0] for row in engaged} == {posts[0], posts[2]}
    again = insert_events(db, [Event(user, posts[3], "like", None, LATER)])
    assert waiting(db) == [ids[3], *again]
    step(db, LATER + MINUTE)
    assert learned(db, user) == [ids[0], ids[3], *again]
    assert_consistent(db)


def test_sql_equals_the_reference_where_most_events_come_above_the_bound(db: Connection) -> None:
    twin = Twin(db, rng(21), users=4, posts=40, unencoded_posts=1)
    limit(db, 5, 12)
    twin.reference.learned_per_minute, twin.reference.late_per_user = 5, 12
    stream = Stream(twin.rng, twin.user_ids, [*twin.post_ids, *twin.unencoded])
    for round_ in range(12):
        events = [
            Event(e.user_id, e.post_id, e.event_type, e.dwell_ms, LATER + round_ * MINUTE)
            for e in stream.next(30)
        ]
        twin.insert(events)
        if round_ % 4 == 1:
            value(db, "select two_tower.freeze('a test')")
            twin.reference.is_frozen = True
        if round_ % 4 == 2:
            value(db, "select two_tower.resume()")
            twin.reference.is_frozen = False
            twin.learn_deferred()
        if round_ % 4 != 1:
            twin.learn_waiting(LATER + round_ * MINUTE + timedelta(seconds=55))
        twin.fold()
        assert twin.difference() < TOLERANCE
        twin.assert_same_verdicts()
        assert_consistent(db)
    twin.encode(twin.unencoded[0])
    for round_ in range(12, 30):
        twin.learn_waiting(LATER + round_ * MINUTE)
    assert waiting(db) == []
    assert twin.difference() < TOLERANCE
    twin.assert_same_verdicts()
    assert {"withdrawn", "rate_limited", "repeated"} <= set(reasons(db))
    assert_consistent(db)


def test_history_that_is_imported_waits_behind_nothing_else(world: World) -> None:
    db = world.connection
    limit(db, 3)
    burst = likes(world, range(5), START)
    now = START + timedelta(days=30)
    db.execute("select set_config('two_tower.now', %s, false)", [now.isoformat()])
    for n in range(5, 9):
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            " values (%s, %s, 'like', %s)",
            [world.user, world.post_ids[n], START + n * MINUTE],
        )
    assert waiting(db) == burst[3:]
    assert len(learned(db, world.user)) == 7
    assert step(db, now) == 2
    assert_consistent(db)


def test_what_waits_goes_on_waiting_through_a_freeze_and_is_learned_before_its_events(
    world: World,
) -> None:
    db = world.connection
    limit(db, 3)
    ids = likes(world, range(5))
    value(db, "select two_tower.freeze('a test')")
    assert step(db, LATER + MINUTE) == 0
    frozen = likes(world, range(5, 8), LATER + MINUTE)
    unliked = insert_events(
        db, [Event(world.user, world.post_ids[3], "unlike", None, LATER + MINUTE)]
    )
    assert waiting(db) == ids[3:]
    value(db, "select two_tower.resume()")
    assert value(db, "select two_tower.learn_deferred()") == 4
    # They wait behind what came before the freeze; what it took back is gone from the queue.
    assert waiting(db) == [ids[4], *frozen]
    assert reasons(db) == {"withdrawn": 1, "nothing_to_withdraw": len(unliked)}
    step(db, LATER + 2 * MINUTE)
    step(db, LATER + 3 * MINUTE)
    assert learned(db, world.user) == [*ids[:3], ids[4], *frozen]
    assert_consistent(db)


def test_events_of_a_freeze_that_are_skipped_take_nothing_else_along(world: World) -> None:
    db = world.connection
    limit(db, 3)
    ids = likes(world, range(5))
    value(db, "select two_tower.freeze('a test')")
    likes(world, range(5, 8), LATER + MINUTE)
    value(db, "select two_tower.resume(1, true)")
    assert reasons(db) == {"skipped": 3}
    step(db, LATER + MINUTE)
    assert learned(db, world.user) == ids
    assert_consistent(db)


def test_after_a_rollback_what_waited_is_learned_once(world: World) -> None:
    db = world.connection
    limit(db, 3)
    likes(world, range(3), START)
    value(db, "select two_tower.checkpoint()")
    ids = likes(world, range(3, 8))
    value(db, "select two_tower.rollback()")
    for _ in range(100):
        if value(db, "select filling_checkpoint is null from two_tower.state"):
            break
        value(db, "select two_tower.take_step()")
    assert waiting(db) == ids[3:]
    value(db, "select two_tower.resume()")
    assert step(db, LATER + MINUTE) == 2
    count = "select engagement_count from two_tower.user_embeddings where user_id = %s"
    assert value(db, count, world.user) == 5
    assert waiting(db) == []


def test_a_post_that_is_deleted_meanwhile_teaches_nothing_and_takes_no_room(world: World) -> None:
    db = world.connection
    limit(db, 2)
    ids = likes(world, range(6))
    delete_posts(db, [world.post_ids[2]])
    delete_posts(db, [world.post_ids[3]], rows=True)
    db.execute("delete from two_tower.posts where id = %s", [world.post_ids[3]])
    assert waiting(db) == [ids[2], *ids[4:]]
    assert sum(step(db, LATER + MINUTE) for _ in range(3)) == 3
    assert learned(db, world.user) == [*ids[:2], *ids[4:]]
    assert reasons(db) == {"post_deleted": 1}


def test_a_deleted_users_queue_goes_with_the_user(world: World) -> None:
    db = world.connection
    limit(db, 2)
    likes(world, range(6))
    ids = likes(world, range(6), user=1)
    db.execute("delete from auth.users where id = %s", [world.user])
    assert waiting(db) == ids[2:]
    assert step(db, LATER + MINUTE) == 2


def test_an_offline_flush_of_500_is_learned_to_the_last_like_by_ticks(db: Connection) -> None:
    world = World(db, posts=500)
    db.execute("update two_tower.schedules set is_enabled = false")
    events = [
        {"post_id": post_id, "event_type": "like", "client_event_id": str(uuid.uuid4())}
        for post_id in world.post_ids
    ]
    # A client has no clock but the server's.
    start = value(db, "select date_trunc('minute', pg_catalog.now())")
    with as_user(db, world.user):
        rows = db.execute(
            "select status from public.record_engagements(%s, true)", [json.dumps(events)]
        ).fetchall()
    assert {row[0] for row in rows} == {"stored"}
    counts = []
    for minute in range(9):
        now = (start + minute * MINUTE).isoformat()
        db.execute("select set_config('two_tower.now', %s, false)", [now])
        for _ in range(12):
            value(db, "select two_tower.take_step()")
        counts.append(len(learned(db, world.user)))
    assert counts == [60 * n for n in range(1, 9)] + [500]
    assert reasons(db) == {}
    assert_consistent(db)


def test_one_step_is_bounded_and_serves_users_by_turns(db: Connection) -> None:
    world = World(db, users=5)
    limit(db, 4)
    for user in range(5):
        likes(world, range(20), LATER + timedelta(seconds=user), user=user)
    at = LATER + MINUTE + timedelta(seconds=10)
    assert [step(db, at, 6) for _ in range(5)] == [6, 6, 6, 2, 0]
    assert [len(learned(db, user)) for user in world.user_ids] == [8] * 5
    assert_consistent(db)


def test_health_and_overview_say_how_many_wait_and_for_how_long(world: World) -> None:
    db = world.connection
    limit(db, 2)
    likes(world, range(6))
    at = (LATER + 45 * MINUTE).isoformat()
    db.execute("select set_config('two_tower.now', %s, false)", [at])
    db.execute("select two_tower.record_metrics()")
    found = db.execute(
        "select name, value, state from two_tower.health"
        " where name in ('waiting_events', 'longest_wait', 'deferred_events') order by 1"
    ).fetchall()
    assert found == [
        ("deferred_events", 0, "ok"),
        ("longest_wait", 45, "warning"),
        ("waiting_events", 4, "ok"),
    ]
    overview = db.execute(
        "select deferred_events, waiting_events, longest_wait from two_tower.overview"
    ).fetchone()
    assert overview == (0, 4, 45 * MINUTE)


def test_writers_and_ticks_at_once_learn_each_event_once_and_in_order(
    open_connection: Callable[..., Connection],
) -> None:
    setup = open_connection()
    world = World(setup, users=4, posts=40)
    limit(setup, 10)
    rounds = 12

    def write(user: int) -> list[int]:
        session, ids = open_sessions[user], []
        for round_ in range(rounds):
            ids += insert_events(
                session,
                [
                    Event(world.user_ids[user], world.post_ids[n], kind, None, LATER)
                    for n in range(round_, round_ + 3)
                    for kind in ("like", "unlike", "reply", "like")
                ],
            )
        return ids

    def tick(session: Connection) -> None:
        for minute in range(40):
            step(session, LATER + minute * MINUTE, 7)

    open_sessions = [open_connection() for _ in range(4)]
    tickers = [open_connection() for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, user) for user in range(4)]
        others = [pool.submit(tick, session) for session in tickers]
        for future in [*writers, *others]:
            future.result()
    assert_consistent(setup)
    for minute in range(100, 200):
        if not waiting(setup):
            break
        while step(setup, LATER + minute * MINUTE):
            pass
    assert waiting(setup) == []
    value(setup, "select two_tower.fold_steps(null)")
    assert_consistent(setup)


def test_a_server_that_is_killed_in_a_step_loses_and_repeats_nothing(durable: Cluster) -> None:
    with connect(durable.url(), autocommit=True) as db:
        world = World(db)
        limit(db, 4)
        ids = likes(world, range(12))
    doomed = connect(durable.url())
    assert step(doomed, LATER + MINUTE) == 4
    durable.stop("immediate")
    durable.start()
    doomed.close()
    with connect(durable.url(), autocommit=True) as db:
        assert waiting(db) == ids[4:]
        assert learned(db, world.user) == ids[:4]
        for minute in (1, 2):
            step(db, LATER + minute * MINUTE)
        assert learned(db, world.user) == ids
        assert_consistent(db)
