"""Replays MovieLens 100K as if its users had used an app, and measures the recommendations.

The bulk goes in as a backend's import does: with the service role and historical times. The last
slice goes through supabase-py, as signed-in users, with the server's own time. Before a sample of
the positives of the bulk, each user is asked for recommendations, which must not know it yet.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import psycopg
from rich.console import Console
from rich.progress import Progress, TaskID
from supabase import Client, create_client

from python_jobs.db import connect, database_url
from python_jobs.errors import CommandError
from python_jobs.laboratory import movielens
from python_jobs.laboratory.movielens import MovieLens, Rating
from python_jobs.local.stack import Stack, State
from python_jobs.worker.process import open_connection

BATCH = 100  # events a statement: pushes are folded as often, which loses nothing measurable
CALL = 500  # events that record_engagements() takes
POSITIVE = ("like", "reply")
PAGE = 10  # recommendations a user is asked for
HALF_LIFE_S = 30 * 86400.0
ENCODING_STALLED_S = 300.0
TRAINING_STALLED_S = 180.0


@dataclass
class Report:
    """What a replay measured: hits among `asked` positives, by method; and who to look at."""

    events: int
    http_events: int
    posts: int
    users: int
    asked: int
    hits: dict[str, int]
    seconds: dict[str, float]
    shown: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Access:
    """Where the API is; None for a database alone, where the whole stream goes in as bulk."""

    url: str
    anon_key: str


class Baselines:
    """What is simpler than learning, over the same eligible posts: popularity and static content.

    base: the posts' base embeddings [n, 384]. Posts of equal score count as ranked in the
    baseline's favour; who has liked nothing yet gets the popular from both.
    """

    def __init__(self, base: np.ndarray) -> None:
        self._base = base
        self._popularity = np.zeros(len(base))
        self._at = 0.0
        self._seen: dict[str, set[int]] = {}
        self._liked: dict[str, np.ndarray] = {}

    def hits(self, user: str, post: int) -> dict[str, bool]:
        """Whether each method has the post among its first PAGE."""
        scores = {"popularity": self._popularity}
        liked = self._liked.get(user)
        scores["static content"] = self._popularity if liked is None else self._base @ liked
        blocked = list(self._seen.get(user, ()))
        found = {}
        for name, score in scores.items():
            own = score.copy()
            own[blocked] = -np.inf
            found[name] = bool((own > own[post]).sum() < PAGE)
        return found

    def add(self, user: str, post: int, is_positive: bool, seconds: float) -> None:
        """Learns one event."""
        self._seen.setdefault(user, set()).add(post)
        if is_positive:
            self._popularity *= 2 ** ((self._at - seconds) / HALF_LIFE_S) if self._at else 1
            self._at = seconds
            self._popularity[post] += 1
            self._liked[user] = (
                self._liked.get(user, np.zeros(self._base.shape[1])) + self._base[post]
            )


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
        self.service = open_connection(url)
        self.users: dict[str, uuid.UUID] = {}
        self.clients: dict[str, Client] = {}
        self.posts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def close(self) -> None:
        """Closes the connections."""
        self.owner.close()
        self.service.close()

    def run(self) -> Report:
        """All stages. Raises CommandError when the database holds posts already."""
        migrated = self.owner.execute("select to_regclass('two_tower.overview')").fetchone()
        if not (migrated and migrated[0]):
            raise CommandError("Two-Tower is not in this database: two-tower migrate.")
        row = self.owner.execute("select exists (select from public.posts)").fetchone()
        if row and row[0]:
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
        rows = []
        for name in sorted({r.user for r in self.data.ratings}) + sorted(genres):
            self.users[name] = uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.two-tower.example.com")
        if self.access:
            for name in dict.fromkeys(r.user for r in self.tail):
                self.clients[name], self.users[name] = self._sign_up(self.access, name)
                self.progress.advance(task)
        for name, user_id in self.users.items():
            if name not in self.clients:
                rows.append((user_id, f"{user_id}@example.com"))
        with self.owner.cursor() as cursor:
            cursor.executemany(
                "insert into auth.users (id, email) values (%s, %s) on conflict do nothing", rows
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
        with self.service.cursor() as cursor:
            cursor.executemany(
                "insert into public.posts (author_id, content, created_at) values (%s, %s, %s)"
                " returning id",
                [(self.users[film.genre], film.text, first) for film in self.data.films],
                returning=True,
            )
            for film in self.data.films:
                row = cursor.fetchone()
                assert row is not None
                self.posts[film.key] = row["id"]
                cursor.nextset()

    def _wait_for_encoding(self, task: TaskID) -> None:
        last, changed_at = -1, time.monotonic()
        while True:
            row = self.owner.execute(
                "select count(*) from two_tower.post_embeddings where embedding is not null"
            ).fetchone()
            count = row[0] if row else 0
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
        while self._value(f"select {due} from two_tower.overview"):
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
                self.service.execute("select two_tower.fold_pushes(1000)")
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
        rows = self.owner.execute(
            "select post_id, base_embedding from two_tower.base_embeddings order by post_id"
        ).fetchall()
        vectors = [row[1] if isinstance(row[1], np.ndarray) else row[1].to_numpy() for row in rows]
        return np.stack(vectors), {row[0]: place for place, row in enumerate(rows)}

    def _is_recommended(self, rating: Rating) -> bool:
        with at_time(self.service, self._time(rating.seconds)):
            rows = self.service.execute(
                "select post_id from two_tower.recommend_for(%s, %s)",
                [self.users[rating.user], PAGE],
            ).fetchall()
        return self.posts[rating.film] in [row["post_id"] for row in rows]

    def _insert(self, batch: list[Rating]) -> None:
        if batch:
            self.service.execute(
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
        while self._value("select filling_version from two_tower.state"):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        jobs = [
            self._value(
                "select coalesce(two_tower.enqueue_job(%(kind)s), (select id from two_tower.jobs"
                " where kind = %(kind)s and state = 'pending'))",
                {"kind": kind},
            )
            for kind in ("train_candidate_tower", "train_user_tower")
        ]
        ended = 0
        while ended < sum(job is not None for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.1)
            ended = self._value(
                "select count(*) from two_tower.jobs"
                " where id = any (%(jobs)s) and state in ('done', 'dead')",
                {"jobs": jobs},
            )
            self.progress.update(task, completed=ended)

    def _value(self, query: str, arguments: dict[str, Any] | None = None) -> Any:
        row = self.owner.execute(query, arguments).fetchone()
        assert row is not None
        return row[0]

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
            answer = self.clients[user].rpc("recommend", {"p_limit": 5}).execute()
            rows: Any = answer.data
            shown.append(
                {
                    "user_id": str(self.users[user]),
                    "liked": [titles[self.posts[r.film]] for r in liked[-5:]],
                    "recommended": [
                        {"content": r["content"], "score": r["score"], "source": r["source"]}
                        for r in rows
                    ],
                }
            )
        return shown

    def _time(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds + self.shift, UTC)


@contextmanager
def at_time(connection: psycopg.Connection[Any], moment: datetime) -> Iterator[None]:
    """Within the block, this session's two_tower.now() is `moment`."""
    connection.execute("select set_config('two_tower.now', %s, false)", [moment.isoformat()])
    try:
        yield
    finally:
        connection.execute("select set_config('two_tower.now', '', false)")


