"""What learning must do, in float64: an independent reference that SQL is held against.

`Reference` is written from the design, not from the SQL. It applies events one after the other to
vectors of its own. It takes from the database only what is random there (which posts were drawn)
and, where an event is withdrawn, the recorded snapshot, which is kept in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

DIMENSIONS = 128
BASE_DIMENSIONS = 384
TIE = 2e-5

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
WITHDRAWALS = {
    "unlike": "like",
    "unrepost": "repost",
    "unhide": "hide",
    "undo_not_interested": "not_interested",
}
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

    touched_ids: which of the posts were read as engaged with, where others write meanwhile.
    step: replaces lr * s * (1 - q), where it is known.
    waits: another session held the row of the post, so that the step on it was queued.
    post_vector: the post as that session left it for reading, where it waits.
    """

    post_ids: Sequence[int] = ()
    touched_ids: Sequence[int] | None = None
    step: float | None = None
    waits: bool = False
    post_vector: Vector | None = None


@dataclass(frozen=True)
class Gain:
    """What an event added to a popularity: likes * 2^clock. at: the time of the event."""

    likes: float
    clock: float
    at: datetime


@dataclass
class Post:
    """A post as learning sees it; vector is None until its text is encoded.

    gains: by event, what each positive in force added to its popularity.
    gained: the likes of moved_hour.
    """

    vector: Vector | None = None
    author_id: str | None = None
    engagement_count: int = 0
    is_pretrained: bool = True
    is_deleted: bool = False
    moved_hour: datetime | None = None
    moved: float = 0.0
    gained: float = 0.0
    gains: dict[int, Gain] = field(default_factory=dict)


@dataclass
class User:
    """A user: the live vector, the sum of what was engaged with, and the prior.

    positives: the last ones, each with the number of its interest. interests: their sums.
    is_tied: a number was chosen by less than what half precision can tell apart.
    """

    vector: Vector = field(default_factory=lambda: np.zeros(DIMENSIONS))
    engaged_sum: Vector = field(default_factory=lambda: np.zeros(DIMENSIONS))
    base: Vector = field(default_factory=lambda: np.zeros(DIMENSIONS))
    recent: list[tuple[int, float]] = field(default_factory=list)
    engagement_count: int = 0
    active_days: int = 0
    last_at: datetime | None = None
    minute: datetime | None = None
    minute_count: int = 0
    late: list[tuple[int, Event]] = field(default_factory=list)
    has_late: bool = False
    freed: int = 0
    positives: list[tuple[int, int]] = field(default_factory=list)
    interests: dict[int, Vector] = field(default_factory=dict)
    is_tied: bool = False


@dataclass
class Snapshot:
    """User and post as they stood before a learned event, and the steps that it made.

    at: the time of the event. factors: of the pushes on the posts drawn.
    """

    event_id: int
    user_vector: Vector
    post_vector: Vector
    step: float
    at: datetime = START
    factors: list[tuple[int, float]] = field(default_factory=list)
    likes: float = 0.0
    clock: float = 0.0


@dataclass
class Step:
    """A step on the post of an event.

    engagements: 1 when learned, -1 when withdrawn.
    taught: the snapshot of the learned event, which is told of the step that the bound leaves.
    """

    post_id: int
    size: float
    engagements: int
    taught: Snapshot


@dataclass
class Push:
    """Steps of one event not yet folded in: pushes on the posts drawn, and its own if it waits."""

    event_id: int
    user_vector: Vector
    factors: list[tuple[int, float]]
    own: Step | None = None


