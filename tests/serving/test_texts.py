"""embed_text and search_posts: a text in, its vectors out, for its caller alone."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, base_vectors
from tests.support.patience import PATIENCE_S

EMBED = "select * from public.embed_text(%s)"
SEARCH = "select * from public.search_posts(%s, %s)"


def embed(db: Connection, user: str | None, text: Any) -> Any:
    """The answer to a user or, for None, to a back end."""
    with as_user(db, user, "authenticated" if user else "service_role"):
        return db.execute(EMBED, [text]).fetchone()


def encode(db: Connection, vectors: list[Any] | None = None) -> list[str]:
    """Does what a worker does, with random vectors unless some are given. Returns the texts."""
    texts = rows(db, "select * from two_tower.texts_to_encode()")
    made = vectors or base_vectors(np.random.default_rng(5), len(texts))
    db.execute(
        "select two_tower.store_text_embeddings(%s::bigint[], %s)",
        [[each.text_id for each in texts], [np.array(vector) for vector in made]],
    )
    return [each.content for each in texts]


def found(db: Connection, user: str | None, text: Any, limit: Any = 20) -> list[Any]:
    """The posts that a search finds."""
    with as_user(db, user, "authenticated" if user else "service_role"):
        return db.execute(SEARCH, [text, limit]).fetchall()


@contextmanager
def refused(db: Connection, sqlstate: str) -> Iterator[None]:
    """The block is refused with this code and a hint. The transaction goes on after it."""
    with pytest.raises(psycopg.Error) as caught, db.transaction():
        yield
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_hint


def set_clock(db: Connection, offset: str) -> None:
    db.execute(
        "select set_config('two_tower.now', (pg_catalog.now() + %s::interval)::text, true)",
        [offset],
    )


def test_a_text_waits_until_it_is_encoded_and_is_ready_then(db: Connection) -> None:
    user = add_user(db)
    value(db, "select two_tower.note_worker('a')")
    assert embed(db, user, "a boat") == ("waiting", None, None, 1)
    assert embed(db, user, " a boat\n") == ("waiting", None, None, 1)
    assert encode(db) == ["a boat"]
    answer = embed(db, user, "a boat")
    assert (answer.status, answer.retry_after) == ("ready", None)
    assert len(answer.base_embedding) == 384
    assert np.linalg.norm(answer.base_embedding) == pytest.approx(1, abs=1e-5)
    projected = "select two_tower.run_candidate_tower(%s::real[]::extensions.vector)::real[]"
    assert answer.embedding == value(db, projected, answer.base_embedding)
    assert len(answer.embedding) == 128
    assert np.linalg.norm(answer.embedding) == pytest.approx(1, abs=1e-5)
    assert value(db, "select count(content) from two_tower.requested_texts") == 0


@pytest.mark.parametrize("evidence", ["none", "seen long ago", "seen", "working"])
def test_whether_a_worker_lives_is_told_from_what_it_did(db: Connection, evidence: str) -> None:
    user = add_user(db)
    if evidence.startswith("seen"):
        set_clock(db, "-1 minute" if evidence == "seen long ago" else "-20 seconds")
        assert not rows(db, "select * from two_tower.claim_job('a', '{test}')")
    if evidence == "working":
        set_clock(db, "-5 minutes")
        value(db, "select two_tower.enqueue_job('test')")
        assert rows(db, "select * from two_tower.claim_job('a', '{test}', '1 hour')")
    set_clock(db, "0")
    lives = evidence in ("seen", "working")
    assert embed(db, user, "a boat")[::3] == (("waiting", 1) if lives else ("no_worker", 30))
    assert encode(db) == ["a boat"]


def test_a_worker_that_claims_or_beats_is_seen(db: Connection) -> None:
    seen = (
        "select name, extract(epoch from two_tower.now() - seen_at)::integer from two_tower.workers"
    )
    job = value(db, "select two_tower.enqueue_job('test')")
    value(db, "select id from two_tower.claim_job('a', '{test}', '1 hour')")
    assert db.execute(seen.encode()).fetchall() == [("a", 0)]
    set_clock(db, "4 seconds")
    rows(db, "select id from two_tower.claim_job('a', '{test}')")
    assert db.execute(seen.encode()).fetchall() == [("a", 4)]
    set_clock(db, "20 seconds")
    value(db, "select two_tower.heartbeat_job(%s, 'a')", job)
    assert db.execute(seen.encode()).fetchall() == [("a", 0)]
    assert value(db, "select seen_at - started_at > '0' from two_tower.workers")


def test_a_text_is_its_callers_alone(db: Connection) -> None:
    me, other = add_user(db), add_user(db)
    add_posts(db, 5, [add_user(db)], np.random.default_rng(1))
    embed(db, me, "a secret")
    encode(db)
    assert found(db, me, "a secret")
    for somebody in (other, None):
        assert found(db, somebody, "a secret") == []
        assert embed(db, somebody, "a secret").status == "no_worker"
    assert encode(db) == ["a secret", "a secret"]
    assert embed(db, None, "a secret").status == "ready"


def test_a_back_end_embeds_without_a_user_and_without_a_limit(db: Connection) -> None:
    add_posts(db, 5, [add_user(db)], np.random.default_rng(1))
    db.execute("update two_tower.settings set requested_texts_per_minute = 1")
    for number in range(5):
        assert embed(db, None, f"text {number}").status == "no_worker"
    assert len(encode(db)) == 5
    assert embed(db, None, "text 3").status == "ready"
    assert len(found(db, None, "text 3", 3)) == 3


def test_nobody_embeds_or_searches_without_signing_in(db: Connection) -> None:
    for call in (EMBED, "select * from public.search_posts(%s)"):
        for role in ("anon", "authenticated"):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege),
                db.transaction(),
                as_user(db, None, role),
            ):
                db.execute(call.encode(), ["a boat"])


@pytest.mark.parametrize("text", [None, "", " \n\t"])
def test_a_blank_text_is_refused(db: Connection, text: str | None) -> None:
    user = add_user(db)
    with refused(db, "22023"):
        embed(db, user, text)
    assert found(db, user, text) == []


def test_a_text_longer_than_requested_text_length_is_refused(db: Connection) -> None:
    user = add_user(db)
    assert embed(db, user, "ü" * 1000).status == "no_worker"
    with refused(db, "TT002"):
        embed(db, user, "x" * 1001)
    with refused(db, "TT002"):
        embed(db, user, " " * 1_000_000)
    db.execute("update two_tower.settings set requested_text_length = 1500")
    assert embed(db, user, "x" * 1001).status == "no_worker"


def test_new_texts_beyond_requested_texts_per_minute_are_refused_for_a_minute(
    db: Connection,
) -> None:
    user, other = add_user(db), add_user(db)
    db.execute("update two_tower.settings set requested_texts_per_minute = 3")
    for number in range(3):
        embed(db, user, f"text {number}")
    with refused(db, "TT005"):
        embed(db, user, "one more")
    assert embed(db, user, "text 1").status == "no_worker"
    assert embed(db, other, "one more").status == "no_worker"
    encode(db)
    with refused(db, "TT005"):
        embed(db, user, "one more")
    assert embed(db, user, "text 1").status == "ready"
    db.execute("update two_tower.requested_texts set requested_at = requested_at - interval '61 s'")
    assert embed(db, user, "one more").status == "no_worker"


def test_calls_at_once_do_not_pass_the_limit_together(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as db:
        user = add_user(db)
        db.execute("update two_tower.settings set requested_texts_per_minute = 3")
        start = threading.Barrier(8)
        refusals: list[str | None] = []

        def ask(number: int) -> None:
            with connect(url) as session:
                start.wait(PATIENCE_S)
                try:
                    with session.transaction():
                        embed(session, user, f"text {number}")
                except psycopg.Error as error:
                    refusals.append(error.sqlstate)

        callers = [threading.Thread(target=ask, args=[number]) for number in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert refusals == ["TT005"] * 5
        assert value(db, "select count(*) from two_tower.requested_texts") == 3


def test_callers_take_turns(db: Connection) -> None:
    """A flood of one caller, a back end's too, lets those in between who come after it."""
    flooding, late = add_user(db), add_user(db)
    set_clock(db, "0 seconds")  # all come at one moment, however slow the machine is
    for number in range(20):
        embed(db, flooding, f"flood {number}")
        embed(db, None, f"batch {number}")
    embed(db, late, "late")
    first = rows(db, "select content from two_tower.texts_to_encode(5)")
    assert {each.content for each in first} == {
        *("flood 0", "batch 0", "flood 1", "batch 1"),
        "late",
    }


