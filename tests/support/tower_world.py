"""A small world for the gate: users with one topic each, posts whose text is mostly noise."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, array, value
from python_jobs.worker.jobs.versions import matrix
from python_jobs.worker.towers import weights
from tests.support.database import add_user

# Threads that wait for each other on shared cores make these small matrices many times slower, and
# a training that meets its time limit is not the same one again.
torch.set_num_threads(1)
TOPICS = 16
# Of a post's text, this much is its topic; the rest is noise in which versions can differ.
SHARE = 0.3


@dataclass
class World:
    """What was made, and where topics lie: base [topics, 384], live [topics, 128]."""

    connection: Connection
    users: list[str]
    author: str
    topics: np.ndarray
    rng: np.random.Generator
    old_posts: list[int] = field(default_factory=list)
    new_posts: list[int] = field(default_factory=list)

    def value(self, query: str, *parameters: Any) -> Any:
        """The one value that a query returns."""
        return value(self.connection, query, *parameters)

    def topic_of(self, user: str) -> int:
        """The topic that a user likes."""
        return self.users.index(user) % TOPICS

    def add_posts(self, count: int) -> list[int]:
        """So many posts, of one topic after the other."""
        noise = self.rng.normal(size=(count, 384))
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        base = SHARE * self.topics[np.arange(count) % TOPICS] + np.sqrt(1 - SHARE**2) * noise
        rows = self.connection.execute(
            "insert into public.posts (author_id, content)"
            " select %s, 'post ' || n from generate_series(1, %s) n returning id",
            [self.author, count],
        ).fetchall()
        ids = [row.id for row in rows]
        self.connection.execute(
            "select two_tower.store_base_embeddings(%s::bigint[], %s)",
            [ids, list(base.astype(np.float32))],
        )
        return ids

    def like(self, user: str, posts: list[int], count: int) -> None:
        """Likes of so many posts of the user's topic."""
        own = posts[self.topic_of(user) :: TOPICS]
        for post in self.rng.choice(own, size=min(count, len(own)), replace=False):
            self.connection.execute(
                "insert into public.engagement_events (user_id, post_id, event_type)"
                " values (%s, %s, 'like')",
                [user, int(post)],
            )

    def live_topics(self) -> np.ndarray:
        """Where the topics lie in the space of the live vectors [topics, 128]."""
        projection = self.tensors()["hidden.weight"][:128]
        live = self.topics @ projection.T
        return live / np.linalg.norm(live, axis=1, keepdims=True)

    def tensors(self) -> dict[str, np.ndarray]:
        """Those of the active candidate tower."""
        rows = self.connection.execute(
            "select name, row_index, row from two_tower.model_tensors"
            " where version = two_tower.active_version('candidate_tower')"
        ).fetchall()
        return weights.from_rows((name, index, array(row)) for name, index, row in rows)

    def store(self, hidden: np.ndarray) -> int:
        """A candidate that projects by `hidden` [128, 384], as if trained until t0."""
        tensors = {**self.tensors(), "hidden.weight": np.concatenate([hidden, -hidden])}
        names, indexes, rows = zip(*weights.to_rows(tensors), strict=True)
        return int(
            self.value(
                "select two_tower.store_weights('candidate_tower', %s::text[], %s::integer[], %s,"
                " '{}', '{}', two_tower.active_version('candidate_tower'),"
                " p_held_out_from => two_tower.held_out_from())",
                list(names), list(indexes), list(rows),
            )
        )  # fmt: skip

    def better(self) -> int:
        """A candidate that keeps of a text what lies in the span of the topics: no noise."""
        basis = np.linalg.qr(self.topics.T)[0]  # [384, topics]
        return self.store(self.tensors()["hidden.weight"][:128] @ basis @ basis.T)

    def worse(self) -> int:
        """A candidate that sends texts anywhere."""
        return self.store(self.rng.normal(size=(128, 384)) / 20)

    def user_tower(self, layers: int = 1, **changed: np.ndarray) -> int:
        """A candidate of the user tower with any weights: its vectors are given to the gate."""
        event_types = [
            row.event_type
            for row in self.connection.execute("select event_type from two_tower.signals")
        ]
        config = {"layers": layers, "event_types": event_types}
        shapes = self.connection.execute(
            "select name, rows, width from two_tower.expected_tensors('user_tower', %s)",
            [Jsonb(config)],
        ).fetchall()
        tensors = {
            name: self.rng.normal(size=(count, width)).astype(np.float32) / 10
            for name, count, width in shapes
        }
        names, indexes, rows = zip(*weights.to_rows({**tensors, **changed}), strict=True)
        return int(
            self.value(
                "select two_tower.store_weights('user_tower', %s::text[], %s::integer[], %s, %s,"
                " '{}', p_held_out_from => two_tower.held_out_from())",
                list(names), list(indexes), list(rows), Jsonb(config),
            )
        )  # fmt: skip

    def judge_users(
        self,
        version: int,
        vectors: dict[str, np.ndarray],
        active: dict[str, np.ndarray] | None = None,
    ) -> bool:
        """The gate's word on a user tower that gives users these vectors."""
        old = [(active or {}).get(user) for user in vectors]
        return bool(
            self.value(
                "select two_tower.judge_user_tower(%s, %s::uuid[], %s::extensions.vector[],"
                " %s::extensions.vector[])",
                version, list(vectors), list(vectors.values()), old,
            )
        )  # fmt: skip

    def version(self, number: int) -> dict[str, Any]:
        """state, verdict, gate and config of a version."""
        (row,) = self.connection.execute(
            "select state, verdict, metrics -> 'gate' as gate, config"
            " from two_tower.model_weights where version = %s",
            [number],
        )
        return dict(row._asdict())

    def settle(self) -> None:
        """Ticks until no version is being put in place."""
        for _ in range(30):
            if self.value("select filling_version is null from two_tower.state"):
                return
            self.value("select two_tower.take_step()")
        raise AssertionError("the switch does not end")


