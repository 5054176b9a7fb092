"""What of an event is accepted, from whom, and at what time; and what is refused."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

from python_jobs.db import value
from tests.support.database import as_user
from tests.support.engagements import (
    insert_events,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import World
from tests.support.reference import START, Event


def assert_refused(world: World, events: list[Event], sqlstate: str) -> psycopg.Error:
    """The statement fails with this SQLSTATE, a message and a hint, and leaves nothing."""
    counts = (
        "select (select count(*) from public.engagement_events)"
        " + (select count(*) from two_tower.user_posts)"
        " + (select count(*) from two_tower.user_embeddings)"
        " + (select count(*) from two_tower.training_examples)"
        " + (select count(*) from two_tower.deferred_events)"
    )
    before = value(world.connection, counts)
    with pytest.raises(psycopg.Error) as caught, world.connection.transaction():
        insert_events(world.connection, events)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_primary
    assert caught.value.diag.message_hint
    assert value(world.connection, counts) == before
    return caught.value


@pytest.mark.parametrize("event_type", ["view", "like", "unlike", "skip"])
def test_an_unknown_post_is_refused_and_nothing_of_the_statement_is_stored(
    world: World, event_type: str
) -> None:
    good = Event(world.user, world.post_ids[0], "like")
    error = assert_refused(world, [good, Event(world.user, 999_999, event_type), good], "23503")
    assert "999999" in str(error.diag.message_primary)


@pytest.mark.parametrize("event_type", ["view", "like", "unlike", "skip"])
def test_an_unknown_user_is_refused_and_nothing_of_the_statement_is_stored(
    world: World, event_type: str
) -> None:
    stranger = str(uuid.uuid4())
    error = assert_refused(world, [Event(stranger, world.post_ids[0], event_type)], "23503")
    assert stranger in str(error.diag.message_primary)


@pytest.mark.parametrize("event_type", ["view", "like"])
@pytest.mark.parametrize(
    "delay", [timedelta(minutes=6), timedelta(days=400), timedelta(days=-365 * 31)]
)
def test_an_event_of_the_future_or_of_another_age_is_refused(
    world: World, event_type: str, delay: timedelta
) -> None:
    world.connection.execute("select set_config('two_tower.now', %s, true)", [START.isoformat()])
    with pytest.raises(psycopg.Error) as caught, world.connection.transaction():
        world.connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            " values (%s, %s, %s, %s)",
            [world.user, world.post_ids[0], event_type, START + delay],
        )
    assert caught.value.sqlstate == "TT001"
    assert caught.value.diag.message_hint
    assert value(world.connection, "select count(*) from public.engagement_events") == 0


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_an_event_at_no_time_at_all_is_refused(world: World, moment: str) -> None:
    with pytest.raises(psycopg.Error) as caught, world.connection.transaction():
        world.connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            " values (%s, %s, 'view', %s)",
            [world.user, world.post_ids[0], moment],
        )
    assert caught.value.sqlstate == "TT001"


@pytest.mark.parametrize(
    ("column", "given", "sqlstate"),
    [
        ("user_id", None, "23502"),
        ("post_id", None, "23502"),
        ("event_type", None, "23502"),
        ("created_at", None, "23502"),
        ("event_type", "love", "23514"),
        ("event_type", "dwell", "23514"),
        ("dwell_ms", -1, "23514"),
    ],
)
def test_a_malformed_event_is_refused(world: World, column: str, given: Any, sqlstate: str) -> None:
    row = {"user_id": world.user, "post_id": world.post_ids[0], "event_type": "like"}
    row |= {"dwell_ms": None, "created_at": START, column: given}
    with pytest.raises(psycopg.Error) as caught, world.connection.transaction():
        world.connection.execute(
            "insert into public.engagement_events"
            " (user_id, post_id, event_type, dwell_ms, created_at)"
            " values (%(user_id)s, %(post_id)s, %(event_type)s, %(dwell_ms)s, %(created_at)s)",
            row,
        )
    assert caught.value.sqlstate == sqlstate


def test_the_service_role_inserts_history_and_sets_the_clock(world: World) -> None:
    connection, at = world.connection, datetime(2019, 3, 4, 5, 6, tzinfo=UTC)
    with as_user(connection, None, "service_role"):
        connection.execute("select set_config('two_tower.now', %s, true)", [at.isoformat()])
        assert value(connection, "select two_tower.now()") == at
        connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            " values (%s, %s, 'like', %s)",
            [world.user, world.post_ids[0], at - timedelta(days=1000)],
        )
        connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'like')",
            [world.user, world.post_ids[1]],
        )
    times = connection.execute("select created_at from public.engagement_events order by id")
    assert [row[0] for row in times] == [at - timedelta(days=1000), at]
    assert_consistent(connection)


def test_a_clients_clock_is_ignored(world: World) -> None:
    connection = world.connection
    real = value(connection, "select now()")
    with as_user(connection, world.user):
        connection.execute("select set_config('two_tower.now', '2019-01-01', true)")
        assert value(connection, "select two_tower.now()") == real
        connection.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, 'like')",
            [world.post_ids[0]],
        )
    assert value(connection, "select created_at from public.engagement_events") == real
    assert value(connection, "select created_at from two_tower.training_examples") == real


@pytest.mark.parametrize("column", ["created_at", "id"])
def test_a_client_can_not_choose_time_or_id_of_an_event(world: World, column: str) -> None:
    given = {"created_at": "now()", "id": "1"}[column]
    with (
        pytest.raises(errors.InsufficientPrivilege),
        world.connection.transaction(),
        as_user(world.connection, world.user),
    ):
        world.connection.execute(
            f"insert into public.engagement_events (post_id, event_type, {column})"
            f" values (%s, 'like', {given})",
            [world.post_ids[0]],
        )


@pytest.mark.parametrize("event_type", ["view", "like"])
def test_a_repeated_client_event_id_is_refused_with_23505(world: World, event_type: str) -> None:
    key = uuid.uuid4()
    events = [Event(world.user, world.post_ids[0], event_type)]
    insert_events(world.connection, events, [key])
    before = value(world.connection, "select count(*) from public.engagement_events")
    with pytest.raises(errors.UniqueViolation) as caught, world.connection.transaction():
        insert_events(world.connection, [*events, *events], [uuid.uuid4(), key])
    assert caught.value.diag.message_hint
    assert str(key) in str(caught.value.diag.message_primary)
    assert value(world.connection, "select count(*) from public.engagement_events") == before
    # Another user may have drawn the same one.
    insert_events(world.connection, [Event(world.user_ids[1], world.post_ids[0], "like")], [key])


def test_a_client_event_id_twice_in_one_statement_is_refused(world: World) -> None:
    key, event = uuid.uuid4(), Event(world.user, world.post_ids[0], "view")
    with pytest.raises(errors.UniqueViolation), world.connection.transaction():
        insert_events(world.connection, [event, event], [key, key])
    assert value(world.connection, "select count(*) from public.engagement_events") == 0


def test_a_client_event_id_is_forgotten_after_the_retry_window(world: World) -> None:
    key = uuid.uuid4()
    for days in (0, 8):
        at = START + timedelta(days=days)
        insert_events(
            world.connection, [Event(world.user, world.post_ids[0], "view", None, at)], [key]
        )


def test_rows_that_replication_brings_are_not_learned_a_second_time(world: World) -> None:
    # A subscriber applies rows in this role; their embeddings come with them.
    trigger = "select tgenabled::text from pg_catalog.pg_trigger where tgname = 'learn_from_events'"
    assert {row[0] for row in world.connection.execute(trigger)} == {"O"}
