"""Two-Tower itself, asked and told through its tables and functions."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np

from python_jobs.db import Connection, Vectors, rows, value
from python_jobs.laboratory.evaluate.interactions import Stream
from python_jobs.laboratory.evaluate.systems import PAGE, System
from python_jobs.laboratory.server import USER_ID

FOLDED_EVERY = 100
TRAINED_EVERY = 1000
USERS_TRAINED_EVERY = 2500
STUDIED_EVERY = 1000


class TwoTower(System):
    """A database of its own; events go in by INSERT, pages come from recommend_for().

    settings: columns of two_tower.settings that differ from the defaults.
    jobs: of study, candidate_tower and user_tower, those that run, at the cadence above.
    """

    def __init__(
        self,
        name: str,
        connection: Connection,
        stream: Stream,
        base: np.ndarray,
        settings: dict[str, Any],
        jobs: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.connection = connection
        self.stream = stream
        self.jobs = jobs
        self.waiting: list[int] = []
        # The stream ends now, whole hours later than it did: what is bounded by the hour is then
        # bounded alike in all arms.
        self.shift = (time.time() - float(stream.seconds[-1])) // 3600 * 3600
        self._set_up(base, settings)

    def _set_up(self, base: np.ndarray, settings: dict[str, Any]) -> None:
        # Ratings are entered many a minute, each of them meant; no item has an author.
        settings = {"learned_events_per_minute": 1_000_000, **settings}
        for column, setting in settings.items():
            self.connection.execute(
                f"update two_tower.settings set {column} = %s".encode(), [setting]
            )
        self._set_clock(float(self.stream.seconds[0]))
        # The same draws for all, so that arms that do the same score the same.
        value(self.connection, "select setseed(0.5)")
        self.connection.execute(
            f"insert into auth.users (id, email) select {USER_ID.format('g')}, 'u' || g"
            " from generate_series(1, %s) g".encode(),
            [self.stream.user_count],
        )
        self.connection.execute(
            "insert into public.posts (id, author_id, content)"
            " select n, null, c from unnest(%s::text[]) with ordinality as x (c, n)",
            [self.stream.texts],
        )
        for start in range(0, len(base), 256):
            part = base[start : start + 256]
            self.connection.execute(
                "select two_tower.store_base_embeddings(%s::bigint[], %s)",
                [list(range(start + 1, start + 1 + len(part))), Vectors(part)],
            )
        # As a worker does while posts wait for their first reader, and autovacuum within a minute:
        # by the plans, rows come in another order, and then other negatives are drawn.
        for _ in range(10):
            value(self.connection, "select two_tower.tick()")
        self._put_in_service()
        self.connection.execute("analyze")

    def top(self, user: int, now: float) -> np.ndarray:
        """What recommend_for() answers at that time."""
        self._send()
        self._set_clock(now)
        user_id = USER_ID.format("%s::int")
        query = f"select post_id from two_tower.recommend_for({user_id}, %s)"
        page = rows(self.connection, query, user + 1, PAGE)
        return np.array([post.post_id - 1 for post in page], dtype=int)

    def learn(self, number: int) -> None:
        """Inserts it, at the latest before the next question."""
        self.waiting.append(number)
        if (number + 1) % FOLDED_EVERY == 0:
            self._send()
            value(self.connection, "select two_tower.fold_steps(null)")
            value(self.connection, "select two_tower.set_popularity_clock()")
            value(self.connection, "select two_tower.refresh_popular_candidates()")
            value(self.connection, "select two_tower.learn_warmth()")
            value(self.connection, "select two_tower.refresh_serving_index()")
            if value(self.connection, "select two_tower.improve_first_tower()"):
                self._put_in_service()
        if "study" in self.jobs and (number + 1) % STUDIED_EVERY == 0:
            self._run("study")
        if "candidate_tower" in self.jobs and (number + 1) % TRAINED_EVERY == 0:
            self._run("train_candidate_tower")
        if "user_tower" in self.jobs and (number + 1) % USERS_TRAINED_EVERY == 0:
            self._run("train_user_tower")

    def _send(self) -> None:
        if not self.waiting:
            return
        numbers, self.waiting = self.waiting, []
        self._set_clock(float(self.stream.seconds[numbers[-1]]))
        self.connection.execute(
            "insert into public.engagement_events"
            " (user_id, post_id, event_type, dwell_ms, created_at)"
            f" select {USER_ID.format('u')}, p, e, d, t"
            " from unnest(%s::int[], %s::bigint[], %s::text[], %s::int[], %s::timestamptz[])"
            " with ordinality as x (u, p, e, d, t, n) order by n".encode(),
            [
                [int(self.stream.users[n]) + 1 for n in numbers],
                [int(self.stream.items[n]) + 1 for n in numbers],
                [self.stream.event_types[n] for n in numbers],
                [self.stream.dwell_ms[n] for n in numbers],
                [self._time(float(self.stream.seconds[n])) for n in numbers],
            ],
        )

    def _run(self, kind: str) -> None:
        from python_jobs.worker.jobs import HANDLERS

        HANDLERS[kind](self.connection)
        self._put_in_service()

    def _put_in_service(self) -> None:
        """A version that waits, and an index where there are more posts than are scanned."""
        from python_jobs.operations.switch import finish_switch
        from python_jobs.worker.jobs import HANDLERS

        finish_switch(self.connection)
        if value(self.connection, "select two_tower.is_serving_build_due()"):
            HANDLERS["build_serving_index"](self.connection)

    def collapse(self) -> float | None:
        """Mean cosine of the 200 most engaged posts, as the audit measures it."""
        query = "select value from two_tower.measure_quality() where name = 'mean_cosine'"
        found = [row.value for row in rows(self.connection, query)]
        return None if found in ([], [None]) else float(found[0])

    def versions(self) -> dict[str, int]:
        """How many versions of the towers the gate accepted and rejected, and indexes built."""
        query = (
            "select tower || ' ' || state, count(*) from two_tower.model_weights group by 1"
            " union all select 'serving index built', count(*) from two_tower.serving_builds"
            " having count(*) > 0"
        )
        return dict(rows(self.connection, query))

    def agreements(self) -> dict[str, float]:
        """Rank correlation (Spearman) of cosines with those of the texts, by how the projection
        that the project started with came about."""
        found = rows(
            self.connection,
            "select verdict, metrics -> 'agreement' -> 'with_texts' as spearman"
            " from two_tower.model_weights where metrics ? 'agreement' order by version",
        )
        return {row.verdict.removeprefix("accepted: "): row.spearman for row in found}

    def _time(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds + self.shift, UTC)

    def _set_clock(self, seconds: float) -> None:
        self.connection.execute(
            "select set_config('two_tower.now', %s, false)", [self._time(seconds).isoformat()]
        )
