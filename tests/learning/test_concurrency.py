"""Many sessions at once: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, connect, value
from tests.support.database import add_user
from tests.support.engagements import (
    Stream,
    add_posts,
    base_vectors,
    insert_events,
    read_snapshot,
    store,
)
from tests.support.invariants import assert_consistent, count_learned_positives
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.reference import DIMENSIONS, WITHDRAWALS, Draw, Event, norm
from tests.support.twin import Twin

WRITERS = 16


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Runs work(0) ... work(count - 1) at once, each in a thread; raises what the first raised."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run, k) for k in range(count)]]


def without_takings_back(events: Sequence[Event]) -> list[Event]:
    """A statement without withdrawals of what it gives itself: their draws leave no trace."""
    given = {(e.user_id, e.post_id, e.event_type) for e in events}
    return [e for e in events if (e.user_id, e.post_id, WITHDRAWALS.get(e.event_type)) not in given]


def touched(post_ids: Sequence[int], factors: Sequence[float]) -> list[int]:
    """Those of the posts drawn that were read as engaged with."""
    return [post_id for post_id, factor in zip(post_ids, factors, strict=True) if factor]


@dataclass
class Statement:
    """One committed statement: its place in the order of commits, its events, its draws."""

    place: int
    events: list[tuple[int, Event]]
    pushes: list[tuple[Any, ...]]


def test_after_sixteen_writers_every_vector_is_that_of_a_serial_order(
    fresh_database: Callable[[], str],
) -> None:
    """Users and posts are those of the statements one after the other, in the order of commit.

    That order: a number drawn in the transaction while its locks are held. Of two statements that
    share a user the second waits for the first, so their numbers are in their order; of two that
    share a post too, or the step of one is queued. The vectors of drawn posts, and of posts whose
    row another session holds, are read without locks, so what the writer used is taken from what
    it stored, in half precision, and how far the factors are from those of the serial order is
    bounded apart. A lost step would show: the smallest is ten times the tolerance.
    """
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        twin = Twin(connection, np.random.default_rng(3), users=40, posts=200)
        connection.execute("create sequence public.commit_order")
        for user_id in twin.user_ids[:3]:
            twin.give_base(user_id, 0.5)

        def write(number: int) -> list[Statement]:
            # Few posts, so that writers meet; the others are there to be drawn. Users in an order
            # of its own for each writer: else all would wait for one user and meet at no post.
            rng = np.random.default_rng(number)
            users = [str(user_id) for user_id in rng.permutation(twin.user_ids)]
            stream = Stream(rng, users, twin.post_ids[:12])
            done = []
            with connect(url, autocommit=True) as session:
                for k in range(40):
                    events = without_takings_back(
                        stream.next(1 if k % 2 else int(rng.integers(1, 11)))
                    )
                    with session.transaction():
                        ids = insert_events(session, events)
                        place = value(session, "select nextval('public.commit_order')")
                        pushes = session.execute(
                            "select d.event_id, d.pushed_ids, d.push_factors,"
                            "   d.post_id is not null, x.step"
                            " from two_tower.deferred_steps d"
                            " left join two_tower.training_examples x using (event_id)"
                            " where d.xmin = pg_current_xact_id()::xid order by d.event_id"
                        ).fetchall()
                    done.append(Statement(place, list(zip(ids, events, strict=True)), pushes))
            return done

        written = [one for each in in_threads(write, WRITERS) for one in each]
        reference = twin.reference
        for statement in sorted(written, key=lambda one: one.place):
            pushes = {row[0]: row for row in statement.pushes}

            def draw(event_id: int, pushes: dict[int, tuple[Any, ...]] = pushes) -> Draw:
                if event_id not in pushes:
                    return Draw()
                _, post_ids, factors, waits, step = pushes.pop(event_id)
                snapshot = read_snapshot(connection, event_id) if waits else None
                return Draw(
                    post_ids,
                    touched(post_ids, factors),
                    step if post_ids else None,
                    waits,
                    snapshot.post_vector if snapshot else None,
                )

            reference.apply(statement.events, draw, lambda i: read_snapshot(connection, i))
            assert not pushes
        assert twin.difference() < 5e-4

        # What reading without a lock leaves: how wrong a share of the softmax could be.
        stored = {one[0]: one[2] for statement in written for one in statement.pushes}
        worst = max(
            abs(factor - taken) / reference.contrastive_rate
            for push in reference.queue
            for (_, factor), taken in zip(push.factors, stored[push.event_id], strict=True)
        )
        print(
            f"{len(stored)} rows of the queue; shares of the softmax differ by at most {worst:.1%}"
        )
        assert worst < 0.15
        for push in reference.queue:
            ids = [post_id for post_id, _ in push.factors]
            push.factors = list(zip(ids, stored[push.event_id], strict=True))
        assert value(connection, "select two_tower.fold_steps(null)") == reference.fold()
        assert twin.difference() < 5e-4
        pushing = sum(1 for factors in stored.values() if factors)
        assert count_learned_positives(connection) == pushing
        print(f"{len(stored) - pushing} steps waited for a post that another session held")
        assert_consistent(connection)


def mixed_writer(
    url: str, seed: int, users: Sequence[str], posts: Sequence[int], statements: int
) -> int:
    """Sends so many statements of 1 to 20 random events; returns how many events."""
    stream = Stream(np.random.default_rng(seed), users, posts)
    sent = 0
    with connect(url, autocommit=True) as session:
        for number in range(statements):
            events = stream.next(int(stream.rng.integers(1, 21)))
            if number % 4 == 0:  # only views: the way without locks of users
                events = [Event(e.user_id, e.post_id, "view", None, e.created_at) for e in events]
            insert_events(session, events)
            sent += len(events)
    return sent


def fold_until(url: str, stop: threading.Event, limit: int) -> int:
    """Folds pushes until stopped and nothing is left to take; returns how many it folded."""
    folded = 0
    with connect(url, autocommit=True) as session:
        while True:
            was_stopped = stop.is_set()
            count = value(session, "select two_tower.fold_steps(%s)", limit)
            folded += count
            if was_stopped and count == 0:
                return folded


def test_sixteen_writers_of_all_kinds_lose_nothing_while_pushes_fold_and_posts_are_encoded(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        rng = np.random.default_rng(4)
        users = [add_user(connection) for _ in range(12)]
        posts = add_posts(connection, 30, users[:4], rng)
        add_posts(connection, 200, users[:4], rng)  # to be drawn: else a positive has no pushes
        late = add_posts(connection, 12, users[:4])
        stop = threading.Event()

        def encode() -> int:
            """Encodes posts two at a time, deletes others, and learns what waits."""
            with connect(url, autocommit=True) as session:
                for k in range(0, len(late), 2):
                    store(session, late[k : k + 2], base_vectors(rng, 2))
                    session.execute(
                        "update public.posts set deleted_at = now() where id = any(%s)",
                        [[posts[-1 - k], posts[-2 - k]]],
                    )
                    value(session, "select two_tower.apply_post_changes()")
                    value(session, "select two_tower.learn_deferred(20)")
                    time.sleep(0.05)
                stop.wait()
                while value(session, "select two_tower.learn_deferred(100)"):
                    pass
            return 0

        with ThreadPoolExecutor(3) as beside:
            folding = [beside.submit(fold_until, url, stop, limit) for limit in (3, 40)]
            encoding = beside.submit(encode)
            try:
                sent = sum(
                    in_threads(lambda k: mixed_writer(url, k, users, posts + late, 20), WRITERS)
                )
            finally:
                stop.set()
            encoding.result()
            folded = sum(future.result() for future in folding)
        folded += value(connection, "select two_tower.fold_steps(null)")

        assert value(connection, "select count(*) from public.engagement_events") == sent
        assert value(connection, "select count(*) from two_tower.deferred_events") == 0
        # A row for each positive, but for those that were taken back before they were folded.
        withdrawn = value(
            connection, "select count(*) from two_tower.training_examples where is_withdrawn"
        )
        assert folded >= count_learned_positives(connection) - withdrawn
        assert value(connection, "select count(*) from two_tower.deferred_steps") == 0
        print(f"{sent} events, {folded} positives")
        assert_consistent(connection)


@pytest.mark.parametrize("sessions", [2, 6])
def test_sessions_that_fold_at_once_apply_each_push_once(
    fresh_database: Callable[[], str], sessions: int
) -> None:
    """Equal pushes give the same in any order, so the wanted vectors are exact."""
    url, rng = fresh_database(), np.random.default_rng(5)
    with connect(url, autocommit=True) as connection:
        author = add_user(connection)
        posts = add_posts(connection, 20, [author], rng)
        connection.execute("update two_tower.live_embeddings set is_pretrained = false")
        read = "select post_id, embedding::real[] from two_tower.post_embeddings"
        vectors = {i: np.array(v, float) for i, v in connection.execute(read)}
        direction = norm(rng.normal(size=DIMENSIONS))
        for _ in range(400):
            drawn = sorted(int(i) for i in rng.choice(posts, 8, replace=False))
            connection.execute(
                "insert into two_tower.deferred_steps"
                " (event_id, user_id, epoch, user_vector, pushed_ids, push_factors, created_at)"
                " values (nextval('two_tower.engagement_event_ids'), %s, 0,"
                " %s::real[]::extensions.vector, %s, %s, now())",
                [author, direction.tolist(), drawn, [0.002] * 8],
            )
            for post_id in drawn:
                vectors[post_id] = norm(vectors[post_id] - 0.002 * direction)
        stop = threading.Event()
        stop.set()
        folded = in_threads(lambda k: fold_until(url, stop, 7), sessions)
        # A session may find all that is left taken by another, which is still at work on it.
        assert sum(folded) == 400
        for post_id, vector in connection.execute(read):
            assert np.abs(np.array(vector) - vectors[post_id]).max() < 1e-5


def test_a_fold_that_is_rolled_back_leaves_its_pushes_to_others(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection, connect(url) as other:
        users = [add_user(connection) for _ in range(3)]
        posts = add_posts(connection, 20, users[:1], np.random.default_rng(6))
        insert_events(connection, [Event(u, posts[k], "like") for u in users for k in range(4)])
        total = value(connection, "select count(*) from two_tower.deferred_steps")
        taken = value(other, "select two_tower.fold_steps(5)")
        assert taken == 5
        other.rollback()
        assert value(connection, "select two_tower.fold_steps(null)") == total
        assert value(connection, "select count(*) from two_tower.deferred_steps") == 0
        assert_consistent(connection)


def wait_until_blocked(connection: Connection, pids: Sequence[int]) -> None:
    """Returns when each of the sessions waits for a lock of another."""
    query = "select bool_and(cardinality(pg_blocking_pids(p)) > 0) from unnest(%s::int[]) p"
    wait_until(lambda: value(connection, query, list(pids)))


def test_new_users_whom_several_sessions_bring_at_once_make_no_deadlock(
    fresh_database: Callable[[], str],
) -> None:
    """Four sessions in the one interleaving in which creating users while holding others would."""
    url = fresh_database()
    with connect(url, autocommit=True) as watcher, ThreadPoolExecutor(2) as pool:
        first, second, third = sorted(add_user(watcher) for _ in range(3))
        (post,) = add_posts(watcher, 1, [first], np.random.default_rng(7))
        makers = [connect(url), connect(url)]
        for maker, user_id in zip(makers, (second, third), strict=True):
            insert_events(maker, [Event(user_id, post, "skip")])
            if maker is makers[0]:
                break
        # Posts are locked after users: the second maker must not wait for the first one's post.
        makers[1].execute("select two_tower.add_users(array[%s]::uuid[])", [third])
        makers[1].execute("insert into two_tower.user_embeddings (user_id) values (%s)", [third])
        slow, quick = connect(url), connect(url)
        everybody = [Event(user_id, post, "like") for user_id in (first, second, third)]
        waiting = pool.submit(insert_events, slow, everybody)
        wait_until_blocked(watcher, [slow.info.backend_pid])
        makers[0].commit()
        blocking = "select pg_blocking_pids(%s)"
        wait_until(
            lambda: value(watcher, blocking, slow.info.backend_pid) == [makers[1].info.backend_pid]
        )
        late = pool.submit(insert_events, quick, everybody[:2])
        wait_until_blocked(watcher, [quick.info.backend_pid])
        makers[1].commit()
        finished: list[Future[Any]] = []
        for future, session in ((waiting, slow), (late, quick)):
            future.result(timeout=PATIENCE_S)
            session.commit()
            finished.append(future)
        assert len(finished) == 2
        assert_consistent(watcher)
        for session in (*makers, slow, quick):
            session.close()
