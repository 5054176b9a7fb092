"""Study: repeats the newest positives. SQL says which and applies what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg

from python_jobs.db import Connection, Vectors, call, call_rows
from python_jobs.worker.jobs.versions import matrix
from python_jobs.worker.stopping import leave_if_told
from python_jobs.worker.study import WIDTH, Step, Study, StudyConfig

POSTS_READ = 16_384  # at most this number is asked for at a time
POSTS_APPLIED = 250  # so that a like whose post is locked here is folded soon


def study(connection: Connection) -> dict[str, Any]:
    """Repeats positives in mini-batches, and hands in how far posts moved.

    Who is told to stop leaves the study open: the next worker takes it over.
    """
    (begun,) = call_rows(connection, "select * from two_tower.begin_study()")
    if begun.id is None:
        return {"skipped": "nothing to study now"}
    try:
        config = StudyConfig(begun.rate, begun.temperature, begun.popularity_in_logits)
        table = Study(config)
        taken = sum(_take(connection, begun, table, steps) for steps in _drawn(connection, begun))
        moved = 0
        for post_ids, deltas in table.deltas(POSTS_APPLIED):
            leave_if_told()
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


def _drawn(connection: Connection, begun: Any) -> Iterator[Sequence[Step]]:
    """Mini-batches of positives of the window, drawn at random, each once.

    They are read user after user, and repeated in the order of the draw.
    """
    window = call_rows(connection, "select * from two_tower.study_window(%s)", begun.id)
    drawn = np.random.default_rng(begun.id).permutation(len(window))[: begun.steps].tolist()
    steps: dict[int, Step] = {}
    for part in _parts(sorted(drawn), begun.batch_steps):
        leave_if_told()
        steps.update(_read_steps(connection, begun, [window[place] for place in part]))
    standing = [steps[event] for place in drawn if (event := window[place].event_id) in steps]
    yield from _parts(standing, begun.batch_steps)


def _parts(whole: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """What stands in a sequence, `size` at a time."""
    return (whole[begin : begin + size] for begin in range(0, len(whole), size))


def _read_steps(connection: Connection, begun: Any, events: list[Any]) -> dict[int, Step]:
    """Steps by event. Those are missing that do not stand any more."""
    found = call_rows(
        connection,
        "select * from two_tower.study_steps(%s, %s::bigint[], %s::timestamptz[])",
        begun.id,
        [event.event_id for event in events],
        [event.created_at for event in events],
    )
    return {
        step.event_id: Step(
            step.post_id,
            step.strength,
            step.history_ids,
            step.history_weights,
            None if step.prior is None else matrix([step.prior], WIDTH)[0],
            step.negative_ids,
        )
        for step in found
    }


def _take(connection: Connection, begun: Any, table: Study, steps: Sequence[Step]) -> int:
    """Takes one mini-batch of steps. Each post is read once."""
    leave_if_told()
    read = "select * from two_tower.study_posts(%s, %s::bigint[])"
    for missing in _parts(table.missing(steps), POSTS_READ):
        posts = call_rows(connection, read, begun.id, missing)
        table.add(
            [post.post_id for post in posts],
            matrix([post.embedding for post in posts], WIDTH),
            np.array([post.engagements for post in posts], dtype=float),
            np.array([post.log_share for post in posts], dtype=float),
        )
    return table.take(steps)