def test_a_text_is_claimed_by_one_worker_until_its_claim_ends(db: Connection) -> None:
    user = add_user(db)
    embed(db, user, "a boat")
    claim = "select text_id from two_tower.texts_to_encode()"
    (first,) = rows(db, claim)
    assert rows(db, claim) == []
    set_clock(db, "21 seconds")
    assert rows(db, claim) == [first]
    store = "select two_tower.store_text_embeddings(array[%s::bigint], array[%s])"
    vector = np.eye(384)[0]
    assert value(db, store, first.text_id, vector) == 1
    assert value(db, store, first.text_id, vector) == 0
    with refused(db, "22023"):
        value(db, "select two_tower.store_text_embeddings('{1, 2}', array[%s])", vector)


def test_texts_go_after_requested_texts_kept_for(db: Connection) -> None:
    user = add_user(db)
    embed(db, user, "a boat")
    encode(db)
    embed(db, user, "a ship")
    db.execute("update two_tower.schedules set is_enabled = false")
    left = "select count(*) from two_tower.requested_texts"
    set_clock(db, "59 minutes")
    assert value(db, "select two_tower.prune_requested_texts()") == 0
    db.execute("update two_tower.settings set requested_texts_kept_for = '30 minutes'")
    for _ in range(12):
        value(db, "select two_tower.tick()")
    assert value(db, left) == 0
    assert found(db, user, "a boat") == []


