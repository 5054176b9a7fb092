"""Posts and engagements as encoders and clients put them in, and random streams of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np

from python_jobs.db import Connection
from tests.support.reference import (
    BASE_DIMENSIONS,
    START,
    WITHDRAWALS,
    Event,
    Snapshot,
)


def base_vectors(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Base embeddings of norm 1, as the encoder makes them: float32, in one broad direction."""
    vectors = rng.normal(size=(count, BASE_DIMENSIONS)) + 0.5 * rng.normal(size=BASE_DIMENSIONS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [list(map(float, vector.astype(np.float32))) for vector in vectors]


def add_posts(
    connection: Connection,
    count: int,
    author_ids: Sequence[str],
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Inserts posts, the authors in turn, and encodes them at random; without rng, not at all.

    Each has a text of its own: of equal ones all but one would count as copies.
    """
    rows = connection.execute(
        "insert into public.posts (author_id, content, created_at)"
        " select (%s::uuid[])[1 + g %% %s], 'post ' || gen_random_uuid(), %s"
        " from generate_series(1, %s) g"
        " returning id",
        [list(author_ids), len(author_ids), START - timedelta(days=1), count],
    ).fetchall()
    post_ids = [row[0] for row in rows]
    if rng is not None:
        store(connection, post_ids, base_vectors(rng, count))
    return post_ids


def store(connection: Connection, post_ids: Sequence[int], vectors: Sequence[list[float]]) -> None:
    """Hands in base embeddings, as the encoder does."""
    connection.execute(
        "select two_tower.store_base_embeddings(%s, array(select v::extensions.vector"
        " from unnest(%s::text[]) with ordinality as x (v, n) order by n))",
        [list(post_ids), [str(vector) for vector in vectors]],
    )


def delete_posts(connection: Connection, post_ids: Sequence[int], *, rows: bool = False) -> None:
    """Authors delete posts, and a tick carries that on. rows: the rows go, not only the posts."""
    statement = (
        "delete from public.posts where id = any (%s)"
        if rows
        else "update public.posts set deleted_at = now() where id = any (%s)"
    )
    connection.execute(statement, [list(post_ids)])
    connection.execute("select two_tower.apply_post_changes()")


INSERT_EVENTS = """
  insert into public.engagement_events (user_id, post_id, event_type, dwell_ms, created_at,
                                        client_event_id)
  select x.user_id, x.post_id, x.event_type, x.dwell_ms, x.created_at, x.client_event_id
  from unnest(%s::uuid[], %s::bigint[], %s::text[], %s::integer[], %s::timestamptz[], %s::uuid[])
       with ordinality as x (user_id, post_id, event_type, dwell_ms, created_at, client_event_id, n)
  order by x.n returning id
"""


def insert_events(
    connection: Connection,
    events: Sequence[Event],
    client_event_ids: Sequence[uuid.UUID | None] | None = None,
) -> list[int]:
    """Inserts events in one statement, at the times that they name; returns their ids."""
    latest = max(event.created_at for event in events)
    connection.execute("select set_config('two_tower.now', %s, false)", [latest.isoformat()])
    columns = [
        [event.user_id for event in events],
        [event.post_id for event in events],
        [event.event_type for event in events],
        [event.dwell_ms for event in events],
        [event.created_at for event in events],
        list(client_event_ids or [None] * len(events)),
    ]
    return [row[0] for row in connection.execute(INSERT_EVENTS, columns).fetchall()]


def read_snapshot(connection: Connection, event_id: int) -> Snapshot | None:
    """The recorded training example of an event, in the half precision in which it is kept."""
    row = connection.execute(
        "select user_emb::extensions.vector::real[], post_emb::extensions.vector::real[], step"
        " from two_tower.training_examples where event_id = %s",
        [event_id],
    ).fetchone()
    if row is None:
        return None
    return Snapshot(event_id, np.array(row[0], float), np.array(row[1], float), float(row[2]))


class Stream:
    """Random engagements over few users and posts: repeats, toggles and dwells of all lengths."""

    weights: ClassVar = {
        "view": 20,
        "click": 10,
        "like": 22,
        "reply": 8,
        "repost": 8,
        "dwell": 12,
        "skip": 5,
        "hide": 3,
        "not_interested": 3,
        "block_author": 1,
        "mute_author": 1,
        "unlike": 5,
        "unrepost": 2,
        "unhide": 2,
        "undo_not_interested": 1,
    }

    def __init__(
        self, rng: np.random.Generator, user_ids: Sequence[str], post_ids: Sequence[int]
    ) -> None:
        self.rng = rng
        self.user_ids = list(user_ids)
        self.post_ids = list(post_ids)
        self.now = START
        self.given: dict[str, list[tuple[str, int]]] = {kind: [] for kind in WITHDRAWALS.values()}
        self._types = list(self.weights)
        total = sum(self.weights.values())
        self._shares = [weight / total for weight in self.weights.values()]

    def _pick(self, values: Sequence[Any]) -> Any:
        """Few are picked often, as on any platform: square of a uniform number."""
        return values[int(len(values) * self.rng.random() ** 2)]

    def next(self, count: int) -> list[Event]:
        """The next events, up to two seconds after one another."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Event:
        self.now += timedelta(milliseconds=int(self.rng.integers(0, 2000)))
        event_type = str(self.rng.choice(self._types, p=self._shares))
        user_id, post_id = self._pick(self.user_ids), self._pick(self.post_ids)
        dwell_ms = None
        if event_type == "dwell":
            lengths = [0, 1999, 2000, 3000, 5000, 5001, 60000, 2**31 - 1]
            dwell_ms = int(self.rng.choice(lengths))
        withdrawn = WITHDRAWALS.get(event_type)
        if withdrawn and self.given[withdrawn] and self.rng.random() < 0.8:
            user_id, post_id = self.given[withdrawn][
                int(-1 - 20 * self.rng.random() ** 2) % len(self.given[withdrawn])
            ]
        if event_type in self.given:
            self.given[event_type].append((user_id, post_id))
        return Event(user_id, post_id, event_type, dwell_ms, self.now)