def find_access(state: State | None, url: str) -> Access | None:
    """The local stack's API, if the database in use is the local one."""
    if state and state.api_url and state.database_url == url:
        return Access(state.api_url, state.publishable_key)
    return None


def replay_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `replay` and `demo` share: the arguments of run_replay()."""
    for option in (
        click.option(
            "--http-events",
            default=500,
            show_default=True,
            type=click.IntRange(min=0),
            help="How many of the last events go through the API; a quarter at most.",
        ),
        click.option(
            "--questions",
            default=3000,
            show_default=True,
            type=click.IntRange(min=0),
            help="Before so many positives, recommendations are asked for.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=10),
            help="Replay only so many of the newest ratings.",
        ),
        click.option(
            "--path",
            type=click.Path(exists=True, path_type=Path),
            help="Folder with MovieLens 100K [downloaded once, with pip].",
        ),
    ):
        command = option(command)
    return command


@click.command()
@replay_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def replay(as_json: bool, **options: Any) -> None:
    """Replay MovieLens 100K through the database and the API; needs a running worker.

    Once only: a second run prints the report of the first.
    """
    stack = Stack()
    url = database_url()
    report = run_replay(stack.state_dir, url, find_access(stack.read_state(), url), **options)
    click.echo(json.dumps(asdict(report), indent=2) if as_json else hit_rates(report))


def run_replay(
    state_dir: Path,
    url: str,
    access: Access | None,
    *,
    path: Path | None = None,
    limit: int | None = None,
    questions: int = 3000,
    http_events: int = 500,
) -> Report:
    """Loads the data set and replays it with progress bars, or reads the report if that was done.

    Reports are kept in state_dir, each under the identity of the database that it is about: after
    `down --delete` there is another database. Raises as `Replay` and `movielens.load` do.
    """
    file = state_dir / "demo.json"
    reports = json.loads(file.read_text()) if file.exists() else {}
    database = identity(url)
    if database in reports:
        click.echo("Replayed already; this is the report of then.", err=True)
        return Report(**reports[database])
    data = movielens.load(path, state_dir / "ml-100k")
    if limit:
        data = MovieLens(data.films, data.ratings[-limit:])
    http_events = min(http_events, len(data.ratings) // 4)
    with (
        Progress(console=Console(stderr=True)) as progress,
        closing(Replay(url, access, data, progress, http_events, questions)) as replaying,
    ):
        report = replaying.run()
    state_dir.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({**reports, database: asdict(report)}, indent=2))
    partial.replace(file)
    return report


def identity(url: str) -> str:
    """What tells a database from any other one, also from a later one at the same address."""
    with connect(url) as connection:
        row = connection.execute(
            "select format('%s-%s', c.system_identifier, d.oid)"
            " from pg_catalog.pg_control_system() c, pg_catalog.pg_database d"
            " where d.datname = current_database()"
        ).fetchone()
    assert row is not None
    return str(row[0])


def hit_rates(report: Report) -> str:
    """The hit rates as lines of text, each with half the width of its 95 % interval."""
    lines = [f"Hit rate of {PAGE} recommendations, asked before {report.asked} positives:"]
    for name, hits in report.hits.items():
        rate = hits / max(1, report.asked)
        half = 1.96 * (rate * (1 - rate) / max(1, report.asked)) ** 0.5
        lines.append(f"  {name:15} {rate:.4f} ± {half:.4f}")
    return "\n".join(lines)
