"""The jobs that train: what they store, that they are repeatable, and what a failure leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect
from python_jobs.worker.jobs import HANDLERS, candidate_tower, user_tower
from python_jobs.worker.jobs.user_tower import Version, encode, encode_active_users
from python_jobs.worker.jobs.versions import load, load_authors
from python_jobs.worker.stopping import StoppedError, leaving_when
from python_jobs.worker.towers.candidate import CandidateConfig
from python_jobs.worker.towers.user import UserConfig
from tests.support.database import as_user
from tests.support.patience import PATIENCE_S
from tests.support.tower_world import World, make_world

TRAININGS = ["train_candidate_tower", "train_user_tower"]


@pytest.fixture(autouse=True)
def no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that meets its time limit, on a busy machine, is not the same one again."""
    for config in (CandidateConfig, UserConfig):
        monkeypatch.setattr(config, "__init__", quick(config, max_seconds=PATIENCE_S))


@pytest.fixture
def world(db: Connection) -> World:
    """A world over a connection such as a worker's."""
    return make_world(db)


def newest(world: World) -> dict[str, Any]:
    """The newest version's row."""
    row = world.connection.execute(
        "select * from two_tower.model_weights order by version desc limit 1"
    ).fetchone()
    assert row is not None
    return dict(row._asdict())


def state(connection: Connection) -> list[Any]:
    """What serves."""
    queries = (
        "select version, state from two_tower.model_weights where state = 'active' order by 1",
        "select post_id, embedding::text from two_tower.live_embeddings v where slot ="
        " (select active_slot from two_tower.state) order by 1",
        "select user_id, prior::text, prior_weight from two_tower.user_embeddings order by 1",
    )
    return [connection.execute(query.encode()).fetchall() for query in queries]


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_stores_a_version_with_metrics_interval_and_verdict(
    world: World, kind: str
) -> None:
    with as_user(world.connection, None, "service_role"):  # as whom a worker works
        outcome = HANDLERS[kind](world.connection)
    row = newest(world)
    assert row["version"] == outcome["version"]
    assert kind.endswith(row["tower"])
    assert row["verdict"].startswith("accepted" if outcome["accepted"] else "rejected")
    assert row["held_out_from"] == world.value("select two_tower.held_out_from()")
    first = world.value("select min(event_id) from two_tower.training_examples")
    assert first <= row["trained_from"] < row["held_out_from"]
    assert {"first_loss", "last_loss"} <= row["metrics"].keys()
    assert {"events", "users", "mean_difference", "lower_bound"} <= row["metrics"]["gate"].keys()
    assert world.value("select two_tower.missing_tensors(%s)", row["version"]) is None


@pytest.mark.parametrize(
    ("kind", "setting", "loss"),
    [
        ("train_candidate_tower", "candidate_tower_loss", "squared_error"),
        ("train_user_tower", "user_tower_loss", "triplet"),
    ],
)
def test_the_losses_of_the_specification_are_chosen_by_a_setting(
    world: World, kind: str, setting: str, loss: str
) -> None:
    update = f"update two_tower.settings set {setting} = %s".encode()
    for known in ("sampled_softmax", loss):
        world.connection.execute(update, [known])
        HANDLERS[kind](world.connection)
        assert newest(world)["config"]["loss"] == known
    (unknown,) = {"squared_error", "triplet"} - {loss}
    with pytest.raises(psycopg.errors.CheckViolation):
        world.connection.execute(update, [unknown])


@pytest.mark.parametrize("kind", TRAININGS)
def test_the_same_data_give_the_same_weights(world: World, kind: str) -> None:
    versions = []
    for _ in range(2):
        world.connection.execute("savepoint before")
        version = HANDLERS[kind](world.connection)["version"]
        versions.append((load(world.connection, version), load_authors(world.connection, version)))
        world.connection.execute("rollback to before")
    (one, _), authors = versions[0]
    (two, _), others = versions[1]
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert all(np.array_equal(authors[author], others[author]) for author in authors)


@pytest.mark.parametrize("kind", TRAININGS)
def test_nothing_to_learn_from_is_said_and_stores_nothing(db: Connection, kind: str) -> None:
    count = "select count(*) as n from two_tower.model_weights"
    before = db.execute(count).fetchone()
    assert "skipped" in HANDLERS[kind](db)
    assert db.execute(count).fetchone() == before


@pytest.mark.parametrize("kind", TRAININGS)
def test_weights_that_are_not_finite_are_recorded_as_rejected(world: World, kind: str) -> None:
    before = state(world.connection)
    with (
        patch.object(candidate_tower, "CandidateConfig",
                     lambda loss: CandidateConfig(loss=loss, learning_rate=1e30)),
        patch.object(user_tower.UserConfig, "learning_rate", 1e30, create=True),
        patch.object(user_tower, "UserConfig", Diverging),
    ):  # fmt: skip
        outcome = HANDLERS[kind](world.connection)
    assert outcome["rejected"] == "weights that are not finite"
    row = newest(world)
    assert (row["state"], row["verdict"]) == ("rejected", "rejected: weights that are not finite")
    assert row["metrics"]["last_loss"] == "nan"
    assert state(world.connection) == before


class Diverging(UserConfig):
    """A step so large that nothing finite is left."""

    def __new__(cls, loss: str) -> UserConfig:  # type: ignore[misc]
        return UserConfig(loss=loss, learning_rate=1e30)

    of = UserConfig.of


