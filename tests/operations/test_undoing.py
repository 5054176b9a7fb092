"""What users or an hour taught is taken back, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from click.testing import CliRunner
from psycopg import errors

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, Connection, array, connect, rows, value
from tests.operations.test_safety import World, finish_rollback, learned
from tests.support.database import add_user, as_user
from tests.support.engagements import insert_events
from tests.support.reference import Event

UNDO = "select two_tower.undo('spam', %s::uuid[])"


@pytest.fixture
def world(db: Connection) -> World:
    """A world that has learned."""
    world = World(db)
    world.learn()
    return world


def finish(db: Connection) -> None:
    """What ticks do until nothing is left to undo."""
    while value(db, "select two_tower.undo_lessons(7)"):
        value(db, "select two_tower.fold_steps(5)")
    value(db, "select two_tower.fold_steps(null)")


def vectors(db: Connection, table: str) -> dict[str, np.ndarray]:
    """Vectors of posts or users by id."""
    name = {"live_embeddings": "post_id", "user_embeddings": "user_id"}[table]
    found = rows(db, f"select {name}::text as id, embedding from two_tower.{table}")
    return {row.id: array(row.embedding) for row in found}


def spam(world: World, kinds: tuple[str, ...] = ("reply",), posts: int = 12) -> str:
    """A newcomer engages with posts that all know, and stands where they do not."""
    spammer = add_user(world.connection)
    now = world.stream.now
    for post in [*world.posts[100:104], *world.posts[:posts]]:
        for kind in kinds:
            now += timedelta(seconds=2)
            insert_events(world.connection, [Event(spammer, post, kind, None, now)])
    value(world.connection, "select two_tower.fold_steps(null)")
    return spammer


def test_what_a_user_taught_is_gone_from_posts_and_from_the_user(world: World) -> None:
    db = world.connection
    before = vectors(db, "live_embeddings")
    users = vectors(db, "user_embeddings")
    known = learned(db)
    spammer = spam(world)
    moved = vectors(db, "live_embeddings")
    value(db, UNDO, [spammer])
    finish(db)
    after = vectors(db, "live_embeddings")
    hit = [post for post in before if not np.allclose(before[post], moved[post], atol=1e-4)]
    assert len(hit) >= 12
    away = sum(1 - float(before[post] @ moved[post]) for post in hit)
    left = sum(1 - float(before[post] @ after[post]) for post in hit)
    assert left < 0.02 * away
    assert not np.any(vectors(db, "user_embeddings").pop(spammer))
    for user, vector in users.items():
        assert np.array_equal(vector, vectors(db, "user_embeddings")[user])
    now = learned(db)
    counts = {row[0]: (row[2], row[3]) for row in now["posts"] if row[2]}
    assert counts.keys() == {row[0] for row in known["posts"] if row[2]}
    for post, _, count, popularity in known["posts"]:
        if count:
            assert counts[post] == (count, pytest.approx(popularity, abs=1e-4))
    undone = "select lessons, finished_at is not null from two_tower.undos"
    assert db.execute(undone).fetchall() == [(16, True)]
    assert value(db, "select two_tower.undo_lessons()") == 0


def test_nothing_is_taken_back_twice(world: World) -> None:
    """Neither by a second undo, nor by the user, who takes the signal back later and gives it."""
    db = world.connection
    spammer = spam(world, ("like", "repost"))
    value(db, UNDO, [spammer])
    finish(db)
    wanted = learned(db)
    value(db, UNDO, [spammer])
    finish(db)
    post, now = world.posts[0], world.stream.now + timedelta(hours=1)
    insert_events(db, [Event(spammer, post, "like", None, now)])  # repeated
    insert_events(db, [Event(spammer, post, "unlike", None, now)])
    value(db, "select two_tower.fold_steps(null)")
    assert learned(db) == wanted
    insert_events(db, [Event(spammer, post, "like", None, now)])
    assert learned(db) != wanted
    insert_events(db, [Event(spammer, post, "unlike", None, now)])
    value(db, "select two_tower.fold_steps(null)")
    count = "select engagement_count from two_tower.user_embeddings where user_id = %s"
    assert value(db, count, spammer) == 0
    signals = "select signals from two_tower.user_post_signals where (user_id, post_id) = (%s, %s)"
    assert value(db, signals, spammer, post) == ["repost"]


def test_all_that_an_hour_taught_is_gone_and_the_hours_around_it_stand(world: World) -> None:
    db = world.connection
    before = vectors(db, "user_embeddings")
    begin = world.stream.now + timedelta(seconds=1)
    world.stream.now += timedelta(hours=1)
    ledger = "select count(*) from two_tower.training_examples where not is_withdrawn"
    stands = value(db, ledger)
    new = [Event(u, p, "reply", None, world.stream.now) for u in world.users for p in
           world.posts[70:73]]  # fmt: skip
    insert_events(db, new)
    taught = value(db, ledger) - stands
    assert taught >= 30
    value(db, "select two_tower.undo('a bug', null, %s, %s + interval '2 h')", begin, begin)
    finish(db)
    assert value(db, ledger) == stands
    assert value(db, "select lessons from two_tower.undos") == taught
    after = vectors(db, "user_embeddings")
    same = [float(before[u] @ after[u]) for u in before if np.any(before[u])]
    assert min(same) > 0.999
    assert value(db, "select count(*) from two_tower.training_examples where is_undone") == taught


def test_a_plan_is_what_an_undo_does_and_changes_nothing(world: World) -> None:
    db = world.connection
    spammer = spam(world)
    before, state = vectors(db, "live_embeddings"), learned(db)
    plan = rows(db, "select * from two_tower.plan_undo(%s::uuid[])", [spammer])
    assert learned(db) == state
    assert value(db, "select count(*) from two_tower.undos") == 0
    value(db, UNDO, [spammer])
    finish(db)
    after = vectors(db, "live_embeddings")
    posts = {row.id: row for row in plan if row.kind == "post"}
    assert len(posts) == 16
    for post, row in posts.items():
        assert row.lessons == 1
        assert row.distance == pytest.approx(1 - float(before[post] @ after[post]), abs=1e-4)
    (user,) = [row for row in plan if row.kind == "user"]
    assert (user.id, user.lessons, user.distance) == (spammer, 16, None)


def test_what_waits_is_not_learned_later(world: World) -> None:
    db = world.connection
    spammer, honest = add_user(db), world.users[3]
    value(db, "select two_tower.freeze('spam')")
    now = world.stream.now
    insert_events(db, [Event(u, world.posts[90], "like", None, now) for u in (spammer, honest)])
    value(db, UNDO, [spammer])
    finish(db)
    waiting = "select user_id::text as id from two_tower.deferred_events"
    assert [row.id for row in rows(db, waiting)] == [honest]
    reason = "select reason from two_tower.unlearned_events where user_id = %s"
    assert value(db, reason, spammer) == "skipped"


def test_what_a_rollback_took_back_is_not_taken_back_once_more(world: World) -> None:
    db = world.connection
    value(db, "select two_tower.checkpoint()")
    spammer = spam(world)
    value(db, "select two_tower.rollback()")
    with pytest.raises(errors.ObjectNotInPrerequisiteState), db.transaction():
        value(db, UNDO, [spammer])
    finish_rollback(db)
    wanted = learned(db)
    value(db, UNDO, [spammer])
    finish(db)
    assert learned(db) == wanted


def test_what_a_rollback_brings_back_can_be_undone_again(world: World) -> None:
    db = world.connection
    spammer = spam(world)
    value(db, "select two_tower.checkpoint()")
    wanted = learned(db)
    value(db, UNDO, [spammer])
    finish(db)
    undone = vectors(db, "live_embeddings")
    db.execute("update two_tower.undos set requested_at = requested_at + interval '1 second'")
    value(db, "select two_tower.rollback()")
    finish_rollback(db)
    assert learned(db) == wanted
    assert value(db, "select count(*) from two_tower.training_examples where is_undone") == 0
    value(db, UNDO, [spammer])
    finish(db)
    after = vectors(db, "live_embeddings")
    # Of posts that nobody engaged with, the rollback took back the pushes too.
    held = [
        row.id for row in rows(db, "select post_id::text as id from two_tower.checkpoint_posts")
    ]
    assert len(held) >= 16
    assert all(np.allclose(undone[post], after[post], atol=1e-5) for post in held)


def test_a_back_end_with_the_service_role_may_do_all_of_it(world: World) -> None:
    db = world.connection
    spammer = spam(world)
    with as_user(db, None, "service_role"):
        assert len(rows(db, "select * from two_tower.plan_undo(%s::uuid[])", [spammer])) == 17
        value(db, UNDO, [spammer])
        assert value(db, "select two_tower.undo_lessons()") == 16
        page = "select * from two_tower.preview_page(%s, '{\"recency_weight\": 1}')"
        assert rows(db, page, world.users[0])
        assert rows(db, "select * from two_tower.plan_rollback()") == []


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize(
    "call",
    ["undo('x', '{}')", "plan_undo('{}')", "undo_lessons()", "plan_rollback()", "freeze('x')"],
)
def test_a_client_reaches_none_of_it(world: World, role: str, call: str) -> None:
    db, user = world.connection, world.users[0] if role == "authenticated" else None
    refused = pytest.raises(errors.InsufficientPrivilege)
    with as_user(db, user, role), refused, db.transaction():
        db.execute(f"select two_tower.{call}".encode())


@pytest.mark.parametrize(
    "arguments",
    ["' ', array[gen_random_uuid()]", "'x'", "'x', null, '2001-01-02', '2001-01-01'"],
)
def test_an_undo_of_nothing_in_particular_is_refused(db: Connection, arguments: str) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught, db.transaction():
        db.execute(f"select two_tower.undo({arguments})".encode())
    assert caught.value.diag.message_hint


def test_the_command_says_what_would_move_and_does_it(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()

    def run(*arguments: str, answer: str = "") -> str:
        done = CliRunner().invoke(main, ["undo", *arguments], env={URL_VARIABLE: url}, input=answer)
        return f"{done.exit_code}: {done.output}"

    with connect(url, autocommit=True) as connection:
        world = World(connection)
        world.learn()
        spammer = spam(world)
        state = learned(connection)
        for arguments, answer in ((["--dry-run"], ""), ([], "n\n")):
            said = run("spam", "--user", spammer, *arguments, answer=answer)
            assert "16 lessons of 1 user about 16 posts" in said
            assert learned(connection) == state
        assert "1: Error: an undo needs" in run("spam")
        said = run("spam", "--user", spammer, "--yes")
        assert said.startswith("0: ")
        assert "16 lessons are taken back" in said
        assert learned(connection) != state
        assert value(connection, "select count(*) from two_tower.deferred_steps") == 0
