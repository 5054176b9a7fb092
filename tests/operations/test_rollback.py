"""What a rollback says before it is done, and which checkpoints it refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result
from psycopg import errors

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, Connection, connect, rows, value
from tests.operations.test_safety import World, drift, finish_rollback, learned
from tests.support.engagements import add_posts

ENGAGEMENTS = "select coalesce(sum(engagement_count), 0) from two_tower.user_embeddings"


@pytest.fixture
def world(db: Connection) -> World:
    return World(db)


def plan(db: Connection, checkpoint: int | None = None) -> Any:
    """The row of plan_rollback, or None."""
    found = rows(db, "select * from two_tower.plan_rollback(%s)", checkpoint)
    return found[0] if found else None


def checkpoint(world: World, when: datetime) -> int:
    """A checkpoint that was made then."""
    db = world.connection
    number = int(value(db, "select two_tower.checkpoint()"))
    db.execute("update two_tower.checkpoints set made_at = %s where id = %s", [when, number])
    return number


def clock(world: World) -> datetime:
    """The time of the database."""
    now: datetime = value(world.connection, "select two_tower.now()")
    return now


def test_the_plan_says_what_would_be_lost_and_changes_nothing(world: World) -> None:
    db = world.connection
    assert plan(db) is None
    world.learn()
    then = value(db, ENGAGEMENTS)
    users = value(db, "select count(*) from two_tower.user_embeddings where engagement_count > 0")
    number = value(db, "select two_tower.checkpoint()")
    world.learn()
    before = learned(db)
    said = plan(db)
    assert (said.checkpoint_id, said.is_good, said.refusal) == (number, True, None)
    assert (said.engagements_then, said.engagements_now) == (then, value(db, ENGAGEMENTS))
    assert said.engagements_now > said.engagements_then > 0
    assert said.users_then == users
    assert said.candidate_tower_then == said.candidate_tower_now
    assert (said.user_tower_then, said.user_tower_now) == (None, None)
    assert learned(db) == before
    assert value(db, "select frozen_at is null from two_tower.state")


def test_an_empty_checkpoint_is_never_chosen_and_refused_by_its_number(world: World) -> None:
    db = world.connection
    empty = value(db, "select two_tower.checkpoint()")
    assert plan(db).checkpoint_id == empty  # nothing is lost where nothing was learned
    world.learn()
    assert plan(db) is None
    assert plan(db, empty).refusal == "it was made before anything was learned"
    for call, error in (
        ("rollback()", errors.InvalidParameterValue),
        (f"rollback({empty})", errors.ObjectNotInPrerequisiteState),
    ):
        with pytest.raises(error), db.transaction():
            db.execute(f"select two_tower.{call}".encode())
    assert value(db, "select frozen_at is null from two_tower.state")
    full = value(db, "select two_tower.checkpoint()")
    assert plan(db).checkpoint_id == full


def test_a_freeze_says_since_when_and_the_way_back_leads_before_that(world: World) -> None:
    db = world.connection
    world.learn()
    now = clock(world)
    good = checkpoint(world, datetime.fromisoformat("2020-01-01T00:00:00Z"))
    wanted = learned(db)
    world.learn()
    spammed = checkpoint(world, datetime.fromisoformat("2020-01-03T00:00:00Z"))
    assert plan(db).checkpoint_id == spammed
    db.execute("select two_tower.freeze('spam wave')")
    assert plan(db).checkpoint_id == spammed
    db.execute("select two_tower.freeze('again', '2020-01-02T00:00:00Z')")
    assert value(db, "select frozen_reason from two_tower.state") == "spam wave"
    assert plan(db).checkpoint_id == good
    assert plan(db, spammed).refusal == "it was made when what went wrong had begun"
    with pytest.raises(errors.ObjectNotInPrerequisiteState), db.transaction():
        db.execute("select two_tower.rollback(%s)", [spammed])
    with pytest.raises(errors.InvalidParameterValue), db.transaction():
        db.execute("select two_tower.freeze('x', %s + interval '1 hour')", [now])
    assert value(db, "select two_tower.rollback()") == good
    finish_rollback(db)
    assert learned(db) == wanted
    assert value(db, "select two_tower.resume()")
    assert not value(db, "select two_tower.resume(0.5)")
    assert value(db, "select wrong_since is null from two_tower.state")


def test_posts_that_wait_for_the_encoder_make_no_checkpoint_bad(world: World) -> None:
    db = world.connection
    world.learn()
    add_posts(db, 500, world.users[:1])
    db.execute("update two_tower.posts set created_at = two_tower.now()")
    number = value(db, "select two_tower.checkpoint()")
    findings = value(db, "select findings from two_tower.audits order by id desc limit 1")
    assert findings["post_coverage"]["value"] < 0.9
    assert plan(db).checkpoint_id == number


def test_a_checkpoint_in_the_middle_of_a_drift_is_bad(world: World) -> None:
    db = world.connection
    world.learn()
    drift(world)
    before = plan(db).checkpoint_id
    number = value(db, "select two_tower.checkpoint()")
    assert not value(db, "select is_good from two_tower.checkpoints where id = %s", number)
    assert plan(db).checkpoint_id == before


def test_a_rollback_frees_posts_that_a_crowd_moved_and_closes_their_alerts(world: World) -> None:
    db = world.connection
    world.learn()
    drift(world)
    assert value(db, "select two_tower.hold_posts()") > 0
    db.execute("select two_tower.open_alert('post_moved_in_concert', '1', 'a test')")
    value(db, "select two_tower.rollback()")
    finish_rollback(db)
    assert value(db, "select count(*) from two_tower.live_embeddings where is_held") == 0
    crowds = "select count(*) from two_tower.open_alerts where kind like 'post%%'"
    assert value(db, crowds) == 0


def command(url: str, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, arguments, env={URL_VARIABLE: url}, input=answer)


def test_the_command_names_what_would_be_lost_before_it_asks(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        world = World(connection)
        for arguments in (("--dry-run",), ("--dry-run", "--checkpoint", "99"), ("--yes",)):
            none = command(url, "rollback", *arguments)
            assert none.exit_code == 1
            assert "o checkpoint " in none.output
        world.learn()
        wanted = learned(connection)
        number = value(connection, "select two_tower.checkpoint()")
        world.learn()
        later = learned(connection)
        said = plan(connection)
        lost = said.engagements_now - said.engagements_then
        for arguments, answer in ((("--dry-run",), ""), ((), "n\n")):
            done = command(url, "rollback", *arguments, answer=answer)
            assert f"Checkpoint {number} of " in done.output
            assert " d old; its audit found nothing." in done.output
            assert f"What {lost:,} engagements taught would be gone." in done.output
            assert learned(connection) == later
        assert command(url, "resume").output == (
            "Learning was not frozen. It goes on, at 1 times its rate.\n"
        )
        refused = command(url, "freeze", "spam", "--since", "2001-02-03 04:05")
        assert refused.exit_code == 0, refused.output
        done = command(url, "rollback", "--checkpoint", str(number), "--yes")
        assert done.exit_code == 1
        assert "It is refused: it was made when what went wrong had begun." in done.output
        assert learned(connection) == later
        assert "the events of the freeze" in command(url, "resume").output
        assert command(url, "rollback", answer="y\n").exit_code == 0
        assert learned(connection) == wanted
