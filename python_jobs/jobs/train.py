"""Training of the towers: data from the database, a version back, and SQL judges it."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from python_jobs.towers import weights
from python_jobs.towers.candidate import BASE, CandidateData, train_candidate
from python_jobs.towers.user import History, UserConfig, encode_users, train_user

UNKNOWN = 0  # row of the author embeddings for authors that are not in the table
TRAINED_USERS = 256  # the most recently active; more would not fit into the job's two minutes
ENCODED_USERS = 5000
Connection = psycopg.Connection[Any]


def train_candidate_tower(connection: Connection) -> dict[str, Any]:
    """Trains the candidate tower on the newest pairs, stores the version, asks for the verdict."""
    held_out = _value(connection, "select two_tower.held_out_from()")
    examples = connection.execute(
        "select * from two_tower.candidate_tower_examples(%s)", [held_out]
    ).fetchall()
    if not examples:
        return {"skipped": "no positives before those that are held out"}
    anchors = connection.execute("select * from two_tower.live_anchors(%s)", [held_out]).fetchall()
    parent = _value(connection, "select two_tower.active_version('candidate_tower')")
    result = train_candidate(_candidate_data(examples, anchors), _load(connection, parent))
    version = _store(connection, "candidate_tower", result, parent, held_out)
    accepted = _value(connection, "select two_tower.judge_candidate_tower(%s)", version)
    return {"version": version, "accepted": accepted, **result.metrics}


def _candidate_data(examples: list[dict[str, Any]], anchors: list[dict[str, Any]]) -> CandidateData:
    width = max(1, *(len(e["negative_base_embeddings"]) for e in examples))
    negatives = np.zeros((len(examples), width, BASE), dtype=np.float32)
    mask = np.zeros((len(examples), width), dtype=bool)
    for row, example in enumerate(examples):
        for place, embedding in enumerate(example["negative_base_embeddings"]):
            negatives[row, place] = _array(embedding)
            mask[row, place] = True
    return CandidateData(
        user=np.stack([_array(e["user_emb"]) for e in examples]),
        positive=np.stack([_array(e["base_embedding"]) for e in examples]),
        negatives=negatives,
        mask=mask,
        anchor_base=np.array([_array(a["base_embedding"]) for a in anchors]).reshape(-1, BASE),
        anchor_live=np.array([_array(a["embedding"]) for a in anchors]).reshape(-1, 128),
        anchor_weight=np.array([min(a["engagement_count"], 20) for a in anchors], dtype=np.float32),
    )


def train_user_tower(connection: Connection) -> dict[str, Any]:
    """Trains the user tower, asks for the verdict, and encodes active users if a version serves."""
    held_out = _value(connection, "select two_tower.held_out_from()")
    entities = Entities(connection)
    rows = _histories(connection, held_out, TRAINED_USERS)
    histories = [entities.history(row) for row in rows]
    if not any(h.is_positive[1:].any() for h in histories):
        return {"skipped": "no user with an engagement before a positive one"}
    pool = connection.execute("select embedding from two_tower.random_live_posts(2000)").fetchall()
    parent = _value(connection, "select two_tower.active_version('user_tower')")
    start = {**(_load(connection, parent) if parent else {}), **entities.embeddings()}
    result = train_user(
        histories,
        np.stack([_array(row["embedding"]) for row in pool]),
        start,
        len(entities.authors) + 1,
        len(entities.actions),
    )
    stored = {k: v for k, v in result.tensors.items() if k != "author.weight"}
    version = _store(
        connection,
        "user_tower",
        weights.TrainingResult(stored, result.metrics, result.config),
        parent,
        held_out,
    )
    accepted = _value(
        connection,
        "select two_tower.judge_user_tower(%s, %s::uuid[], %s)",
        version,
        [row["user_id"] for row in rows],
        list(encode_users(histories, result.tensors)),
    )
    outcome = {"version": version, "accepted": accepted, **result.metrics}
    if accepted:
        entities.store(connection, result.tensors)
        now = _value(connection, "select two_tower.now()")
        rows = _histories(connection, now, ENCODED_USERS)
        outcome["users_encoded"] = _value(
            connection,
            "select two_tower.store_user_encodings(%s, %s::uuid[], %s)",
            version,
            [row["user_id"] for row in rows],
            list(encode_users([entities.history(row) for row in rows], result.tensors)),
        )
    return outcome


class Entities:
    """Authors and actions as rows of their tables of embeddings."""

    def __init__(self, connection: Connection) -> None:
        authors = connection.execute(
            "select author_id, embedding from two_tower.author_embeddings_to_train()"
        ).fetchall()
        actions = connection.execute(
            "select event_type, is_positive, embedding from two_tower.action_embeddings_to_train()"
        ).fetchall()
        self.authors = {row["author_id"]: place for place, row in enumerate(authors, start=1)}
        self.actions = {row["event_type"]: place for place, row in enumerate(actions)}
        self.positive = {row["event_type"] for row in actions if row["is_positive"]}
        self._known = {
            "author.weight": [None, *(row["embedding"] for row in authors)],
            "action.weight": [row["embedding"] for row in actions],
        }

    def embeddings(self) -> dict[str, np.ndarray]:
        """Start of both tables: what was learned before, small random values for new entities."""
        noise = np.random.default_rng(0)
        size = UserConfig().embedding_size
        return {
            name: np.stack(
                [noise.normal(0, 0.1, size) if row is None else _array(row) for row in rows]
            ).astype(np.float32)
            for name, rows in self._known.items()
        }

    def history(self, row: dict[str, Any]) -> History:
        """A row of two_tower.user_histories() as a History."""
        return History(
            posts=np.stack([_array(e) for e in row["embeddings"]]),
            authors=np.array([self.authors.get(a, UNKNOWN) for a in row["author_ids"]]),
            actions=np.array([self.actions[e] for e in row["event_types"]]),
            hours=np.array([t.timestamp() / 3600 for t in row["times"]]),
            is_positive=np.array([e in self.positive for e in row["event_types"]]),
        )

    def store(self, connection: Connection, tensors: dict[str, np.ndarray]) -> None:
        """Writes what the accepted version learned about authors and actions."""
        connection.execute(
            "select two_tower.store_entity_embeddings(%s::uuid[], %s, %s::text[], %s)",
            [
                list(self.authors),
                list(tensors["author.weight"][1:]),
                list(self.actions),
                list(tensors["action.weight"]),
            ],
        )


def _histories(connection: Connection, before: Any, users: int) -> list[dict[str, Any]]:
    query = "select * from two_tower.user_histories(%s, %s)"
    return connection.execute(query, [before, users]).fetchall()


def _load(connection: Connection, version: int) -> dict[str, np.ndarray]:
    rows = connection.execute(
        "select name, row_index, row from two_tower.model_tensors where version = %s", [version]
    ).fetchall()
    return weights.from_rows((r["name"], r["row_index"], _array(r["row"])) for r in rows)


def _store(
    connection: Connection,
    tower: str,
    result: weights.TrainingResult,
    parent: int | None,
    held_out: Any,
) -> int:
    names, indexes, rows = zip(*weights.to_rows(result.tensors), strict=True)
    version = _value(
        connection,
        "select two_tower.store_weights(%s, %s::text[], %s::integer[], %s, %s, %s, %s,"
        " p_trained_until => %s)",
        tower,
        list(names),
        list(indexes),
        list(rows),
        Jsonb(result.config),
        Jsonb(result.metrics),
        parent,
        held_out,
    )
    assert isinstance(version, int)
    return version


def _value(connection: Connection, query: str, *arguments: Any) -> Any:
    row = connection.execute(query, list(arguments)).fetchone()
    assert row is not None
    return next(iter(row.values()))


def _array(vector: Any) -> np.ndarray:
    """pgvector gives arrays, or, where the type was not registered, its own class."""
    return vector if isinstance(vector, np.ndarray) else vector.to_numpy()
