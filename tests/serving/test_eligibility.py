"""If k eligible posts exist, k come back, and none that is not eligible: against brute force."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_jobs.db import Connection
from tests.support.database import add_user
from tests.support.engagements import add_posts

USERS = 5
KINDS = ("view", "click", "like", "reply", "dwell", "skip", "hide", "not_interested")
BLOCKS = ("block_author", "mute_author")


@dataclass
class Rules:
    """Who may be shown what: a second, plain account of the rules, in Python."""

    authors: dict[int, int | None]
    deleted: set[int] = field(default_factory=set)
    acted: set[tuple[int, int]] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    mutes: set[tuple[int, int]] = field(default_factory=set)

    def eligible(self, user: int, excluded: set[int]) -> set[int]:
        """Posts that may be shown to the user."""
        return {
            post
            for post, author in self.authors.items()
            if post not in self.deleted
            and post not in excluded
            and author != user
            and (user, post) not in self.acted
            and (author is None or not {(user, author), (author, user)} & self.blocks)
            and (author is None or (user, author) not in self.mutes)
        }


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """Posts and their authors, events, blocks, follows, deletions; what is asked, and how."""
    count = draw(st.integers(0, 130))
    users = st.integers(0, USERS - 1)
    posts = st.integers(0, max(0, count - 1))
    many = 0 if count == 0 else 150
    return {
        "authors": draw(st.lists(st.none() | users, min_size=count, max_size=count)),
        "encoded": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "events": draw(st.lists(st.tuples(users, posts, st.sampled_from(KINDS)), max_size=many)),
        # Whoever has seen nearly all is whom an index serves worst.
        "devoured": draw(st.none() | st.tuples(users, st.floats(0.5, 1))) if count else None,
        "blocks": draw(st.lists(st.tuples(users, posts, st.sampled_from(BLOCKS)), max_size=4))
        if count
        else [],
        "follows": draw(st.lists(st.tuples(users, users), max_size=4)),
        "deleted": draw(st.sets(posts, max_size=20)) if count else set(),
        "excluded": draw(st.sets(posts, max_size=20)) if count else set(),
        "limit": draw(st.integers(1, 60)),
        "indexed": draw(st.booleans()),
        "frozen": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def populate(db: Connection, world: dict[str, Any]) -> tuple[list[str], Rules]:
    """Makes the world in the database, and the account of it; posts are numbered from 1."""
    chance = np.random.default_rng(world["seed"])
    users = [add_user(db, uuid.UUID(bytes=chance.bytes(16))) for _ in range(USERS)]
    authors = {n + 1: author for n, author in enumerate(world["authors"])}
    rules = Rules(authors)
    db.execute(
        "insert into public.posts (id, author_id, content)"
        " select n, a, 'post ' || n from unnest(%s::uuid[]) with ordinality as x (a, n)",
        [[None if author is None else users[author] for author in world["authors"]]],
    )
    encoded = [post for post in authors if chance.random() < world["encoded"]]
    db.execute(
        "select two_tower.store_base_embeddings(%s::bigint[], %s)",
        [encoded, list(chance.normal(size=(len(encoded), 384)).astype(np.float32))],
    )
    if world["indexed"]:
        db.execute("update two_tower.settings set ef_search = 40, over_fetch = 40")
        db.execute("select two_tower.build_serving_index('test')")
    events = [(user, post + 1, kind) for user, post, kind in world["events"] + world["blocks"]]
    if world["devoured"]:
        user, share = world["devoured"]
        events += [(user, post, "view") for post in authors if chance.random() < share]
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type, dwell_ms)"
        " select u, p, k, 9000 from unnest(%s::uuid[], %s::bigint[], %s::text[]) as x (u, p, k)",
        [[users[u] for u, _, _ in events], [p for _, p, _ in events], [k for *_, k in events]],
    )
    for user, post, kind in events:
        rules.acted.add((user, post))
        author = authors[post]
        if kind in BLOCKS and author is not None and author != user:
            (rules.blocks if kind == "block_author" else rules.mutes).add((user, author))
    for follower, followed in world["follows"]:
        if follower != followed:
            db.execute(
                "insert into public.follows values (%s, %s) on conflict do nothing",
                [users[follower], users[followed]],
            )
    rules.deleted = {post + 1 for post in world["deleted"]}
    db.execute(
        "update public.posts set deleted_at = now() where id = any (%s)", [list(rules.deleted)]
    )
    return users, rules


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds())
def test_all_that_is_eligible_comes_back_and_nothing_else(
    db: Connection, world: dict[str, Any]
) -> None:
    with db.transaction(force_rollback=True):
        users, rules = populate(db, world)
        if world["frozen"]:
            db.execute("select two_tower.freeze('test')")
        excluded = {post + 1 for post in world["excluded"]}
        for number, user in enumerate(users):
            eligible = rules.eligible(number, excluded)
            for limit in (world["limit"], 500):
                shown = [
                    row[0]
                    for row in db.execute(
                        "select post_id from two_tower.recommend_for(%s, %s, %s)",
                        [user, limit, list(excluded)],
                    )
                ]
                assert len(set(shown)) == len(shown) == min(limit, len(eligible))
                assert set(shown) <= eligible


@pytest.mark.parametrize("post", range(1, 8))
def test_explain_recommendation_and_recommend_agree(db: Connection, post: int) -> None:
    """Own, seen, hidden, of a blocked author, of one who blocked, deleted, eligible."""
    me, other, blocked, blocker = (add_user(db) for _ in range(4))
    db.execute(
        "insert into public.posts (id, author_id, content)"
        " select n, a, 'post ' || n from unnest(%s::uuid[]) with ordinality as x (a, n)",
        [[me, other, other, blocked, blocker, other, other]],
    )
    vectors = np.random.default_rng(1).normal(size=(7, 384)).astype(np.float32)
    db.execute(
        "select two_tower.store_base_embeddings(%s::bigint[], %s)",
        [list(range(1, 8)), list(vectors)],
    )
    for user, seen, kind in ((me, 2, "view"), (me, 3, "hide")):
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, %s)",
            [user, seen, kind],
        )
    for user, author, kind in ((me, blocked, "mute"), (blocker, me, "block")):
        db.execute(
            "insert into public.author_blocks values (%s, %s, %s)",
            [user, author, f"{kind}_author"],
        )
    db.execute("update public.posts set deleted_at = now() where id = 6")
    shown = [
        row[0] for row in db.execute("select post_id from two_tower.recommend_for(%s, 50)", [me])
    ]
    assert shown == [7]
    db.execute("select set_config('request.jwt.claims', %s, true)", [f'{{"sub": "{me}"}}'])
    row = db.execute(
        "select is_eligible, reason, place, popular is not null as is_scored"
        " from public.explain_recommendation(%s)",
        [post],
    ).fetchone()
    reasons = [
        *("it is your own post", "you have seen it", "you hid it"),
        *("you blocked or muted its author", "it is not available to you"),
        *("the post is hidden or deleted", "eligible"),
    ]
    # Readers ask why about what they see, so what they have seen is scored too.
    is_scored = post in (2, 3, 7)
    assert row == (post == 7, reasons[post - 1], 1 if post == 7 else None, is_scored)


@pytest.mark.parametrize(("kind", "notices"), [("block_author", True), ("mute_author", False)])
def test_who_is_muted_does_not_notice_and_who_is_blocked_gets_nothing(
    db: Connection, kind: str, notices: bool
) -> None:
    reader, other = add_user(db), add_user(db)
    (post,) = add_posts(db, 1, [reader], np.random.default_rng(9))
    db.execute("insert into public.author_blocks values (%s, %s, %s)", [reader, other, kind])
    page = "select post_id from public.recommend_for(%s, 9)"
    assert [row[0] for row in db.execute(page, [other])] == ([] if notices else [post])
