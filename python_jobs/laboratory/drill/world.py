"""A small feed: readers of three subjects, and accounts that come to drag its posts elsewhere."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np

from python_jobs.db import Connection, Vectors, rows, value
from python_jobs.errors import CommandError
from python_jobs.laboratory.server import USER_ID

SUBJECTS = ("sailing", "baking", "chess")
POSTS = 40  # of a subject
READERS = 30
FIRST_AUTHOR, AUTHORS = 1000, 20  # of a subject
SPREAD = 0.04  # of the texts of a subject about its centre, in each of 384 dimensions
SPAM, SPAM_POSTS = "spam", 10
FIRST_SPAMMER = 10_000
ACCOUNTS_AN_HOUR = 40
HITS = 15  # posts of others that an account of the wave goes for
PAGE = 20
SEED = 7
TURNS = 10_000  # of ticks, at most, until nothing is due


class World:
    """A migrated, empty database, which this fills. Time passes only when it is told to.

    Texts have stand-ins for vectors, so that no encoder is needed: the posts of a subject lie about
    a random centre. connection: in autocommit, as the owner of the engine.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rng = np.random.default_rng(SEED)
        centres = self.rng.normal(size=(len(SUBJECTS) + 1, 384))
        self._liked: dict[int, set[int]] = {}
        self._centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        self.now: datetime = value(connection, "select pg_catalog.now()") - timedelta(days=2)
        self.pass_time(timedelta(0))
        connection.execute("select two_tower.create_partitions_back_to(%s)", [self.now.date()])
        # Towers are not trained here, and no index is needed.
        connection.execute(
            "update two_tower.schedules set is_enabled = false where runs_in = 'worker'"
        )
        self._add_users(1, READERS)
        self._add_users(FIRST_AUTHOR, AUTHORS * len(SUBJECTS))
        self.posts = [self.write_posts(subject) for subject in range(len(SUBJECTS))]

    def pass_time(self, length: timedelta) -> None:
        """Sets the clock of the engine forward, for this session."""
        self.now += length
        self.set_clock(self.now)

    def set_clock(self, at: datetime) -> None:
        """Sets the clock of the engine, for this session."""
        value(self.connection, "select set_config('two_tower.now', %s, false)", at.isoformat())

    def write_posts(self, subject: int) -> list[int]:
        """Posts of a subject (of spam: len(SUBJECTS)), encoded. Returns their ids."""
        name, count = (*SUBJECTS, SPAM)[subject], POSTS if subject < len(SUBJECTS) else SPAM_POSTS
        first = FIRST_AUTHOR + subject * AUTHORS if subject < len(SUBJECTS) else FIRST_SPAMMER
        ids = [
            row.id
            for row in rows(
                self.connection,
                "insert into public.posts (author_id, content, created_at)"
                f" select {USER_ID.format('%s::int + n %% %s')}, %s || ' ' || n, two_tower.now()"
                " from generate_series(1, %s::int) n returning id",
                first,
                AUTHORS,
                name,
                count,
            )
        ]
        vectors = self._centres[subject] + SPREAD * self.rng.normal(size=(count, 384))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store = "select two_tower.store_base_embeddings(%s::bigint[], %s)"
        value(self.connection, store, ids, Vectors(vectors.astype(np.float32)))
        return ids

    def subject_of(self, reader: int) -> list[int]:
        """The posts of the one subject that the reader likes."""
        return self.posts[reader % len(SUBJECTS)]

    def read_and_like(self, readers: range, count: int) -> None:
        """Each of these readers likes posts of a subject that are new to them."""
        for reader in readers:
            known = self._liked.setdefault(reader, set())
            own = [post for post in self.subject_of(reader) if post not in known]
            picks = self.rng.choice(own, count, replace=False).tolist()
            self.pass_time(timedelta(seconds=5))
            self._send("like", [reader] * count, picks)
            known.update(picks)

    def send_spam(self, hour: int, spam: list[int]) -> None:
        """New accounts act on the spam, and on posts of others, which follow them there."""
        first = FIRST_SPAMMER + hour * ACCOUNTS_AN_HOUR
        accounts = range(first, first + ACCOUNTS_AN_HOUR)
        if hour:  # those of the first hour are there: one of them wrote the spam
            self._add_users(first, ACCOUNTS_AN_HOUR)
        known = [post for of_subject in self.posts for post in of_subject[: POSTS // 3]]
        for kind in ("like", "repost", "reply", "click"):
            users: list[int] = []
            posts: list[int] = []
            for account in accounts:
                hit = self.rng.choice(known, HITS, replace=False).tolist()
                users += [account] * (len(spam) + HITS)
                posts += [*spam, *hit]
            self._send(kind, users, posts)
            self.tick()
            self.pass_time(timedelta(minutes=2))

    def begin_spam(self) -> list[int]:
        """The first accounts sign up, and one of them writes. Returns the ids of its posts."""
        self._add_users(FIRST_SPAMMER, ACCOUNTS_AN_HOUR)
        return self.write_posts(len(SUBJECTS))

    def tick(self) -> None:
        """Ticks until nothing is due. Jobs are done at once: their work was done when it came.

        Raises CommandError where there is no end to it.
        """
        for _ in range(TURNS):
            did = value(self.connection, "select two_tower.tick()")
            for job in rows(self.connection, "select id from two_tower.claim_job('drill')"):
                value(self.connection, "select two_tower.complete_job(%s, 'drill')", job.id)
            if not any(each not in (0, []) for each in did.values()):
                return
        raise CommandError(f"Ticks come to no end: {did}.")

    def pages(self, readers: range, at: datetime) -> list[list[int]]:
        """The page of each of these readers as of a time: ids of posts."""
        self.set_clock(at)
        query = f"select post_id from two_tower.recommend_for({USER_ID.format('%s::int')}, %s)"
        found = [[row.post_id for row in rows(self.connection, query, reader, PAGE)]
                 for reader in readers]  # fmt: skip
        self.set_clock(self.now)
        return found

    def _add_users(self, first: int, count: int) -> None:
        self.connection.execute(
            f"insert into auth.users (id, email) select {USER_ID.format('g')}, 'user ' || g"
            " from generate_series(%s::int, %s::int) g".encode(),
            [first, first + count - 1],
        )

    def _send(self, kind: str, users: list[int], posts: list[Any]) -> None:
        """One statement of events, the n-th of user n about post n."""
        self.connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            f" select {USER_ID.format('u')}, p, %s"
            " from unnest(%s::int[], %s::bigint[]) with ordinality as x (u, p, n)"
            " order by n".encode(),
            [kind, users, posts],
        )