def test_an_accepted_user_tower_gives_active_users_their_vectors(world: World) -> None:
    version = world.user_tower()
    world.value("select two_tower.force_version(%s, 'a trial')", version)
    with as_user(world.connection, None, "service_role"):
        outcome = encode_active_users(world.connection)
    assert outcome["users_encoded"] == len(world.users)
    sources = world.connection.execute(
        "select distinct prior_source::text as source, prior_weight from two_tower.user_embeddings"
    ).fetchall()
    assert sources == [("user_tower", 1)]
    norm = world.value(
        "select max(abs(1 - extensions.vector_norm(prior))) from two_tower.user_embeddings"
    )
    assert norm < 1e-5


def test_users_are_encoded_in_batches_and_those_who_are_long_gone_are_not(world: World) -> None:
    version = world.user_tower()
    world.value("select two_tower.force_version(%s, 'a trial')", version)
    gone = world.users[:5]
    world.connection.execute(
        "update two_tower.user_embeddings set updated_at = updated_at - interval '30 days'"
        " where user_id = any (%s::uuid[])",
        [gone],
    )
    with patch.object(user_tower, "BATCH", 7):
        assert encode_active_users(world.connection)["users_encoded"] == len(world.users) - 5
    assert not world.value(
        "select count(*) from two_tower.user_embeddings"
        " where user_id = any (%s::uuid[]) and prior_source = 'user_tower'",
        gone,
    )


def test_without_a_version_that_serves_nobody_is_encoded(world: World) -> None:
    assert encode_active_users(world.connection) == {"users_encoded": 0}


def test_a_user_is_encoded_by_what_was_known_before_t0(world: World) -> None:
    moment = world.value("select two_tower.held_out_from()")
    version = Version(*load(world.connection, world.user_tower()))
    user = world.users[20]
    ids, before = encode(world.connection, version, [user], moment)  # type: ignore[list-item]
    assert [str(i) for i in ids] == [user]
    world.like(user, world.old_posts, 5)
    world.value("select two_tower.fold_steps(100000)")
    again = encode(world.connection, version, [user], moment)[1]  # type: ignore[list-item]
    now = encode(world.connection, version, [user], None)[1]  # type: ignore[list-item]
    assert np.array_equal(before, again)
    assert not np.allclose(before, now)


def test_an_event_type_that_a_version_does_not_know_is_left_out_of_histories(world: World) -> None:
    version = Version(*load(world.connection, world.user_tower()))
    known = [e for e in version.config["event_types"] if e != "like"]
    rows = [n for n, e in enumerate(version.config["event_types"]) if e != "like"]
    older = Version(
        {**version.tensors, "action.weight": version.tensors["action.weight"][rows]},
        {**version.config, "event_types": known},
    )
    vectors = encode(world.connection, older, [world.users[20]], None)[1]  # type: ignore[list-item]
    assert not vectors.any()


class CutOff(Exception):
    """The job ends here."""


class Counting:
    """A connection that is cut off at the statement of a number."""

    def __init__(self, connection: Connection, last: int) -> None:
        self.connection, self.left = connection, last

    def execute(self, *arguments: Any, **options: Any) -> Any:
        """Runs a statement, unless it is one too many."""
        self._count()
        return self.connection.execute(*arguments, **options)

    def cursor(self, **options: Any) -> Any:
        """A cursor for one statement."""
        self._count()
        return self.connection.cursor(**options)

    def transaction(self) -> Any:
        """A transaction around statements."""
        return self.connection.transaction()

    def _count(self) -> None:
        if self.left == 0:
            raise CutOff
        self.left -= 1


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_that_is_told_to_stop_leaves_no_version_and_what_serves_untouched(
    world: World, kind: str
) -> None:
    before, told = state(world.connection), threading.Event()
    told.set()
    with pytest.raises(StoppedError), leaving_when(told):
        HANDLERS[kind](world.connection)
    assert state(world.connection) == before
    assert "version" in HANDLERS[kind](world.connection)


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_job_cut_off_at_any_statement_leaves_what_serves_untouched_and_runs_again(
    fresh_database: Callable[[], str], kind: str
) -> None:
    with (
        connect(fresh_database(), autocommit=True) as connection,
        patch.object(CandidateConfig, "__init__", quick(CandidateConfig, epochs=1)),
        patch.object(UserConfig, "__init__", quick(UserConfig, steps=2)),
    ):
        make_world(connection)
        # Nothing is good enough: whatever the training makes of it, it has to change nothing.
        connection.execute("update two_tower.settings set gate_minimum_events = 100000")
        before = state(connection)
        cut = 0
        while True:
            try:
                outcome = HANDLERS[kind](Counting(connection, cut))  # type: ignore[arg-type]
                break
            except CutOff:
                cut += 1
                assert state(connection) == before
        assert cut >= 8
        assert outcome["accepted"] is False
        assert state(connection) == before


def quick(config: type, **changed: Any) -> Callable[..., None]:
    """The config's own __init__, with some defaults replaced."""
    original = config.__init__  # type: ignore[misc]

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{**changed, **options})

    return init


def test_a_version_whose_tensors_are_cut_short_fails_its_job_and_serves_nobody(
    world: World,
) -> None:
    version = world.user_tower()
    world.value("select two_tower.force_version(%s, 'a trial')", version)
    world.connection.execute(
        "delete from two_tower.model_tensors where version = %s and name = 'post.weight'"
        " and row_index = 3",
        [version],
    )
    before = state(world.connection)
    with pytest.raises(ValueError, match=r"post\.weight"):
        encode_active_users(world.connection)
    assert state(world.connection) == before
