"""Training of the candidate tower: data from the database, a version back, and SQL judges it."""

from __future__ import annotations

from typing import Any

import numpy as np

from python_jobs.db import Connection, call, call_rows, value
from python_jobs.worker.jobs.versions import Origin, load, matrix, store
from python_jobs.worker.towers.candidate import (
    BASE,
    OUTPUT,
    CandidateConfig,
    CandidateData,
    train_candidate,
)

MAXIMUM_ANCHOR_WEIGHT = 20  # so that a few very popular posts do not decide where all lie


def train_candidate_tower(connection: Connection) -> dict[str, Any]:
    """Trains the candidate tower on the newest pairs, stores the version, asks for the verdict."""
    held_out = call(connection, "select two_tower.held_out_from()")
    pairs = call_rows(connection, "select * from two_tower.candidate_tower_pairs(%s)", held_out)
    anchors = call_rows(connection, "select * from two_tower.live_anchors(%s)", held_out)
    data = _data(connection, pairs, anchors)
    if not len(data.user):
        return {"skipped": "no positives before those that are held out"}
    parent = value(connection, "select two_tower.active_version('candidate_tower')")
    loss = value(connection, "select candidate_tower_loss from two_tower.read_settings()")
    result = train_candidate(data, load(connection, parent)[0], CandidateConfig(loss=loss))
    first = min(pair.event_id for pair in pairs)
    version = store(connection, "candidate_tower", result, Origin(parent, first, held_out))
    if version is None:
        return {"rejected": "weights that are not finite"}
    accepted = call(connection, "select two_tower.judge_candidate_tower(%s)", version)
    return {"version": version, "accepted": accepted, **result.metrics}


def _data(connection: Connection, pairs: list[Any], anchors: list[Any]) -> CandidateData:
    """Each post's base embedding is read once; posts that have none yet take no part."""
    ids = {post.post_id for post in (*pairs, *anchors)}
    ids.update(negative for pair in pairs for negative in pair.negative_ids)
    found = call_rows(connection, "select * from two_tower.read_base_embeddings(%s)", sorted(ids))
    place = {row.post_id: number for number, row in enumerate(found)}
    pairs = [pair for pair in pairs if pair.post_id in place]
    anchors = [anchor for anchor in anchors if anchor.post_id in place]
    positive = [pair for pair in pairs if pair.label]
    rejected = [pair for pair in pairs if not pair.label]
    drawn = [[place[n] for n in pair.negative_ids if n in place] for pair in positive]
    width = max((len(negatives) for negatives in drawn), default=0)
    mask = np.array([[n < len(part) for n in range(width)] for part in drawn], dtype=bool)
    return CandidateData(
        base=matrix([row.base_embedding for row in found], BASE),
        user=matrix([pair.user_emb for pair in positive], OUTPUT),
        positive=np.array([place[pair.post_id] for pair in positive], dtype=np.int64),
        negatives=np.array(
            [part + [0] * (width - len(part)) for part in drawn], dtype=np.int64
        ).reshape(len(positive), width),
        mask=mask.reshape(len(positive), width),
        anchor=np.array([place[a.post_id] for a in anchors], dtype=np.int64),
        anchor_live=matrix([a.embedding for a in anchors], OUTPUT),
        anchor_weight=np.array(
            [min(a.engagements, MAXIMUM_ANCHOR_WEIGHT) for a in anchors], dtype=np.float32
        ),
        rejected_user=matrix([pair.user_emb for pair in rejected], OUTPUT),
        rejected=np.array([place[pair.post_id] for pair in rejected], dtype=np.int64),
    )
