"""A worker whose machine has another time works as any: all times are the database's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from python_jobs.db import connect, rows, value
from tests.support.patience import wait_until
from tests.support.workers import running_worker, waiting_backend

# Before anything is imported, so that whoever asks for the time gets this one.
CLOCK = """
import datetime, time
true, skew = time.time, {hours} * 3600
time.time = lambda: true() + skew
class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.utcfromtimestamp(time.time())
datetime.datetime = Skewed
"""
TIMES = """
  select c.table_name as name, c.column_name as "column"
  from information_schema.columns c
    join information_schema.tables t using (table_schema, table_name)
  where c.table_schema = 'two_tower' and c.data_type = 'timestamp with time zone'
    and t.table_type = 'BASE TABLE' and table_name <> 'partitions'
"""


@pytest.mark.parametrize("hours", [5, -5])
def test_leases_and_all_that_is_stored_are_by_the_clock_of_the_database(
    fresh_database: Callable[[], str], hours: int
) -> None:
    url = fresh_database()
    job = "select * from two_tower.jobs where kind = 'encode_posts'"
    with connect(url, autocommit=True) as connection, connect(url) as blocker:
        began = value(connection, "select now()")
        connection.execute("insert into public.posts (author_id, content) values (null, 'a boat')")
        blocker.execute("lock table two_tower.base_embeddings in share mode")
        first = CLOCK.format(hours=hours)
        with running_worker(url, "--lease", "6", first=first) as skewed:
            waiting_backend(connection, "store_base_embeddings")
            (claimed,) = rows(connection, job)
            with running_worker(url, "--lease", "6") as other:
                # It is seen, would take what is free, and does not get what the first extends.
                wait_until(lambda: value(connection, "select count(*) = 2 from two_tower.workers"))
                again = "select lease_until > %s + interval '12 seconds' from two_tower.jobs"
                query = f"{again} where kind = 'encode_posts'"
                wait_until(lambda: value(connection, query, claimed.claimed_at))
                blocker.rollback()
                wait_until(lambda: rows(connection, job)[0].state == "done")
        (done,) = rows(connection, job)
        assert (done.worker, done.attempts) == (claimed.worker, 1)
        assert skewed.said(done.worker)
        assert not other.said(done.worker)
        for row in rows(connection, TIMES):
            wrong = (
                f'select count(*) from two_tower."{row.name}" where "{row.column}" not in'
                " ('infinity', '-infinity') and "
                f"\"{row.column}\" > now() + interval '1 hour'"
            )
            assert value(connection, wrong) == 0, row
        (stored,) = rows(connection, "select encoded_at from two_tower.base_embeddings")
        now = value(connection, "select now()")
        for moment in (*stored, done.claimed_at, done.finished_at):
            assert began <= moment <= now
        seen = rows(connection, "select started_at, seen_at from two_tower.workers")
        assert all(began <= row.started_at <= row.seen_at <= now for row in seen)
