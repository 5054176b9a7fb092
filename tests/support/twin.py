"""One database and one Reference that are told the same things."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user
from tests.support.engagements import (
    add_posts,
    base_vectors,
    delete_posts,
    insert_events,
    read_snapshot,
    store,
)
from tests.support.reference import (
    DIMENSIONS,
    Draw,
    Event,
    Post,
    Reference,
    User,
    Vector,
    norm,
)


class Twin:
    """One database and one Reference that are told the same things."""

    def __init__(
        self,
        connection: Connection,
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
        # Vectors are random here: some are to be near enough to one interest, and most to none.
        self.reference.interest_threshold = 0.1
        connection.execute("update two_tower.settings set interest_threshold = 0.1")
        self.authors = [add_user(connection) for _ in range(5)]
        # One of them writes posts too.
        self.user_ids = [*(add_user(connection) for _ in range(users - 1)), self.authors[0]]
        self.post_ids = add_posts(connection, posts, self.authors, rng)
        self.unencoded = add_posts(connection, unencoded_posts, self.authors)
        for post_id, vector in self._live_vectors().items():
            self.reference.posts[post_id] = Post(vector)
        for post_id in self.unencoded:
            self.reference.posts[post_id] = Post()
        for row in rows(connection, "select id, author_id::text from two_tower.posts"):
            if row.id in self.reference.posts:
                self.reference.posts[row.id].author_id = row.author_id

    def set_rule(self, rule: str) -> None:
        """Switches the learning rule: one update of a row."""
        self.connection.execute("update two_tower.settings set learning_rule = %s", [rule])
        self.reference.rule = rule

    def give_base(self, user_id: str, weight: float) -> None:
        """Gives a user a prior, as a profile or the user tower does."""
        base = norm(self.rng.normal(size=DIMENSIONS)).astype(np.float32)
        self.connection.execute("select two_tower.add_users(array[%s]::uuid[])", [user_id])
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
        self.replay(list(zip(event_ids, events, strict=True)))
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
        waited = self.reference.take_waiting(lambda event: event.post_id == post_id)
        self.replay(waited, are_deferred=True)

    def learn_deferred(self) -> int:
        """The step of tick() that learns what waited and is due; returns how many it took."""
        row = self.connection.execute("select two_tower.learn_deferred(100000)").fetchone()
        posts = self.reference.posts
        self.replay(
            self.reference.take_waiting(
                lambda e: posts[e.post_id].vector is not None or posts[e.post_id].is_deleted
            ),
            are_deferred=True,
        )
        assert row is not None
        return int(row[0])

    def learn_waiting(self, now: datetime) -> int:
        """The step of tick() that learns what waited for a minute with room; returns how many."""
        self.connection.execute("select set_config('two_tower.now', %s, false)", [now.isoformat()])
        row = self.connection.execute("select two_tower.learn_waiting(100000)").fetchone()
        self.replay(self.reference.take_late(now), are_deferred=True)
        self.reference.mark_late()
        assert row is not None
        return int(row[0])

    def delete_post(self, post_id: int) -> None:
        """The author removes a post."""
        delete_posts(self.connection, [post_id])
        self.reference.posts[post_id].is_deleted = True

    def set_clock(self, now: datetime) -> None:
        """Sets the clock of popularity on both sides."""
        self.connection.execute("select set_config('two_tower.now', %s, false)", [now.isoformat()])
        self.connection.execute("select two_tower.set_popularity_clock()")
        self.reference.set_clock(now)
        half_life = value(self.connection, "select popularity_half_life from two_tower.state")
        assert half_life / self.reference.half_life == pytest.approx(1, rel=1e-6)

    def fold(self, limit: int | None = None) -> None:
        """Folds the oldest deferred steps on both sides."""
        row = self.connection.execute("select two_tower.fold_steps(%s)", [limit]).fetchone()
        assert row is not None
        assert row[0] == self.reference.fold(limit)

    def replay(self, events: list[tuple[int, Event]], *, are_deferred: bool = False) -> None:
        """Tells the reference of stored events, with the draws that were made for them."""
        examples = self.connection.execute(
            "select event_id, pushed_ids from two_tower.training_examples"
            " where event_id = any (%s)",
            [[event_id for event_id, _ in events]],
        )
        drawn = {event_id: Draw(post_ids) for event_id, post_ids in examples}
        self.reference.apply(
            events,
            lambda event_id: drawn.pop(event_id, Draw()),
            lambda event_id: read_snapshot(self.connection, event_id),
            are_deferred=are_deferred,
        )
        assert not drawn, "there are examples of events that were not learned"

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
            "select post_id, embedding::real[], engagement_count, is_pretrained,"
            "  two_tower.popularity_in_likes(popularity,"
            "    two_tower.read_popularity_clock(two_tower.now(), s)) as likes, two_tower.now()"
            " from two_tower.post_embeddings cross join two_tower.state s"
            " where embedding is not null"
        ).fetchall()
        assert {row[0] for row in posts} == {
            i for i, post in reference.posts.items() if post.vector is not None
        }
        for post_id, vector, count, is_pretrained, likes, now in posts:
            post = reference.posts[post_id]
            assert post.vector is not None
            assert (post_id, count) == (post_id, post.engagement_count)
            assert (post_id, is_pretrained) == (post_id, post.is_pretrained)
            largest = max(largest, float(np.abs(np.array(vector) - post.vector).max()))
            largest = max(largest, abs(likes - reference.likes_of(post, now)))
        users = connection.execute(
            "select user_id::text, embedding::real[], engaged_sum::real[], engagement_count,"
            "  recent_post_ids, recent_strengths, two_tower.encode_user(user_id)::real[],"
            "  positive_ids, positive_interests"
            " from two_tower.user_embeddings"
        ).fetchall()
        for (
            user_id, vector, engaged_sum, count, recent_ids, strengths, encoded, positives, numbers,
        ) in users:  # fmt: skip
            user = reference.users.get(user_id, User())
            assert (user_id, count) == (user_id, user.engagement_count)
            assert recent_ids == [entry[0] for entry in user.recent]
            pairs = [(np.array(vector), user.vector)]
            if reference.rule == "contrastive":
                pairs.append((np.array(strengths), np.array([entry[1] for entry in user.recent])))
                pairs.append((np.array(engaged_sum), user.engaged_sum))
                if encoded is not None:
                    pairs.append((np.array(encoded), reference.encode_user(user_id)))
            if not user.is_tied:
                assert list(zip(positives, numbers, strict=True)) == user.positives
                pairs += self._interest_pairs(user_id)
            for got, wanted in pairs:
                if len(wanted):
                    largest = max(largest, float(np.abs(got - wanted).max()))
        return largest

    def _interest_pairs(self, user_id: str) -> list[tuple[Vector, Vector]]:
        """What list_interests() tells, and what it must."""
        wanted = self.reference.list_interests(user_id) if user_id in self.reference.users else {}
        listed = self.connection.execute(
            "select interest, vector::real[], weight from two_tower.list_interests(%s)", [user_id]
        ).fetchall()
        assert {row[0] for row in listed} == set(wanted)
        return [
            (np.array([*vector, weight]), np.array([*wanted[number][0], wanted[number][1]]))
            for number, vector, weight in listed
        ]

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
                assert event_id in deferred, (event_id, unlearned.get(event_id))
            else:
                assert unlearned.get(event_id) == verdict
