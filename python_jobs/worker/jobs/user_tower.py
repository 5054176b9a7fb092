"""Training of the user tower, and encoding of active users with the version that serves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from python_jobs.db import Connection, Vectors, array, call, call_rows, rows, value
from python_jobs.worker.jobs.versions import Origin, load, matrix, store
from python_jobs.worker.stopping import leave_if_told
from python_jobs.worker.towers.histories import History, Pool
from python_jobs.worker.towers.user import SIZE, UNKNOWN, UserConfig, encode_users, train_user
from python_jobs.worker.towers.weights import TrainingResult

BATCH = 500  # users read and encoded at a time
NOBODY = UUID(int=0)


@dataclass
class Version:
    """A user tower that can be run: its tensors, but for those of authors, and its config."""

    tensors: dict[str, np.ndarray]
    config: dict[str, Any]

    @property
    def model(self) -> UserConfig:
        """What the model is built by."""
        return UserConfig.of(self.config)


def train_user_tower(connection: Connection) -> dict[str, Any]:
    """Trains the user tower, asks for the verdict, and encodes active users if a version serves."""
    outcome = _train(connection)
    return {**outcome, **encode_active_users(connection)}


def encode_active_users(connection: Connection) -> dict[str, Any]:
    """Gives users their priors anew: those of settings.active_user_window by the user tower that
    serves, and profiles by the candidate tower that serves."""
    last: UUID | None = NOBODY
    while last := call(connection, "select two_tower.project_profiles(%s)", last):
        leave_if_told()
    number = value(connection, "select two_tower.active_version('user_tower')")
    if number is None:
        return {"users_encoded": 0}
    version = Version(*load(connection, number))
    encoded, last = 0, NOBODY
    while ids := _ids(connection, "select two_tower.users_to_encode(%s, %s) as id", last, BATCH):
        users, vectors = encode(connection, version, ids, None)
        encoded += call(
            connection,
            "select two_tower.store_user_encodings(%s, %s::uuid[], %s)",
            number, users, Vectors(vectors),
        )  # fmt: skip
        last = ids[-1]
        leave_if_told()
    return {"users_encoded": encoded}


def _train(connection: Connection) -> dict[str, Any]:
    held_out = call(connection, "select two_tower.held_out_from()")
    found = _histories(
        connection,
        held_out,
        _ids(connection, "select two_tower.users_to_train(%s) as id", held_out),
    )
    if not any(any(row.is_positive[1:]) for row in found):
        return {"skipped": "no user with an engagement before a positive one"}
    parent = value(connection, "select two_tower.active_version('user_tower')")
    known = Version(*load(connection, parent)) if parent else Version({}, {})
    event_types = [
        row.event_type for row in rows(connection, "select * from two_tower.event_types_to_train()")
    ]
    noise = np.random.default_rng(0)
    authors = _authors(connection, found, noise)
    start = {
        **known.tensors,
        "author.weight": np.stack(list(authors.values())),
        "action.weight": _actions(known, event_types, noise),
    }
    posts = call_rows(connection, "select * from two_tower.random_posts_as_of(%s)", held_out)
    pool = Pool(
        np.array([post.post_id for post in posts], dtype=np.int64),
        matrix([post.embedding for post in posts], 128),
        np.array([post.hours for post in posts], dtype=float),
    )
    loss = value(connection, "select user_tower_loss from two_tower.read_settings()")
    result = train_user(
        [_history(row, authors, event_types) for row in found],
        pool,
        start,
        len(authors),
        len(event_types),
        UserConfig(loss=loss),
    )
    learned = dict(zip(authors, result.tensors.pop("author.weight"), strict=True))
    learned.pop(None)
    version = Version(result.tensors, {**result.config, "event_types": event_types})
    number = store(
        connection,
        "user_tower",
        TrainingResult(version.tensors, result.metrics, version.config),
        Origin(parent, min(row.oldest_event for row in found), held_out),
        learned,
    )
    if number is None:
        return {"rejected": "weights that are not finite"}
    accepted = judge_user_tower(connection, number, version, learned)
    return {"version": number, "accepted": accepted, **result.metrics}


def judge_user_tower(
    connection: Connection, number: int, version: Version, learned: dict[Any, np.ndarray]
) -> bool:
    """Has a version judged: encodes the users with held-out events by it and by the active one, as
    of t0; SQL does the rest. learned: what the version learned of authors."""
    held_out = value(connection, "select held_out_from from two_tower.read_version(%s)", number)
    serving = value(connection, "select two_tower.active_version('user_tower')")
    active = Version(*load(connection, serving)) if serving else None
    ids = _ids(connection, "select two_tower.users_to_judge(%s) as id", held_out)
    users: list[UUID] = []
    candidate: list[np.ndarray] = []
    now_served: list[np.ndarray | None] = []
    for batch in _batches(ids):
        leave_if_told()
        some, vectors = encode(connection, version, batch, held_out, learned)
        users += some
        candidate += list(vectors)
        now_served += (
            list(encode(connection, active, batch, held_out)[1]) if active else [None] * len(some)
        )
    accepted = call(
        connection,
        "select two_tower.judge_user_tower(%s, %s::uuid[], %s, %s)",
        number, users, Vectors(candidate), Vectors(now_served),
    )  # fmt: skip
    return bool(accepted)


def encode(
    connection: Connection,
    version: Version,
    user_ids: list[UUID],
    before: int | None,
    learned: dict[Any, np.ndarray] | None = None,
) -> tuple[list[UUID], np.ndarray]:
    """Those of the users who have a history before an event id (None: now), and their vectors.

    learned: what this version learned of authors, before what the table holds of them.
    """
    found = _histories(connection, before, user_ids)
    authors = _authors(connection, found, None)
    authors.update({k: v for k, v in (learned or {}).items() if k in _author_ids(found)})
    event_types = version.config["event_types"]
    vectors = encode_users(
        [_history(row, authors, event_types) for row in found],
        {**version.tensors, "author.weight": np.stack(list(authors.values()))},
        version.model,
    )
    return [row.user_id for row in found], vectors


def _batches(ids: list[UUID]) -> Iterator[list[UUID]]:
    for begin in range(0, len(ids), BATCH):
        yield ids[begin : begin + BATCH]


def _ids(connection: Connection, query: str, *arguments: Any) -> list[UUID]:
    return [row.id for row in call_rows(connection, query, *arguments)]


def _histories(connection: Connection, before: int | None, user_ids: list[UUID]) -> list[Any]:
    return call_rows(
        connection, "select * from two_tower.user_histories(%s, %s::uuid[])", before, user_ids
    )


def _author_ids(found: list[Any]) -> set[UUID]:
    return set(itertools.chain.from_iterable(row.author_ids for row in found)) - {None}


def _authors(
    connection: Connection, found: list[Any], noise: np.random.Generator | None
) -> dict[Any, np.ndarray]:
    """Embeddings of the authors in these histories, None (nobody) first.

    noise: where those start of whom nothing was learned; without it they are left out.
    """
    wanted = sorted(_author_ids(found))
    query = "select * from two_tower.read_author_embeddings(%s::uuid[])"
    known = {row.author_id: array(row.embedding) for row in call_rows(connection, query, wanted)}
    authors: dict[Any, np.ndarray] = {None: np.zeros(SIZE, dtype=np.float32)}
    for author in wanted:
        if author in known:
            authors[author] = known[author]
        elif noise is not None:
            authors[author] = noise.normal(0, 0.1, SIZE).astype(np.float32)
    return authors


def _actions(known: Version, event_types: list[str], noise: np.random.Generator) -> np.ndarray:
    """Rows for the event types of today: those that the version knew, small random ones else."""
    learned = dict(
        zip(
            known.config.get("event_types", []), known.tensors.get("action.weight", []), strict=True
        )
    )
    return np.stack([
        learned.get(event_type, noise.normal(0, 0.1, SIZE)) for event_type in event_types
    ]).astype(np.float32)  # fmt: skip


def _history(row: Any, authors: dict[Any, np.ndarray], event_types: list[str]) -> History:
    """A row of two_tower.user_histories(), with authors and event types as rows of tables."""
    places = {author: place for place, author in enumerate(authors)}
    actions = {event_type: place for place, event_type in enumerate(event_types)}
    # An event type that is younger than the version says nothing to it.
    known = np.array([event_type in actions for event_type in row.event_types], dtype=bool)
    return History(
        posts=matrix(row.embeddings, 128)[known],
        post_ids=np.array(row.post_ids, dtype=np.int64)[known],
        authors=np.array([places.get(a, UNKNOWN) for a in row.author_ids], dtype=int)[known],
        actions=np.array([actions.get(e, 0) for e in row.event_types], dtype=int)[known],
        hours=np.array(row.hours, dtype=float)[known],
        is_positive=np.array(row.is_positive, dtype=bool)[known],
    )
