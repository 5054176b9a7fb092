"""A few users and encoded posts, and what an event left of them."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import numpy as np

from python_jobs.db import Connection, value
from tests.support.database import add_user
from tests.support.engagements import (
    add_posts,
    insert_events,
)
from tests.support.reference import START, Event

TOLERANCE = 1e-5
RULES = ["contrastive", "literal"]


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def live(connection: Connection, post_id: int) -> np.ndarray[Any, Any]:
    """A post's live vector."""
    return np.array(
        value(
            connection,
            "select embedding::real[] from two_tower.post_embeddings where post_id = %s",
            post_id,
        ),
        float,
    )


def user_vector(connection: Connection, user_id: str) -> np.ndarray[Any, Any]:
    """A user's live vector."""
    return np.array(
        value(
            connection,
            "select embedding::real[] from two_tower.user_embeddings where user_id = %s",
            user_id,
        ),
        float,
    )


def reasons(connection: Connection) -> Counter[str]:
    """How many events were recorded and not learned, by reason."""
    return Counter(
        row[0] for row in connection.execute("select reason from two_tower.unlearned_events")
    )


class World:
    """A few users and encoded posts in one database."""

    def __init__(self, connection: Connection, users: int = 3, posts: int = 40) -> None:
        self.connection = connection
        self.author = add_user(connection)
        self.user_ids = [add_user(connection) for _ in range(users)]
        self.user = self.user_ids[0]
        self.post_ids = add_posts(connection, posts, [self.author], rng())
        self.now = START

    def send(
        self, event_type: str, post_id: int | None = None, user_id: str | None = None, **more: Any
    ) -> int:
        """Inserts one event a second after the last; returns its id."""
        self.now += timedelta(seconds=1)
        more.setdefault("created_at", self.now)
        event = Event(user_id or self.user, post_id or self.post_ids[0], event_type, **more)
        return insert_events(self.connection, [event])[0]

    def pairs(self, **where: Any) -> list[tuple[int, bool, str]]:
        """training_pairs as (post_id, label, source), of all events or of those named."""
        condition = " and ".join(f"{name} = %s" for name in where) or "true"
        return self.connection.execute(
            f"select post_id, label, source from two_tower.training_pairs where {condition}",
            list(where.values()),
        ).fetchall()


def copy_tower(connection: Connection) -> int:
    """Another version of the candidate tower that serves, as a training leaves it: a candidate."""
    first = value(connection, "select two_tower.active_version('candidate_tower')")
    second: int = value(
        connection,
        "insert into two_tower.model_weights (tower, parent_version, state)"
        " values ('candidate_tower', %s, 'candidate') returning version",
        first,
    )
    connection.execute(
        "insert into two_tower.model_tensors select %s, name, row_index, row"
        " from two_tower.model_tensors where version = %s",
        [second, first],
    )
    return second
