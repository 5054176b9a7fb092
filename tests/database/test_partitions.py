"""Partitions by time: made ahead and dropped while others read and write; history has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import errors

from python_jobs.db import Connection, connect, value
from tests.support.database import add_user

COUNT = "select count(*) from two_tower.partitions where partition_name ~ '^engagement'"


@pytest.fixture
def sessions(fresh_database: Callable[[], str]) -> Iterator[tuple[Connection, Connection]]:
    """Two sessions of one database: a maintainer's and a reader's."""
    url = fresh_database()
    with connect(url, autocommit=True) as one, connect(url, autocommit=True) as other:
        yield one, other


@pytest.mark.parametrize(
    ("make_due", "kind"),
    [
        (
            "update two_tower.partitioned_tables set ahead = ahead + 1",
            "create_partitions_ahead",
        ),
        (
            "select two_tower.create_partition('public.engagement_events', '2020-01-01',"
            " '2020-02-01')",
            "drop_old_partitions",
        ),
    ],
)
def test_partitions_wait_for_a_long_reader_and_no_event_waits_for_them(
    sessions: tuple[Connection, Connection], make_due: str, kind: str
) -> None:
    maintainer, reader = sessions
    user = add_user(maintainer)
    insert_post = "insert into public.posts (author_id, content) values (%s, 'p') returning id"
    post = value(maintainer, insert_post, user)
    maintainer.execute(make_due.encode())
    maintainer.execute("update two_tower.schedules set is_enabled = kind = %s", [kind])
    maintainer.execute("update two_tower.schedules set last_run_at = null")
    before = value(maintainer, COUNT)
    due = "select last_run_at is null from two_tower.schedules where kind = %s"
    with reader.transaction():
        reader.execute("select count(*) from public.engagement_events")
        assert value(maintainer, "select two_tower.start_due_schedules()") == [kind]
        assert value(maintainer, COUNT) == before
        assert value(maintainer, due, kind), "it is tried again at the next tick"
        # The reader goes on, and so do writers: nobody queues behind the maintainer any more.
        reader.execute("set local statement_timeout = '60s'")
        reader.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'view')",
            [user, post],
        )
    assert value(maintainer, "select two_tower.start_due_schedules()") == [kind]
    assert value(maintainer, COUNT) != before
    assert not value(maintainer, due, kind)


def test_a_long_history_gets_partitions_of_its_own(db: Connection) -> None:
    user = add_user(db)
    last_month = "date_trunc('month', now(), 'UTC') - interval '1 day'"
    post = value(
        db, "insert into public.posts (author_id, content) values (%s, 'p') returning id", user
    )
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
        f" values (%s, %s, 'view', now()), (%s, %s, 'view', {last_month})".encode(),
        [user, post, user, post],
    )
    places = (
        "select array_agg(tableoid::regclass::text order by created_at)"
        " from public.engagement_events where user_id = %s"
    )
    old, new = value(db, places, user)
    assert old == "two_tower.engagement_events_history"
    make = f"select two_tower.create_partitions_back_to({last_month})"
    assert value(db, make) >= 2, "a month of events, and of those that were not learned"
    moved, unmoved = value(db, places, user)
    assert moved not in (old, new)
    assert unmoved == new
    assert value(db, make) == 0


def test_history_that_the_archive_would_drop_at_once_is_refused(db: Connection) -> None:
    before = value(db, COUNT)
    with pytest.raises(errors.InvalidParameterValue) as caught, db.transaction():
        db.execute("select two_tower.create_partitions_back_to(now() - interval '20 years')")
    assert "kept_for" in str(caught.value.diag.message_hint)
    assert value(db, COUNT) == before


@pytest.mark.parametrize("far", ["- interval '40 years'", "+ interval '40 years'"])
def test_one_event_out_of_all_time_refuses_its_batch(db: Connection, far: str) -> None:
    user = add_user(db)
    insert_post = "insert into public.posts (author_id, content) values (%s, 'p') returning id"
    post = value(db, insert_post, user)
    with pytest.raises(psycopg.Error) as caught, db.transaction():
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            f" values (%s, %s, 'view', now()), (%s, %s, 'like', now() {far})".encode(),
            [user, post, user, post],
        )
    assert caught.value.sqlstate == "TT001"
    assert caught.value.diag.message_hint
    assert value(db, "select count(*) from public.engagement_events where user_id = %s", user) == 0
