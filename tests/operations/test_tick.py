"""What a tick starts: each part by itself, so that none stops the others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.worker.jobs import HANDLERS
from tests.support.database import add_user
from tests.support.patience import wait_until

FAILS = (
    "create or replace function two_tower.{}() returns {} language plpgsql"
    " set search_path = pg_catalog, pg_temp as"
    " $$ begin raise exception 'broken on purpose' using errcode = 'XX001'; end $$"
)
OPEN = (
    "select details ->> 'sqlstate' from two_tower.alerts"
    " where kind = 'call_failed' and subject = %s and closed_at is null"
)


def ticks(db: Connection, count: int = 30) -> None:
    for _ in range(count):
        value(db, "select two_tower.tick()")


def is_open(db: Connection, subject: str) -> bool:
    return db.execute(OPEN, [subject]).fetchone() is not None


def test_a_schedule_that_fails_opens_an_alert_and_stops_no_other(db: Connection) -> None:
    db.execute(FAILS.format("drop_old_partitions", "integer").encode())
    ticks(db)
    assert value(db, OPEN, "drop_old_partitions") == "XX001"
    ran = "select count(*) from two_tower.schedules where last_run_at is null"
    assert value(db, f"{ran} and every is not null and runs_in = 'database'") == 0
    assert value(db, "select count(*) from two_tower.checkpoints") == 1
    assert value(db, "select count(*) from two_tower.metrics") > 0


def test_what_takes_long_is_a_job_while_a_worker_runs(db: Connection) -> None:
    rows(db, "select * from two_tower.claim_job('a', '{other}')")
    ticks(db)
    jobs = "select count(*) from two_tower.jobs where kind in ('checkpoint', 'run_audit')"
    assert value(db, jobs) == 2
    assert value(db, "select count(*) from two_tower.audits") == 0
    for kind in ("checkpoint", "run_audit"):
        (job,) = rows(db, "select * from two_tower.claim_job('a', array[%s])", kind)
        done = HANDLERS[kind](db)
        assert value(db, "select two_tower.complete_job(%s, 'a')::text", job.id) == ""
        assert set(done) == {"checkpoint"} if kind == "checkpoint" else {"audit"}
    assert value(db, "select count(*) from two_tower.checkpoints") == 1
    assert value(db, "select count(*) from two_tower.audits") == 2
    ticks(db)
    assert value(db, jobs) == 2  # once a day


def test_the_alert_of_a_call_closes_with_its_next_success(db: Connection) -> None:
    body = value(db, "select pg_get_functiondef('two_tower.drop_old_partitions'::regproc)")
    db.execute(FAILS.format("drop_old_partitions", "integer").encode())
    ticks(db)
    db.execute(body.encode())
    db.execute(
        "update two_tower.schedules set last_run_at = null where kind = 'drop_old_partitions'"
    )
    ticks(db)
    assert not is_open(db, "drop_old_partitions")


def test_a_first_projection_that_can_not_be_made_stops_no_step(db: Connection) -> None:
    db.execute(FAILS.format("improve_first_tower", "text").encode())
    user = add_user(db)
    db.execute(
        "insert into two_tower.users_to_erase values (%s, now() - interval '1 hour')", [user]
    )
    ticks(db)
    assert is_open(db, "improve_first_tower")
    assert value(db, "select count(*) from two_tower.users_to_erase") == 0


@pytest.mark.parametrize("part", ["freeze_on_drift", "flip_slots"])
def test_a_freeze_or_a_flip_that_fails_stops_no_step(db: Connection, part: str) -> None:
    """A freeze raises while a statement goes on learning for too long."""
    if part == "flip_slots":
        value(db, "select two_tower.checkpoint('operator')")
        value(db, "select two_tower.rollback()")
        db.execute("drop function two_tower.flip_slots(boolean)")
    db.execute(FAILS.format(part, "boolean").encode())
    user = add_user(db)
    waiting = "insert into two_tower.users_to_erase values (%s, now() - interval '1 hour')"
    db.execute(waiting, [user])
    ticks(db)
    assert is_open(db, part)
    assert value(db, "select count(*) from two_tower.users_to_erase") == 0


def test_what_pg_cron_keeps_of_ticks_is_pruned_and_nothing_else(db: Connection) -> None:
    assert value(db, "select two_tower.prune_cron_history()") == 0
    db.execute(
        """
        create schema cron;
        create table cron.job (jobid bigint, jobname text);
        create table cron.job_run_details (runid bigint, jobid bigint, end_time timestamptz);
        insert into cron.job values (1, 'two_tower_tick'), (2, 'another');
        insert into cron.job_run_details values (1, 1, now() - interval '2 days'),
          (2, 1, now() - interval '1 hour'), (3, 2, now() - interval '2 days'), (4, 1, null);
        """
    )
    assert value(db, "select two_tower.prune_cron_history()") == 1
    assert value(db, "select array_agg(runid order by runid) from cron.job_run_details") == [
        2,
        3,
        4,
    ]


def test_a_flip_never_deadlocks_with_who_hands_in_encodings(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as ticking, connect(url) as worker:
        value(ticking, "select two_tower.checkpoint('operator')")
        value(ticking, "select two_tower.rollback()")
        ticking.execute("update two_tower.schedules set is_enabled = false")
        worker.execute("select pg_advisory_xact_lock_shared(two_tower.switch_lock())")
        waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        with ThreadPoolExecutor(1) as thread:
            flip = thread.submit(ticks_until_a_flip_is_tried, ticking)
            with connect(url, autocommit=True) as watcher:
                wait_until(lambda: value(watcher, waits) or flip.done())
            # As in store_base_embeddings(). A deadlock would end one of the two.
            worker.execute("set local lock_timeout = '500ms'")
            worker.execute("select pg_advisory_xact_lock_shared(two_tower.numbering_lock())")
            worker.commit()
            flip.result()
        ticks(ticking, 4)
        assert value(ticking, "select filling_version is null from two_tower.state")


def ticks_until_a_flip_is_tried(db: Connection) -> None:
    """Ticks until one has asked for the switch lock, whether it got it or not."""
    while value(db, "select two_tower.tick()").get("flip_slots") not in (0, 1):
        pass
