"""Blocking and muting by an event."""

from __future__ import annotations

import pytest

from python_jobs.db import value
from tests.support.database import as_user
from tests.support.engagements import (
    add_posts,
)
from tests.support.learning import World, rng


@pytest.mark.parametrize("kind", ["block_author", "mute_author"])
def test_blocking_and_muting_are_written_to_author_blocks_and_can_be_lifted(
    world: World, kind: str
) -> None:
    connection = world.connection
    with as_user(connection, world.user):
        for _ in range(2):
            connection.execute(
                "insert into public.engagement_events (post_id, event_type) values (%s, %s)",
                [world.post_ids[0], kind],
            )
        blocks = connection.execute("select author_id::text, kind from public.author_blocks")
        assert blocks.fetchall() == [(world.author, kind)]
        connection.execute("delete from public.author_blocks")
    # Learned once, but a block is a block each time that it is asked for.
    world.send(kind, created_at=value(connection, "select now()"))
    assert value(connection, "select count(*) from public.author_blocks") == 1


def test_a_block_of_a_post_that_is_not_encoded_holds_at_once(world: World) -> None:
    (late,) = add_posts(world.connection, 1, [world.author])
    world.send("block_author", late)
    assert value(world.connection, "select count(*) from public.author_blocks") == 1


def test_nobody_blocks_themselves_by_an_event(world: World) -> None:
    (own,) = add_posts(world.connection, 1, [world.user], rng())
    world.send("block_author", own)
    assert value(world.connection, "select count(*) from public.author_blocks") == 0


def test_a_block_replaces_a_mute_of_the_same_author(world: World) -> None:
    world.send("mute_author")
    world.send("block_author", world.post_ids[1])
    assert value(world.connection, "select kind from public.author_blocks") == "block_author"
