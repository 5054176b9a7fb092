"""What ticks broadcast, to a schema `realtime` that is rebuilt: see tests/support/realtime.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts
from tests.support.realtime import REALTIME

FAILS = """
  create or replace function realtime.send(payload jsonb, event text, topic text,
    private boolean default true) returns void language plpgsql
  as $$ begin raise exception 'broken on purpose' using errcode = 'XX001'; end $$
"""


@pytest.fixture
def realtime(db: Connection) -> Connection:
    """A database in which Realtime came after the engine. Only turns of ticks do anything."""
    db.execute(REALTIME.encode())
    value(db, "select two_tower.allow_broadcasts()")
    db.execute("update two_tower.schedules set is_enabled = false")
    return db


def sent(db: Connection, event: str = "new_posts") -> list[tuple[str, Any]]:
    """Topics and payloads of what was sent since the last look."""
    found = db.execute(
        "with gone as (delete from realtime.messages where event = %s returning *)"
        " select topic, payload from gone where private order by topic, payload ->> 'subject'",
        [event],
    )
    return [tuple(row) for row in found.fetchall()]


def acts(db: Connection, user: str, post: int, ago: str = "10 minutes") -> None:
    """The user sent an event so long ago."""
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
        " values (%s, %s, 'view', now() - %s::interval)",
        [user, post, ago],
    )


def publish(db: Connection, author: str, count: int = 1, ago: str = "1 minute") -> list[int]:
    """New posts, encoded."""
    posts = add_posts(db, count, [author], np.random.default_rng(7))
    db.execute(
        "update public.posts set created_at = now() - %s::interval where id = any (%s)",
        [ago, posts],
    )
    return posts


def a_minute_passes(db: Connection) -> None:
    db.execute("update two_tower.active_readers set told_at = told_at - interval '61 s'")


def test_a_reader_is_told_how_many_posts_are_newer_than_the_last_event(
    realtime: Connection,
) -> None:
    db = realtime
    reader, author = add_user(db), add_user(db)
    (old,) = publish(db, author, ago="20 minutes")
    acts(db, reader, old)
    publish(db, author, 3)
    publish(db, reader)
    assert value(db, "select two_tower.announce()") == 1
    assert sent(db) == [(f"two_tower:user:{reader}", {"new_posts": 3})]


def test_a_number_is_told_once_and_a_new_one_after_a_minute(realtime: Connection) -> None:
    db = realtime
    reader, author = add_user(db), add_user(db)
    (post, *_) = publish(db, author, 2)
    acts(db, reader, post)
    topic = f"two_tower:user:{reader}"
    numbers = []
    for _ in range(2):
        value(db, "select two_tower.announce()")
        numbers.append(sent(db))
        a_minute_passes(db)
    assert numbers == [[(topic, {"new_posts": 2})], []]
    publish(db, author)
    value(db, "select two_tower.announce()")
    assert sent(db) == [(topic, {"new_posts": 3})]
    publish(db, author)
    value(db, "select two_tower.announce()")
    assert sent(db) == []
    a_minute_passes(db)
    value(db, "select two_tower.announce()")
    assert sent(db) == [(topic, {"new_posts": 4})]
    acts(db, reader, post, "2 minutes")
    a_minute_passes(db)
    value(db, "select two_tower.announce()")
    assert sent(db) == [(topic, {"new_posts": 4})]
    acts(db, reader, post, "0")
    value(db, "select two_tower.announce()")
    assert sent(db) == []


def test_what_a_reader_would_not_get_does_not_count(realtime: Connection) -> None:
    db = realtime
    reader, author, foe = (add_user(db) for _ in range(3))
    banned = add_user(db)
    (post,) = publish(db, author, ago="20 minutes")
    acts(db, reader, post)
    deleted, removed, coming, *_ = publish(db, author, 4)
    publish(db, foe)
    publish(db, banned)
    add_posts(db, 1, [author])  # not encoded
    db.execute("insert into two_tower.blocks values (%s, %s, 'block_author')", [foe, reader])
    db.execute("update auth.users set banned_until = 'infinity' where id = %s", [banned])
    db.execute("update public.posts set deleted_at = now() where id = %s", [deleted])
    db.execute("select public.remove_post(%s)", [removed])
    db.execute("update public.posts set created_at = now() + '1 hour' where id = %s", [coming])
    value(db, "select two_tower.announce()")
    assert sent(db) == [(f"two_tower:user:{reader}", {"new_posts": 1})]


def test_a_number_ends_at_99(realtime: Connection) -> None:
    db = realtime
    reader, author = add_user(db), add_user(db)
    (post, *_) = publish(db, author, 120)
    acts(db, reader, post)
    value(db, "select two_tower.announce()")
    assert [payload for _, payload in sent(db)] == [{"new_posts": 99}]


def test_readers_of_long_ago_are_told_nothing_and_forgotten(realtime: Connection) -> None:
    db = realtime
    readers = [add_user(db) for _ in range(2)]
    author = add_user(db)
    (post,) = publish(db, author)
    acts(db, readers[0], post, "61 minutes")
    acts(db, readers[1], post, "59 minutes")
    value(db, "select two_tower.announce()")
    assert [topic for topic, _ in sent(db)] == [f"two_tower:user:{readers[1]}"]
    db.execute("update two_tower.active_readers set last_event_at = now() - interval '1 hour'")
    value(db, "select two_tower.announce()")
    assert value(db, "select count(*) from two_tower.active_readers") == 0


def test_at_most_announced_readers_are_told_in_a_turn_and_the_others_in_the_next(
    realtime: Connection,
) -> None:
    db = realtime
    readers = [add_user(db) for _ in range(5)]
    (post,) = publish(db, add_user(db))
    for reader in readers:
        acts(db, reader, post)
    db.execute("update two_tower.settings set announced_readers = 2")
    told: list[str] = []
    for turn in range(3):
        later = "select set_config('two_tower.now', (now() + %s * interval '1 s')::text, true)"
        db.execute(later, [turn])
        told += [topic for topic, _ in sent(db) or []]
        assert value(db, "select two_tower.announce()") == (2, 2, 1)[turn]
    told += [topic for topic, _ in sent(db)]
    assert sorted(told) == sorted(f"two_tower:user:{reader}" for reader in readers)
    db.execute("update two_tower.settings set announced_readers = 0")
    a_minute_passes(db)
    publish(db, add_user(db))
    assert value(db, "select two_tower.announce()") == 0


@pytest.mark.parametrize("is_announced", [True, False])
def test_posts_count_only_of_sources_that_are_announced(
    realtime: Connection, is_announced: bool
) -> None:
    """The number asks no policy, so it would tell of posts that its reader may not read."""
    db = realtime
    assert value(db, "select array_agg(name) from two_tower.sources where is_announced") == [
        "posts"
    ]
    reader = add_user(db)
    (post,) = publish(db, add_user(db))
    acts(db, reader, post)
    db.execute(
        "update two_tower.sources set is_announced = %s where role = 'posts'", [is_announced]
    )
    db.execute(
        "select two_tower.attach_posts('public.posts', content => '{content}',"
        " author => 'author_id', created_at => 'created_at', visible => 'deleted_at is null')"
    )
    assert value(db, "select two_tower.announce()") == is_announced


def test_an_alert_is_told_to_operators_once(realtime: Connection) -> None:
    db = realtime
    db.execute("select two_tower.open_alert('test', s, 'a test') from unnest('{a,b}'::text[]) s")
    assert value(db, "select two_tower.announce()") == 2
    (first, second) = sent(db, "alert")
    assert (first[0], second[0]) == ("two_tower:alerts", "two_tower:alerts")
    assert {key: first[1][key] for key in ("kind", "subject", "message")} == {
        **{"kind": "test", "subject": "a", "message": "a test"}
    }
    db.execute("select two_tower.open_alert('test', 'a', 'again')")
    assert value(db, "select two_tower.announce()") == 0
    db.execute("select two_tower.close_alert('test', 'a')")
    db.execute("select two_tower.open_alert('test', 'a', 'a new one')")
    assert value(db, "select two_tower.announce()") == 1


def test_a_broadcast_that_fails_breaks_no_tick_and_is_sent_later(realtime: Connection) -> None:
    db = realtime
    reader = add_user(db)
    (post,) = publish(db, add_user(db))
    acts(db, reader, post)
    gone = add_user(db)
    db.execute("insert into two_tower.users_to_erase values (%s, now() - interval '1 h')", [gone])
    works = value(db, "select pg_get_functiondef('realtime.send'::regproc)")
    db.execute(FAILS.encode())
    for _ in range(30):
        value(db, "select two_tower.tick()")
    failed = (
        "select details ->> 'sqlstate' from two_tower.alerts"
        " where kind = 'call_failed' and subject = 'announce' and closed_at is null"
    )
    assert value(db, failed) == "XX001"
    assert value(db, "select count(*) from two_tower.users_to_erase") == 0
    db.execute(works.encode())
    for _ in range(30):
        value(db, "select two_tower.tick()")
    assert db.execute(failed.encode()).fetchone() is None
    assert sent(db) == [(f"two_tower:user:{reader}", {"new_posts": 1})]


def test_without_realtime_nothing_is_kept_or_read(db: Connection) -> None:
    reader = add_user(db)
    (post,) = publish(db, add_user(db))
    acts(db, reader, post)
    db.execute("select two_tower.open_alert('test', '', 'a test')")
    assert value(db, "select two_tower.announce()") == 0
    assert value(db, "select count(*) from two_tower.active_readers") == 0
    assert value(db, "select position from two_tower.cursors where name = 'announced_events'") == 0
    assert value(db, "select not two_tower.allow_broadcasts()")
    assert value(db, "select two_tower.find_missing_parts()") == []


def test_health_names_the_policy_until_it_is_made(db: Connection) -> None:
    missing = "select two_tower.find_missing_parts()"
    db.execute(REALTIME.encode())
    (named,) = value(db, missing)
    assert "two_tower.allow_broadcasts()" in named
    db.execute("update two_tower.settings set announced_readers = 0")
    assert value(db, missing) == []
    db.execute("update two_tower.settings set announced_readers = 1")
    made = [value(db, "select two_tower.allow_broadcasts()") for _ in range(2)]
    assert made == [True, False]
    assert value(db, missing) == []


@pytest.mark.parametrize(
    ("role", "topic", "receives"),
    [
        ("authenticated", "two_tower:user:{me}", True),
        ("authenticated", "two_tower:user:{other}", False),
        ("authenticated", "two_tower:user:", False),
        ("authenticated", "two_tower:alerts", False),
        ("anon", "two_tower:user:{me}", False),
        ("anon", "two_tower:user:", False),
        ("service_role", "two_tower:alerts", True),
    ],
)
def test_a_user_receives_the_own_topic_and_no_other(
    realtime: Connection, role: str, topic: str, receives: bool
) -> None:
    db = realtime
    me, other = add_user(db), add_user(db)
    topic = topic.format(me=me, other=other)
    db.execute("insert into realtime.messages (topic, extension) values (%s, 'broadcast')", [topic])
    with as_user(db, me if role == "authenticated" else None, role):
        db.execute("select set_config('realtime.topic', %s, true)", [topic])
        found = value(db, "select count(*) from realtime.messages")
        assert found == receives
        if role != "service_role":
            with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
                db.execute(
                    "insert into realtime.messages (topic, extension) values (%s, 'broadcast')",
                    [topic],
                )


def test_a_reader_is_erased_with_the_account(realtime: Connection) -> None:
    db = realtime
    reader = add_user(db)
    (post,) = publish(db, add_user(db))
    acts(db, reader, post)
    value(db, "select two_tower.announce()")
    db.execute("delete from auth.users where id = %s", [reader])
    assert value(db, "select count(*) from two_tower.active_readers") == 0
