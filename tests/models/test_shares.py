"""What one account makes up of the examples that towers are trained on and judged by."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from python_jobs.db import Connection, rows, value
from tests.support.engagements import insert_events
from tests.support.learning import World
from tests.support.reference import START, Event

ACCOUNTS = 60


@pytest.fixture
def world(db: Connection) -> World:
    """Sixty accounts like ten posts each. Then one more likes 300, one a second."""
    world = World(db, users=ACCOUNTS + 1, posts=320)
    *honest, flooder = world.user_ids
    times = (START + timedelta(seconds=n) for n in range(10_000))
    events = [
        Event(user, world.post_ids[(7 * n + place) % 320], kind, created_at=next(times))
        for place, kind in enumerate(["like"] * 10 + ["not_interested"])
        for n, user in enumerate(honest)
    ]
    flood = [
        Event(flooder, post, "like" if n < 300 else "not_interested", created_at=next(times))
        for n, post in enumerate(world.post_ids)
    ]
    insert_events(db, events)
    insert_events(db, flood)
    return world


def users_of(db: Connection, query: str, *parameters: Any) -> Counter[str]:
    """How many of the events that a query names are whose."""
    return Counter(
        row.user_id
        for row in rows(
            db,
            f"select e.user_id::text from ({query}) q"
            " join public.engagement_events e on e.id = q.event_id",
            *parameters,
        )
    )


def test_one_account_is_a_share_of_the_pairs_of_a_training_however_much_it_likes(
    db: Connection, world: World
) -> None:
    db.execute("update two_tower.settings set candidate_tower_pairs = 200")
    newest = users_of(db, "select * from two_tower.newest_examples(null, true, 200)")
    assert newest == {world.user_ids[-1]: 200}
    query = "select event_id from two_tower.candidate_tower_pairs(null) where label"
    pairs = users_of(db, query)
    assert pairs.total() == 200
    assert max(pairs.values()) == 200 * 2 // (ACCOUNTS + 1)
    dislikes = users_of(db, query.replace("where label", "where not label"))
    assert 0 < dislikes[world.user_ids[-1]] <= 6
    # Above 100 accounts the setting is the larger of the two.
    db.execute("update two_tower.settings set account_share = 0.05")
    assert max(users_of(db, query).values()) == 10


def test_the_share_is_of_what_is_left_where_others_gave_little(
    db: Connection, world: World
) -> None:
    db.execute(
        "delete from two_tower.training_examples x where x.label"
        " and x.user_id <> %s and x.event_id %% 3 > 0",
        [world.user_ids[-1]],
    )
    db.execute("update two_tower.settings set candidate_tower_pairs = 1000")
    pairs = users_of(db, "select event_id from two_tower.candidate_tower_pairs(null) where label")
    assert len(pairs) == 21
    assert max(pairs.values()) <= max(0.02, 2 / len(pairs)) * pairs.total()


def test_one_account_is_a_share_of_what_the_gate_judges_by(db: Connection, world: World) -> None:
    db.execute("update two_tower.settings set gate_events = 100")
    held_out = value(db, "select two_tower.held_out_from()")
    judged = users_of(
        db, "select event_id from two_tower.held_out_posts(%s) where is_positive", held_out
    )
    assert judged.total() == 100
    assert judged[world.user_ids[-1]] <= 6
    judges = {row[0] for row in db.execute("select two_tower.users_to_judge(%s)::text", [held_out])}
    assert judges >= set(judged)


def test_the_accounts_of_a_small_app_train_with_all_that_they_gave(db: Connection) -> None:
    world = World(db, users=2, posts=60)
    for post in world.post_ids[:40]:
        world.send("like", post)
    for post in world.post_ids[40:50]:
        world.send("like", post, world.user_ids[1])
    pairs = users_of(db, "select event_id from two_tower.candidate_tower_pairs(null) where label")
    assert pairs == {world.user: 39, world.user_ids[1]: 9}
