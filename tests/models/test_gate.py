"""The promotion gate: what it judges by, what it accepts and rejects, and what changes then."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, value
from tests.support.database import as_user
from tests.support.reference import Reference
from tests.support.tower_world import World, live_vectors, make_world

NOT_BETTER = "rejected: not better than the active version on held-out events"


@pytest.fixture
def world(db: Connection) -> World:
    """A world of its own, gone after the test."""
    return make_world(db)


def served(world: World) -> tuple[Any, ...]:
    """What readers can see of the towers."""
    return (
        {k: v.tolist() for k, v in live_vectors(world.connection).items()},
        world.value("select s::text from two_tower.state s"),
        world.value("select two_tower.active_version('candidate_tower')"),
        world.value("select two_tower.active_version('user_tower')"),
        world.value(
            "select string_agg(u::text, ' ' order by u.user_id) from two_tower.user_embeddings u"
        ),
    )


def vectors(world: World, kind: dict[str, str]) -> dict[str, np.ndarray]:
    """For each user where the topic lies (right), or away from it (wrong)."""
    live = world.live_topics()
    sign = {"right": 1, "wrong": -1}
    return {user: sign[word] * live[world.topic_of(user)] for user, word in kind.items()}


def by_class(world: World, cold: str, warm: str) -> dict[str, np.ndarray]:
    """Vectors of all users that are right or wrong by class."""
    return vectors(world, {u: cold if n < 16 else warm for n, u in enumerate(world.users)})


def compare(db: Connection, differences: list[float], users: list[str]) -> tuple[bool, Any]:
    """The verdict and its figures."""
    row = db.execute(
        "select is_better, metrics from two_tower.compare_versions(%s, %s::uuid[])",
        [differences, users],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def name_user(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@pytest.mark.parametrize("groups", [12, 150])
def test_the_verdict_is_a_robust_mean_of_users_and_its_interval(
    db: Connection, groups: int
) -> None:
    rng = np.random.default_rng(1)
    numbers = np.concatenate([np.arange(groups), rng.integers(groups, size=600)])
    differences = 0.05 + rng.normal(size=len(numbers)) / 10
    is_better, found = compare(db, differences.tolist(), [name_user(n) for n in numbers])
    counts = np.bincount(numbers)
    cap = max(c for c in range(1, 700) if c <= max(0.01, 1 / groups) * np.minimum(counts, c).sum())
    weights = np.minimum(counts, cap)
    assert weights.max() / weights.sum() <= max(0.01, 1 / groups) + 1e-9
    means = np.array([differences[numbers == n].mean() for n in range(groups)])
    means = np.clip(means, *np.sort(means)[[1, -2]])
    mean = (weights * means).sum() / weights.sum()
    error = np.sqrt(((weights * (means - mean)) ** 2).sum() * groups / (groups - 1)) / weights.sum()
    error *= groups / (groups - 2)
    assert (found["events"], found["users"]) == (len(numbers), groups)
    assert found["mean_difference"] == pytest.approx(mean)
    assert found["lower_bound"] == pytest.approx(mean - 2.33 * error, abs=1e-6)
    assert is_better


def test_one_account_alone_neither_vetoes_nor_carries_a_version(db: Connection) -> None:
    rng = np.random.default_rng(2)
    users = [name_user(n) for n in range(40) for _ in range(10)] + [name_user(99)] * 400
    honest = 0.02 + rng.normal(size=400) / 50
    assert compare(db, [*honest.tolist(), *[-1.0] * 400], users)[0]
    assert not compare(db, [*(-honest).tolist(), *[1.0] * 400], users)[0]


def test_no_events_and_one_user_alone_prove_nothing(db: Connection) -> None:
    query = "select is_better from two_tower.compare_versions(%s::float8[], %s::uuid[])"
    user = "00000000-0000-4000-8000-000000000001"
    assert not value(db, query, [], [])
    assert not value(db, query, None, None)
    assert not value(db, query, [0.5] * 500, [user] * 500)
    assert value(db, query, [0.5] * 500, [user] * 499 + [user[:-1] + "2"])


def test_a_worse_candidate_tower_is_kept_as_rejected_and_changes_nothing(world: World) -> None:
    before = served(world)
    version = world.worse()
    assert not world.value("select two_tower.judge_candidate_tower(%s)", version)
    found = world.version(version)
    assert (found["state"], found["verdict"]) == ("rejected", NOT_BETTER)
    assert found["gate"]["events"] >= 60
    assert found["gate"]["mean_difference"] < 0
    assert served(world) == before


def test_the_active_version_itself_is_not_better(world: World) -> None:
    version = world.store(world.tensors()["hidden.weight"][:128])
    assert not world.value("select two_tower.judge_candidate_tower(%s)", version)
    assert world.version(version)["gate"]["mean_difference"] == 0


def test_a_better_candidate_tower_is_put_in_place_while_engaged_posts_stay(world: World) -> None:
    engaged = {
        post
        for post, is_pretrained in world.connection.execute(
            "select post_id, is_pretrained from two_tower.post_embeddings"
        )
        if not is_pretrained
    }
    slot = world.value("select active_slot from two_tower.state")
    before = live_vectors(world.connection)
    version = world.better()
    assert world.value("select two_tower.judge_candidate_tower(%s)", version)
    gate = world.version(version)["gate"]
    assert 0 < gate["lower_bound"] < gate["mean_difference"]
    world.settle()
    assert world.value("select active_slot from two_tower.state") == 1 - slot
    assert world.value("select two_tower.active_version('candidate_tower')") == version
    after = live_vectors(world.connection)
    assert after.keys() == before.keys()
    for post, vector in after.items():
        assert np.array_equal(vector, before[post]) == (post in engaged)


def test_a_candidate_tower_is_judged_by_posts_that_nobody_had_engaged_with(world: World) -> None:
    """Where others had engaged with all posts of an event, no version of the tower matters."""
    world.connection.execute("update two_tower.live_embeddings set engagement_count = 100,"
                             " is_pretrained = false")  # fmt: skip
    version = world.better()
    assert not world.value("select two_tower.judge_candidate_tower(%s)", version)
    found = world.version(version)
    assert found["verdict"] == "rejected: not enough held-out events"
    assert found["gate"]["events"] == 0


def test_too_few_events_are_a_reason_to_reject(world: World) -> None:
    world.connection.execute("update two_tower.settings set gate_minimum_events = 1000")
    for version, judge in (
        (world.better(), lambda v: world.value("select two_tower.judge_candidate_tower(%s)", v)),
        (world.user_tower(), lambda v: world.judge_users(v, by_class(world, "right", "right"))),
    ):
        assert not judge(version)
        assert world.version(version)["verdict"] == "rejected: not enough held-out events"


def test_what_is_withdrawn_is_not_judged_by(world: World) -> None:
    versions = [world.worse(), world.worse()]
    query = "select two_tower.judge_candidate_tower(%s)"
    world.value(query, versions[0])
    user = world.users[0]
    (post,) = world.connection.execute(
        "select post_id from public.engagement_events where user_id = %s order by id desc limit 1",
        [user],
    ).fetchone() or (None,)
    world.connection.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " values (%s, %s, 'unlike')",
        [user, post],
    )
    world.value(query, versions[1])
    one, two = (world.version(version)["gate"]["events"] for version in versions)
    assert two == one - 1


def test_a_version_is_judged_once(world: World) -> None:
    version = world.worse()
    world.value("select two_tower.judge_candidate_tower(%s)", version)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no candidate"):
        world.value("select two_tower.judge_candidate_tower(%s)", version)


def test_a_user_is_judged_by_what_encode_user_would_have_served(world: World) -> None:
    """held_out_users() against a float64 sum over what training_examples recorded."""
    moment = world.value("select two_tower.held_out_from()")
    rows = world.connection.execute(
        "select event_id, user_id, post_id, user_emb::real[], post_emb::real[], event_type"
        " from two_tower.training_examples order by event_id"
    ).fetchall()
    newest: dict[int, np.ndarray] = {}
    for event, _, post, _, post_emb, _ in rows:
        if event < moment:
            newest[post] = np.array(post_emb)
    found = world.connection.execute(
        "select event_id, user_id, class as kind, engaged::real[], post_emb::real[]"
        " from two_tower.held_out_users(%s)",
        [moment],
    ).fetchall()
    assert len(found) == 4 * 32
    for event, user, name, engaged, post_emb in found:
        past = [r for r in rows if r[1] == user and r[0] < event]
        total = np.zeros(128)
        for age, (number, _, post, _, snapshot, _) in enumerate(reversed(past)):
            vector = newest[post] if number < moment else np.array(snapshot)
            total += Reference.decay**age * vector
        assert np.abs(total - engaged).max() < 1e-3  # halfvec snapshots
        assert name == ("cold" if sum(r[0] < moment for r in past) < 5 else "warm")
        own = next(r for r in rows if r[0] == event)
        assert np.allclose(own[4], post_emb)
        # One event before it and nothing else: the sum is what the user was served with.
        if len(past) == 1:
            assert np.allclose(engaged / np.linalg.norm(engaged), own[3], atol=2e-2)


def test_a_user_tower_that_helps_nobody_is_rejected(world: World) -> None:
    before = served(world)
    version = world.user_tower()
    assert not world.judge_users(version, by_class(world, "wrong", "wrong"))
    found = world.version(version)
    assert (found["state"], found["verdict"]) == ("rejected", NOT_BETTER)
    assert found["config"]["prior_weights"] == {"cold": 0, "warm": 0}
    assert found["gate"]["mean_difference"] <= 0
    assert served(world) == before


@pytest.mark.parametrize(("cold", "warm"), [("right", "right"), ("right", "wrong")])
def test_the_gate_gives_b_weight_where_it_helps(world: World, cold: str, warm: str) -> None:
    version = world.user_tower()
    assert world.judge_users(version, by_class(world, cold, warm))
    found = world.version(version)
    assert found["gate"]["lower_bound"] > 0
    chosen = found["config"]["prior_weights"]
    assert chosen["cold"] > 0
    assert (chosen["warm"] > 0) == (warm == "right")
    assert world.value("select two_tower.active_version('user_tower')") == version


def test_noise_is_not_accepted_for_the_weight_that_happens_to_suit_it(world: World) -> None:
    """The weights are not judged by the events that they were chosen by."""
    world.connection.execute(
        "update two_tower.settings set gate_standard_errors = 0,"
        " user_tower_weights = array(select 0.05 * n from generate_series(0, 19) n)"
    )
    accepted = 0
    for _ in range(12):
        noise = {user: world.rng.normal(size=128) for user in world.users}
        unit = {user: vector / np.linalg.norm(vector) for user, vector in noise.items()}
        world.connection.execute("savepoint before")
        version = world.user_tower()
        world.judge_users(version, unit)
        accepted += world.version(version)["gate"]["mean_difference"] > 0
        world.connection.execute("rollback to before")
    # In half of the cases chance is kind; a choice judged by itself would win in each.
    assert accepted <= 10


def test_a_user_tower_has_to_beat_the_one_that_serves(world: World) -> None:
    good = by_class(world, "right", "right")
    first = world.user_tower()
    assert world.judge_users(first, good)
    again = world.user_tower()
    assert not world.judge_users(again, good, good)
    assert abs(world.version(again)["gate"]["mean_difference"]) < 0.03
    assert world.value("select two_tower.active_version('user_tower')") == first


def test_users_are_served_with_b_by_the_weight_of_their_class(world: World) -> None:
    version = world.user_tower()
    assert world.judge_users(version, by_class(world, "right", "wrong"))
    weight = world.version(version)["config"]["prior_weights"]["cold"]
    # Since t0 everybody liked four posts: 5 is cold no more.
    world.connection.execute("update two_tower.settings set cold_until = 6")
    given = by_class(world, "right", "right")
    cold, warm = world.users[0], world.users[20]
    before = {
        u: np.array(world.value("select two_tower.encode_user(%s)::real[]", u))
        for u in (cold, warm)
    }
    stored = world.value(
        "select two_tower.store_user_encodings(%s, %s::uuid[], %s)",
        version, list(given), list(given.values()),
    )  # fmt: skip
    assert stored == len(given)
    live = live_vectors(world.connection)
    posts = world.value(
        "select recent_post_ids from two_tower.user_embeddings where user_id = %s", cold
    )
    engaged = sum(Reference.decay**age * live[post] for age, post in enumerate(reversed(posts)))
    expected = weight * given[cold] + engaged
    found = np.array(world.value("select two_tower.encode_user(%s)::real[]", cold))
    assert np.abs(found - expected / np.linalg.norm(expected)).max() < 1e-5
    after = np.array(world.value("select two_tower.encode_user(%s)::real[]", warm))
    assert np.allclose(after, before[warm])
    norms = world.value(
        "select max(abs(1 - extensions.vector_norm(embedding))) from two_tower.user_embeddings"
    )
    assert norms < 1e-5


def test_a_class_that_the_tower_does_not_help_keeps_its_profile(world: World) -> None:
    user = world.users[20]
    world.connection.execute(
        "insert into public.profiles (user_id, bio) values (%s, 'sailing')", [user]
    )
    profile = world.topics[1].astype(np.float32)
    world.value(
        "select two_tower.store_profile_embeddings(%s::uuid[], %s, array[hashtextextended(%s, 0)])",
        [user],
        [profile],
        "sailing",
    )
    base = "select prior_source::text from two_tower.user_embeddings where user_id = %s"
    assert world.value(base, user) == "profile"
    version = world.user_tower()
    assert world.judge_users(version, by_class(world, "right", "wrong"))
    given = by_class(world, "right", "right")
    world.value(
        "select two_tower.store_user_encodings(%s, %s::uuid[], %s)",
        version, list(given), list(given.values()),
    )  # fmt: skip
    assert world.value(base, user) == "profile"
    world.connection.execute("update two_tower.settings set cold_until = 100")
    world.value(
        "select two_tower.store_user_encodings(%s, %s::uuid[], %s)",
        version, list(given), list(given.values()),
    )  # fmt: skip
    assert world.value(base, user) == "user_tower"


def test_profiles_are_projected_again_when_another_candidate_tower_serves(world: World) -> None:
    texts = world.rng.normal(size=(5, 384)).astype(np.float32)
    users = world.users[:5]
    for user in users:
        world.connection.execute(
            "insert into public.profiles (user_id, bio) values (%s, 'sailing')", [user]
        )
    world.value(
        "select two_tower.store_profile_embeddings(%s::uuid[], %s,"
        " array_fill(hashtextextended(%s, 0), '{5}'))",
        users, list(texts), "sailing",
    )  # fmt: skip
    version = world.better()
    world.value("select two_tower.force_version(%s, 'a trial')", version)
    world.settle()
    assert world.value("select count(*) from two_tower.jobs where kind = 'encode_users'") == 1
    last, rounds = "00000000-0000-0000-0000-000000000000", 0
    while last := world.value("select two_tower.project_profiles(%s, 2)", last):
        rounds += 1
    assert rounds == 3
    different = world.value(
        "select count(*) from two_tower.user_embeddings u"
        " join two_tower.profile_embeddings p using (user_id)"
        " where extensions.vector_norm(u.prior operator(extensions.-)"
        "   two_tower.run_candidate_tower(p.base_embedding, %s)) > 1e-5",
        version,
    )
    assert different == 0


def test_only_the_version_that_serves_encodes_users(world: World) -> None:
    version = world.user_tower()
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="does not serve"):
        world.value("select two_tower.store_user_encodings(%s, '{}'::uuid[], '{}')", version)


def test_what_is_read_for_training_is_as_of_t0_whatever_happens_later(world: World) -> None:
    moment = world.value("select two_tower.held_out_from()")
    queries = [
        "select * from two_tower.candidate_tower_pairs(%s) order by event_id",
        "select * from two_tower.live_anchors(%s)",
        "select * from two_tower.users_to_train(%s)",
        "select * from two_tower.user_histories(%s, (select array_agg(u) from"
        " two_tower.users_to_train(%s) u)) order by user_id",
    ]

    def read() -> list[str]:
        return [
            str(world.connection.execute(q.encode(), [moment] * q.count("%s")).fetchall())
            for q in queries
        ]

    before = read()
    assert all(len(text) > 100 for text in before)
    for user in world.users:
        world.like(user, world.old_posts, 5)
    world.value("select two_tower.fold_steps(100000)")
    assert read() == before
    newest = world.value("select max(x) from two_tower.user_histories(%s, %s::uuid[]) h,"
                         " unnest(h.post_ids) x", moment, world.users)  # fmt: skip
    assert newest <= max(world.old_posts)


def test_explicit_negatives_and_no_withdrawn_pairs_are_trained_on(world: World) -> None:
    user = world.users[20]
    hidden, liked = world.old_posts[-1], world.old_posts[-2]
    for post, event_type in ((hidden, "hide"), (liked, "like"), (liked, "unlike")):
        world.connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, %s)",
            [user, post, event_type],
        )
    rows = world.connection.execute(
        "select label, post_id, negative_ids from two_tower.candidate_tower_pairs(null)"
    ).fetchall()
    assert [post for label, post, _ in rows if not label] == [hidden]
    assert liked not in [post for label, post, _ in rows if label and post == liked]
    assert all(len(negatives) == 8 for label, _, negatives in rows if label)


def test_negatives_of_the_user_tower_are_the_same_for_the_same_data(world: World) -> None:
    query = "select array_agg(post_id) from two_tower.random_posts_as_of(%s, 50)"
    one, two, other = (world.value(query, seed) for seed in (90, 90, 91))
    assert one == two
    assert one != other
    assert len(one) == len(set(one)) == 50


def test_an_operator_can_force_a_version_and_it_stays_on_record(world: World) -> None:
    version = world.worse()
    world.value("select two_tower.judge_candidate_tower(%s)", version)
    with as_user(world.connection, None, "service_role"):
        world.value("select two_tower.force_version(%s, 'a trial')", version)
    world.settle()
    assert world.value("select two_tower.active_version('candidate_tower')") == version
    assert world.version(version)["verdict"] == "forced by service_role: a trial"
    kept = world.value(
        "select metrics ->> 'verdict_before' from two_tower.model_weights where version = %s",
        version,
    )
    assert kept == NOT_BETTER
    alert = world.value("select message from two_tower.alerts where kind = 'version_forced'")
    assert "a trial" in alert
    assert "service_role" in alert


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_nothing_is_forced_without_a_reason(world: World, reason: str | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="reason"):
        world.value("select two_tower.force_version(%s, %s)", world.worse(), reason)


def test_a_version_that_can_not_be_run_is_not_forced(world: World) -> None:
    version = world.worse()
    world.connection.execute(
        "delete from two_tower.model_tensors where version = %s and name = 'output.weight'"
        " and row_index = 5",
        [version],
    )
    with pytest.raises(psycopg.errors.DatabaseError, match=r"output\.weight") as caught:
        world.value("select two_tower.force_version(%s, 'why')", version)
    assert caught.value.sqlstate == "TT004"


def test_a_forced_user_tower_serves_at_once_and_its_users_are_encoded_next(world: World) -> None:
    version = world.user_tower(layers=2)
    world.value("select two_tower.force_version(%s, 'a trial')", version)
    assert world.value("select two_tower.active_version('user_tower')") == version
    assert world.value("select count(*) from two_tower.jobs where kind = 'encode_users'") == 1
    types = "select count(*) from two_tower.signals"
    assert world.value("select count(*) from two_tower.action_embeddings") == world.value(types)


@pytest.mark.parametrize("name", ["projection.weight", "action.weight", "blocks.0.wide.bias"])
def test_a_user_tower_of_another_shape_is_not_stored(world: World, name: str) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match=name) as caught:
        world.user_tower(**{name: np.zeros((5, 7))})
    assert caught.value.sqlstate == "TT004"


def test_a_tensor_that_is_none_of_the_tower_is_not_stored(world: World) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match=r"blocks\.1"):
        world.user_tower(**{"blocks.1.wide.bias": np.zeros((1, 128))})


def test_clients_reach_nothing_of_the_gate(world: World) -> None:
    for call in ("force_version(1, 'x')", "judge_candidate_tower(1)", "held_out_from()"):
        world.connection.execute("savepoint before")
        with (
            as_user(world.connection, world.users[0]),
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            world.value(f"select two_tower.{call}")
        world.connection.execute("rollback to before")
        world.connection.execute("reset role")


def test_a_tensor_of_finite_values_that_computes_to_no_number_is_not_stored(world: World) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match=r"longer than 10,000") as caught:
        world.user_tower(**{"blocks.0.wide.bias": np.full((1, 128), 3e38)})
    assert caught.value.sqlstate == "TT004"


@pytest.mark.parametrize("layers", [0, 17, 1_000_000])
def test_a_tower_of_any_number_of_layers_is_refused_in_a_few_words(
    world: World, layers: int
) -> None:
    version = world.user_tower()
    world.connection.execute(
        "update two_tower.model_weights"
        " set config = config || jsonb_build_object('layers', %s::int) where version = %s",
        [layers, version],
    )
    with pytest.raises(psycopg.errors.DatabaseError, match="layers must be from 1 to 16") as caught:
        world.value("select two_tower.force_version(%s, 'why')", version)
    assert len(str(caught.value.diag.message_primary)) < 1100
