"""The towers alone: what they start as, that they learn, and that they refuse what is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import torch
from conftest import add_user

from python_jobs.jobs.train import train_candidate_tower, train_user_tower
from python_jobs.towers import losses, weights
from python_jobs.towers.candidate import (
    CandidateConfig,
    CandidateData,
    CandidateTower,
    fit_projection,
    projection_tensors,
    train_candidate,
)
from python_jobs.towers.user import History, UserConfig, _same_period, encode_users, train_user
from python_jobs.worker import open_connection

RANDOM = np.random.default_rng(0)
# What a training reaches must not depend on how busy the machine is: no time limit is met here, and
# threads that wait for each other on shared cores make these small matrices several times slower.
PATIENT = 3600.0
torch.set_num_threads(1)


def unit(*shape: int) -> np.ndarray:
    """Random vectors of norm 1."""
    vectors = RANDOM.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def planted_pairs(count: int) -> CandidateData:
    """Positives whose users lie where a fixed random map sends the text."""
    plan = RANDOM.normal(size=(384, 128))
    base = unit(count, 384)
    user = base @ plan
    user /= np.linalg.norm(user, axis=1, keepdims=True)
    return CandidateData(
        user, base, unit(count, 5, 384), np.ones((count, 5), bool), base, user, np.ones(count)
    )


def untrained() -> dict[str, np.ndarray]:
    """Tensors to start from."""
    torch.manual_seed(1)
    return weights.dump(CandidateTower())


def test_the_losses_equal_their_formulas() -> None:
    positive, negative = RANDOM.uniform(-1, 1, 6), RANDOM.uniform(-1, 1, (6, 4))
    log_q = np.log(RANDOM.uniform(0.01, 1, (6, 4)))
    mask = RANDOM.random((6, 4)) < 0.7
    label = RANDOM.random(6) < 0.5
    t = torch.as_tensor
    assert losses.squared_error(t(positive), t(label)).item() == pytest.approx(
        np.mean((positive - np.where(label, 1, -1)) ** 2)
    )
    assert losses.triplet(t(positive), t(negative[:, 0]), 0.3).item() == pytest.approx(
        np.mean(np.maximum(0, 0.3 - positive + negative[:, 0]))
    )
    logits = np.where(mask, negative / 0.2 - log_q, -np.inf)
    total = np.exp(positive / 0.2) + np.exp(logits).sum(1)
    expected = -np.mean(positive / 0.2 - np.log(total))
    found = losses.sampled_softmax(t(positive), t(negative), t(log_q), t(mask), 0.2).item()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["sampled_softmax", "squared_error"])
def test_the_candidate_tower_learns_what_was_planted(loss: str) -> None:
    data = planted_pairs(600)
    held_out = slice(500, 600)
    train = CandidateData(*(part[:500] for part in vars(data).values()))
    config = CandidateConfig(loss=loss, epochs=30, max_seconds=PATIENT)
    shuffled = replace(
        train, user=RANDOM.permutation(train.user), anchor_live=RANDOM.permutation(train.user)
    )

    def fit(trained_on: CandidateData) -> float:
        tower = CandidateTower()
        weights.load(tower, train_candidate(trained_on, untrained(), config).tensors)
        with torch.inference_mode():
            posts = tower(torch.as_tensor(data.positive[held_out], dtype=torch.float32)).numpy()
        return float((posts * data.user[held_out]).sum(1).mean())

    assert fit(train) > fit(shuffled) + 0.2


def test_the_same_data_and_seed_give_the_same_weights() -> None:
    data = planted_pairs(100)
    config = CandidateConfig(epochs=2, max_seconds=PATIENT)
    one, two = (train_candidate(data, untrained(), config).tensors for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_data_that_is_not_finite_is_refused() -> None:
    data = planted_pairs(10)
    data.positive[3, 5] = np.nan
    with pytest.raises(ValueError, match="positive"):
        train_candidate(data, untrained())


def test_no_positives_are_refused() -> None:
    data = CandidateData(*(part[:0] for part in vars(planted_pairs(3)).values()))
    with pytest.raises(ValueError, match="no positives"):
        train_candidate(data, untrained())


def test_tensors_survive_the_way_through_rows_in_any_order() -> None:
    tensors = untrained()
    rows = weights.to_rows(tensors)
    back = weights.from_rows(reversed(rows))
    assert all((back[n].reshape(t.shape) == t).all() for n, t in tensors.items())


@pytest.mark.parametrize("damage", ["row", "width", "tensor", "nan"])
def test_damaged_weights_are_refused_by_name(damage: str) -> None:
    tensors = untrained()
    rows = weights.to_rows(tensors)
    if damage == "nan":
        tensors["hidden.bias"][0] = np.inf
        with pytest.raises(ValueError, match=r"hidden\.bias"):
            weights.to_rows(tensors)
        return
    if damage == "row":
        rows = [r for r in rows if (r[0], r[1]) != ("hidden.weight", 7)]
    elif damage == "width":
        rows = [
            (n, i, v[:-1]) if n == "hidden.weight" and i == 7 else (n, i, v) for n, i, v in rows
        ]
    else:
        rows = [r for r in rows if r[0] != "hidden.weight"]
    with pytest.raises(ValueError, match=r"hidden\.weight"):
        weights.load(CandidateTower(), weights.from_rows(rows))


def planted_histories(users: int, topics: np.ndarray) -> list[History]:
    """Users who stay with one topic."""
    histories = []
    for _ in range(users):
        posts = topics[RANDOM.integers(len(topics))] + 0.3 * unit(8, 128)
        posts /= np.linalg.norm(posts, axis=1, keepdims=True)
        histories.append(
            History(
                posts,
                RANDOM.integers(0, 3, 8),
                RANDOM.integers(0, 2, 8),
                np.arange(8.0),
                np.ones(8, bool),
            )
        )
    return histories


@pytest.mark.parametrize("loss", ["sampled_softmax", "triplet"])
def test_the_user_tower_predicts_the_topic_of_the_next_post(loss: str) -> None:
    topics = unit(10, 128)
    config = UserConfig(loss=loss, epochs=15, max_seconds=PATIENT)
    train, test = planted_histories(150, topics), planted_histories(40, topics)
    result = train_user(train, unit(200, 128), {}, 3, 2, config)
    users = encode_users([h.before(7, 30) for h in test], result.tensors, config)
    targets = np.stack([h.posts[7] for h in test])
    own = (users * targets).sum(1)
    others = (users @ targets.T).mean(1)
    assert own.mean() > others.mean() + 0.2
    assert np.allclose(np.linalg.norm(users, axis=1), 1, atol=1e-5)


def test_padding_and_order_in_the_batch_do_not_change_a_users_vector() -> None:
    histories = planted_histories(4, unit(3, 128))
    histories[1] = histories[1].before(3, 30)
    tensors = train_user(
        histories, unit(20, 128), {}, 3, 2, UserConfig(epochs=1, max_seconds=PATIENT)
    ).tensors
    together = encode_users(histories, tensors)
    alone = np.concatenate([encode_users([h], tensors) for h in histories])
    turned = encode_users(histories[::-1], tensors)[::-1]
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(together, turned, atol=1e-5)


def test_a_history_never_holds_its_target_or_what_came_later() -> None:
    history = planted_histories(1, unit(1, 128))[0]
    assert history.before(5, 3).hours.tolist() == [2.0, 3.0, 4.0]
    assert history.before(0, 3).hours.tolist() == []


def test_users_without_a_history_get_the_zero_vector_and_can_not_be_trained_on() -> None:
    empty = planted_histories(1, unit(1, 128))[0].before(0, 30)
    with pytest.raises(ValueError, match="no user"):
        train_user([empty], unit(5, 128), {}, 3, 2)
    tensors = train_user(planted_histories(3, unit(1, 128)), unit(5, 128), {}, 3, 2).tensors
    assert not encode_users([empty], tensors).any()


def test_the_first_tower_is_the_projection_itself() -> None:
    projection = fit_projection(unit(50, 384))
    assert np.allclose(projection @ projection.T, np.eye(128), atol=1e-5)
    tower = CandidateTower()
    weights.load(tower, projection_tensors(projection))
    base = unit(20, 384)
    expected = base @ projection.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = tower(torch.as_tensor(base, dtype=torch.float32)).detach().numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_a_fitted_projection_keeps_the_order_of_cosines() -> None:
    base = unit(40, 384) @ (unit(384, 384) * np.linspace(1, 0.02, 384)[:, None]) + 0.5 * unit(384)
    base = np.repeat(base, 5, axis=0) + 0.02 * RANDOM.normal(size=(200, 384))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    live = base @ fit_projection(base).T
    live /= np.linalg.norm(live, axis=1, keepdims=True)
    pairs = np.triu_indices(len(base), 1)
    ranks = [(v @ v.T)[pairs].argsort().argsort() for v in (base, live)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    assert (fit_projection(base) == fit_projection(base.copy())).all()


@pytest.mark.parametrize(
    "broken", [np.zeros((0, 384)), np.zeros((3, 5)), np.full((2, 384), np.nan)]
)
def test_a_projection_is_not_fitted_to_broken_vectors(broken: np.ndarray) -> None:
    with pytest.raises(ValueError, match="base"):
        fit_projection(broken)


def test_negatives_are_corrected_by_how_often_they_are_expected_among_all_candidates() -> None:
    base, user = unit(4, 384), unit(6, 128)
    positive, negative = np.array([0, 0, 1, 2, 0, 1]), np.array([[3, 2], [3, 0]] * 3)
    mask = np.ones((6, 2), bool)
    mask[4, 1] = False
    data = CandidateData(
        user, base[positive], base[negative], mask, np.zeros((0, 384)), np.zeros((0, 128)),
        np.zeros(0),
    )  # fmt: skip
    tensors = untrained()
    result = train_candidate(
        data, tensors, CandidateConfig(epochs=1, max_seconds=PATIENT, batch_size=6)
    )

    tower = CandidateTower()
    weights.load(tower, tensors)
    posts = tower(torch.as_tensor(base, dtype=torch.float32)).detach().numpy().astype(float)
    drawn = negative[mask]
    counts = 6 * np.bincount(positive, minlength=4) / 6
    counts = counts + mask.sum(1).mean() * np.bincount(drawn, minlength=4) / len(drawn)
    total = 0.0
    for row in range(6):
        candidates = [p for p in (*negative[row][mask[row]], *positive) if p != positive[row]]
        score = np.exp(posts @ user[row] / 0.2)
        partition = score[positive[row]] + sum(score[p] / counts[p] for p in candidates)
        total -= np.log(score[positive[row]] / partition) / 6
    assert result.metrics["first_loss"] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("loss", ["sampled_softmax", "squared_error"])
def test_explicit_negatives_are_pushed_away(loss: str) -> None:
    data = planted_pairs(200)
    rejected = unit(100, 384)
    user = np.repeat(unit(1, 128), 100, axis=0)
    config = CandidateConfig(loss=loss, epochs=20, max_seconds=PATIENT, anchor_weight=0)

    def cosine(trained_on: CandidateData) -> float:
        tower = CandidateTower()
        weights.load(tower, train_candidate(trained_on, untrained(), config).tensors)
        posts = tower(torch.as_tensor(rejected, dtype=torch.float32)).detach().numpy()
        return float((posts * user).sum(1).mean())

    with_them = replace(data, rejected_user=user, rejected_base=rejected)
    assert cosine(with_them) < cosine(data) - 0.1


@pytest.mark.parametrize("width", [0, 5])
@pytest.mark.parametrize("loss", ["sampled_softmax", "squared_error"])
def test_the_candidate_tower_trains_without_negatives_and_anchors(loss: str, width: int) -> None:
    data = planted_pairs(20)
    alone = CandidateData(
        data.user, data.positive, np.zeros((20, width, 384)), np.zeros((20, width), bool),
        np.zeros((0, 384)), np.zeros((0, 128)), np.zeros(0),
    )  # fmt: skip
    result = train_candidate(
        alone, untrained(), CandidateConfig(loss=loss, epochs=2, max_seconds=PATIENT)
    )
    weights.to_rows(result.tensors)
    assert np.isfinite(result.metrics["last_loss"])


def test_one_pair_alone_leaves_finite_weights() -> None:
    one = CandidateData(*(part[:1] for part in vars(planted_pairs(2)).values()))
    weights.to_rows(
        train_candidate(one, untrained(), CandidateConfig(epochs=2, max_seconds=PATIENT)).tensors
    )


def test_padding_of_negatives_does_not_change_the_training() -> None:
    data = planted_pairs(40)
    padded = replace(
        data,
        negatives=np.concatenate([data.negatives, unit(40, 3, 384)], axis=1),
        mask=np.concatenate([data.mask, np.zeros((40, 3), bool)], axis=1),
    )
    config = CandidateConfig(epochs=2, max_seconds=PATIENT)
    one, two = (train_candidate(d, untrained(), config).tensors for d in (data, padded))
    assert all(np.abs(one[name] - two[name]).max() < 1e-4 for name in one)


@pytest.mark.parametrize("name", ["user", "negatives", "mask", "anchor_live", "rejected_base"])
def test_data_of_another_shape_is_refused_by_name(name: str) -> None:
    data = planted_pairs(10)
    broken = replace(data, **{name: np.zeros((7, 3))})
    with pytest.raises(ValueError, match=name):
        train_candidate(broken, untrained())


def test_a_turned_tensor_is_refused_though_it_has_as_many_values() -> None:
    tensors = untrained()
    tensors["output.weight"] = tensors["output.weight"].T
    with pytest.raises(ValueError, match=r"output\.weight"):
        weights.load(CandidateTower(), tensors)


def test_tensors_that_are_not_finite_are_not_loaded() -> None:
    tensors = untrained()
    tensors["output.bias"][3] = np.nan
    with pytest.raises(ValueError, match=r"output\.bias"):
        weights.load(CandidateTower(), tensors)


def test_a_row_that_is_given_twice_is_refused() -> None:
    rows = weights.to_rows(untrained())
    with pytest.raises(ValueError, match="twice"):
        weights.from_rows([*rows, rows[5]])


def test_a_file_gives_back_tensors_and_metadata(tmp_path: Path) -> None:
    tensors = untrained()
    weights.export_file(tmp_path / "tower.safetensors", tensors, {"version": "7"})
    back, metadata = weights.import_file(tmp_path / "tower.safetensors")
    assert metadata == {"version": "7"}
    assert back.keys() == tensors.keys()
    assert all((back[name] == tensors[name]).all() for name in tensors)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tower.safetensors"
    weights.export_file(path, untrained())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"tower\.safetensors"):
        weights.import_file(path)


def test_the_user_tower_learns_less_from_shuffled_targets() -> None:
    topics = unit(10, 128)
    train, test = planted_histories(150, topics), planted_histories(40, topics)
    last = RANDOM.permutation(np.stack([h.posts[-1] for h in train]))
    shuffled = [
        replace(h, posts=np.vstack([h.posts[:-1], target]), is_positive=np.arange(8) == 7)
        for h, target in zip(train, last, strict=True)
    ]
    honest = [replace(h, is_positive=np.arange(8) == 7) for h in train]
    targets = np.stack([h.posts[7] for h in test])
    config = UserConfig(epochs=30, max_seconds=PATIENT)

    def lead(histories: list[History]) -> float:
        tensors = train_user(histories, unit(200, 128), {}, 3, 2, config).tensors
        users = encode_users([h.before(7, 30) for h in test], tensors, config)
        return float((users * targets).sum(1).mean() - (users @ targets.T).mean())

    assert lead(honest) > lead(shuffled) + 0.2


def test_the_same_histories_and_seed_give_the_same_user_tower() -> None:
    histories, pool = planted_histories(10, unit(3, 128)), unit(20, 128)
    config = UserConfig(epochs=2, max_seconds=PATIENT)
    one, two = (train_user(histories, pool, {}, 3, 2, config).tensors for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_history_whose_times_run_backwards_is_refused() -> None:
    history = planted_histories(1, unit(1, 128))[0]
    with pytest.raises(ValueError, match="hours"):
        train_user([replace(history, hours=history.hours[::-1])], unit(5, 128), {}, 3, 2)


@pytest.mark.parametrize("name", ["posts", "hours", "authors"])
def test_a_broken_history_is_refused_by_name(name: str) -> None:
    history = planted_histories(1, unit(1, 128))[0]
    values = getattr(history, name).copy().astype(float)
    values[2] = np.nan if name != "authors" else 3
    broken = replace(history, **{name: values})
    tensors = train_user(
        [history], unit(5, 128), {}, 3, 2, UserConfig(epochs=1, max_seconds=PATIENT)
    ).tensors
    with pytest.raises(ValueError, match=name):
        train_user([broken], unit(5, 128), {}, 3, 2)
    with pytest.raises(ValueError, match=name):
        encode_users([broken], tensors)


def test_an_earlier_engagement_with_the_target_is_not_in_its_history() -> None:
    history = planted_histories(1, unit(1, 128))[0]
    repeated = replace(history, posts=np.repeat(history.posts[:1], 8, axis=0))
    assert len(repeated.without(repeated.posts[3]).hours) == 0
    with pytest.raises(ValueError, match="no user"):
        train_user([repeated], unit(5, 128), {}, 3, 2)


def test_one_user_of_constant_posts_leaves_finite_weights() -> None:
    history = planted_histories(1, unit(1, 128))[0]
    constant = replace(history, posts=np.vstack([np.repeat(unit(1, 128), 7, axis=0), unit(1, 128)]))
    result = train_user(
        [constant], unit(1, 128), {}, 3, 2, UserConfig(epochs=2, max_seconds=PATIENT)
    )
    weights.to_rows(result.tensors)
    assert np.isfinite(encode_users([constant], result.tensors)).all()


def test_a_negative_comes_from_the_period_of_its_target() -> None:
    created = np.arange(1000.0)
    rows = _same_period(np.repeat([0.0, 500.0, 999.0], 50), created, 1000).numpy()
    assert np.abs(created[rows].reshape(3, 50) - [[0.0], [500.0], [999.0]]).max() <= 64
    few = _same_period(np.array([5.0, 7.0]), np.array([1.0, 6.0]), 2)
    assert set(few.tolist()) <= {0, 1}


def test_the_triplet_loss_trains_with_negatives_of_the_same_period() -> None:
    histories, pool = planted_histories(20, unit(3, 128)), unit(200, 128)
    config = UserConfig(loss="triplet", epochs=8, max_seconds=PATIENT)
    result = train_user(histories, pool, {}, 3, 2, config, np.arange(200.0))
    assert result.metrics["last_loss"] < result.metrics["first_loss"]
    with pytest.raises(ValueError, match="pool_hours"):
        train_user(histories, pool, {}, 3, 2, config, np.arange(5.0))


def test_the_candidate_tower_in_sql_equals_the_one_in_torch(db: psycopg.Connection[Any]) -> None:
    rows = db.execute(
        "select name, row_index, row from two_tower.model_tensors"
        " where version = two_tower.active_version('candidate_tower')"
    ).fetchall()
    tensors = weights.from_rows((n, i, as_array(v)) for n, i, v in rows)
    tensors = {name: t + 0.05 * RANDOM.normal(size=t.shape) for name, t in tensors.items()}
    names, indexes, values = zip(*weights.to_rows(tensors), strict=True)
    row = db.execute(
        "select two_tower.store_weights("
        "'candidate_tower', %s::text[], %s::integer[], %s, '{}', '{}')",
        [list(names), list(indexes), list(values)],
    ).fetchone()
    assert row is not None
    tower = CandidateTower()
    weights.load(tower, tensors)
    base = unit(50, 384).astype(np.float32)
    expected = tower(torch.as_tensor(base)).detach().numpy()
    for vector, wanted in zip(base, expected, strict=True):
        found = db.execute("select two_tower.candidate_tower(%s, %s)", [vector, row[0]]).fetchone()
        assert found is not None
        assert np.abs(as_array(found[0]) - wanted).max() < 1e-5


def test_weights_that_lack_a_row_are_not_stored(db: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match=r"hidden\.bias") as caught:
        db.execute(
            "select two_tower.store_weights('candidate_tower', array['hidden.weight'], array[0],"
            " array[array_fill(0::real, array[384])::extensions.vector], '{}', '{}')"
        )
    assert caught.value.sqlstate == "TT004"


def test_the_first_tower_keeps_the_cosines_of_texts(db: psycopg.Connection[Any]) -> None:
    base = unit(60, 384).astype(np.float32)
    base += 1.5 * unit(1, 384)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    rows = db.execute("select two_tower.candidate_tower(b) from unnest(%s) b", [list(base)])
    live = np.stack([as_array(row[0]) for row in rows])
    assert np.abs(live @ live.T - base @ base.T).max() < 0.35
    assert np.abs(live @ live.T - base @ base.T).mean() < 0.08


def as_array(vector: Any) -> np.ndarray:
    """A vector as the driver gives it, as an array."""
    return vector if isinstance(vector, np.ndarray) else vector.to_numpy()


def grow(connection: psycopg.Connection[Any], is_predictable: bool) -> None:
    """Posts of two topics, and users who like one topic each, or anything."""
    users = [add_user(connection) for _ in range(20)]
    topics = unit(2, 384)
    base = np.concatenate([topics[n % 2] + 0.5 * unit(1, 384) for n in range(120)])
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    rows = connection.execute(
        "insert into public.posts (author_id, content)"
        " select null, 'post ' || n from generate_series(1, 120) n returning id"
    )
    posts = [row["id"] for row in rows]
    connection.execute(
        "select two_tower.store_base_embeddings(%s::bigint[], %s)",
        [posts, list(base.astype(np.float32))],
    )
    for step in range(20):
        for place, user in enumerate(users):
            taste = place % 2 if is_predictable else int(RANDOM.integers(2))
            post = posts[2 * int(RANDOM.integers(60)) + taste]
            connection.execute(
                "insert into public.engagement_events (user_id, post_id, event_type, created_at)"
                " values (%s, %s, 'like', now() - interval '1 hour' + %s * interval '1 minute')",
                [user, post, step],
            )


def plant_worse_version(connection: psycopg.Connection[Any]) -> int:
    """The active candidate tower with noise on its weights, as if trained until t0."""
    row = connection.execute(
        "insert into two_tower.model_weights (tower, parent_version, trained_until)"
        " values ('candidate_tower', two_tower.active_version('candidate_tower'),"
        "  two_tower.held_out_from()) returning version, parent_version"
    ).fetchone()
    assert row is not None
    connection.execute(
        "insert into two_tower.model_tensors (version, name, row_index, row)"
        " select %s, name, row_index, case when name = 'hidden.weight'"
        "  then (select array_agg(x * random()) from unnest(row::real[]) x)::extensions.vector"
        "  else row end from two_tower.model_tensors where version = %s",
        [row["version"], row["parent_version"]],
    )
    return int(row["version"])


def judge(connection: psycopg.Connection[Any], version: int) -> tuple[bool, str, dict[str, Any]]:
    """What the gate says, the verdict it keeps, and the figures behind it."""
    answer = connection.execute(
        "select two_tower.judge_candidate_tower(%s) as accepted", [version]
    ).fetchone()
    row = connection.execute(
        "select state, verdict, metrics -> 'gate' as gate from two_tower.model_weights"
        " where version = %s",
        [version],
    ).fetchone()
    assert answer is not None
    assert row is not None
    assert (row["state"] == "rejected") != answer["accepted"]
    return answer["accepted"], row["verdict"], row["gate"]


def test_a_worse_version_is_kept_as_rejected_and_changes_nothing(
    fresh_database: Callable[[], str],
) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        connection.execute("update two_tower.settings set gate_minimum_events = 50")
        grow(connection, is_predictable=True)
        served = (
            "select embedding::text from two_tower.live_embeddings order by slot, post_id",
            "select s::text from two_tower.state s",
            "select two_tower.active_version('candidate_tower') as v",
        )
        before = [connection.execute(query).fetchall() for query in served]
        is_accepted, verdict, gate = judge(connection, plant_worse_version(connection))
        assert not is_accepted
        assert verdict == "rejected: not better than the active version on held-out events"
        assert gate["events"] >= 50
        assert gate["mean_difference"] < 0
        assert [connection.execute(query).fetchall() for query in served] == before


def test_too_few_events_are_a_reason_to_reject(fresh_database: Callable[[], str]) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        grow(connection, is_predictable=True)
        connection.execute("update two_tower.settings set gate_minimum_events = 1000")
        is_accepted, verdict, gate = judge(connection, plant_worse_version(connection))
        assert not is_accepted
        assert verdict == "rejected: not enough held-out events"
        assert gate["events"] < 1000


def test_what_is_withdrawn_is_not_judged_by(fresh_database: Callable[[], str]) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        connection.execute("update two_tower.settings set gate_minimum_events = 50")
        grow(connection, is_predictable=True)
        version = plant_worse_version(connection)
        since = connection.execute(
            "select count(*) as n from two_tower.training_examples where label and created_at >="
            " (select trained_until from two_tower.model_weights where version = %s)",
            [version],
        ).fetchone()
        connection.execute(
            "update two_tower.training_examples set is_withdrawn = true where event_id in"
            " (select event_id from two_tower.training_examples order by event_id desc limit 10)"
        )
        assert since is not None
        assert judge(connection, version)[2]["events"] == since["n"] - 10


def test_training_as_of_a_moment_sees_nothing_of_later(
    fresh_database: Callable[[], str],
) -> None:
    """Anchors before t0 are the same, whatever happens to their posts after it."""
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        grow(connection, is_predictable=True)
        moment = connection.execute("select two_tower.held_out_from() as t").fetchone()
        assert moment is not None
        query = "select post_id, embedding::text, engagement_count from two_tower.live_anchors(%s)"
        before = connection.execute(query, [moment["t"]]).fetchall()
        assert before
        newcomer = add_user(connection)
        connection.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, unnest(%s::bigint[]), 'reply'",
            [newcomer, [row["post_id"] for row in before][:40]],
        )
        connection.execute("select two_tower.fold_pushes(10000)")
        assert connection.execute(query, [moment["t"]]).fetchall() == before


def test_each_training_stores_a_version_that_can_be_run_with_its_verdict(
    fresh_database: Callable[[], str],
) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        connection.execute("update two_tower.settings set gate_minimum_events = 50")
        grow(connection, is_predictable=True)
        connection.execute("select two_tower.fold_pushes(10000)")
        engaged = (
            "select post_id, embedding::text from two_tower.post_embeddings"
            " where not is_pretrained order by post_id"
        )
        before = connection.execute(engaged).fetchall()
        for train, tower in (
            (train_candidate_tower, "candidate_tower"),
            (train_user_tower, "user_tower"),
        ):
            outcome = train(connection)
            row = connection.execute(
                "select tower, state, verdict, metrics -> 'gate' as gate, trained_until"
                " from two_tower.model_weights where version = %s",
                [outcome["version"]],
            ).fetchone()
            assert row is not None
            assert row["tower"] == tower
            assert row["verdict"].startswith("accepted" if outcome["accepted"] else "rejected")
            assert (row["state"] == "rejected") != outcome["accepted"]
            assert row["gate"]["events"] >= 50
            assert (row["gate"]["lower_bound"] > 0) == outcome["accepted"]
        for _ in range(10):
            connection.execute("select two_tower.take_step()")
        # Whatever was decided: posts that somebody engaged with stay where learning put them.
        assert connection.execute(engaged).fetchall() == before


def test_an_accepted_tower_fills_the_other_slot_and_flips_while_engaged_posts_stay(
    fresh_database: Callable[[], str],
) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        grow(connection, is_predictable=True)
        connection.execute("select two_tower.fold_pushes(10000)")
        state = "select active_slot, filling_version from two_tower.state"
        old = connection.execute(state).fetchone()
        assert old is not None
        live = (
            "select post_id, embedding::text, is_pretrained from two_tower.live_embeddings"
            " where slot = (select active_slot from two_tower.state) order by post_id"
        )
        before = {row["post_id"]: row for row in connection.execute(live)}
        active = connection.execute("select two_tower.active_version('candidate_tower') as v")
        stored = connection.execute(
            "with new as (insert into two_tower.model_weights (tower, parent_version)"
            "   select 'candidate_tower', %s returning version)"
            " select version from new",
            [(active.fetchone() or {})["v"]],
        ).fetchone()
        assert stored is not None
        connection.execute(
            "insert into two_tower.model_tensors (version, name, row_index, row)"
            " select %s, name, (row_index * 37 + 5) %% case when name = 'hidden.weight' then 256"
            "   when name = 'output.weight' then 128 else 1 end, row"
            " from two_tower.model_tensors where version <> %s",
            [stored["version"], stored["version"]],
        )
        connection.execute("select two_tower.begin_switch(%s)", [stored["version"]])
        connection.execute("select two_tower.fill_slot(50)")
        middle = connection.execute(state).fetchone()
        assert middle is not None
        assert middle["active_slot"] == old["active_slot"]
        for _ in range(20):
            connection.execute("select two_tower.take_step()")
        new = connection.execute(state).fetchone()
        assert new is not None
        assert (new["active_slot"], new["filling_version"]) == (1 - old["active_slot"], None)
        after = {row["post_id"]: row for row in connection.execute(live)}
        assert after.keys() == before.keys()
        for post, row in before.items():
            same = after[post]["embedding"] == row["embedding"]
            assert same != row["is_pretrained"]
