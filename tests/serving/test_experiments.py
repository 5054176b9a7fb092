"""Experiments: who is in which arm, what an arm is served with, and what came of it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from psycopg import errors

from python_jobs.db import Connection, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, insert_events
from tests.support.reference import Event


def plan(db: Connection, name: str, *arms: tuple[str, float, str]) -> None:
    """An experiment that has not been started."""
    db.execute("insert into two_tower.experiments (name) values (%s)", [name])
    for arm, share, overrides in arms:
        db.execute(
            "insert into two_tower.experiment_arms values (%s, %s, %s, %s)",
            [name, arm, share, overrides],
        )


def arms(db: Connection, users: list[str]) -> Counter[str | None]:
    return Counter(value(db, "select two_tower.find_served_arm(%s)", user) for user in users)


def test_users_are_in_arms_by_their_shares_and_stay_there(db: Connection) -> None:
    users = [
        str(row[0]) for row in db.execute("select gen_random_uuid() from generate_series(1, 2000)")
    ]
    plan(db, "one", ("control", 0.5, "{}"), ("more", 0.3, '{"exploration_share": 0.5}'))
    assert arms(db, users) == {None: 2000}
    value(db, "select two_tower.start_experiment('one')")
    found = arms(db, users)
    assert found["control"] == pytest.approx(1000, abs=110)
    assert found["more"] == pytest.approx(600, abs=100)
    assert found[None] == pytest.approx(400, abs=90)
    assert arms(db, users) == found
    value(db, "select two_tower.end_experiment('one')")
    assert arms(db, users) == {None: 2000}
    # Another experiment deals anew: the arms of the two are independent.
    plan(db, "two", ("control", 0.5, "{}"))
    value(db, "select two_tower.start_experiment('two')")
    both = sum(
        value(db, "select two_tower.choose_arm('one', %s)", user) == "control"
        and value(db, "select two_tower.find_served_arm(%s)", user) == "control"
        for user in users
    )
    assert both == pytest.approx(500, abs=90)


def test_an_arm_is_served_with_its_settings_and_says_so(db: Connection) -> None:
    authors = [add_user(db) for _ in range(10)]
    add_posts(db, 100, authors, np.random.default_rng(61))
    user = add_user(db)

    def served() -> tuple[set[str | None], Counter[str]]:
        with as_user(db, user):
            rows = db.execute("select arm, author_id::text from public.recommend(20)").fetchall()
        return {row[0] for row in rows}, Counter(row[1] for row in rows)

    db.execute("update two_tower.settings set author_share = 1")
    assert served()[0] == {None}
    plan(db, "one", ("narrow", 1, '{"author_share": 0.1, "exploration_share": 0}'))
    value(db, "select two_tower.start_experiment('one')")
    names, authors_served = served()
    assert names == {"narrow"}
    assert max(authors_served.values()) == 2
    assert value(db, "select author_share from two_tower.settings") == 1
    value(db, "select two_tower.end_experiment('one')")
    assert served()[0] == {None}


def test_results_are_per_arm_and_of_the_time_of_the_experiment(db: Connection) -> None:
    users = [add_user(db) for _ in range(30)]
    posts = add_posts(db, 20, users[:1], np.random.default_rng(62))
    now = datetime.now(UTC)
    db.execute("select set_config('two_tower.now', %s, false)", [now.isoformat()])
    insert_events(db, [Event(users[5], posts[3], "like", None, now)])
    plan(db, "one", ("a", 0.5, "{}"), ("b", 0.5, "{}"))
    db.execute(
        "select set_config('two_tower.now', %s, false)", [(now.replace(year=2030)).isoformat()]
    )
    value(db, "select two_tower.start_experiment('one')")
    later = now.replace(year=2030)
    for user in users[1:]:
        arm = value(db, "select two_tower.find_served_arm(%s)", user)
        events = [Event(user, post, "view", None, later) for post in posts[:4]]
        likes = 2 if arm == "a" else 1
        events += [Event(user, post, "like", None, later) for post in posts[:likes]]
        insert_events(db, events)
    rows = db.execute(
        "select arm, users, views, positives, positives_per_view, standard_error"
        " from two_tower.experiment_results order by arm"
    ).fetchall()
    (name_a, users_a, views_a, positives_a, rate_a, error_a), b = rows
    assert (name_a, b[0]) == ("a", "b")
    assert users_a + b[1] == 29
    assert (views_a, positives_a) == (4 * users_a, 2 * users_a)
    assert (rate_a, b[4]) == (0.5, 0.25)
    assert error_a == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (("a", 1, '{"learning_rule": "literal"}'), "no setting of serving"),
        (("a", 1, '{"nonsense": 1}'), "no setting of serving"),
        (("a", 1, '{"exploration_share": 7}'), "out of range"),
        (("a", 1, '{"exploration_share": "many"}'), "out of range"),
        (("a", 1, '{"author_share": null}'), "out of range"),
    ],
)
def test_overrides_that_settings_would_refuse_are_refused(
    db: Connection, arm: tuple[str, float, str], message: str
) -> None:
    plan(db, "one", arm)
    before = value(db, "select s::text from two_tower.settings s")
    with pytest.raises(errors.InvalidParameterValue, match=message), db.transaction():
        db.execute("select two_tower.start_experiment('one')")
    assert value(db, "select s::text from two_tower.settings s") == before
    assert value(db, "select count(*) from two_tower.setting_changes") == 0


def test_what_can_not_be_started_or_ended_is_told(db: Connection) -> None:
    plan(db, "empty")
    plan(db, "full", ("a", 0.7, "{}"), ("b", 0.7, "{}"))
    for name in ("empty", "full", "unknown"):
        with pytest.raises(errors.InvalidParameterValue), db.transaction():
            db.execute("select two_tower.start_experiment(%s)", [name])
    plan(db, "one", ("a", 1, "{}"))
    plan(db, "two", ("a", 1, "{}"))
    value(db, "select two_tower.start_experiment('one')")
    for query in (
        "select two_tower.start_experiment('two')",
        "select two_tower.start_experiment('one')",
        "select two_tower.end_experiment('two')",
    ):
        with pytest.raises(errors.ObjectNotInPrerequisiteState), db.transaction():
            db.execute(query.encode())
    value(db, "select two_tower.end_experiment('one')")
    with pytest.raises(errors.ObjectNotInPrerequisiteState), db.transaction():
        db.execute("select two_tower.start_experiment('one')")
