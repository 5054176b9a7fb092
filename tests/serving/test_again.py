"""Never dry: what was only viewed comes back when nothing else is left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from python_jobs.db import Connection, rows
from tests.support.database import add_user
from tests.support.engagements import add_posts

OPENED = datetime(2026, 3, 1, tzinfo=UTC)


def at(db: Connection, days: float) -> None:
    """It is so many days after the feed opened."""
    moment = (OPENED + timedelta(days=days)).isoformat()
    db.execute("select set_config('two_tower.now', %s, true)", [moment])


def act(
    db: Connection, user: str, posts: list[int], kind: str, dwell_ms: int | None = None
) -> None:
    """One event a post."""
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, dwell_ms)"
        " select %s, unnest(%s::bigint[]), %s, %s",
        [user, posts, kind, dwell_ms],
    )


def page(db: Connection, reader: str, limit: int = 20) -> list[tuple[int, str]]:
    """Posts of a page with their sources."""
    query = "select post_id, source from two_tower.recommend_for(%s, %s)"
    return [(row.post_id, row.source) for row in rows(db, query, reader, limit)]


def again(posts: list[int]) -> list[tuple[int, str]]:
    """These posts, in this order, as what was seen before."""
    return [(post, "again") for post in posts]


def test_what_was_viewed_comes_back_after_seen_again_after_the_longest_unseen_first(
    db: Connection,
) -> None:
    at(db, 0)
    posts = add_posts(db, 14, [add_user(db)], np.random.default_rng(1))
    reader = add_user(db)
    act(db, reader, posts[7:], "view")
    at(db, 1)
    act(db, reader, posts[:7], "view")
    act(db, reader, posts[7:8], "view")
    assert page(db, reader) == []
    at(db, 29.9)
    assert page(db, reader) == []
    at(db, 30.1)
    assert page(db, reader) == again(posts[8:])
    at(db, 31.1)
    found = page(db, reader)
    assert found[:6] == again(posts[8:])
    assert sorted(found[6:]) == again(posts[:8])
    assert page(db, reader, 3) == again(posts[8:11])
    act(db, reader, posts[8:], "view")
    assert len(page(db, reader)) == 8
    db.execute("update two_tower.settings set seen_again_after = '1 hour'")
    at(db, 31.2)
    assert len(page(db, reader)) == 14
    db.execute("update two_tower.settings set seen_again_after = null")
    assert page(db, reader) == []


@pytest.mark.parametrize(
    ("kind", "dwell_ms", "comes_back"),
    [
        ("view", None, True), ("skip", None, True), ("dwell", 900, True), ("dwell", 3000, True),
        ("dwell", 9000, False), ("click", None, False), ("like", None, False),
        ("hide", None, False), ("not_interested", None, False), ("block_author", None, False),
        ("mute_author", None, False),
    ],
)  # fmt: skip
def test_what_was_engaged_with_or_refused_never_comes_back(
    db: Connection, kind: str, dwell_ms: int | None, comes_back: bool
) -> None:
    at(db, 0)
    (post,) = add_posts(db, 1, [add_user(db)], np.random.default_rng(2))
    reader = add_user(db)
    act(db, reader, [post], "view")
    act(db, reader, [post], kind, dwell_ms)
    at(db, 400)
    assert page(db, reader) == (again([post]) if comes_back else [])


@pytest.mark.parametrize(
    ("kind", "undone"), [("hide", "unhide"), ("not_interested", "undo_not_interested")]
)
def test_what_is_hidden_no_more_comes_back_as_what_was_seen(
    db: Connection, kind: str, undone: str
) -> None:
    at(db, 0)
    (post,) = add_posts(db, 1, [add_user(db)], np.random.default_rng(2))
    reader = add_user(db)
    act(db, reader, [post], kind)
    act(db, reader, [post], undone)
    assert page(db, reader) == []
    at(db, 400)
    assert page(db, reader) == again([post])


def test_what_was_taken_back_was_engaged_with(db: Connection) -> None:
    at(db, 0)
    (post,) = add_posts(db, 1, [add_user(db)], np.random.default_rng(3))
    reader = add_user(db)
    act(db, reader, [post], "like")
    act(db, reader, [post], "unlike")
    at(db, 400)
    assert page(db, reader) == []


def test_new_posts_come_before_what_was_seen_and_what_is_gone_stays_away(db: Connection) -> None:
    at(db, 0)
    blocked, author, reader = (add_user(db) for _ in range(3))
    seen = add_posts(db, 6, [author], np.random.default_rng(4))
    foreign = add_posts(db, 2, [blocked], np.random.default_rng(5))
    mine = add_posts(db, 1, [reader], np.random.default_rng(6))
    act(db, reader, [*seen, *foreign, *mine], "view")
    db.execute(
        "insert into public.author_blocks values (%s, %s, 'block_author')", [reader, blocked]
    )
    db.execute("update public.posts set deleted_at = two_tower.now() where id = %s", [seen[0]])
    at(db, 40)
    new = add_posts(db, 3, [author], np.random.default_rng(7))
    found = page(db, reader)
    assert {post for post, _ in found[:3]} == set(new)
    assert "again" not in {source for _, source in found[:3]}
    assert sorted(found[3:]) == again(seen[1:])
