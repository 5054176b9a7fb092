"""Experiments: who is in which arm, what an arm is served with, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from psycopg import errors

from python_jobs.db import Connection, connect, rows, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, insert_events
from tests.support.patience import wait_until
from tests.support.reference import START, Event


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
    plan(db, "one", ("a", 1, "{}"))
    before = value(db, "select s::text from two_tower.settings s")
    for statement in (
        "insert into two_tower.experiment_arms values ('one', %s || '2', %s, %s)",
        "update two_tower.experiment_arms set arm = %s, share = %s, overrides = %s where true",
    ):
        with pytest.raises(errors.InvalidParameterValue, match=message), db.transaction():
            db.execute(statement.encode(), arm)
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


@pytest.mark.parametrize(
    "statement",
    [
        "insert into two_tower.experiment_arms values ('one', 'c', 0.1, '{}')",
        "update two_tower.experiment_arms set overrides = '{\"exploration_share\": 0}' where true",
        "update two_tower.experiment_arms set share = 0.1 where arm = 'b'",
        "update two_tower.experiment_arms set experiment = 'two' where arm = 'b'",
        "update two_tower.experiment_arms set experiment = 'one' where experiment = 'two'",
        "delete from two_tower.experiment_arms where arm = 'b'",
    ],
)
def test_the_arms_of_a_started_experiment_stay(db: Connection, statement: str) -> None:
    plan(db, "one", ("a", 0.5, "{}"), ("b", 0.5, "{}"))
    plan(db, "two", ("x", 0.5, "{}"))
    value(db, "select two_tower.start_experiment('one')")
    for _ in range(2):
        with (
            pytest.raises(errors.ObjectNotInPrerequisiteState, match="its arms stay"),
            db.transaction(),
        ):
            db.execute(statement.encode())
        db.execute("update two_tower.experiments set ended_at = now() where name = 'one'")
    db.execute("delete from two_tower.experiments where name = 'one'")
    assert value(db, "select count(*) from two_tower.experiment_arms") == 1


def test_an_arm_is_not_changed_while_its_experiment_starts(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with (
        connect(url, autocommit=True) as starter,
        connect(url, autocommit=True) as editor,
        ThreadPoolExecutor(1) as pool,
    ):
        plan(starter, "one", ("a", 0.5, "{}"))
        with starter.transaction():
            value(starter, "select two_tower.start_experiment('one')")
            editing = pool.submit(
                editor.execute, "insert into two_tower.experiment_arms values ('one', 'b', 1, '{}')"
            )
            pid = editor.info.backend_pid
            wait_until(lambda: value(starter, "select cardinality(pg_blocking_pids(%s)) > 0", pid))
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            editing.result()


def results(db: Connection) -> dict[str, Any]:
    return {row.arm: row for row in rows(db, "select * from two_tower.experiment_results")}


def test_results_say_what_may_be_said(db: Connection) -> None:
    users = [add_user(db) for _ in range(160)]
    posts = add_posts(db, 30, users[:1], np.random.default_rng(63))
    plan(db, "one", ("a", 0.5, "{}"), ("b", 0.5, '{"exploration_share": 0}'))
    value(db, "select two_tower.start_experiment('one')")
    now = datetime.now(UTC)
    rng = np.random.default_rng(64)
    rates: dict[str, list[float]] = {"a": [], "b": []}
    of_arm: dict[str, list[str]] = {"a": [], "b": []}
    for user in users[1:]:
        arm = value(db, "select two_tower.find_served_arm(%s)", user)
        liked = int(rng.integers(1, 4)) + 2 * (arm == "b")
        events = [Event(user, post, "view", None, now) for post in posts[:10]]
        insert_events(db, events + [Event(user, post, "like", None, now) for post in posts[:liked]])
        rates[arm].append(liked / 10)
        of_arm[arm].append(user)
    a, b = (np.array(rates[arm]) for arm in "ab")
    found = results(db)
    assert found["a"].difference is None
    assert found["a"].verdict == "what others are compared with"
    assert found["b"].difference == pytest.approx(b.mean() - a.mean())
    margin = 1.96 * np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    assert found["b"].difference_low == pytest.approx(b.mean() - a.mean() - margin)
    assert found["b"].difference_high == pytest.approx(b.mean() - a.mean() + margin)
    fewest = min(len(a), len(b))
    assert found["b"].verdict == f"not enough yet: {fewest} of 1000 users"
    ratio = (len(b) - 0.5 * 159) / np.sqrt(0.25 * 159)
    assert found["b"].sample_ratio_z == pytest.approx(ratio)
    db.execute("update two_tower.experiments set users_wanted = 50")
    assert results(db)["b"].verdict == "better"
    # The arm loses most of its users' events: what is left is no random half.
    db.execute(
        "delete from public.engagement_events where user_id = any (%s::uuid[])", [of_arm["b"][20:]]
    )
    assert {r.verdict for r in results(db).values()} == {"the shares are off: do not read this"}


def test_arms_are_told_before_anybody_came(db: Connection) -> None:
    plan(db, "one", ("a", 0.5, "{}"), ("b", 0.5, '{"exploration_share": 0}'))
    assert results(db) == {}
    value(db, "select two_tower.start_experiment('one')")
    assert {arm: (row.users, row.verdict) for arm, row in results(db).items()} == {
        "a": (0, "what others are compared with"),
        "b": (0, "not enough yet: 0 of 1000 users"),
    }


def test_equal_arms_are_not_told_apart(db: Connection) -> None:
    users = [add_user(db) for _ in range(60)]
    posts = add_posts(db, 5, users[:1], np.random.default_rng(65))
    plan(db, "one", ("a", 0.5, "{}"), ("b", 0.5, "{}"))
    db.execute("update two_tower.experiments set users_wanted = 2")
    value(db, "select two_tower.start_experiment('one')")
    now = datetime.now(UTC)
    for number, user in enumerate(users[1:]):
        events = [Event(user, post, "view", None, now) for post in posts]
        insert_events(db, [*events, *([Event(user, posts[0], "like", None, now)] * (number % 2))])
    b = results(db)["b"]
    assert b.difference_low < b.difference < b.difference_high
    assert b.verdict == "no difference seen" or not b.difference_low < 0 < b.difference_high


def test_online_learning_is_compared_with_static_vectors_by_one_call(db: Connection) -> None:
    rng = np.random.default_rng(66)
    authors = [add_user(db) for _ in range(20)]
    posts = add_posts(db, 200, authors, rng)
    users = [add_user(db) for _ in range(12)]
    for user in users:
        insert_events(db, [Event(user, post, "like", None, START) for post in posts[:3]])
    name = value(db, "select two_tower.compare_with_static(0.5)")
    sources: dict[str, set[str]] = {"online": set(), "static": set()}
    for user in users:
        page = rows(db, "select source, arm, post_id from two_tower.recommend_for(%s, 20)", user)
        assert len(page) == 20
        sources[page[0].arm] |= {row.source for row in page}
    assert "content" not in sources["online"]
    assert "content" in sources["static"]
    assert "personal" not in sources["static"]
    value(db, "select two_tower.end_experiment(%s)", name)
    page = rows(db, "select source, arm from two_tower.recommend_for(%s, 20)", users[0])
    assert "content" not in {row.source for row in page}
    for share in (None, 0, 1, "NaN"):
        with pytest.raises(errors.InvalidParameterValue), db.transaction():
            db.execute("select two_tower.compare_with_static(%s::float8)", [share])


def test_pages_of_all_go_by_texts_where_the_setting_says_so(db: Connection) -> None:
    posts = add_posts(db, 60, [add_user(db) for _ in range(20)], np.random.default_rng(67))
    user = add_user(db)
    insert_events(db, [Event(user, post, "like", None, START) for post in posts[:3]])
    db.execute("update two_tower.settings set ranks_by = 'text'")
    page = rows(db, "select source, arm from two_tower.recommend_for(%s, 20)", user)
    assert {(row.source, row.arm) for row in page} == {("content", None)}
