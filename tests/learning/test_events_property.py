"""Any short stream of events, hostile ones too, leaves a database in which all invariants hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_jobs.db import Connection, connect
from tests.support.database import as_user
from tests.support.engagements import base_vectors, insert_events, store
from tests.support.invariants import assert_consistent
from tests.support.reference import EVENT_TYPES, START, STRENGTHS, WITHDRAWALS, Event, meaning
from tests.support.twin import Twin

USERS, POSTS = 3, 24
# The last two posts of the world are not encoded.
UNENCODED = 2

# Beside two_tower.error_codes: what the table's own constraints say of a malformed row.
CONSTRAINT_CODES = {"23502", "23514"}

run_each = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

seconds = st.one_of(
    st.integers(0, 120),
    # An hour and its neighbours, a year, thirty years: windows and limits of the settings.
    st.sampled_from([-3601, -3600, -3599, -365 * 86400, -30 * 365 * 86400, 299, 300, 301, 10**9]),
)
dwells = st.one_of(st.none(), st.sampled_from([-1, 0, 1999, 2000, 5000, 5001, 2**31 - 1]))
sane_dwells = st.sampled_from([0, 1999, 2000, 5000, 5001, 2**31 - 1])


@st.composite
def events(draw: st.DrawFn, *, hostile: bool) -> tuple[int, int, str, int | None, int]:
    """(user number, post number, type, dwell, seconds after the start)."""
    user = draw(st.integers(0, USERS - 1 + (1 if hostile else 0)))
    post = draw(st.integers(0, POSTS - 1 + (1 if hostile else 0)))
    event_type = draw(st.sampled_from([*EVENT_TYPES, *(("love", "") if hostile else ())]))
    dwell = draw(dwells if hostile else sane_dwells)
    return user, post, event_type, dwell, draw(seconds) if hostile else draw(st.integers(0, 120))


toggles = st.tuples(
    st.integers(0, USERS - 1), st.integers(0, POSTS - 1), st.sampled_from([*WITHDRAWALS])
).map(lambda t: [(t[0], t[1], kind, None, 0) for kind in (WITHDRAWALS[t[2]], t[2]) * 4])
floods = st.tuples(events(hostile=False), st.integers(2, 70)).map(lambda t: [t[0]] * t[1])
statements = st.one_of(st.lists(events(hostile=False), min_size=1, max_size=8), toggles, floods)
streams = st.lists(statements, min_size=1, max_size=6)
hostile_streams = st.lists(
    st.one_of(st.lists(events(hostile=True), min_size=1, max_size=4), statements),
    min_size=1,
    max_size=6,
)


@pytest.fixture
def twin(fresh_database: Callable[[], str]) -> Iterator[Twin]:
    """A small world; each example runs in a savepoint that is rolled back."""
    with connect(fresh_database()) as connection:
        yield Twin(
            connection,
            np.random.default_rng(1),
            users=USERS,
            posts=POSTS - UNENCODED,
            unencoded_posts=UNENCODED,
        )


def undone(connection: Connection) -> Any:
    """A savepoint that is always rolled back; what failed inside is still raised."""
    return connection.transaction(force_rollback=True)


def make(twin: Twin, described: tuple[int, int, str, int | None, int]) -> Event:
    """The event that was drawn; one number too many is a stranger or a post that is not there."""
    user, post, event_type, dwell, after = described
    posts = [*twin.post_ids, *twin.unencoded]
    return Event(
        twin.user_ids[user] if user < USERS else "00000000-0000-0000-0000-000000000000",
        posts[post] if post < POSTS else 2**62,
        event_type,
        dwell,
        START + timedelta(seconds=after),
    )


def assert_signals_match_what_was_sent(connection: Connection, sent: list[Event]) -> None:
    """is_engaged and is_hidden are what the user said, learned or not; nothing else is."""
    engaged: dict[tuple[str, int], set[str]] = {}
    hidden: dict[tuple[str, int], set[str]] = {}
    touched = set()
    for event in sent:
        key = (event.user_id, event.post_id)
        touched.add(key)
        signal = meaning(event.event_type, event.dwell_ms)
        if STRENGTHS.get(signal, 0) > 0:
            engaged.setdefault(key, set()).add(signal)
        elif signal in ("hide", "not_interested"):
            hidden.setdefault(key, set()).add(signal)
        elif withdrawn := WITHDRAWALS.get(signal):
            engaged.setdefault(key, set()).discard(withdrawn)
            hidden.setdefault(key, set()).discard(withdrawn)
    rows = connection.execute(
        "select user_id::text, post_id, is_engaged, is_hidden from two_tower.user_posts"
    ).fetchall()
    assert {(row[0], row[1]) for row in rows} == touched
    waiting = {
        (str(row[0]), row[1])
        for row in connection.execute("select user_id, post_id from two_tower.deferred_events")
    }
    for user_id, post_id, is_engaged, is_hidden in rows:
        key = (user_id, post_id)
        assert is_hidden == bool(hidden.get(key)), key
        if key not in waiting:
            assert is_engaged == bool(engaged.get(key)), key


@run_each
@given(stream=streams, rule=st.sampled_from(["contrastive", "literal"]))
def test_every_stream_of_valid_events_is_taken_and_keeps_all_invariants(
    twin: Twin, stream: list[list[Any]], rule: str
) -> None:
    connection, sent = twin.connection, []
    with undone(connection):
        connection.execute("update two_tower.settings set learning_rule = %s", [rule])
        for statement in stream:
            described = [make(twin, one) for one in statement]
            insert_events(connection, described)
            sent += described
            connection.execute("select two_tower.fold_steps(10)")
            assert_consistent(connection)
        assert_signals_match_what_was_sent(connection, sent)
        store(connection, twin.unencoded, base_vectors(np.random.default_rng(2), UNENCODED))
        waiting = connection.execute("select count(*) from two_tower.deferred_events").fetchone()
        assert waiting == (0,)
        connection.execute("select two_tower.fold_steps(null)")
        assert_consistent(connection)
        assert_signals_match_what_was_sent(connection, sent)


@run_each
@given(stream=hostile_streams)
def test_a_hostile_statement_is_refused_by_a_documented_code_and_leaves_nothing(
    twin: Twin, stream: list[list[Any]]
) -> None:
    connection = twin.connection
    known = {row[0] for row in connection.execute("select sqlstate from two_tower.error_codes")}
    count = "select count(*) from public.engagement_events"
    refusals: list[str] = []
    codes: set[str | None] = set()
    with undone(connection):
        stored = 0
        for statement in stream:
            described = [make(twin, one) for one in statement]
            # The clock stands still: events of another time are what the statement makes them.
            try:
                with connection.transaction():
                    connection.execute("set two_tower.now = '2026-01-05 09:00:00+00'")
                    insert_at_start(connection, described)
                stored += len(described)
            except psycopg.Error as error:
                refusals.append(str(error))
                codes.add(error.sqlstate)
            assert connection.execute(count).fetchone() == (stored,)
        assert codes <= known | CONSTRAINT_CODES, refusals
        assert all(refusals), "a refusal says nothing"
        assert_consistent(connection)


def insert_at_start(connection: Connection, described: list[Event]) -> None:
    """One statement, at the clock of the session, whatever times the events name."""
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into public.engagement_events"
            " (user_id, post_id, event_type, dwell_ms, created_at)"
            " select * from unnest(%s::uuid[], %s::bigint[], %s::text[], %s::integer[],"
            "                      %s::timestamptz[])",
            [
                [event.user_id for event in described],
                [event.post_id for event in described],
                [event.event_type for event in described],
                [event.dwell_ms for event in described],
                [event.created_at for event in described],
            ],
        )


@run_each
@given(stream=hostile_streams)
def test_a_client_who_sends_anything_reaches_only_its_own_events(
    twin: Twin, stream: list[list[Any]]
) -> None:
    """As a signed-in user: the same streams, one event at a time, for whomever they name."""
    connection, me = twin.connection, twin.user_ids[0]
    known = {row[0] for row in connection.execute("select sqlstate from two_tower.error_codes")}
    refusals: list[str] = []
    codes: set[str | None] = set()
    with undone(connection):
        for statement in stream:
            for one in statement[:6]:
                event = make(twin, one)
                is_mine = event.user_id == me
                try:
                    with connection.transaction(), as_user(connection, me):
                        connection.execute(
                            "insert into public.engagement_events"
                            " (user_id, post_id, event_type, dwell_ms) values (%s, %s, %s, %s)",
                            [event.user_id, event.post_id, event.event_type, event.dwell_ms],
                        )
                    assert is_mine, "an event for another user was stored"
                except psycopg.Error as error:
                    refusals.append(str(error))
                    codes.add(error.sqlstate)
        assert codes <= known | CONSTRAINT_CODES, refusals
        others = connection.execute(
            "select count(*) from public.engagement_events where user_id <> %s", [me]
        ).fetchone()
        assert others == (0,)
        assert_consistent(connection)
