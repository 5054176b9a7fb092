"""What a report tells, read in one go: figures over time, verdicts, experiments, a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from python_jobs.db import Connection, array, rows
from python_jobs.errors import CommandError
from python_jobs.operations.report.axes import Axes

POINTS = 240  # of a line
POSTS = 1500  # on the map
FEWEST_POSTS = 3
MEASUREMENTS = """
    with shown as materialized (
      select name, measured_at, value from two_tower.metrics
      where measured_at > two_tower.now() - %s * interval '1 day' and value is not null
    ), step as (
      select greatest((max(measured_at) - min(measured_at)) / %s, interval '1 second') as width
      from shown
    )
    select name, date_bin(step.width, measured_at, 'epoch') as at,
      avg(value) as mean, min(value) as low, max(value) as high
    from shown cross join step group by 1, 2 order by 1, 2
"""
# Every so many posts by their dense numbers, and those asked for by id.
SPREAD = """
    with spread as (
      select greatest(1, count(*) / %s) as step from two_tower.posts where is_listed
    )
    select v.post_id, v.model_version, v.embedding, v.engagement_count, r.key
    from two_tower.state s
      join two_tower.live_embeddings v on v.slot = s.active_slot and v.is_listed
      join two_tower.posts r on r.id = v.post_id
      cross join spread
    where v.number %% spread.step = 0 or v.post_id = any (%s)
    order by v.post_id
"""
READER = """
    select user_id, embedding, recent_post_ids from two_tower.user_embeddings
    where user_id = coalesce(%s, user_id) and engagement_count > 0
    order by engagement_count desc, user_id limit 1
"""


@dataclass(frozen=True)
class Map:
    """Points from -1 to 1. posts: (n, 2), with engagements (n) and keys (n). path: (p, 2), the
    posts that the reader engaged with last, oldest first. reader: (2,). interests: (i, 2), with
    weights (i), which sum to 1."""

    posts: np.ndarray
    engagements: np.ndarray
    keys: list[str]
    path: np.ndarray
    reader: np.ndarray | None
    interests: np.ndarray
    weights: np.ndarray


def read_measurements(connection: Connection, days: float) -> dict[str, list[Any]]:
    """By metric: rows at, mean, low, high of the last days, at most about POINTS of them."""
    found: dict[str, list[Any]] = {}
    for row in rows(connection, MEASUREMENTS, days, POINTS):
        found.setdefault(row.name, []).append(row)
    return found


def read_map(connection: Connection, reader: UUID | None) -> Map | None:
    """A map of posts with a reader: the one who engaged most, unless told. None without posts.

    Raises CommandError for a reader of whom nothing was learned.
    """
    found = rows(connection, READER, reader)
    if reader is not None and not found:
        raise CommandError(f"Nothing was learned of a reader {reader}.")
    recent = found[0].recent_post_ids if found else []
    posts = rows(connection, SPREAD, POSTS, recent)
    if len(posts) < FEWEST_POSTS:
        return None
    vectors = np.array([array(post.embedding) for post in posts], float)
    axes = Axes.fit(max(post.model_version for post in posts), vectors)
    places = axes.place(vectors)
    of = {post.post_id: place for post, place in zip(posts, places, strict=True)}
    query = "select vector, weight from two_tower.list_interests(%s)"
    interests = rows(connection, query, found[0].user_id) if found else []
    return Map(
        posts=places,
        engagements=np.array([post.engagement_count for post in posts]),
        keys=[post.key for post in posts],
        path=np.array([of[post] for post in recent if post in of]).reshape(-1, 2),
        reader=axes.place(array(found[0].embedding)[None])[0] if found else None,
        interests=axes.place(np.array([array(i.vector) for i in interests]).reshape(-1, 128)),
        weights=np.array([i.weight for i in interests]),
    )
