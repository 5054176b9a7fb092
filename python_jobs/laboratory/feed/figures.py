"""What the panel shows, asked of the database as an operator's back end does."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from python_jobs.db import Connection, rows

HEALTH = "select name, value, unit, state, description from two_tower.health order by name"
READER = """
    select r.vector, r.warmth, coalesce(u.engagement_count, 0) as engagement_count,
      u.prior is not null as has_prior
    from two_tower.load_reader(%s) r left join two_tower.user_embeddings u using (user_id)
"""
# The posts that the reader's vector is made of, newest first, and what was done last with each.
LESSONS = """
    select p.content as title, l.post_id, l.strength, e.event_type
    from two_tower.user_embeddings u
      cross join unnest(u.recent_post_ids, u.recent_strengths)
        with ordinality as l (post_id, strength, place)
      join two_tower.posts r on r.id = l.post_id
      join public.posts p on p.id::text = r.key
      left join lateral (
        select x.event_type from public.engagement_events x
        where x.user_id = u.user_id and x.post_id = l.post_id and x.event_type <> 'view'
        order by x.id desc limit 1) e on true
    where u.user_id = %s order by l.place desc
"""
LISTED = 6


def read_health(connection: Connection) -> list[dict[str, Any]]:
    """The health view, row by row."""
    return [row._asdict() for row in rows(connection, HEALTH)]


def read_reader(
    connection: Connection, user_id: uuid.UUID
) -> tuple[dict[str, Any], np.ndarray | None, set[int]]:
    """What is known of a user: told, as a vector, and the posts that it was learned from.

    The vector has norm 1; None for a user of whom nothing is known.
    """
    (reader,) = rows(connection, READER, user_id)
    lessons = rows(connection, LESSONS, user_id)
    told = {
        "engagement_count": reader.engagement_count,
        "warmth": reader.warmth,
        "has_prior": reader.has_prior,
        "lessons": [
            {
                "title": title_of(lesson.title),
                "event_type": lesson.event_type,
                "strength": lesson.strength,
            }
            for lesson in lessons[:LISTED]
        ],
    }
    vector = None if reader.vector is None else reader.vector.to_numpy()
    if vector is not None and not vector.any():
        vector = None
    return told, vector, {lesson.post_id for lesson in lessons if lesson.strength > 0}


def title_of(content: str) -> str:
    """The first sentence of a post, without its stop."""
    return content.split(". ")[0].removesuffix(".")[:80]