def test_texts_go_with_their_user_at_once(db: Connection) -> None:
    user, other = add_user(db), add_user(db)
    embed(db, user, "a boat")
    embed(db, other, "a boat")
    db.execute("delete from auth.users where id = %s", [user])
    left = db.execute("select user_id::text from two_tower.requested_texts").fetchall()
    assert left == [(other,)]
    with refused(db, "23503"):
        embed(db, str(uuid.uuid4()), "a boat")


def test_a_search_finds_the_posts_nearest_to_its_text_best_first(db: Connection) -> None:
    user, author = add_user(db), add_user(db)
    db.execute("update two_tower.settings set author_share = 1")
    posts = add_posts(db, 30, [author, user], np.random.default_rng(3))
    vector = value(db, "select base_embedding::real[] from two_tower.base_embeddings"
                       " where post_id = %s", posts[7])  # fmt: skip
    embed(db, user, "a boat")
    encode(db, [vector])
    page = found(db, user, "a boat", 10)
    nearest = db.execute(
        "select post_id, -(embedding operator(extensions.<#>) two_tower.run_candidate_tower("
        " %s::real[]::extensions.vector)) as cosine from two_tower.live_embeddings"
        " where slot = (select active_slot from two_tower.state) order by cosine desc limit 10",
        [vector],
    ).fetchall()
    assert [row.post_id for row in page] == [row.post_id for row in nearest]
    assert page[0].post_id == posts[7]
    assert [row.score for row in page] == [round(row.cosine, 2) for row in nearest]
    names = ("post_id", "post_key", "post_source", "author_id", "created_at", "score")
    assert page[0]._fields == names
    assert [len(found(db, user, "a boat", limit)) for limit in (0, 1, 100)] == [1, 1, 30]


def test_a_search_holds_at_most_100_posts(db: Connection) -> None:
    user = add_user(db)
    add_posts(db, 120, [add_user(db)], np.random.default_rng(3))
    embed(db, user, "a boat")
    encode(db)
    assert len(found(db, user, "a boat", 500)) == 100


def test_a_search_leaves_out_blocks_and_what_the_caller_may_not_read(db: Connection) -> None:
    user, friend, foe, hidden = (add_user(db) for _ in range(4))
    posts = add_posts(db, 30, [friend, foe, hidden], np.random.default_rng(3))
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " values (%s, %s, 'block_author')",
        [user, next(post for post in posts if author_of(db, post) == foe)],
    )
    policies = (
        "select polname from pg_policy where polrelid = 'public.posts'::regclass and polcmd = 'r'"
    )
    for row in db.execute(policies.encode()).fetchall():
        db.execute(f'drop policy "{row[0]}" on public.posts'.encode())
    db.execute(
        'create policy "all but hidden" on public.posts for select to authenticated'
        f" using (author_id <> '{hidden}')".encode()
    )
    embed(db, user, "a boat")
    encode(db)
    page = found(db, user, "a boat", 100)
    assert len(page) == 10
    assert {str(row.author_id) for row in page} == {friend}


def author_of(db: Connection, post_id: int) -> str:
    """The author of a post."""
    return str(value(db, "select author_id from public.posts where id = %s", post_id))
