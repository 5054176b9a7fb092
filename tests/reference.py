"""What learning must do, in float64: an independent reference, and how SQL is held against it.

`Reference` is written from the design, not from the SQL. It applies events one after the other to
vectors of its own. It takes from the database only what is random there (which posts were drawn)
and, where an event is withdrawn, the recorded snapshot, which is kept in half precision.

`Twin` sends the same events to a database and to a `Reference` and says how far apart they are.
`assert_consistent` checks what must hold in any database at any time, whoever wrote to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import numpy as np
import psycopg
from conftest import add_user

DIMENSIONS = 128
BASE_DIMENSIONS = 384

# The numbers of the design: strengths by signal, and which of them make a training pair.
STRENGTHS = {
    "reply": 1.5,
    "like": 1.0,
    "repost": 1.0,
    "click": 0.5,
    "dwell": 0.5,
    "skip": -0.3,
    "hide": -0.5,
    "not_interested": -1.0,
    "block_author": -1.5,
    "mute_author": -1.5,
}
WITHDRAWALS = {"unlike": "like", "unrepost": "repost"}
POSITIVE_PAIRS = ("like", "reply", "repost")
NEGATIVE_PAIRS = ("skip", "hide", "not_interested", "block_author", "mute_author")
EVENT_TYPES = ("view", *STRENGTHS, *WITHDRAWALS)
LONG_DWELL_MS = 5000
SHORT_DWELL_MS = 2000

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)

Vector = np.ndarray[Any, np.dtype[np.float64]]


def norm(vector: Vector) -> Vector:
    """The vector at length 1; the zero vector stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def meaning(event_type: str, dwell_ms: int | None) -> str:
    """The signal of an event: a short dwell is a skip, one of middle length an impression."""
    if event_type != "dwell" or (dwell_ms or 0) > LONG_DWELL_MS:
        return event_type
    return "skip" if (dwell_ms or 0) < SHORT_DWELL_MS else "view"


@dataclass(frozen=True)
class Event:
    """One engagement, as a client sends it."""

    user_id: str
    post_id: int
    event_type: str
    dwell_ms: int | None = None
    created_at: datetime = START


@dataclass(frozen=True)
class Draw:
    """What was not decided by rule: the posts drawn for an event, and whether its own step waits.

    step: replaces lr * s * (1 - q), where it is known.
    waits: another session held the row of the post, so that the step on it was queued.
    post_vector: the post as that session left it for reading, where it waits.
    """

    post_ids: Sequence[int] = ()
    step: float | None = None
    waits: bool = False
    post_vector: Vector | None = None


@dataclass
class Post:
    """A post as learning sees it; vector is None until its text is encoded."""

    vector: Vector | None = None
    engagement_count: int = 0
    is_pretrained: bool = True
    is_deleted: bool = False
    moved_hour: datetime | None = None
    moved: float = 0.0
    pushed: float = 0.0


@dataclass
class User:
    """A user: the live vector, the sum of what was engaged with, and the base vector b."""

    vector: Vector = field(default_factory=lambda: np.zeros(DIMENSIONS))
    engaged_sum: Vector = field(default_factory=lambda: np.zeros(DIMENSIONS))
    base: Vector = field(default_factory=lambda: np.zeros(DIMENSIONS))
    recent: list[tuple[int, float]] = field(default_factory=list)
    engagement_count: int = 0
    minute: datetime | None = None
    minute_count: int = 0


@dataclass
class Snapshot:
    """User and post as they stood before a learned event, and the step that the post made."""

    event_id: int
    user_vector: Vector
    post_vector: Vector
    step: float


@dataclass
class Step:
    """A step on the post of an event; engagements: 1 when learned, -1 when withdrawn."""

    post_id: int
    size: float
    engagements: int
    at: datetime


@dataclass
class Push:
    """Steps of one event not yet folded in: pushes on the posts drawn, and its own if it waits."""

    user_vector: Vector
    factors: list[tuple[int, float]]
    own: Step | None = None


