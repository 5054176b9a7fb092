"""When an event happened, as the client says, and when it arrived, as the server knows."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from python_jobs.db import Connection, value
from tests.support.database import as_user
from tests.support.learning import World
from tests.support.reference import START

NOON = START.replace(hour=12)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def arrive(world: World, at: datetime) -> None:
    """Sets the engine's clock."""
    world.connection.execute("select set_config('two_tower.now', %s, false)", [at.isoformat()])


def hand_in(world: World, post_id: int, event_type: str, happened_at: Any) -> int:
    """An event that arrives now and happened at this time; returns its id."""
    row = world.connection.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, happened_at)"
        " values (%s, %s, %s, %s) returning id",
        [world.user, post_id, event_type, happened_at],
    ).fetchone()
    assert row is not None
    return int(row.id)


def times(connection: Connection, event_id: int) -> Any:
    """When an event happened and when it arrived, as stored."""
    return connection.execute(
        "select happened_at, created_at from public.engagement_events where id = %s", [event_id]
    ).fetchone()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (None, None),
        ((NOON - 2 * DAY).isoformat(), NOON - 2 * DAY),
        ((NOON + 730 * DAY).isoformat(), NOON),
        ((NOON - 30 * DAY).isoformat(), NOON - 7 * DAY),
        ("infinity", NOON),
        ("-infinity", NOON - 7 * DAY),
        ("4713-01-01 BC", NOON - 7 * DAY),
        ("294276-12-31", NOON),
    ],
)
def test_a_time_of_happening_is_brought_to_within_seven_days_before_arrival(
    world: World, said: str | None, kept: datetime | None
) -> None:
    arrive(world, NOON)
    event_id = hand_in(world, world.post_ids[0], "like", said)
    assert tuple(times(world.connection, event_id)) == (kept, NOON)


@pytest.mark.parametrize("is_batch", [True, False], ids=["batch", "insert"])
def test_a_client_says_when_it_happened_and_the_server_when_it_arrived(
    world: World, is_batch: bool
) -> None:
    sent = {"post_id": world.post_ids[0], "event_type": "like", "happened_at": "infinity"}
    with as_user(world.connection, world.user):
        if is_batch:
            world.connection.execute(
                "select * from public.record_engagements(%s)", [json.dumps([sent])]
            )
        else:
            world.connection.execute(
                "insert into public.engagement_events (post_id, event_type, happened_at)"
                " values (%(post_id)s, %(event_type)s, %(happened_at)s)",
                sent,
            )
        happened_at, created_at, now = world.connection.execute(
            "select happened_at, created_at, now() from public.engagement_events"
        ).fetchall()[0]
    assert happened_at == created_at == now


def test_an_operators_import_may_say_both_times(world: World) -> None:
    arrive(world, NOON)
    rows = world.connection.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, happened_at,"
        " created_at) values (%s, %s, 'like', %s, %s) returning id",
        [world.user, world.post_ids[0], NOON - 60 * DAY, NOON - 50 * DAY],
    ).fetchall()
    assert tuple(times(world.connection, rows[0].id)) == (NOON - 57 * DAY, NOON - 50 * DAY)


def test_events_that_name_no_time_do_not_pay_for_those_that_do(world: World) -> None:
    insert = (
        "explain (analyze, costs off, timing off) insert into public.engagement_events"
        " (user_id, post_id, event_type, happened_at) values (%s, %s, 'view', %s)"
    )

    def fired(happened_at: datetime | None) -> bool:
        plan = world.connection.execute(insert, [world.user, world.post_ids[0], happened_at])
        return any("clamp_happened_at" in row[0] for row in plan)

    assert fired(NOON)
    assert not fired(None)


def test_the_negatives_of_a_late_like_were_viewed_when_it_happened(world: World) -> None:
    then, noted = NOON - 3 * DAY, world.post_ids[1:4]
    arrive(world, then)
    for post_id in noted:
        hand_in(world, post_id, "view", None)
    arrive(world, NOON - 5 * MINUTE)
    for post_id in world.post_ids[10:20]:
        hand_in(world, post_id, "view", None)
    arrive(world, NOON)
    late = hand_in(world, world.post_ids[0], "like", then + 5 * MINUTE)
    assert {p[0] for p in world.pairs(event_id=late) if p[2] == "viewed"} == set(noted)
    soon = hand_in(world, world.post_ids[30], "like", None)
    viewed = {p[0] for p in world.pairs(event_id=soon) if p[2] == "viewed"}
    assert viewed <= set(world.post_ids[10:20])
    assert viewed


def test_views_that_were_sent_late_are_no_negatives_of_what_happened_today(world: World) -> None:
    arrive(world, NOON)
    for post_id in world.post_ids[1:4]:
        hand_in(world, post_id, "view", NOON - 3 * DAY)
    today = hand_in(world, world.post_ids[0], "like", None)
    assert "viewed" not in {pair[2] for pair in world.pairs(event_id=today)}
    late = hand_in(world, world.post_ids[5], "like", NOON - 3 * DAY + MINUTE)
    assert {p[0] for p in world.pairs(event_id=late) if p[2] == "viewed"} == set(
        world.post_ids[1:4]
    )


def test_histories_are_in_the_order_in_which_things_happened(world: World) -> None:
    first, second, third = world.post_ids[:3]
    arrive(world, NOON)
    hand_in(world, third, "like", None)
    arrive(world, NOON + MINUTE)
    hand_in(world, second, "like", NOON - DAY)
    hand_in(world, first, "like", NOON - 2 * DAY)
    row = world.connection.execute(
        "select post_ids, hours from two_tower.user_histories(null, array[%s]::uuid[])",
        [world.user],
    ).fetchone()
    assert row is not None
    assert row.post_ids == [first, second, third]
    assert [b - a for a, b in zip(row.hours, row.hours[1:], strict=False)] == [24, 24]


def test_a_time_of_happening_opens_no_minute_beyond_the_one_of_arrival(world: World) -> None:
    world.connection.execute("update two_tower.settings set learned_events_per_minute = 5")
    arrive(world, NOON)
    for place, post_id in enumerate(world.post_ids[:10]):
        hand_in(world, post_id, "like", NOON - place * DAY / 2)
    assert value(world.connection, "select count(*) from two_tower.training_examples") == 5
    waiting = "select count(*) from two_tower.deferred_events where reason = 'minute_full'"
    assert value(world.connection, waiting) == 5


def test_what_waits_keeps_the_time_at_which_it_happened(world: World) -> None:
    then, viewed = NOON - 3 * DAY, world.post_ids[1]
    arrive(world, then)
    hand_in(world, viewed, "view", None)
    arrive(world, NOON)
    world.connection.execute("update two_tower.settings set learned_events_per_minute = 1")
    hand_in(world, world.post_ids[2], "like", None)
    late = hand_in(world, world.post_ids[0], "like", then + MINUTE)
    assert world.pairs(event_id=late) == []
    arrive(world, NOON + 2 * MINUTE)
    assert value(world.connection, "select two_tower.learn_waiting()") == 1
    assert {p[0] for p in world.pairs(event_id=late) if p[2] == "viewed"} == {viewed}
