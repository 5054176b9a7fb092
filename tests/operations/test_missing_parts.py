"""What a restore loses, or somebody disables: health says so, and an alert."""

from __future__ import annotations

import pytest

from python_jobs.db import Connection, value

MISSING = "select two_tower.find_missing_parts()"
OURS = """
  select t.tgname, t.tgrelid::regclass::text as table_name
  from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where p.pronamespace = 'two_tower'::regnamespace and t.tgparentid = 0 order by 1
"""


def test_nothing_is_missing_after_the_migrations(db: Connection) -> None:
    assert value(db, MISSING) == []
    assert value(db, "select state from two_tower.health where name = 'missing_parts'") == "ok"


@pytest.mark.parametrize("how", ["drop trigger {0} on {1}", "alter table {1} disable trigger {0}"])
def test_every_trigger_that_is_gone_or_disabled_is_named(db: Connection, how: str) -> None:
    triggers = db.execute(OURS).fetchall()
    assert len(triggers) > 10
    for trigger, table in triggers:
        with db.transaction(force_rollback=True):
            db.execute(how.format(trigger, table).encode())
            assert value(db, MISSING) == [f"trigger {trigger} on {qualified(table)}"]


def qualified(table: str) -> str:
    """regclass leaves out the schema of a table that is on the search path."""
    return table if "." in table else f"public.{table}"


def test_a_lost_job_of_pg_cron_is_named(db: Connection) -> None:
    db.execute(
        "create schema cron; create table cron.job (jobid bigint, jobname text, active boolean);"
        "insert into cron.job values (1, 'two_tower_tick', true)"
    )
    assert value(db, MISSING) == []
    db.execute("update cron.job set active = false")
    assert value(db, MISSING) == ["job two_tower_tick of pg_cron"]


def test_an_alert_opens_and_closes_by_itself(db: Connection) -> None:
    still_open = (
        "select message from two_tower.alerts where subject = 'missing_parts' and closed_at is null"
    )
    db.execute("alter table public.posts disable trigger two_tower_insert")
    value(db, "select two_tower.record_metrics()")
    assert "trigger two_tower_insert on public.posts" in value(db, still_open)
    db.execute("alter table public.posts enable trigger two_tower_insert")
    value(db, "select two_tower.record_metrics()")
    assert db.execute(still_open).fetchone() is None
