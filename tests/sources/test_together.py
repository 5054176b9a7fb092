"""The app's transactions beside the engine's own steps: nobody waits in a circle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.support.app import App, differences, open_alerts, tick_until_quiet
from tests.support.database import add_user
from tests.support.engagements import base_vectors, store
from tests.support.invariants import assert_consistent
from tests.support.patience import PATIENCE_S

POSTS = 40
SECONDS = 8.0  # of work; what is asserted holds after any time


class Place(App):
    """A session's users and its place among the writers."""

    users: list[str]
    place: int


def encode(session: Connection, rng: np.random.Generator, app: Place) -> None:
    """What a worker does: some of what is due, and some once more."""
    due = rows(session, "select * from two_tower.posts_to_encode(10)")
    some = rows(session, "select id, content_hash from two_tower.posts order by random() limit 5")
    posts = {row.post_id: row.content_hash for row in due}
    posts |= {row.id: row.content_hash for row in some}
    session.execute(
        "select two_tower.store_base_embeddings(%s, array(select v::extensions.vector"
        " from unnest(%s::text[]) with ordinality as x (v, n) order by n), %s)",
        [list(posts), [str(v) for v in base_vectors(rng, len(posts))], list(posts.values())],
    )


def tick(session: Connection, rng: np.random.Generator, app: Place) -> None:
    session.execute("select two_tower.tick()")
    if rng.random() < 0.2:
        session.execute("select two_tower.request_reconciliation()")


def like(session: Connection, rng: np.random.Generator, app: Place) -> None:
    """One statement, as clients send them; and posts that are not encoded yet, too."""
    kind = str(rng.choice(["like", "view", "reply", "unlike"]))
    picked = sorted({int(n) for n in rng.integers(1, POSTS + 1, 3)})
    session.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, p.id, %s from two_tower.posts p where p.key = any (%s)",
        [str(rng.choice(app.users)), kind, [str(n) for n in picked]],
    )


def edit(session: Connection, rng: np.random.Generator, app: Place) -> None:
    """A transaction of the app over several posts, in any order, with its own work between.

    Each writer has posts of its own: two that write the same posts in two orders lock each other
    out without the engine, too.
    """
    mine = [n for n in range(1, POSTS + 1) if n % 3 == app.place]
    with session.transaction():
        for number in rng.permutation(mine)[:6]:
            change = str(
                rng.choice(
                    [
                        "title = title || 'x'",
                        "status = 'draft'",
                        "status = 'published'",
                        "user_id = null",
                    ]
                )
            )
            session.execute(
                f"update public.articles set {change} where id = %s".encode(), [int(number)]
            )
            if rng.random() < 0.3:
                time.sleep(0.01)
        if rng.random() < 0.5:  # a like of the same request, after what it wrote
            like(session, rng, app)
            session.execute("update public.articles set body = 'after' where id = %s", [mine[0]])
        if rng.random() < 0.3:
            gone = int(rng.choice(mine))
            session.execute("delete from public.articles where id = %s", [gone])
            session.execute("insert into public.articles (id, title) values (%s, 'back')", [gone])


def test_writers_of_posts_likes_the_encoder_and_ticks_never_wait_in_a_circle(own_url: str) -> None:
    with connect(own_url, autocommit=True) as connection:
        app = App(connection)
        app.create_articles()
        app.attach_articles()
        app.insert(range(1, POSTS + 1))
        users = [add_user(connection) for _ in range(6)]
        store(connection, list(range(1, POSTS, 2)), base_vectors(np.random.default_rng(1), 20))
        before = value(
            connection, "select deadlocks from pg_stat_database where datname = current_database()"
        )
        stop = threading.Event()
        work: list[Callable[[Connection, np.random.Generator, Place], None]] = [
            edit,
            edit,
            edit,
            like,
            like,
            encode,
            tick,
        ]

        def run(number: int) -> int:
            rng, done = np.random.default_rng(number), 0
            with connect(own_url, autocommit=True) as session:
                place = Place(session)
                place.users, place.place = users, number
                while not stop.is_set():
                    work[number](session, rng, place)
                    done += 1
            return done

        with ThreadPoolExecutor(len(work)) as pool:
            running = [pool.submit(run, number) for number in range(len(work))]
            stop.wait(SECONDS)
            stop.set()
            counts = [future.result(PATIENCE_S) for future in running]
        assert min(counts) > 0
        after = value(
            connection, "select deadlocks from pg_stat_database where datname = current_database()"
        )
        assert after == before
        tick_until_quiet(connection)
        assert differences(connection) == []
        # Many likes of few posts may meet the bound of an hour.
        assert open_alerts(connection).keys() <= {"post_moved_in_concert", "post_held"}
        assert_consistent(connection)