class Reference:
    """Both learning rules in float64, one event after the other."""

    literal_rate = 0.01
    contrastive_rate = 0.08
    alpha_limit = 0.1
    temperature = 0.15
    decay = 0.85
    history_length = 30
    negative_factor = 0.3
    learned_per_minute = 60
    movement_per_hour = 2.0
    untouched_push_limit = 0.5

    def __init__(self, rule: str = "contrastive") -> None:
        self.rule = rule
        self.is_frozen = False
        self.users: dict[str, User] = {}
        self.posts: dict[int, Post] = {}
        self.in_force: set[tuple[str, int, str]] = set()
        self.taught: dict[tuple[str, int, str], Snapshot] = {}
        self.waiting: list[tuple[int, Event]] = []
        self.queue: list[Push] = []
        self.verdicts: dict[int, str] = {}

    def apply(
        self,
        events: Iterable[tuple[int, Event]],
        draw: Callable[[int], Draw],
        recorded: Callable[[int], Snapshot | None] = lambda event_id: None,
    ) -> None:
        """Applies events in the order given; `draw` is asked for each event learned or withdrawn.

        recorded: the stored snapshot of an event, for a withdrawal; None to use the exact one.
        """
        for event_id, event in events:
            self.verdicts[event_id] = self._apply(event_id, event, draw, recorded)

    def _apply(
        self,
        event_id: int,
        event: Event,
        draw: Callable[[int], Draw],
        recorded: Callable[[int], Snapshot | None],
    ) -> str:
        signal = meaning(event.event_type, event.dwell_ms)
        if signal == "view":
            return "seen"
        user = self.users.setdefault(event.user_id, User())
        post = self.posts[event.post_id]
        withdrawn = WITHDRAWALS.get(signal)
        key = (event.user_id, event.post_id, withdrawn or signal)
        # Nothing is learned from a deleted post, but a pair can still be taken out of training.
        if post.is_deleted and (not withdrawn or post.vector is None):
            return "post_deleted"
        if post.vector is None or self.is_frozen:
            self.waiting.append((event_id, event))
            return "defer"
        if withdrawn:
            if key not in self.in_force:
                return "nothing_to_withdraw"
            self.in_force.remove(key)
            # Not counted, but the minute that is counted is that of the last event in force.
            self._begin_minute(user, event.created_at)
            self._withdraw(user, key, event.created_at, draw(event_id), recorded)
            return "withdraw"
        if key in self.in_force:
            return "repeated"
        self._begin_minute(user, event.created_at)
        if user.minute_count >= self.learned_per_minute:
            return "rate_limited"
        user.minute_count += 1
        self.in_force.add(key)
        self._learn(event_id, key, user, event.created_at, STRENGTHS[signal], draw(event_id))
        return "learn"

    @staticmethod
    def _begin_minute(user: User, at: datetime) -> None:
        minute = at.replace(second=0, microsecond=0)
        if user.minute != minute:
            user.minute, user.minute_count = minute, 0

    def _learn(
        self,
        event_id: int,
        key: tuple[str, int, str],
        user: User,
        at: datetime,
        strength: float,
        drawn: Draw,
    ) -> None:
        u, p = user.vector, self._seen(key[1], drawn)
        weight = strength if strength > 0 else strength * self.negative_factor
        # The sum and the list are what was engaged with, under either rule: so the rule can be
        # switched at any time and no user starts again from nothing.
        user.engaged_sum = self.decay * user.engaged_sum + weight * p
        factors: list[tuple[int, float]] = []
        if self.rule == "literal":
            alpha = min(self.alpha_limit, 1 / (user.engagement_count + 1))
            user.vector = norm((1 - alpha) * u + alpha * strength * p)
            step = self.literal_rate * strength
        else:
            user.vector = norm(user.base + user.engaged_sum)
            step = self.contrastive_rate * weight
            if strength > 0:
                step, factors = self._push(u, p, step, drawn)
        self.taught[key] = Snapshot(event_id, u, p, step)
        self._step(u, factors, Step(key[1], step, 1, at), drawn)
        user.recent = [*user.recent, (key[1], weight)][-self.history_length :]
        user.engagement_count += 1

    def _seen(self, post_id: int, drawn: Draw) -> Vector:
        """The post as the event found it."""
        vector = self.posts[post_id].vector if drawn.post_vector is None else drawn.post_vector
        assert vector is not None
        return vector

    def _push(
        self, u: Vector, p: Vector, step: float, drawn: Draw
    ) -> tuple[float, list[tuple[int, float]]]:
        """The step left for the post itself, and the pushes on the drawn posts.

        Without any drawn post there is nothing to compare with, and the step is the full one.
        """
        if not drawn.post_ids:
            return step, []
        others = [self.posts[post_id].vector for post_id in drawn.post_ids]
        logits = np.array([v @ u for v in [p, *others]]) / self.temperature
        q = np.exp(logits - logits.max())
        q /= q.sum()
        factors = [(i, step * share) for i, share in zip(drawn.post_ids, q[1:], strict=True)]
        return (step * (1 - q[0]) if drawn.step is None else drawn.step), factors

    def _step(self, u: Vector, factors: list[tuple[int, float]], own: Step, drawn: Draw) -> None:
        """Takes the own step at once, unless it waits, and queues what waits."""
        if not drawn.waits:
            self._move(own, u)
        if factors or drawn.waits:
            self.queue.append(Push(u, factors, own if drawn.waits else None))

    def _move(self, own: Step, direction: Vector) -> None:
        """The step of an event on its post, bounded per hour."""
        post = self.posts[own.post_id]
        hour = own.at.replace(minute=0, second=0, microsecond=0)
        if post.moved_hour != hour:
            post.moved_hour, post.moved = hour, 0.0
        size = min(abs(own.size), max(0.0, self.movement_per_hour - post.moved))
        post.moved += size
        post.engagement_count += own.engagements
        post.is_pretrained = False
        assert post.vector is not None
        post.vector = norm(post.vector + np.copysign(size, own.size) * direction)

    def _withdraw(
        self,
        user: User,
        key: tuple[str, int, str],
        at: datetime,
        drawn: Draw,
        recorded: Callable[[int], Snapshot | None],
    ) -> None:
        """Takes the recorded step off the post and the post's part off the user's sum."""
        exact = self.taught[key]
        taken = recorded(exact.event_id) or exact
        strength = STRENGTHS[key[2]]
        user.engagement_count -= 1
        self._step(taken.user_vector, [], Step(key[1], -taken.step, -1, at), drawn)
        places = [k for k, entry in enumerate(user.recent) if entry == (key[1], strength)]
        if places:
            age = len(user.recent) - 1 - places[-1]
            user.engaged_sum = user.engaged_sum - strength * self.decay**age * taken.post_vector
            del user.recent[places[-1]]
        if not user.recent:
            user.engaged_sum = np.zeros(DIMENSIONS)
        if self.rule == "contrastive":
            user.vector = norm(user.base + user.engaged_sum)
        elif not user.recent:
            user.vector = np.zeros(DIMENSIONS)
        else:
            alpha = min(self.alpha_limit, 1 / (user.engagement_count + 1))
            user.vector = norm(user.vector - alpha * strength * taken.post_vector)

    def fold(self, limit: int | None = None) -> int:
        """Applies the oldest queued pushes, one after the other; returns how many."""
        count = len(self.queue) if limit is None else min(limit, len(self.queue))
        for push in self.queue[:count]:
            for post_id, factor in push.factors:
                post = self.posts[post_id]
                if post.vector is None:
                    continue
                if post.is_pretrained:
                    factor = min(factor, max(0.0, self.untouched_push_limit - post.pushed))
                    post.pushed += factor
                post.vector = norm(post.vector - factor * push.user_vector)
            if push.own:
                self._move(push.own, push.user_vector)
        del self.queue[:count]
        return count

    def take_waiting(self, is_due: Callable[[Event], bool]) -> list[tuple[int, Event]]:
        """The deferred events that are due, in id order; they wait no longer."""
        due = sorted((w for w in self.waiting if is_due(w[1])), key=lambda w: w[0])
        self.waiting = [w for w in self.waiting if not is_due(w[1])]
        return due

    def encode_user(self, user_id: str) -> Vector:
        """The user as served: contrastive re-encodes from the posts as they are now."""
        user = self.users[user_id]
        if self.rule == "literal":
            return user.vector
        total = user.base.copy()
        for age, (post_id, weight) in enumerate(reversed(user.recent)):
            vector = self.posts[post_id].vector
            if vector is not None:
                total += self.decay**age * weight * vector
        return norm(total)


