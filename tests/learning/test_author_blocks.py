"""Blocking and muting: what it hides at once, what it teaches, and what lifting it undoes."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from python_jobs.db import Connection
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, insert_events
from tests.support.reference import START, Event, Reference, Vector, norm

SIZE = 64


class World:
    """Two authors with embeddings, a third without, and a user who liked the first one's posts."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        rng = np.random.default_rng(21)
        self.liked, self.disliked, self.unknown = (add_user(db) for _ in range(3))
        # add_posts begins with the second author
        self.posts = add_posts(db, 30, [self.unknown, self.liked, self.disliked], rng)
        for author in (self.liked, self.disliked):
            vector = rng.normal(size=SIZE)
            db.execute(
                "insert into two_tower.author_embeddings (author_id, embedding)"
                " values (%s, %s::real[]::extensions.vector)",
                [author, vector.tolist()],
            )
        self.user = add_user(db)
        self.send("like", self.posts[0])

    def send(self, event_type: str, post_id: int, user_id: str | None = None) -> None:
        insert_events(
            self.db,
            [Event(user_id or self.user, post_id, event_type, None, START + timedelta(seconds=1))],
        )

    def author(self, author_id: str) -> Vector:
        row = self.db.execute(
            "select embedding::real[] from two_tower.author_embeddings where author_id = %s",
            [author_id],
        ).fetchone()
        assert row is not None
        return np.array(row[0], float)

    def recommended(self) -> set[str]:
        """Authors of all that the user is recommended."""
        rows = self.db.execute(
            "select author_id::text from two_tower.recommend_for(%s, 500)", [self.user]
        ).fetchall()
        return {row[0] for row in rows}

    def lift(self, author_id: str) -> None:
        """The user lifts the block, as a client does."""
        with as_user(self.db, self.user):
            gone = self.db.execute(
                "delete from public.author_blocks where author_id = %s", [author_id]
            )
            assert gone.rowcount == 1


@pytest.fixture
def world(db: Connection) -> World:
    return World(db)


@pytest.mark.parametrize("kind", ["block_author", "mute_author"])
def test_a_block_hides_the_author_at_once_and_steps_the_author_away(
    world: World, kind: str
) -> None:
    assert world.disliked in world.recommended()
    before = world.author(world.disliked)
    world.send(kind, world.posts[1])
    assert world.disliked not in world.recommended()
    # strength 1.5 * .3 * learning rate .05, away from the one author whom the user likes
    wanted = before - 1.5 * 0.3 * Reference.contrastive_rate * norm(world.author(world.liked))
    assert np.abs(world.author(world.disliked) - wanted).max() < 1e-6

    world.lift(world.disliked)
    assert world.disliked in world.recommended()
    assert np.abs(world.author(world.disliked) - before).max() < 1e-6
    assert world.db.execute("select from two_tower.author_steps").fetchall() == []


def test_a_block_teaches_once_however_often_it_is_sent(world: World) -> None:
    world.send("mute_author", world.posts[1])
    once = world.author(world.disliked)
    for kind in ("mute_author", "block_author", "block_author"):
        world.send(kind, world.posts[1])
        world.send(kind, world.posts[4])
    assert np.array_equal(world.author(world.disliked), once)
    kinds = world.db.execute("select kind from public.author_blocks").fetchall()
    assert kinds == [("block_author",)]


@pytest.mark.parametrize(
    "kinds", [("block_author", "mute_author"), ("mute_author", "block_author")]
)
def test_of_a_block_and_a_mute_in_one_statement_the_block_stands(
    world: World, kinds: tuple[str, str]
) -> None:
    insert_events(
        world.db,
        [Event(world.user, world.posts[1 + 3 * k], kind) for k, kind in enumerate(kinds)],
    )
    kept = world.db.execute("select kind from public.author_blocks").fetchall()
    assert kept == [("block_author",)]


def test_an_author_or_user_of_whom_nothing_is_known_is_hidden_and_teaches_nothing(
    world: World,
) -> None:
    world.send("block_author", world.posts[2])
    assert world.unknown not in world.recommended()
    newcomer = add_user(world.db)
    before = world.author(world.disliked)
    world.send("block_author", world.posts[1], newcomer)
    assert np.array_equal(world.author(world.disliked), before)
    assert world.db.execute("select from two_tower.author_steps").fetchall() == []
    world.lift(world.unknown)
    assert world.unknown in world.recommended()


def test_blocks_in_concert_move_an_author_by_a_bounded_amount_an_hour(world: World) -> None:
    world.db.execute("update two_tower.settings set movement_per_hour = 0.1")
    before = world.author(world.disliked)
    for _ in range(12):
        user = add_user(world.db)
        world.send("like", world.posts[0], user)
        world.send("block_author", world.posts[1], user)
    assert np.linalg.norm(world.author(world.disliked) - before) == pytest.approx(0.1, abs=1e-5)
    alerts = world.db.execute(
        "select subject, occurrences from two_tower.alerts where kind = 'author_blocked_in_concert'"
    ).fetchall()
    assert alerts == [(world.disliked, 1)]


def test_a_block_while_learning_is_frozen_hides_and_teaches_nothing(world: World) -> None:
    before = world.author(world.disliked)
    world.db.execute("select two_tower.freeze('a test')")
    world.send("block_author", world.posts[1])
    assert world.disliked not in world.recommended()
    assert np.array_equal(world.author(world.disliked), before)


def test_what_a_block_taught_is_not_taken_back_from_an_author_learned_anew(world: World) -> None:
    world.send("block_author", world.posts[1])
    learned = np.ones(SIZE) / 8
    world.db.execute(
        "with version as ("
        "  insert into two_tower.model_weights (tower) values ('user_tower') returning version"
        ") insert into two_tower.model_authors (version, author_id, embedding)"
        " select version, %s, %s::real[]::extensions.vector from version",
        [world.disliked, learned.tolist()],
    )
    world.db.execute("select two_tower.activate_version(max(version)) from two_tower.model_weights")
    world.lift(world.disliked)
    assert np.allclose(world.author(world.disliked), learned)


def test_a_client_lifts_only_its_own_blocks(world: World) -> None:
    world.send("block_author", world.posts[1])
    with as_user(world.db, add_user(world.db)):
        gone = world.db.execute("delete from public.author_blocks")
        assert gone.rowcount == 0
    assert world.disliked not in world.recommended()