@pytest.fixture
def own(own_url: str) -> Iterator[App]:
    """An app in a database of this test alone."""
    with connect(own_url, autocommit=True) as connection:
        yield App(connection)


def test_a_post_that_a_transaction_holds_is_left_due_and_found_later(
    own: App, own_url: str
) -> None:
    app, db = own, own.connection
    app.create_articles()
    app.attach_articles()
    app.insert([1, 2])
    vectors = base_vectors(np.random.default_rng(2), 2)
    due = rows(db, "select post_id, content_hash from two_tower.posts_to_encode() order by 1")
    hand_in = (
        "select two_tower.store_base_embeddings(%s, array(select v::extensions.vector"
        " from unnest(%s::text[]) with ordinality as x (v, n) order by n), %s)"
    )
    arguments = [
        [row.post_id for row in due],
        [str(v) for v in vectors],
        [row.content_hash for row in due],
    ]
    with connect(own_url) as holder:
        holder.execute("update public.articles set status = 'draft' where id = 2")
        assert value(db, hand_in, *arguments) == 1
        assert [row.post_id for row in rows(db, "select * from two_tower.posts_to_encode()")] == [2]
        db.execute("select two_tower.apply_post_changes()")
        holder.commit()
    # What both did at once is looked at once more.
    db.execute("select two_tower.apply_post_changes()")
    listed = "select post_id, is_listed from two_tower.live_embeddings order by 1"
    assert rows(db, listed) == [(1, True), (2, False)]
    assert rows(db, "select * from two_tower.posts_to_encode()") == []
    db.execute("update public.articles set status = 'published' where id = 2")
    (again,) = rows(db, "select post_id, content_hash from two_tower.posts_to_encode()")
    assert value(db, hand_in, [2], [str(vectors[1])], [again.content_hash]) == 1
    db.execute("select two_tower.apply_post_changes()")
    assert rows(db, listed) == [(1, True), (2, True)]
    assert rows(db, "select * from two_tower.posts_to_encode()") == []


def test_an_encoding_of_the_text_before_is_passed_over(own: App) -> None:
    app, db = own, own.connection
    app.create_articles()
    app.attach_articles()
    app.insert([1])
    (due,) = rows(db, "select * from two_tower.posts_to_encode()")
    app.run("update public.articles set title = 'anew'")
    hand_in = (
        "select two_tower.store_base_embeddings(array[%s::bigint],"
        " array[%s::text::extensions.vector], array[%s::bigint])"
    )
    vector = str(base_vectors(np.random.default_rng(3), 1)[0])
    assert value(db, hand_in, 1, vector, due.content_hash) == 0
    assert rows(db, "select from two_tower.base_embeddings") == []
    (again,) = rows(db, "select * from two_tower.posts_to_encode()")
    assert again.content == "anew"
    assert value(db, hand_in, 1, vector, again.content_hash) == 1
    assert rows(db, "select * from two_tower.posts_to_encode()") == []
    app.run("update public.articles set title = 'and again'")
    assert len(rows(db, "select * from two_tower.posts_to_encode()")) == 1


def test_posts_without_a_text_are_encoded_too(own: App) -> None:
    app = own
    app.create_articles()
    app.attach_articles()
    app.run("insert into public.articles (id) values (1)")
    (due,) = rows(app.connection, "select * from two_tower.posts_to_encode()")
    assert due.content == ""


def test_posts_that_cannot_be_read_keep_no_others_from_the_encoder(own: App) -> None:
    app, db = own, own.connection
    app.create_articles()
    app.attach_articles()
    app.run("insert into public.articles (id, title) select n, 't' from generate_series(1, 1500) n")
    app.run("alter table public.articles disable trigger user")
    app.run("delete from public.articles where id <= 700")
    app.run("update public.articles set title = 'changed' where id <= 1400")
    app.run("alter table public.articles enable trigger user")
    app.create_articles(name="public.others")
    app.attach_articles("public.others")
    app.run("insert into public.others (id, title) values (1, 'other')")
    due = rows(db, "select content from two_tower.posts_to_encode(200)")
    assert sorted(row.content for row in due) == ["other"] + ["t"] * 100
    assert len(rows(db, "select from two_tower.posts_to_encode(1)")) == 1
    app.run("drop view public.articles_page cascade")
    app.run("alter table public.articles drop column title")
    due = rows(db, "select content from two_tower.posts_to_encode(200)")
    assert [row.content for row in due] == ["other"]