def base_vectors(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Base embeddings of norm 1, as the encoder makes them: float32, in one broad direction."""
    vectors = rng.normal(size=(count, BASE_DIMENSIONS)) + 0.5 * rng.normal(size=BASE_DIMENSIONS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [list(map(float, vector.astype(np.float32))) for vector in vectors]


def add_posts(
    connection: psycopg.Connection[Any],
    count: int,
    author_ids: Sequence[str],
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Inserts posts, the authors in turn, and encodes them at random; without rng, not at all."""
    rows = connection.execute(
        "insert into public.posts (author_id, content, created_at)"
        " select (%s::uuid[])[1 + g %% %s], 'post ' || g, %s from generate_series(1, %s) g"
        " returning id",
        [list(author_ids), len(author_ids), START - timedelta(days=1), count],
    ).fetchall()
    post_ids = [row[0] for row in rows]
    if rng is not None:
        store(connection, post_ids, base_vectors(rng, count))
    return post_ids


def store(
    connection: psycopg.Connection[Any], post_ids: Sequence[int], vectors: Sequence[list[float]]
) -> None:
    """Hands in base embeddings, as the encoder does."""
    connection.execute(
        "select two_tower.store_base_embeddings(%s, array(select v::extensions.vector"
        " from unnest(%s::text[]) with ordinality as x (v, n) order by n))",
        [list(post_ids), [str(vector) for vector in vectors]],
    )


INSERT_EVENTS = """
  insert into public.engagement_events (user_id, post_id, event_type, dwell_ms, created_at,
                                        client_event_id)
  select x.user_id, x.post_id, x.event_type, x.dwell_ms, x.created_at, x.client_event_id
  from unnest(%s::uuid[], %s::bigint[], %s::text[], %s::integer[], %s::timestamptz[], %s::uuid[])
       with ordinality as x (user_id, post_id, event_type, dwell_ms, created_at, client_event_id, n)
  order by x.n returning id
"""


def insert_events(
    connection: psycopg.Connection[Any],
    events: Sequence[Event],
    client_event_ids: Sequence[uuid.UUID | None] | None = None,
) -> list[int]:
    """Inserts events in one statement, at the times that they name; returns their ids."""
    latest = max(event.created_at for event in events)
    connection.execute("select set_config('two_tower.now', %s, false)", [latest.isoformat()])
    columns = [
        [event.user_id for event in events],
        [event.post_id for event in events],
        [event.event_type for event in events],
        [event.dwell_ms for event in events],
        [event.created_at for event in events],
        list(client_event_ids or [None] * len(events)),
    ]
    return [row[0] for row in connection.execute(INSERT_EVENTS, columns).fetchall()]


def read_snapshot(connection: psycopg.Connection[Any], event_id: int) -> Snapshot | None:
    """The recorded training example of an event, in the half precision in which it is kept."""
    row = connection.execute(
        "select user_emb::extensions.vector::real[], post_emb::extensions.vector::real[], step"
        " from two_tower.training_examples where event_id = %s",
        [event_id],
    ).fetchone()
    if row is None:
        return None
    return Snapshot(event_id, np.array(row[0], float), np.array(row[1], float), float(row[2]))


class Twin:
    """One database and one Reference that are told the same things."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        rng: np.random.Generator,
        *,
        rule: str = "contrastive",
        users: int = 30,
        posts: int = 200,
        unencoded_posts: int = 0,
    ) -> None:
        self.connection = connection
        self.rng = rng
        self.reference = Reference(rule)
        self.set_rule(rule)
        self.authors = [add_user(connection) for _ in range(5)]
        self.user_ids = [add_user(connection) for _ in range(users)]
        self.post_ids = add_posts(connection, posts, self.authors, rng)
        self.unencoded = add_posts(connection, unencoded_posts, self.authors)
        for post_id, vector in self._live_vectors().items():
            self.reference.posts[post_id] = Post(vector)
        for post_id in self.unencoded:
            self.reference.posts[post_id] = Post()
        self._last_push = 0

    def set_rule(self, rule: str) -> None:
        """Switches the learning rule: one update of a row."""
        self.connection.execute("update two_tower.settings set learning_rule = %s", [rule])
        self.reference.rule = rule

    def give_base(self, user_id: str, weight: float) -> None:
        """Gives a user a base vector, as a profile or the user tower does."""
        base = norm(self.rng.normal(size=DIMENSIONS)).astype(np.float32)
        self.connection.execute(
            "insert into two_tower.user_embeddings"
            " (user_id, prior, prior_weight, prior_source, embedding)"
            " values (%s, %s::real[]::extensions.vector, %s, 'profile',"
            "         extensions.l2_normalize(%s::real[]::extensions.vector))",
            [user_id, base.tolist(), weight, base.tolist()],
        )
        user = self.reference.users.setdefault(user_id, User())
        user.base = weight * base.astype(float)
        user.vector = norm(user.base)

    def insert(self, events: Sequence[Event]) -> list[int]:
        """One statement with these events; the reference sees the draws that it made."""
        event_ids = insert_events(self.connection, events)
        self._replay(list(zip(event_ids, events, strict=True)))
        return event_ids

    def encode(self, post_id: int) -> None:
        """The encoder hands in a post; what waited for it is learned in the same call."""
        (vector,) = base_vectors(self.rng, 1)
        row = self.connection.execute(
            "select two_tower.run_candidate_tower(%s::text::extensions.vector)::real[]",
            [str(vector)],
        ).fetchone()
        assert row is not None
        store(self.connection, [post_id], [vector])
        self.reference.posts[post_id].vector = np.array(row[0], float)
        self._replay(self.reference.take_waiting(lambda event: event.post_id == post_id))

    def learn_deferred(self) -> int:
        """The step of tick() that learns what waited and is due; returns how many it took."""
        row = self.connection.execute("select two_tower.learn_deferred(100000)").fetchone()
        posts = self.reference.posts
        self._replay(
            self.reference.take_waiting(
                lambda e: posts[e.post_id].vector is not None or posts[e.post_id].is_deleted
            )
        )
        assert row is not None
        return int(row[0])

    def delete_post(self, post_id: int) -> None:
        """The author removes a post."""
        self.connection.execute(
            "update public.posts set deleted_at = now() where id = %s", [post_id]
        )
        self.reference.posts[post_id].is_deleted = True

    def fold(self, limit: int | None = None) -> None:
        """Folds the oldest deferred pushes on both sides."""
        row = self.connection.execute("select two_tower.fold_steps(%s)", [limit]).fetchone()
        assert row is not None
        assert row[0] == self.reference.fold(limit)

    def _replay(self, events: list[tuple[int, Event]]) -> None:
        rows = self.connection.execute(
            "select id, event_id, pushed_ids from two_tower.deferred_steps"
            " where id > %s order by id",
            [self._last_push],
        ).fetchall()
        if rows:
            self._last_push = rows[-1][0]
        drawn = {event_id: Draw(post_ids) for _, event_id, post_ids in rows}
        self.reference.apply(
            events,
            lambda event_id: drawn.pop(event_id, Draw()),
            lambda event_id: read_snapshot(self.connection, event_id),
        )
        assert not drawn, "pushes were queued for events that were not learned"

    def _live_vectors(self) -> dict[int, Vector]:
        rows = self.connection.execute(
            "select post_id, embedding::real[] from two_tower.post_embeddings"
            " where embedding is not null"
        ).fetchall()
        return {post_id: np.array(vector, float) for post_id, vector in rows}

    def difference(self) -> float:
        """The largest difference of any number of any vector; all that is counted must be equal."""
        reference, connection, largest = self.reference, self.connection, 0.0
        posts = connection.execute(
            "select post_id, embedding::real[], engagement_count, is_pretrained"
            " from two_tower.post_embeddings where embedding is not null"
        ).fetchall()
        assert {row[0] for row in posts} == {
            i for i, post in reference.posts.items() if post.vector is not None
        }
        for post_id, vector, count, is_pretrained in posts:
            post = reference.posts[post_id]
            assert post.vector is not None
            assert (post_id, count) == (post_id, post.engagement_count)
            assert (post_id, is_pretrained) == (post_id, post.is_pretrained)
            largest = max(largest, float(np.abs(np.array(vector) - post.vector).max()))
        users = connection.execute(
            "select user_id::text, embedding::real[], engaged_sum::real[], engagement_count,"
            "  recent_post_ids, recent_strengths, two_tower.encode_user(user_id)::real[]"
            " from two_tower.user_embeddings"
        ).fetchall()
        for user_id, vector, engaged_sum, count, recent_ids, strengths, encoded in users:
            user = reference.users.get(user_id, User())
            assert (user_id, count) == (user_id, user.engagement_count)
            assert recent_ids == [entry[0] for entry in user.recent]
            pairs = [(np.array(vector), user.vector)]
            if reference.rule == "contrastive":
                pairs.append((np.array(strengths), np.array([entry[1] for entry in user.recent])))
                pairs.append((np.array(engaged_sum), user.engaged_sum))
                if encoded is not None:
                    pairs.append((np.array(encoded), reference.encode_user(user_id)))
            for got, wanted in pairs:
                if len(wanted):
                    largest = max(largest, float(np.abs(got - wanted).max()))
        return largest

    def assert_same_verdicts(self) -> None:
        """What was learned, what was not, and why, is what the reference says of each event."""
        unlearned = dict(
            self.connection.execute("select event_id, reason from two_tower.unlearned_events")
        )
        deferred = {
            row[0]
            for row in self.connection.execute("select event_id from two_tower.deferred_events")
        }
        for event_id, verdict in self.reference.verdicts.items():
            if verdict in ("learn", "withdraw", "seen"):
                assert event_id not in unlearned, (event_id, verdict, unlearned[event_id])
                assert event_id not in deferred
            elif verdict == "defer":
                assert event_id in deferred
            else:
                assert unlearned.get(event_id) == verdict


class Stream:
    """Random engagements over few users and posts: repeats, toggles and dwells of all lengths."""

    weights: ClassVar = {
        "view": 20,
        "click": 10,
        "like": 22,
        "reply": 8,
        "repost": 8,
        "dwell": 12,
        "skip": 5,
        "hide": 3,
        "not_interested": 3,
        "block_author": 1,
        "mute_author": 1,
        "unlike": 5,
        "unrepost": 2,
    }

    def __init__(
        self, rng: np.random.Generator, user_ids: Sequence[str], post_ids: Sequence[int]
    ) -> None:
        self.rng = rng
        self.user_ids = list(user_ids)
        self.post_ids = list(post_ids)
        self.now = START
        self.given: dict[str, list[tuple[str, int]]] = {"like": [], "repost": []}
        self._types = list(self.weights)
        total = sum(self.weights.values())
        self._shares = [weight / total for weight in self.weights.values()]

    def _pick(self, values: Sequence[Any]) -> Any:
        """Few are picked often, as on any platform: square of a uniform number."""
        return values[int(len(values) * self.rng.random() ** 2)]

    def next(self, count: int) -> list[Event]:
        """The next events, up to two seconds after one another."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Event:
        self.now += timedelta(milliseconds=int(self.rng.integers(0, 2000)))
        event_type = str(self.rng.choice(self._types, p=self._shares))
        user_id, post_id = self._pick(self.user_ids), self._pick(self.post_ids)
        dwell_ms = None
        if event_type == "dwell":
            lengths = [0, 1999, 2000, 3000, 5000, 5001, 60000, 2**31 - 1]
            dwell_ms = int(self.rng.choice(lengths))
        withdrawn = WITHDRAWALS.get(event_type)
        if withdrawn and self.given[withdrawn] and self.rng.random() < 0.8:
            user_id, post_id = self.given[withdrawn][
                int(-1 - 20 * self.rng.random() ** 2) % len(self.given[withdrawn])
            ]
        if event_type in self.given:
            self.given[event_type].append((user_id, post_id))
        return Event(user_id, post_id, event_type, dwell_ms, self.now)


# Every stored event with its signal, and whether it was learned: neither recorded as not learned
# nor still waiting. Thresholds are the design's: this does not ask the code under test.
LEDGER = f"""
  with meant as (
    select e.id, e.user_id, e.post_id, e.event_type, e.created_at, case
      when e.event_type <> 'dwell' or e.dwell_ms > {LONG_DWELL_MS} then e.event_type
      when e.dwell_ms < {SHORT_DWELL_MS} then 'skip' else 'view' end as signal
    from public.engagement_events e
  ), learned as (
    select m.* from meant m
    where m.signal <> 'view'
      and not exists (select from two_tower.unlearned_events x where x.event_id = m.id)
      and not exists (select from two_tower.deferred_events x where x.event_id = m.id)
  ), ledger as (
    select l.id, l.user_id, l.post_id, l.signal, l.created_at,
           case l.signal when 'unlike' then 'like' when 'unrepost' then 'repost'
                else l.signal end as counted_as,
           case when l.signal in ('unlike', 'unrepost') then -1 else 1 end as amount
    from learned l
  )
"""


def assert_consistent(connection: psycopg.Connection[Any]) -> None:
    """What holds in every database at every moment, told from the stored events alone."""

    def none(what: str, query: str) -> None:
        rows = connection.execute(query).fetchmany(3)
        assert not rows, f"{what}: {rows}"

    none(
        "a live vector does not have norm 1",
        "select slot, post_id, extensions.vector_norm(embedding) from two_tower.live_embeddings"
        " where not abs(extensions.vector_norm(embedding) - 1) < 1e-5",
    )
    none(
        "a user's vector has neither norm 1 nor 0",
        "select user_id, extensions.vector_norm(embedding) from two_tower.user_embeddings"
        " where not (abs(extensions.vector_norm(embedding) - 1) < 1e-5"
        "            or extensions.vector_norm(embedding) = 0)",
    )
    none(
        "an event is both refused and waiting",
        "select event_id from two_tower.unlearned_events"
        " join two_tower.deferred_events using (event_id)",
    )
    none(
        "an event has two reasons",
        "select event_id from two_tower.unlearned_events group by 1 having count(*) > 1",
    )
    none(
        "a signal in force is not the number of times it was learned less those withdrawn",
        LEDGER + ", learned_times as (select user_id, post_id, counted_as, sum(amount) as times"
        "  from ledger group by 1, 2, 3)"
        " select u.user_id, u.post_id, g.event_type, t.times, u.signals & g.bit"
        " from two_tower.user_posts u"
        " cross join two_tower.signals g"
        " left join learned_times t on t.user_id = u.user_id and t.post_id = u.post_id"
        "  and t.counted_as = g.event_type"
        " where g.withdraws is null and g.event_type <> 'view'"
        "  and coalesce(t.times, 0) <> (u.signals & g.bit <> 0)::integer",
    )
    none(
        "an event left nothing in user_posts",
        "select e.id from public.engagement_events e where not exists (select from"
        " two_tower.user_posts u where u.user_id = e.user_id and u.post_id = e.post_id)",
    )
    none(
        "a view is not marked as seen",
        LEDGER + " select m.id from meant m join two_tower.user_posts u using (user_id, post_id)"
        " where m.signal = 'view' and u.signals & 1 = 0",
    )
    none(
        "a user's count is wrong",
        LEDGER + " select u.user_id, u.engagement_count, c.wanted"
        " from two_tower.user_embeddings u cross join lateral ("
        "  select coalesce(sum(l.amount), 0) as wanted from ledger l where l.user_id = u.user_id) c"
        " where u.engagement_count <> c.wanted",
    )
    none(
        "a post's count is wrong",
        LEDGER + " select p.post_id, p.engagement_count, q.waiting, c.wanted, p.is_pretrained"
        " from two_tower.post_embeddings p cross join lateral ("
        "  select coalesce(sum(l.amount), 0) as wanted, count(*) as steps"
        "  from ledger l where l.post_id = p.post_id) c cross join lateral ("
        "  select coalesce(sum(d.engagements), 0) as waiting, count(*) as steps"
        "  from two_tower.deferred_steps d where d.post_id = p.post_id) q"
        " where p.embedding is not null and (p.engagement_count + q.waiting <> c.wanted"
        "   or p.is_pretrained <> (c.steps = q.steps))",
    )
    labelled = ", ".join(f"'{name}'" for name in (*POSITIVE_PAIRS, *NEGATIVE_PAIRS))
    none(
        "learned events and the ledger differ",
        LEDGER + ", found as (select event_id as id from two_tower.training_examples)"
        " (select id from ledger where amount > 0 except all table found) union all"
        " (table found except all select id from ledger where amount > 0)",
    )
    none(
        "labelled events and training examples differ",
        LEDGER + f", wanted as (select l.id, exists (select from ledger w where w.amount < 0"
        "   and w.id > l.id and (w.user_id, w.post_id, w.counted_as)"
        "     = (l.user_id, l.post_id, l.counted_as)) as is_withdrawn"
        f"  from ledger l where l.amount > 0 and l.signal in ({labelled})),"
        " found as (select event_id as id from two_tower.training_examples where label is not null)"
        " (select id from wanted where not is_withdrawn except all table found)"
        " union all (table found except all select id from wanted)",
    )


def count_learned_positives(connection: psycopg.Connection[Any]) -> int:
    """So many rows of pushes must have been queued, each once."""
    names = ", ".join(f"'{name}'" for name, strength in STRENGTHS.items() if strength > 0)
    row = connection.execute(
        LEDGER + f" select count(*) from ledger where amount > 0 and signal in ({names})"
    ).fetchone()
    assert row is not None
    return int(row[0])
