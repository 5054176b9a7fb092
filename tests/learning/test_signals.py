"""What an event means: dwells by their length, labels, strengths."""

from __future__ import annotations

import numpy as np
import pytest
from psycopg import errors

from python_jobs.db import value
from tests.support.invariants import assert_consistent
from tests.support.learning import TOLERANCE, World, live, user_vector
from tests.support.reference import Reference, norm


@pytest.mark.parametrize(
    ("dwell_ms", "signal"),
    [
        (0, "skip"),
        (1999, "skip"),
        (2000, "view"),
        (5000, "view"),
        (5001, "dwell"),
        (2**31 - 1, "dwell"),
    ],
)
def test_a_dwell_counts_by_its_length(world: World, dwell_ms: int, signal: str) -> None:
    world.send("dwell", dwell_ms=dwell_ms)
    bits = value(
        world.connection,
        "select g.event_type from two_tower.user_posts u join two_tower.signals g"
        " on g.bit = u.signals where u.user_id = %s",
        world.user,
    )
    assert bits == signal
    assert_consistent(world.connection)


def test_a_short_dwell_makes_an_explicit_negative_pair_as_a_skip_does(world: World) -> None:
    world.send("dwell", dwell_ms=100)
    world.send("skip", world.post_ids[1])
    assert sorted(world.pairs()) == [
        (world.post_ids[0], False, "explicit"),
        (world.post_ids[1], False, "explicit"),
    ]


@pytest.mark.parametrize(
    "event_type", ["skip", "hide", "not_interested", "block_author", "mute_author"]
)
def test_an_explicit_negative_makes_one_marked_pair_and_no_draws(
    world: World, event_type: str
) -> None:
    world.send(event_type)
    assert world.pairs() == [(world.post_ids[0], False, "explicit")]
    assert value(world.connection, "select count(*) from two_tower.deferred_steps") == 0


@pytest.mark.parametrize("event_type", ["view", "click"])
def test_what_has_no_label_makes_no_pair(world: World, event_type: str) -> None:
    world.send(event_type)
    assert world.pairs() == []


def test_a_changed_strength_is_used_by_the_next_statement_and_its_history_is_kept(
    world: World,
) -> None:
    world.connection.execute("update two_tower.signals set strength = 3 where event_type = 'like'")
    first = live(world.connection, world.post_ids[0])
    second = live(world.connection, world.post_ids[1])
    world.send("reply", world.post_ids[0])
    world.send("like", world.post_ids[1])
    wanted = norm(Reference.decay * 1.5 * first + 3 * second)
    assert np.abs(user_vector(world.connection, world.user) - wanted).max() < TOLERANCE
    change = (
        "select new_values->>'strength' from two_tower.setting_changes order by id desc limit 1"
    )
    assert value(world.connection, change) == "3"


@pytest.mark.parametrize("strength", [-3.1, 3.1, -1])
def test_a_strength_out_of_its_range_is_refused(world: World, strength: float) -> None:
    with pytest.raises(errors.CheckViolation), world.connection.transaction():
        world.connection.execute(
            "update two_tower.signals set strength = %s where event_type = 'like'", [strength]
        )
