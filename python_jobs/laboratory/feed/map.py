"""A map of posts: their live vectors in the two directions in which they differ most."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from python_jobs.db import Connection, rows
from python_jobs.laboratory.feed.figures import title_of
from python_jobs.operations.report.axes import Axes

SAMPLE = 700
NEAREST = 3
# Every so many posts by their dense numbers, and those asked for by id.
POSTS = """
    with spread as (
      select greatest(1, count(*) / %s) as step from two_tower.posts where is_listed
    )
    select v.post_id, v.model_version, v.embedding, p.content, a.handle
    from two_tower.state s
      join two_tower.live_embeddings v on v.slot = s.active_slot and v.is_listed
      cross join spread
      join two_tower.posts r on r.id = v.post_id
      join public.posts p on p.id::text = r.key
      left join public.profiles a on a.user_id = p.author_id
    where v.number %% spread.step = 0 or v.post_id = any (%s)
    order by v.post_id
"""


class PostMap:
    """Keeps its axes until another candidate tower serves. Posts move on it as they learn."""

    def __init__(self) -> None:
        self._axes: Axes | None = None
        self._lock = threading.Lock()

    def read(
        self, connection: Connection, reader: np.ndarray | None, learned: set[int]
    ) -> dict[str, Any]:
        """A sample of the posts, with those that the reader's vector was learned from; the reader.

        reader: (128,), norm 1, or None.
        """
        posts = rows(connection, POSTS, SAMPLE, list(learned))
        if len(posts) < 3:
            return {"axes": "", "posts": [], "you": None, "nearest": []}
        vectors = np.array([post.embedding.to_numpy() for post in posts], float)
        axes = self._keep(max(post.model_version for post in posts), vectors)
        places = axes.place(vectors)
        told = [
            {
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "title": title_of(post.content),
                "author": post.handle,
                "is_yours": post.post_id in learned,
            }
            for post, (x, y) in zip(posts, places, strict=True)
        ]
        you, nearest = None, []
        if reader is not None:
            x, y = axes.place(reader[None])[0]
            you = {"x": round(float(x), 4), "y": round(float(y), 4)}
            best = np.argsort(vectors @ reader)[::-1][:NEAREST]
            nearest = [told[place]["title"] for place in best]
        return {"axes": axes.name, "posts": told, "you": you, "nearest": nearest}

    def _keep(self, version: int, vectors: np.ndarray) -> Axes:
        with self._lock:
            if self._axes is None or self._axes.version != version:
                self._axes = Axes.fit(version, vectors)
            return self._axes