class Reference:
    """Both learning rules in float64, one event after the other."""

    literal_rate = 0.01
    contrastive_rate = 0.08
    alpha_limit = 0.1
    temperature = 0.15
    popularity_in_logits = 0.0
    decay = 0.85
    history_length = 30
    negative_factor = 0.3
    learned_per_minute = 60
    late_per_user = 1000
    movement_per_hour = 2.0
    popularity_per_hour = 30.0
    account_weight_days = 3
    withdrawals_per_day = 3
    interest_threshold = 0.4
    interest_decay = 0.97
    interest_length = 80
    interest_count = 4

    def __init__(self, rule: str = "contrastive") -> None:
        self.rule = rule
        self.is_frozen = False
        self.users: dict[str, User] = {}
        self.posts: dict[int, Post] = {}
        self.in_force: set[tuple[str, int, str]] = set()
        self.taught: dict[tuple[str, int, str], Snapshot] = {}
        self.withdrawals: dict[tuple[str, int, str], list[datetime]] = {}
        self.waiting: list[tuple[int, Event]] = []
        self.queue: list[Push] = []
        self.verdicts: dict[int, str] = {}
        self.engaged: dict[tuple[str, int], datetime] = {}
        self.half_life = timedelta(days=7)
        self.total: tuple[datetime, float] | None = None
        self.clock = 0.0
        self.clock_at = datetime(1970, 1, 1, tzinfo=UTC)

    def apply(
        self,
        events: Iterable[tuple[int, Event]],
        draw: Callable[[int], Draw],
        recorded: Callable[[int], Snapshot | None] = lambda event_id: None,
        *,
        are_deferred: bool = False,
    ) -> None:
        """Applies events in the order given; `draw` is asked for each event learned or withdrawn.

        recorded: the stored snapshot of an event, for a withdrawal; None to use the exact one.
        are_deferred: they waited, and their time has come.
        """
        for user in self.users.values():
            # A place that a withdrawal frees is free from the next statement on.
            user.freed = 0
        for event_id, event in events:
            self.verdicts[event_id] = self._apply(event_id, event, draw, recorded, are_deferred)

    def _apply(
        self,
        event_id: int,
        event: Event,
        draw: Callable[[int], Draw],
        recorded: Callable[[int], Snapshot | None],
        is_deferred: bool,
    ) -> str:
        signal = meaning(event.event_type, event.dwell_ms)
        if signal == "view":
            return "seen"
        if STRENGTHS.get(signal, 0) > 0:
            pair = (event.user_id, event.post_id)
            self.engaged[pair] = max(event.created_at, self.engaged.get(pair, event.created_at))
        user = self.users.setdefault(event.user_id, User())
        post = self.posts[event.post_id]
        withdrawn = WITHDRAWALS.get(signal)
        key = (event.user_id, event.post_id, withdrawn or signal)
        # Nothing is learned from a deleted post, but a pair can still be taken out of training.
        if post.is_deleted and (not withdrawn or post.vector is None):
            return "post_deleted"
        if post.author_id == event.user_id and not withdrawn and post.vector is not None:
            return "own_post"
        if post.vector is None or self.is_frozen:
            self.waiting.append((event_id, event))
            return "defer"
        at = event.created_at
        if is_deferred and user.minute:
            at = max(at, user.minute)
        if withdrawn:
            for late in [x for x in user.late if x[1].post_id == event.post_id]:
                if late[1].event_type == withdrawn:
                    user.late.remove(late)
                    user.freed += 1
                    self.verdicts[late[0]] = "withdrawn"
            if key not in self.in_force:
                return "nothing_to_withdraw"
            self.in_force.remove(key)
            # Not counted, but the minute that is counted is that of the last event in force.
            self._begin_minute(user, at)
            self._withdraw(event_id, user, key, draw(event_id), recorded)
            return "withdraw"
        if key in self.in_force:
            return "repeated"
        day_before = event.created_at - timedelta(days=1)
        lately = [at for at in self.withdrawals.get(key, []) if at > day_before]
        if len(lately) >= self.withdrawals_per_day:
            return "withdrawn_often"
        is_full = user.minute == self._minute(at) and user.minute_count >= self.learned_per_minute
        if is_full or user.has_late:
            if len(user.late) + user.freed >= self.late_per_user:
                return "rate_limited"
            user.late.append((event_id, event))
            user.late.sort(key=lambda late: late[0])
            user.has_late = True
            return "defer"
        self._begin_minute(user, at)
        user.minute_count += 1
        self.in_force.add(key)
        self._learn(event_id, key, user, event.created_at, STRENGTHS[signal], draw(event_id))
        return "learn"

    @staticmethod
    def _minute(at: datetime) -> datetime:
        return at.replace(second=0, microsecond=0)

    @classmethod
    def _begin_minute(cls, user: User, at: datetime) -> None:
        minute = cls._minute(at)
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
        if user.last_at is None or at.date() > user.last_at.date():
            user.active_days += 1
        user.last_at = max(at, user.last_at or at)
        likes = max(0.0, strength) * min(1, user.active_days / self.account_weight_days)
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
                step, factors = self._push(u, p, key[1], step, drawn)
        clock = self.read_clock(at)
        self.taught[key] = Snapshot(event_id, u, p, step, at, factors, likes, clock)
        self._step(event_id, u, factors, Step(key[1], step, 1, self.taught[key]), drawn)
        user.recent = [*user.recent, (key[1], weight)][-self.history_length :]
        if strength > 0:
            self._add_positive(user, key[1], p)
        user.engagement_count += 1

    def _add_positive(self, user: User, post_id: int, p: Vector) -> None:
        """The nearest interest that is near enough, else a new one in a free or the lightest's
        place."""
        if post_id in [known for known, _ in user.positives]:
            return
        cosines = {number: norm(total) @ p for number, total in user.interests.items()}
        near = {n: c for n, c in cosines.items() if c >= self.interest_threshold}
        free = set(range(1, self.interest_count + 1)) - set(user.interests)
        if near:
            number = max(near, key=lambda n: (near[n], -n))
        elif free:
            number = min(free)
        else:
            weights = dict.fromkeys(sorted(user.interests), 0.0)
            for age, (_, own) in enumerate(reversed(user.positives)):
                weights[own] += self.interest_decay**age
            number = min(weights, key=lambda n: weights[n])
            user.positives = [entry for entry in user.positives if entry[1] != number]
            del user.interests[number]
        ordered = sorted([self.interest_threshold, *cosines.values()])
        user.is_tied |= min(np.diff(ordered), default=1) < TIE
        total = self.interest_decay * user.interests.get(number, np.zeros(DIMENSIONS)) + p
        user.interests[number] = total.astype(np.float16).astype(float)
        user.positives = [*user.positives, (post_id, number)][-self.interest_length :]
        self._forget_empty(user)

    def _withdraw_positive(self, user: User, post_id: int, taught: Vector) -> None:
        places = [k for k, (known, _) in enumerate(user.positives) if known == post_id]
        if not places:
            return
        _, number = user.positives.pop(places[0])
        age = sum(own == number for _, own in user.positives[places[0] :])
        total = user.interests[number] - self.interest_decay**age * taught
        user.interests[number] = total.astype(np.float16).astype(float)
        self._forget_empty(user)

    @staticmethod
    def _forget_empty(user: User) -> None:
        left = {number for _, number in user.positives}
        user.interests = {n: total for n, total in user.interests.items() if n in left}

    def _seen(self, post_id: int, drawn: Draw) -> Vector:
        """The post as the event found it."""
        vector = self.posts[post_id].vector if drawn.post_vector is None else drawn.post_vector
        assert vector is not None
        return vector

    def _push(
        self, u: Vector, p: Vector, post_id: int, step: float, drawn: Draw
    ) -> tuple[float, list[tuple[int, float]]]:
        """The step left for the post itself, and the pushes on the drawn posts, 0 if untouched.

        Without any drawn post there is nothing to compare with, and the step is the full one.
        """
        if not drawn.post_ids:
            return step, []
        others = [self.posts[other] for other in drawn.post_ids]
        cosines = np.array([v @ u for v in [p, *(other.vector for other in others)]])
        shares = np.array([self._share(post) for post in [self.posts[post_id], *others]])
        logits = cosines / self.temperature + self.popularity_in_logits * np.log(shares + 1e-4)
        q = np.exp(logits - logits.max())
        q /= q.sum()
        touched_ids = drawn.touched_ids
        if touched_ids is None:
            touched_ids = [i for i in drawn.post_ids if not self.posts[i].is_pretrained]
        factors = [
            (other_id, step * share if other_id in touched_ids else 0.0)
            for other_id, share in zip(drawn.post_ids, q[1:], strict=True)
        ]
        return (step * (1 - q[0]) if drawn.step is None else drawn.step), factors

    def _step(
        self,
        event_id: int,
        u: Vector,
        factors: list[tuple[int, float]],
        own: Step | None,
        drawn: Draw,
    ) -> None:
        """Takes the own step at once, unless it waits, and queues what waits."""
        if own and not drawn.waits:
            self._move(own, u)
        if factors or (own and drawn.waits):
            self.queue.append(Push(event_id, u, factors, own if drawn.waits else None))
            self.queue.sort(key=lambda push: push.event_id)

    def _move(self, own: Step, direction: Vector) -> None:
        """The step of an event on its post, bounded per hour; a withdrawal gives its room back."""
        post, taught = self.posts[own.post_id], own.taught
        hour = taught.at.replace(minute=0, second=0, microsecond=0)
        size = abs(own.size)
        if own.engagements > 0:
            is_late = post.moved_hour and timedelta(0) <= post.moved_hour - hour <= timedelta(
                days=1
            )
            if not is_late:
                post.moved_hour, post.moved, post.gained = hour, 0.0, 0.0
            size = min(size, max(0.0, self.movement_per_hour - post.moved))
            post.moved += size
            post.is_pretrained = False
            taught.step = float(np.copysign(size, own.size))
            taught.likes = min(taught.likes, self.popularity_per_hour - post.gained)
            post.gained += taught.likes
            if taught.likes > 0:
                post.gains[taught.event_id] = Gain(taught.likes, taught.clock, taught.at)
        else:
            post.gains.pop(taught.event_id, None)
            if post.moved_hour == hour:
                post.moved = max(0.0, post.moved - size)
                post.gained = max(0.0, post.gained - taught.likes)
        post.engagement_count += own.engagements
        assert post.vector is not None
        post.vector = norm(post.vector + np.copysign(size, own.size) * direction)

    def _withdraw(
        self,
        event_id: int,
        user: User,
        key: tuple[str, int, str],
        drawn: Draw,
        recorded: Callable[[int], Snapshot | None],
    ) -> None:
        """Takes off what the event has done: its steps, and the post's part of the user's sum."""
        exact = self.taught[key]
        taken = recorded(exact.event_id) or exact
        strength = STRENGTHS[key[2]]
        weight = strength if strength > 0 else strength * self.negative_factor
        user.engagement_count -= 1
        self.withdrawals.setdefault(key, []).append(exact.at)
        queued = [push for push in self.queue if push.event_id == exact.event_id]
        self.queue = [push for push in self.queue if push.event_id != exact.event_id]
        own: Step | None = Step(key[1], -exact.step, -1, exact)
        if queued and queued[0].own:
            own = None
        factors = [] if queued else [(i, -factor) for i, factor in exact.factors]
        self._step(event_id, taken.user_vector, factors, own, drawn)
        places = [k for k, entry in enumerate(user.recent) if entry == (key[1], weight)]
        if places:
            age = len(user.recent) - 1 - places[-1]
            user.engaged_sum = user.engaged_sum - weight * self.decay**age * taken.post_vector
            del user.recent[places[-1]]
        if strength > 0:
            self._withdraw_positive(user, key[1], taken.post_vector)
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
                    continue
                post.vector = norm(post.vector - factor * push.user_vector)
            if push.own:
                self._move(push.own, push.user_vector)
        del self.queue[:count]
        return count

    def read_clock(self, at: datetime) -> float:
        """Half-lives at a time, by the clock of popularity."""
        return self.clock + (at - self.clock_at) / self.half_life

    def likes_of(self, post: Post, at: datetime) -> float:
        """The popularity of a post, in likes of that time."""
        now = self.read_clock(at)
        return sum(gain.likes * 2 ** (gain.clock - now) for gain in post.gains.values())

    def _share(self, post: Post) -> float:
        """The post's share of all popularity, as it was summed up last; 1 while it was not."""
        if not self.total:
            return 1
        at, likes = self.total
        return min(1, self.likes_of(post, at) / likes)

    def set_clock(self, now: datetime) -> None:
        """The half-life that holds three readers a post, as far as a day's change goes."""
        likes = sum(self.likes_of(post, now) for post in self.posts.values())
        self.total = (now, likes) if likes else None
        if not self.engaged or min(now, max(self.engaged.values())) <= self.clock_at:
            return
        days, posts = 0.0, set[int]()
        engaged = sorted((now - at, post_id) for (_, post_id), at in self.engaged.items())
        for count, (age, post_id) in enumerate(engaged, 1):
            posts.add(post_id)
            if count < 3 * len(posts):
                days = age / timedelta(days=1) * 3 * len(posts) / count
        most = 2 ** min(1, (now - self.clock_at) / timedelta(days=1))
        before = self.half_life / timedelta(days=1)
        self.clock, self.clock_at = self.read_clock(now), now
        self.half_life = timedelta(
            days=max(1, min(1096, max(before / most, min(before * most, days))))
        )

    def take_waiting(self, is_due: Callable[[Event], bool]) -> list[tuple[int, Event]]:
        """The deferred events that are due, in id order; they wait no longer."""
        due = sorted((w for w in self.waiting if is_due(w[1])), key=lambda w: w[0])
        self.waiting = [w for w in self.waiting if not is_due(w[1])]
        return due

    def take_late(self, now: datetime) -> list[tuple[int, Event]]:
        """What waited for a minute with room, in id order: of each user what `now` has room for."""
        taken: list[tuple[int, Event]] = []
        for user in self.users.values():
            if user.has_late:
                self._begin_minute(user, now)
                room = self.learned_per_minute - user.minute_count
                taken += user.late[:room]
                del user.late[:room]
                user.has_late = False
        return sorted(taken, key=lambda late: late[0])

    def mark_late(self) -> None:
        """After what was taken is applied: who has events left waits on."""
        for user in self.users.values():
            user.has_late = bool(user.late)

    def list_interests(self, user_id: str) -> dict[int, tuple[Vector, float]]:
        """Vector and weight of each interest of a tenth or more, by the posts as they are now."""
        user, sums, weights = self.users[user_id], {}, dict[int, float]()
        for age, (post_id, number) in enumerate(reversed(user.positives)):
            weight, vector = self.interest_decay**age, self.posts[post_id].vector
            weights[number] = weights.get(number, 0) + weight
            if vector is not None:
                sums[number] = sums.get(number, 0) + weight * vector
        everything = sum(weights.values())
        kept = {n: w for n, w in weights.items() if w >= 0.1 * everything and n in sums}
        return {n: (norm(sums[n]), w / sum(kept.values())) for n, w in kept.items()}

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
