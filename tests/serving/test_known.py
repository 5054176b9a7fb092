"""what_is_known_of_me(): readable rows about the caller, and about nobody else."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts
from tests.support.learning import World, rng


def known(db: Connection, user: str) -> list[Any]:
    with as_user(db, user):
        return rows(db, "select * from public.what_is_known_of_me()")


def test_a_user_reads_all_that_is_kept_and_nothing_of_others(db: Connection) -> None:
    world = World(db)
    me, other = world.user_ids[:2]
    first, second, third, fourth = world.post_ids[:4]
    for post, kind in ((first, "view"), (first, "like"), (first, "like"), (second, "hide")):
        world.send(kind, post, me)
    world.send("reply", third, other)
    (of_another,) = add_posts(db, 1, [add_user(db)], rng(2))
    world.send("mute_author", of_another, me)
    with as_user(db, me):
        value(db, "select public.set_interests('{boats}', array[%s])", str(fourth))
        db.execute("insert into public.muted_terms (kind, term) values ('word', 'tax')")
    found = known(db, me)
    about = {(row.kind, row.what, row.post_key): row for row in found}
    assert about["account", "days on which you engaged", None].amount == 1
    assert about["events", "like", None].amount == 2
    assert [row.what for row in found if row.kind == "event"] == [
        *("mute_author", "hide", "like", "like", "view"),
    ]
    assert about["event", "hide", str(second)].at < world.now
    assert about["not learned", "repeated", None].amount == 1
    assert about["posts", "hidden", None].amount == 1
    assert about["posts", "engaged with", None].amount == 1
    assert about["taste", "last learned", str(first)].amount == 1
    assert about["taste", "last learned", str(second)].amount == pytest.approx(-0.15)
    assert about["interest", "100 % of your interests: posts like this", str(first)].amount == 1
    assert about["told interest", "boats", None].at
    assert about["told interest", None, str(fourth)].post_source == "posts"
    assert about["text", "searched for or told, kept for a while", None].amount == 1
    assert about["muted word", "tax", None]
    (muted,) = (row for row in found if row.kind == "mute_author")
    assert muted.what == str(
        value(db, "select author_key from two_tower.posts where id = %s", of_another)
    )
    assert str(third) not in {row.post_key for row in found}
    assert [row.what for row in known(db, other) if row.kind == "event"] == ["reply"]
    with as_user(db, me):
        value(db, "select public.reset_my_feed()")
    kinds = {row.kind for row in known(db, me)}
    assert not kinds & {"taste", "interest"}
    assert {"events", "told interest", "forgotten"} <= kinds


def test_who_is_new_or_not_signed_in_has_nothing_to_read(db: Connection) -> None:
    assert known(db, add_user(db)) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_user(db, None):
        rows(db, "select * from public.what_is_known_of_me()")
