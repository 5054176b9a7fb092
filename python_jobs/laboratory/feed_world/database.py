"""Two-Tower itself: a project whose posts are written, read and removed while feed time passes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from python_jobs.db import Connection, Vectors, rows, value
from python_jobs.laboratory.feed_world.systems import System
from python_jobs.laboratory.feed_world.world import PAGE, Visit, World
from python_jobs.laboratory.server import USER_ID
from python_jobs.operations.switch import finish_switch

OPENS_AT = datetime(2026, 1, 5, tzinfo=UTC).timestamp()
TICKED_EVERY_S = 1800.0
TICKS = 20
AUTHOR, READER = 1, 1_000_000


class TwoTower(System):
    """A database of its own; events go in by INSERT, pages come from recommend_for().

    settings: columns of two_tower.settings that differ from the defaults. Texts are encoded when
    their posts are born, as by a worker that is never behind; towers are not trained.
    """

    name = "two-tower"

    def __init__(self, world: World, connection: Connection, settings: dict[str, Any]) -> None:
        self.world, self.connection = world, connection
        self.written = np.zeros(len(world.born), dtype=bool)
        self.removed = np.zeros(len(world.born), dtype=bool)
        self.ticked_at = -np.inf
        for column, setting in settings.items():
            self.connection.execute(
                f"update two_tower.settings set {column} = %s".encode(), [setting]
            )
        self._set_clock(0)
        value(self.connection, "select setseed(0.5)")
        for first, count in ((AUTHOR, int(world.author.max()) + 1), (READER, world.scale.readers)):
            self.connection.execute(
                f"insert into auth.users (id, email) select {USER_ID.format('g')}, 'u' || g"
                " from generate_series(%s::int, %s::int) g".encode(),
                [first, first + count - 1],
            )
        self._advance(0)
        self.connection.execute("analyze")

    def page(self, visit: Visit) -> np.ndarray:
        """What recommend_for() answers at that time."""
        self._advance(visit.time)
        query = f"select post_id from two_tower.recommend_for({USER_ID.format('%s::int')}, %s)"
        page = rows(self.connection, query, READER + visit.reader, PAGE)
        return np.array([row.post_id - 1 for row in page], dtype=int)

    def learn(self, visit: Visit, page: np.ndarray, answers: list[str]) -> None:
        """One INSERT of the views, each followed by its answer, two seconds a post."""
        events = [
            (int(post) + 1, kind, visit.time + 2 * place)
            for place, (post, answer) in enumerate(zip(page, answers, strict=True))
            for kind in ("view", answer)
            if kind
        ]
        if not events:
            return
        posts, kinds, times = zip(*events, strict=True)
        self._set_clock(times[-1])
        self.connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
            f" select {USER_ID.format('%s::int')}, p, e, t"
            " from unnest(%s::bigint[], %s::text[], %s::timestamptz[])"
            " with ordinality as x (p, e, t, n) order by n".encode(),
            [READER + visit.reader, list(posts), list(kinds), [_at(time) for time in times]],
        )

    def _advance(self, time: float) -> None:
        """What happened since the last visit: births, deaths, and ticks until none is due."""
        self._set_clock(time)
        self._write(np.flatnonzero((self.world.born <= time) & ~self.written))
        self._remove(np.flatnonzero((self.world.dies <= time) & self.written & ~self.removed))
        if time - self.ticked_at >= TICKED_EVERY_S:
            self.ticked_at = time
            for _ in range(TICKS):
                did = value(self.connection, "select two_tower.tick()")
                if value(self.connection, "select filling_version from two_tower.state"):
                    finish_switch(self.connection)
                elif not any(each not in (0, []) for each in did.values()):
                    break

    def _write(self, posts: np.ndarray) -> None:
        if not len(posts):
            return
        self.written[posts] = True
        self.connection.execute(
            "insert into public.posts (id, author_id, content, created_at)"
            f" select p, {USER_ID.format('a')}, c, t"
            " from unnest(%s::bigint[], %s::int[], %s::text[], %s::timestamptz[])"
            " as x (p, a, c, t)".encode(),
            [
                (posts + 1).tolist(),
                (self.world.author[posts] + AUTHOR).tolist(),
                [self.world.texts[text] for text in self.world.post_text[posts]],
                [_at(born) for born in self.world.born[posts]],
            ],
        )
        for part in np.split(posts, range(256, len(posts), 256)):
            self.connection.execute(
                "select two_tower.store_base_embeddings(%s::bigint[], %s)",
                [(part + 1).tolist(), Vectors(self.world.base[self.world.post_text[part]])],
            )

    def _remove(self, posts: np.ndarray) -> None:
        self.removed[posts] = True
        if len(posts):
            self.connection.execute(
                "delete from public.posts where id = any (%s)", [(posts + 1).tolist()]
            )

    def _set_clock(self, time: float) -> None:
        self.connection.execute(
            "select set_config('two_tower.now', %s, false)", [_at(time).isoformat()]
        )


def _at(time: float) -> datetime:
    """The moment of a feed time."""
    return datetime.fromtimestamp(OPENS_AT + time, UTC)