def make_world(connection: Connection, cold: int = 16, warm: int = 16) -> World:
    """Users like one post before t0 (cold) or eight (warm), and each four new posts after it."""
    rng = np.random.default_rng(7)
    # Draws of negatives and halves of users are the same in every run.
    connection.execute("select setseed(0.5)")
    connection.execute("update two_tower.schedules set is_enabled = false")
    connection.execute(
        "update two_tower.settings set gate_events = %s, gate_minimum_events = 60, cold_until = 5",
        [4 * (cold + warm)],
    )
    topics = rng.normal(size=(TOPICS, 384))
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)

    def sign_up(count: int) -> list[str]:
        return [add_user(connection, uuid.UUID(bytes=rng.bytes(16))) for _ in range(count)]

    users = sign_up(cold + warm)
    author = sign_up(1)[0]

    world = World(connection, users, author, topics, rng)
    world.old_posts, world.new_posts = world.add_posts(20 * TOPICS), world.add_posts(10 * TOPICS)
    for place, user in enumerate(users):
        world.like(user, world.old_posts, 1 if place < cold else 8)
    # As many again as are held out, so that t0 lies between the two.
    extra = sign_up(TOPICS)
    world.users += extra
    for user in extra:
        world.like(user, world.old_posts, 8)
    for user in users[: cold + warm]:
        world.like(user, world.new_posts, 4)
    connection.execute("select two_tower.fold_steps(100000)")
    return world


def live_vectors(connection: Connection) -> dict[int, np.ndarray]:
    """The live vectors of all posts, by id."""
    rows = connection.execute(
        "select post_id, embedding from two_tower.live_embeddings"
        " where slot = (select active_slot from two_tower.state)"
    ).fetchall()
    return dict(zip((p for p, _ in rows), matrix([v for _, v in rows], 128), strict=True))
