"""Batches of events: stored as a whole, or answered by event."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import errors

from python_jobs.db import Connection, value
from tests.support.database import as_user
from tests.support.invariants import assert_consistent
from tests.support.learning import World
from tests.support.patience import PATIENCE_S, wait_until

RECORD = "select * from public.record_engagements(%s, p_each => %s)"


def event(post_id: int, event_type: str = "like", **more: Any) -> dict[str, Any]:
    """An event as a client sends it, with an id of its own."""
    return {
        "post_id": post_id,
        "event_type": event_type,
        "client_event_id": str(uuid.uuid4()),
        **more,
    }


def record(
    connection: Connection, user_id: str, events: list[Any], *, each: bool = True
) -> list[Any]:
    """What the call answers to this user, a row an event."""
    with connection.transaction(), as_user(connection, user_id):
        return connection.execute(RECORD, [json.dumps(events), each]).fetchall()


def statuses(rows: list[Any]) -> list[str]:
    return [row.status for row in rows]


def stored(connection: Connection) -> list[tuple[str, str]]:
    """Stored events by id: client_event_id and type."""
    return connection.execute(
        "select client_event_id::text, event_type from public.engagement_events order by id"
    ).fetchall()


BAD = {
    "no object": ("like", "22023"),
    "an array": ([1], "22023"),
    "null": (None, "22023"),
    "an unknown post": ({"post_id": 10**15, "event_type": "view"}, "23503"),
    "an unknown key": ({"post_key": "no such key", "event_type": "view"}, "23503"),
    "an unknown source": ({"post_key": "1", "post_source": "x", "event_type": "view"}, "22023"),
    "no post": ({"event_type": "view"}, "23502"),
    "no type": ({"post_id": 1}, "23502"),
    "an unknown type": ({"post_id": 1, "event_type": "x" * 10_000}, "23514"),
    "a dwell without one": ({"post_id": 1, "event_type": "dwell"}, "23514"),
    "a negative dwell": ({"post_id": 1, "event_type": "dwell", "dwell_ms": -0.2}, "23514"),
    "a huge negative dwell": ({"post_id": 1, "event_type": "dwell", "dwell_ms": -1e99}, "23514"),
    "a dwell as text": ({"post_id": 1, "event_type": "dwell", "dwell_ms": "NaN"}, "22P02"),
    "a dwell as an object": ({"post_id": 1, "event_type": "dwell", "dwell_ms": {}}, "22P02"),
    "text for a number": ({"post_id": "one", "event_type": "view"}, "22P02"),
    "half a post": ({"post_id": 1.5, "event_type": "view"}, "22P02"),
    "a number too long": ({"post_id": 10**30, "event_type": "view"}, "22003"),
    "no time": ({"post_id": 1, "event_type": "view", "happened_at": "NaN"}, "22007"),
    "a time as an object": ({"post_id": 1, "event_type": "view", "happened_at": {}}, "22007"),
    "a time too far": ({"post_id": 1, "event_type": "view", "happened_at": "1e99"}, "22007"),
    "a year too far": ({"post_id": 1, "event_type": "view", "happened_at": "300000-1-1"}, "22008"),
    "no uuid": ({"post_id": 1, "event_type": "view", "client_event_id": "1234"}, "22P02"),
}


def bad(world: World, name: str) -> Any:
    """A refused event. Where it names post 1, it names a post that exists."""
    sent = BAD[name][0]
    if isinstance(sent, dict) and sent.get("post_id") == 1:
        return {**sent, "post_id": world.post_ids[0]}
    return sent


@pytest.mark.parametrize("name", BAD)
def test_a_bad_event_is_refused_by_itself_and_says_why(world: World, name: str) -> None:
    good = [event(post_id) for post_id in world.post_ids[:3]]
    rows = record(world.connection, world.user, [*good[:2], bad(world, name), *good[2:]])
    assert statuses(rows) == ["stored", "stored", "refused", "stored"]
    refused = rows[2]
    assert (refused.place, refused.code, refused.event_id) == (3, BAD[name][1], None)
    assert 0 < len(refused.message) <= 500
    assert refused.hint
    assert [row[0] for row in stored(world.connection)] == [e["client_event_id"] for e in good]
    assert_consistent(world.connection)


@pytest.mark.parametrize("name", BAD)
def test_all_or_nothing_raises_what_the_answer_by_event_says(world: World, name: str) -> None:
    events = [event(world.post_ids[1]), bad(world, name)]
    with pytest.raises(errors.Error) as caught, world.connection.transaction():
        record(world.connection, world.user, events, each=False)
    assert caught.value.sqlstate == BAD[name][1]
    assert stored(world.connection) == []


@pytest.mark.parametrize("kept_parts", [0, 3, 32])
def test_however_many_are_bad_the_good_ones_are_stored_in_their_order(
    world: World, kept_parts: int
) -> None:
    """Whether parts are kept as they come or stored at the end, one statement or many."""
    names = list(BAD)
    events: list[Any] = []
    for place in range(60):
        is_bad = place % 3 == 1 or 30 <= place < 40
        events.append(
            bad(world, names[place % len(names)])
            if is_bad
            else event(world.post_ids[place % 40], ("like", "view", "reply")[place % 2])
        )
    since = "two_tower.now() - interval '1 day'"
    with as_user(world.connection, world.user):
        rows = world.connection.execute(
            "select * from two_tower.store_each(array(select e from jsonb_array_elements(%s) e),"
            f" {since}, %s) order by place",
            [json.dumps(events), kept_parts],
        ).fetchall()
    good = [e for place, e in enumerate(events) if not (place % 3 == 1 or 30 <= place < 40)]
    assert [row.place for row in rows] == list(range(1, 61))
    assert Counter(statuses(rows)) == {"stored": len(good), "refused": 60 - len(good)}
    assert [row[0] for row in stored(world.connection)] == [e["client_event_id"] for e in good]
    ids = [row.event_id for row in rows if row.status == "stored"]
    assert ids == sorted(ids)
    assert_consistent(world.connection)


@pytest.mark.parametrize("each", [True, False])
def test_a_retry_of_the_batch_gets_the_same_ids_and_stores_nothing(
    world: World, each: bool
) -> None:
    events: list[Any] = [event(post_id) for post_id in world.post_ids[:4]]
    if each:
        events.insert(2, bad(world, "an unknown type"))
    first = record(world.connection, world.user, events, each=each)
    again = record(world.connection, world.user, events, each=each)
    assert [row.event_id for row in again] == [row.event_id for row in first]
    assert [row.created_at for row in again] == [row.created_at for row in first]
    assert {row.status for row in first} == ({"stored", "refused"} if each else {"stored"})
    known = [{"stored": "known", "refused": "refused"}[status] for status in statuses(first)]
    assert statuses(again) == known
    assert len(stored(world.connection)) == 4
    assert_consistent(world.connection)


def test_a_retry_is_known_though_its_post_is_gone_by_then(world: World) -> None:
    events = [event(world.post_ids[0]), event(world.post_ids[1])]
    first = record(world.connection, world.user, events)
    world.connection.execute("delete from two_tower.posts where id = %s", [world.post_ids[0]])
    again = record(world.connection, world.user, [*events, event(world.post_ids[0])])
    assert statuses(again) == ["known", "known", "refused"]
    assert [row.event_id for row in again[:2]] == [row.event_id for row in first]


def test_an_id_twice_in_a_batch_is_stored_where_it_is_good_first(world: World) -> None:
    twice = event(world.post_ids[0])
    wrong = {**twice, "event_type": "nothing"}
    rows = record(world.connection, world.user, [wrong, twice, twice, wrong])
    assert statuses(rows)[:3] == ["refused", "stored", "known"]
    assert rows[1].event_id == rows[2].event_id
    assert {str(row.client_event_id) for row in rows} == {twice["client_event_id"]}
    assert len(stored(world.connection)) == 1


def test_an_event_without_an_id_gets_one(world: World) -> None:
    sent = {"post_id": world.post_ids[0], "event_type": "view"}
    (row,) = record(world.connection, world.user, [sent])
    assert stored(world.connection) == [(str(row.client_event_id), "view")]


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize(
    ("sent", "kept"),
    [(1234.4999, 1234), (1234.5, 1235), (0, 0), (0.3, 0), (3e12, 2**31 - 1), (1e300, 2**31 - 1)],
)
def test_a_dwell_is_rounded_and_clamped(world: World, each: bool, sent: float, kept: int) -> None:
    events = [event(world.post_ids[0], "dwell", dwell_ms=sent)]
    assert statuses(record(world.connection, world.user, events, each=each)) == ["stored"]
    assert value(world.connection, "select dwell_ms from public.engagement_events") == kept


def test_an_empty_batch_has_no_answer(world: World) -> None:
    assert record(world.connection, world.user, []) == []
    assert record(world.connection, world.user, [], each=False) == []


def test_a_trigger_of_the_app_refuses_one_event_and_no_other(world: World) -> None:
    """The checks are those of the insert, whoever made them."""
    world.connection.execute(
        "create function public.refuse_hides() returns trigger language plpgsql as $$ begin"
        " if new.event_type = 'hide' then raise exception 'no hiding here' using errcode = 'APP01';"
        " end if; return new; end $$;"
        "create trigger refuse_hides before insert on public.engagement_events"
        " for each row execute function public.refuse_hides()"
    )
    events = [event(world.post_ids[n], "hide" if n == 3 else "like") for n in range(6)]
    rows = record(world.connection, world.user, events)
    assert [row.place for row in rows if row.status == "refused"] == [4]
    assert (rows[3].code, rows[3].message) == ("APP01", "no hiding here")
    assert rows[3].hint


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "57014", "53100", "25006", "XX000"])
def test_what_is_due_to_no_event_ends_the_call(world: World, code: str) -> None:
    """Else a client would drop from its queue what a full disk refused."""
    world.connection.execute(
        "create function public.fail() returns trigger language plpgsql as $$ begin"
        f" raise exception 'not now' using errcode = '{code}'; end $$;"
        "create trigger fail after insert on public.engagement_events"
        " for each statement execute function public.fail()"
    )
    with pytest.raises(errors.Error) as caught, world.connection.transaction():
        record(world.connection, world.user, [event(world.post_ids[0]), event(world.post_ids[1])])
    assert caught.value.sqlstate == code
    assert stored(world.connection) == []


def test_few_transaction_ids_are_used_however_many_parts_a_batch_falls_into(
    open_connection: Callable[..., Connection],
) -> None:
    """More than 64 of one session make every snapshot of every session slower."""
    connection, watcher = open_connection(), open_connection()
    world = World(connection)
    events = [event(world.post_ids[n % 40], "view" if n % 2 else "nothing") for n in range(500)]
    with connection.transaction(), as_user(connection, world.user):
        rows = connection.execute(RECORD, [json.dumps(events), True]).fetchall()
        pid = connection.info.backend_pid
        has_counts = value(
            watcher,
            "select exists (select from pg_proc where proname = 'pg_stat_get_backend_subxact')",
        )
        if has_counts:
            count, has_overflowed = watcher.execute(
                "select s.* from pg_stat_get_backend_idset() b,"
                " lateral pg_stat_get_backend_subxact(b) s where pg_stat_get_backend_pid(b) = %s",
                [pid],
            ).fetchone() or (None, None)
            assert not has_overflowed
            assert 0 < count <= 40
    assert Counter(statuses(rows)) == {"stored": 250, "refused": 250}


def test_a_batch_and_its_retry_at_once_store_each_event_once(
    open_connection: Callable[..., Connection],
) -> None:
    setup = open_connection()
    world = World(setup)
    events: list[Any] = [event(world.post_ids[n % 40], "like") for n in range(30)]
    events[7] = bad(world, "no object")
    answers: list[list[Any]] = []
    barrier = threading.Barrier(4)

    def send(session: Connection) -> None:
        barrier.wait(PATIENCE_S)
        answers.append(record(session, world.user, events))

    threads = [threading.Thread(target=send, args=[open_connection()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(answers) == 4
    assert len({tuple(row.event_id for row in rows) for rows in answers}) == 1
    firsts = [rows for rows in answers if "stored" in statuses(rows)]
    assert len(firsts) == 1
    assert Counter(statuses(firsts[0])) == {"stored": 29, "refused": 1}
    assert len(stored(setup)) == 29
    assert_consistent(setup)


def test_a_session_that_dies_in_the_middle_leaves_nothing_of_its_batch(
    open_connection: Callable[..., Connection],
) -> None:
    watcher, doomed = open_connection(), open_connection()
    world = World(watcher)
    events: list[Any] = [event(post_id) for post_id in world.post_ids[:20]]
    events[11] = bad(world, "an unknown type")
    pid = doomed.info.backend_pid
    doomed.execute("begin")
    with as_user(doomed, world.user):
        rows = doomed.execute(RECORD, [json.dumps(events), True]).fetchall()
    assert Counter(statuses(rows)) == {"stored": 19, "refused": 1}
    watcher.execute("select pg_terminate_backend(%s)", [pid])
    wait_until(
        lambda: (
            not value(watcher, "select exists (select from pg_stat_activity where pid = %s)", pid)
        )
    )
    assert stored(watcher) == []
    assert Counter(statuses(record(watcher, world.user, events))) == {"stored": 19, "refused": 1}
    assert_consistent(watcher)
