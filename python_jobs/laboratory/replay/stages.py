"""The stages of a replay of MovieLens 100K, as if its users had used an app.

The bulk goes in as a backend's import does: with the service role and historical times. The last
slice goes through supabase-py, as signed-in users, with the server's own time. Before a sample of
the positives of the bulk, each user is asked for recommendations, which must not know it yet.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID
from supabase import Client, create_client

from python_jobs.db import Connection, array, connect, require_engine, rows, value
from python_jobs.errors import CommandError
from python_jobs.laboratory.movielens import MovieLens, Rating
from python_jobs.laboratory.replay.baselines import Baselines
from python_jobs.laboratory.replay.report import PAGE, Report

BATCH = 100  # events a statement: pushes are folded as often, which loses nothing measurable
CALL = 500  # events that record_engagements() takes
POSITIVE = ("like", "reply")
ENCODING_STALLED_S = 300.0
TRAINING_STALLED_S = 180.0


@dataclass(frozen=True)
class Access:
    """Where the API is; None for a database alone, where the whole stream goes in as bulk."""

    url: str
    anon_key: str


class Replay:
    """One replay into an empty database.

    url: of the database, as its owner. http_events: how many of the last go through the API.
    questions: how many positives are asked for before.
    """

    def __init__(
        self,
        url: str,
        access: Access | None,
        data: MovieLens,
        progress: Progress,
        http_events: int = 500,
        questions: int = 3000,
    ) -> None:
        self.data = data
        self.access = access
        self.progress = progress
        self.questions = questions
        self.bulk = data.ratings[: len(data.ratings) - (http_events if access else 0)]
        self.tail = data.ratings[len(self.bulk) :]
        self.shift = time.time() - data.ratings[-1].seconds - 60
        self.owner = connect(url, autocommit=True)
        self.users: dict[str, uuid.UUID] = {}
        self.clients: dict[str, Client] = {}
        self.posts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def close(self) -> None:
        """Closes the connection."""
        self.owner.close()

    def run(self) -> Report:
        """All stages. Raises CommandError when the database holds posts already."""
        require_engine(self.owner)
        if value(self.owner, "select exists (select from public.posts)"):
            raise CommandError(
                "The database holds posts already, of an app or of a replay that was broken off,"
                " and a replay needs it empty: two-tower down --delete removes the local one."
            )
        with self._stage("Users", len({r.user for r in self.data.ratings})) as task:
            self._create_users(task)
        with self._stage("Posts encoded", len(self.data.films)) as task:
            self._create_posts()
            self._wait_for_encoding(task)
            self._wait_for_projection()
        with self._stage("Events", len(self.bulk)) as task:
            asked, hits = self._replay_bulk(task)
        with self._stage("Towers trained", 2) as task:
            self._train_towers(task)
        with self._stage("Events over HTTP", len(self.tail)) as task:
            self._replay_over_http(task)
        return Report(
            events=len(self.bulk),
            http_events=len(self.tail),
            posts=len(self.posts),
            users=len({r.user for r in self.data.ratings}),
            asked=asked,
            hits=hits,
            seconds=self.seconds,
            shown=self._show(3),
        )

    @contextmanager
    def _stage(self, title: str, total: int) -> Iterator[TaskID]:
        started = time.monotonic()
        task = self.progress.add_task(title, total=total)
        yield task
        self.progress.update(task, completed=total)
        self.seconds[title] = round(time.monotonic() - started, 1)

    def _create_users(self, task: TaskID) -> None:
        genres = {film.genre for film in self.data.films}
        people = []
        for name in sorted({r.user for r in self.data.ratings}) + sorted(genres):
            self.users[name] = uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.two-tower.example.com")
        if self.access:
            for name in dict.fromkeys(r.user for r in self.tail):
                self.clients[name], self.users[name] = self._sign_up(self.access, name)
                self.progress.advance(task)
        for name, user_id in self.users.items():
            if name not in self.clients:
                people.append((user_id, f"{user_id}@example.com"))
        with self.owner.cursor() as cursor:
            cursor.executemany(
                "insert into auth.users (id, email) values (%s, %s) on conflict do nothing", people
            )
            cursor.executemany(
                "insert into public.profiles (user_id, handle, bio) values (%s, %s, %s)",
                [(self.users[genre], genre, f"Films: {genre}") for genre in sorted(genres)],
            )

    def _sign_up(self, access: Access, name: str) -> tuple[Client, uuid.UUID]:
        client = create_client(access.url, access.anon_key)
        address = f"viewer-{name}-{secrets.token_hex(4)}@example.com"
        answer = client.auth.sign_up({"email": address, "password": secrets.token_hex(16)})
        if answer.user is None or answer.session is None:
            raise CommandError("Auth gave no session: switch off the confirmation of e-mails.")
        return client, uuid.UUID(answer.user.id)

    def _create_posts(self) -> None:
        first = self._time(self.data.ratings[0].seconds - 86400)
        # A genre posts its films. It is a shelf, and no person who might want more than is due.
        self.owner.execute(
            "update two_tower.settings set author_share = 1, followed_author_share = 1"
        )
        with as_service(self.owner), self.owner.cursor() as cursor:
            cursor.executemany(
                "insert into public.posts (author_id, content, created_at) values (%s, %s, %s)"
                " returning id",
                [(self.users[film.genre], film.text, first) for film in self.data.films],
                returning=True,
            )
            for film in self.data.films:
                row = cursor.fetchone()
                assert row is not None
                self.posts[film.key] = row.id
                cursor.nextset()

    def _wait_for_encoding(self, task: TaskID) -> None:
        last, changed_at = -1, time.monotonic()
        while True:
            count = value(
                self.owner,
                "select count(*) from two_tower.post_embeddings where embedding is not null",
            )
            self.progress.update(task, completed=count)
            if count >= len(self.posts):
                return
            if count != last:
                last, changed_at = count, time.monotonic()
            elif time.monotonic() - changed_at > ENCODING_STALLED_S:
                raise CommandError("No post is being encoded: start a worker (two-tower worker).")
            time.sleep(0.3)

    def _wait_for_projection(self) -> None:
        """Until it is fitted or centred, as far as is due: what is learned in the one before keeps
        its place."""
        deadline = time.monotonic() + TRAINING_STALLED_S
        due = "projection_due is not null or filling_version is not null"
        while value(self.owner, f"select {due} from two_tower.overview"):
            if time.monotonic() > deadline:
                raise CommandError("The projection is not put in place: start a worker.")
            time.sleep(0.1)

    def _replay_bulk(self, task: TaskID) -> tuple[int, dict[str, int]]:
        base, place = self._base_embeddings()
        baselines = Baselines(base)
        questions = self._choose_questions()
        hits = {"two-tower": 0, "popularity": 0, "static content": 0}
        batch: list[Rating] = []
        for number, rating in enumerate(self.bulk):
            is_positive = rating.event_type in POSITIVE
            if number in questions:
                self._insert(batch)
                batch = []
                found = baselines.hits(rating.user, place[self.posts[rating.film]])
                found["two-tower"] = self._is_recommended(rating)
                for name, is_hit in found.items():
                    hits[name] += is_hit
            batch.append(rating)
            baselines.add(rating.user, place[self.posts[rating.film]], is_positive, rating.seconds)
            if number == 0 or len(batch) == BATCH or (number + 1) % BATCH == 0:
                self._insert(batch)
                batch = []
            if number == 0:
                self._wait_for_projection()
            if (number + 1) % BATCH == 0:
                self.owner.execute("select two_tower.fold_steps(1000)")
                self.progress.update(task, completed=number + 1)
        self._insert(batch)
        return len(questions), hits

    def _choose_questions(self) -> set[int]:
        """An even sample of the positives in the last 60 % of the bulk."""
        start = int(len(self.bulk) * 0.4)
        positives = [
            number
            for number in range(start, len(self.bulk))
            if self.bulk[number].event_type in POSITIVE
        ]
        picked = np.linspace(0, len(positives) - 1, min(self.questions, len(positives)))
        return {positives[int(index)] for index in picked}

    def _base_embeddings(self) -> tuple[np.ndarray, dict[int, int]]:
        query = "select post_id, base_embedding from two_tower.base_embeddings order by post_id"
        found = rows(self.owner, query)
        place = {row.post_id: number for number, row in enumerate(found)}
        return np.stack([array(row.base_embedding) for row in found]), place

    def _is_recommended(self, rating: Rating) -> bool:
        query = "select post_id from two_tower.recommend_for(%s, %s)"
        with as_service(self.owner, self._time(rating.seconds)):
            page = rows(self.owner, query, self.users[rating.user], PAGE)
        return self.posts[rating.film] in [post.post_id for post in page]

    def _insert(self, batch: list[Rating]) -> None:
        if not batch:
            return
        with as_service(self.owner):
            self.owner.execute(
                "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
                " select * from unnest(%s::uuid[], %s::bigint[], %s::text[], %s::timestamptz[])",
                [
                    [self.users[r.user] for r in batch],
                    [self.posts[r.film] for r in batch],
                    [r.event_type for r in batch],
                    [self._time(r.seconds) for r in batch],
                ],
            )

    def _train_towers(self, task: TaskID) -> None:
        """Has both towers trained on the end of the bulk: its months took minutes, and a training
        that is due hourly was not due. What takes longer than TRAINING_STALLED_S is left to go on.
        """
        deadline = time.monotonic() + TRAINING_STALLED_S
        # a version that is being put in place would be overtaken by the next one
        while value(self.owner, "select filling_version from two_tower.state"):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        jobs = [
            value(
                self.owner,
                "select coalesce(two_tower.enqueue_job(k), (select id from two_tower.jobs"
                " where kind = k and state = 'pending')) from (values (%s)) as wanted (k)",
                kind,
            )
            for kind in ("train_candidate_tower", "train_user_tower")
        ]
        ended = 0
        while ended < sum(job is not None for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.1)
            ended = value(
                self.owner,
                "select count(*) from two_tower.jobs"
                " where id = any (%s) and state in ('done', 'dead')",
                jobs,
            )
            self.progress.update(task, completed=ended)

    def _replay_over_http(self, task: TaskID) -> None:
        for user, ratings in groupby(self.tail, key=lambda rating: rating.user):
            events = [
                {
                    "post_id": self.posts[r.film],
                    "event_type": r.event_type,
                    "client_event_id": str(uuid.uuid4()),
                }
                for r in ratings
            ]
            for start in range(0, len(events), CALL):
                call = {"p_events": events[start : start + CALL]}
                self.clients[user].rpc("record_engagements", call).execute()
            self.progress.advance(task, len(events))

    def _show(self, count: int) -> list[dict[str, Any]]:
        """The last users over HTTP: what they liked last, and what the API recommends to them."""
        shown = []
        titles = {self.posts[film.key]: film.text for film in self.data.films}
        for user in list(dict.fromkeys(r.user for r in reversed(self.tail)))[:count]:
            liked = [r for r in self.data.ratings if r.user == user and r.event_type in POSITIVE]
            answer = self.clients[user].rpc("recommended_posts", {"p_limit": 5}).execute()
            page: Any = answer.data
            shown.append(
                {
                    "user_id": str(self.users[user]),
                    "liked": [titles[self.posts[r.film]] for r in liked[-5:]],
                    "recommended": [
                        {"content": r["content"], "score": r["score"], "source": r["source"]}
                        for r in page
                    ],
                }
            )
        return shown

    def _time(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds + self.shift, UTC)


@contextmanager
def as_service(connection: Connection, moment: datetime | None = None) -> Iterator[None]:
    """A transaction as the service role; two_tower.now() is `moment` in it, if there is one."""
    with connection.transaction():
        connection.execute("set local role service_role")
        if moment:
            connection.execute("select set_config('two_tower.now', %s, true)", [moment.isoformat()])
        yield
