"""A page as it would be after a change, which is not made."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Error, errors

from python_jobs.db import Connection, rows, value
from tests.operations.test_safety import World, learned
from tests.support.database import as_user
from tests.support.engagements import insert_events
from tests.support.reference import Event


@pytest.fixture
def world(db: Connection) -> World:
    """A world that has learned. Its posts are no new ones, of which some come by chance."""
    world = World(db)
    world.learn()
    return world


def preview(world: World, arguments: str, *given: Any) -> list[Any]:
    """Rows of preview_page for a user of the world."""
    query = f"select * from two_tower.preview_page(%s{arguments})"
    return rows(world.connection, query, world.users[4], *given)


def page(world: World) -> list[int]:
    """The user's page as it is."""
    query = "select post_id from public.recommend_for(%s, 20)"
    return [row.post_id for row in rows(world.connection, query, world.users[4])]


def after(found: list[Any]) -> list[int]:
    """Posts of the page after the change, in order."""
    return [row.post_id for row in found if row.place_after is not None]


def before(found: list[Any]) -> list[int]:
    """Posts of the page before it."""
    there = [row for row in found if row.place_before is not None]
    return [row.post_id for row in sorted(there, key=lambda row: row.place_before)]


def test_without_a_change_the_page_is_as_it_is(world: World) -> None:
    found = preview(world, "")
    assert before(found) == after(found) == page(world)
    assert all(row.score_before == row.score_after for row in found)
    assert {row.post_source for row in found} == {"posts"}
    assert all(row.post_key == str(row.post_id) for row in found)


def test_settings_are_tried_and_stay_as_they_are(world: World) -> None:
    db = world.connection
    settings = rows(db, "select * from two_tower.settings")
    found = preview(world, """, '{"popularity_weight": 9, "interest_share": 0}'""")
    assert before(found) == page(world)
    assert rows(db, "select * from two_tower.settings") == settings
    assert value(db, "select count(*) from two_tower.setting_changes") == 0
    db.execute("update two_tower.settings set popularity_weight = 9, interest_share = 0")
    assert after(found) == page(world) != before(found)


def test_an_event_is_tried_and_not_stored(world: World) -> None:
    db = world.connection
    post, known = page(world)[3], learned(db)
    events = value(db, "select count(*) from public.engagement_events")
    found = preview(world, ", p_post_id => %s, p_event_type => 'like'", post)
    (liked,) = [row for row in found if row.post_id == post]
    assert (liked.place_before, liked.place_after) == (4, None)
    assert learned(db) == known
    assert value(db, "select count(*) from public.engagement_events") == events
    insert_events(db, [Event(world.users[4], post, "like", None, value(db, "select now()"))])
    assert set(after(found)) & set(page(world))
    assert post not in page(world)


def test_a_version_is_tried_and_does_not_serve(world: World) -> None:
    db = world.connection
    active = value(db, "select two_tower.active_version('candidate_tower')")
    version = value(
        db,
        "insert into two_tower.model_weights (tower, state) values ('candidate_tower', 'candidate')"
        " returning version",
    )
    with pytest.raises(errors.DatabaseError), db.transaction():
        preview(world, ", p_candidate_tower => %s", version)
    db.execute(
        "insert into two_tower.model_tensors select %s, name, row_index,"
        " case when name like 'output.%%' then array_fill(-1::real,"
        " array[extensions.vector_dims(row)])::extensions.vector operator(extensions.*) row"
        " else row end from two_tower.model_tensors where version = %s",
        [version, active],
    )
    vectors = rows(db, "select * from two_tower.live_embeddings order by post_id")
    found = preview(world, ", p_candidate_tower => %s", version)
    assert before(found) == page(world)
    assert after(found) != before(found)  # untouched posts lie on the other side
    assert str(rows(db, "select * from two_tower.live_embeddings order by post_id")) == str(vectors)
    assert value(db, "select two_tower.active_version('candidate_tower')") == active


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (""", '{"no_such_setting": 1}'""", errors.InvalidParameterValue),
        (""", '{"id": false}'""", errors.InvalidParameterValue),
        (""", '{"recency_weight": -1}'""", errors.CheckViolation),
        (", p_event_type => 'like'", errors.InvalidParameterValue),
        (", p_post_id => 0, p_event_type => 'like'", errors.ForeignKeyViolation),
        (", p_candidate_tower => 999", errors.DatabaseError),
    ],
)
def test_what_can_not_be_is_refused(world: World, arguments: str, error: type[Error]) -> None:
    with pytest.raises(error), world.connection.transaction():
        preview(world, arguments)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_a_client_can_not_ask(world: World, role: str) -> None:
    db, user = world.connection, world.users[4] if role == "authenticated" else None
    refused = pytest.raises(errors.InsufficientPrivilege)
    with as_user(db, user, role), refused, db.transaction():
        preview(world, "")
