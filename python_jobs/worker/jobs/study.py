"""Study: repeats the newest positives. SQL says which and applies what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg

from python_jobs.db import Connection, Vectors, call, call_rows
from python_jobs.worker.jobs.versions import matrix
from python_jobs.worker.study import WIDTH, Step, Study, StudyConfig

POSTS_APPLIED = 250  # so that a like whose post is locked here is folded soon


def study(connection: Connection) -> dict[str, Any]:
    """Repeats positives in mini-batches, and hands in how far posts moved."""
    (begun,) = call_rows(connection, "select * from two_tower.begin_study()")
    if begun.id is None:
        return {"skipped": "nothing to study now"}
    try:
        config = StudyConfig(begun.rate, begun.temperature, begun.popularity_in_logits)
        table = Study(config)
        taken = sum(_take(connection, begun, table, part) for part in _parts(connection, begun))
        moved = 0
        for post_ids, deltas in table.deltas(POSTS_APPLIED):
            apply = "select two_tower.apply_study(%s, %s::bigint[], %s)"
            applied = call(connection, apply, begun.id, post_ids, Vectors(deltas))
            if applied is None:
                return {"study": begun.id, "void": True, "moved": moved}
            moved += applied
        call(connection, "select two_tower.end_study(%s)", begun.id)
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return {"study": begun.id, "void": True}
    return {
        "study": begun.id,
        "engagements": begun.engagements,
        "passes": round(taken / begun.engagements, 2),
        "moved": moved,
    }


def _parts(connection: Connection, begun: Any) -> Iterator[list[Any]]:
    """Positives of the window, drawn at random, each once. The same again for the same study."""
    window = call_rows(connection, "select * from two_tower.study_window(%s)", begun.id)
    drawn = np.random.default_rng(begun.id).permutation(len(window))[: begun.steps]
    for begin in range(0, len(drawn), begun.batch_steps):
        yield [window[place] for place in drawn[begin : begin + begun.batch_steps]]


def _take(connection: Connection, begun: Any, table: Study, part: list[Any]) -> int:
    """Takes one mini-batch of steps. Each post is read once."""
    found = call_rows(
        connection,
        "select * from two_tower.study_steps(%s, %s::bigint[], %s::timestamptz[])",
        begun.id,
        [event.event_id for event in part],
        [event.created_at for event in part],
    )
    steps = [
        Step(
            step.post_id,
            step.strength,
            step.history_ids,
            step.history_weights,
            None if step.prior is None else matrix([step.prior], WIDTH)[0],
            step.negative_ids,
        )
        for step in found
    ]
    read = "select * from two_tower.study_posts(%s, %s::bigint[])"
    if missing := table.missing(steps):
        posts = call_rows(connection, read, begun.id, missing)
        table.add(
            [post.post_id for post in posts],
            matrix([post.embedding for post in posts], WIDTH),
            np.array([post.engagements for post in posts], dtype=float),
            np.array([post.log_share for post in posts], dtype=float),
        )
    return table.take(steps)
