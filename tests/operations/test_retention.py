"""For how long what is kept, and what that takes: by the settings and the sizes of today."""

from __future__ import annotations

from typing import Any

import pytest

from python_jobs.db import Connection, rows, value
from tests.support.learning import World

AGE = "update two_tower.installed_files set installed_at = now() - %s::interval"


def kept(db: Connection, table: str) -> Any:
    (row,) = rows(db, "select * from two_tower.retention where table_name = %s", table)
    return row


def test_every_setting_of_retention_is_shown(db: Connection) -> None:
    settings = rows(
        db,
        "select attname from pg_attribute where attrelid = 'two_tower.settings'::regclass"
        " and attname ~ '(_kept_for|_kept)$' order by 1",
    )
    shown = rows(
        db, "select distinct setting from two_tower.retention where setting is not null order by 1"
    )
    assert [row.setting for row in shown] == [row.attname for row in settings]
    partitioned = rows(
        db,
        "select format('%%s.%%s', relnamespace::regnamespace, relname) as name, kept_for_setting"
        " from two_tower.partitioned_tables join pg_class on pg_class.oid = table_name",
    )
    assert len(partitioned) == 3
    for row in partitioned:
        assert kept(db, row.name).setting == row.kept_for_setting


def test_bytes_are_those_of_the_table_its_partitions_and_indexes(db: Connection) -> None:
    world = World(db)
    before = kept(db, "two_tower.user_posts").bytes
    for _ in range(200):
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, p, 'view' from unnest(%s::bigint[]) p",
            [world.user, world.post_ids],
        )
    for name in ("public.engagement_events", "two_tower.user_posts", "two_tower.live_embeddings"):
        size = value(
            db,
            "select sum(pg_total_relation_size(r)) from (select %s::regclass as r union"
            " select relid from pg_partition_tree(%s)) t",
            *(name, name),
        )
        assert kept(db, name).bytes == size > 0
    assert kept(db, "two_tower.user_posts").bytes >= before
    db.execute("analyze public.engagement_events")
    assert kept(db, "public.engagement_events").estimated_rows == 8000


def test_the_rate_is_over_the_time_that_the_rows_are_of(db: Connection) -> None:
    assert kept(db, "two_tower.metrics").bytes_a_day is None  # nobody knows it on the first day
    db.execute(AGE, ["10 days"])
    row = kept(db, "two_tower.metrics")
    assert row.bytes_a_day == pytest.approx(row.bytes / 10, abs=1)
    assert row.bytes_when_full == pytest.approx(3 * row.bytes, abs=9)
    db.execute(AGE, ["90 days"])
    row = kept(db, "two_tower.metrics")  # it is full
    assert row.bytes_a_day == pytest.approx(row.bytes / 30, abs=1)
    assert row.bytes_when_full == row.bytes


def test_a_setting_says_what_it_will_cost(db: Connection) -> None:
    db.execute(AGE, ["10 days"])
    name = "two_tower.training_examples"
    before = kept(db, name)
    assert before.kept == "35 days"
    db.execute("update two_tower.settings set training_examples_kept_for = '70 days'")
    after = kept(db, name)
    assert (after.kept, after.bytes_a_day) == ("70 days", before.bytes_a_day)
    assert after.bytes_when_full == pytest.approx(2 * before.bytes_when_full, abs=2)
    checkpoint = "two_tower.checkpoint_posts"
    World(db).send("like")
    value(db, "select two_tower.checkpoint('operator')")
    row = kept(db, checkpoint)
    assert (row.kept, row.bytes_a_day) == ("7", pytest.approx(row.bytes / 7, abs=1))


def test_an_imported_history_counts_from_its_first_partition(db: Connection) -> None:
    db.execute(AGE, ["10 days"])
    name = "public.engagement_events"
    row = kept(db, name)
    assert row.bytes_a_day == pytest.approx(row.bytes / 10, abs=1)
    db.execute("update two_tower.settings set training_examples_kept_for = '1 year'")
    value(db, "select two_tower.create_partitions_back_to(now() - interval '100 days')")
    row = kept(db, name)
    days = value(
        db,
        "select extract(epoch from now() - min(starts_at)) / 86400 from two_tower.partitions"
        " where table_name = %s::regclass",
        name,
    )
    assert days > 100
    assert row.bytes_a_day == pytest.approx(row.bytes / float(days), abs=1)


def test_what_only_deletion_ends_has_no_rate(db: Connection) -> None:
    db.execute(AGE, ["10 days"])
    row = kept(db, "two_tower.user_posts")
    assert (row.setting, row.kept, row.bytes_a_day, row.bytes_when_full) == (None,) * 4
    assert row.until == "The user is deleted."
