"""The towers alone: what they start as, that they learn, and that they refuse what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from python_jobs.worker.towers import losses, weights
from python_jobs.worker.towers.candidate import (
    CandidateConfig,
    CandidateData,
    CandidateTower,
    train_candidate,
)
from python_jobs.worker.towers.histories import Histories, History, Negatives, Pool
from python_jobs.worker.towers.user import (
    UserConfig,
    UserTower,
    _next_loss,
    encode_users,
    train_user,
)
from tests.support.database import PROJECT
from tests.support.patience import PATIENCE_S
from tests.support.planted import (
    RANDOM,
    planted_histories,
    planted_pairs,
    pool_of,
    train,
    unit,
    untrained,
)

# All trainings here may take PATIENCE_S: what they reach must not depend on how busy a machine is.


def first(data: CandidateData, count: int) -> CandidateData:
    """The first positives and anchors alone, over the same posts."""
    parts = {name: part[:count] for name, part in vars(data).items() if name != "base"}
    return replace(data, **parts)


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
    train = first(data, 500)
    config = CandidateConfig(loss=loss, epochs=30, max_seconds=PATIENCE_S)
    shuffled = replace(
        train, user=RANDOM.permutation(train.user), anchor_live=RANDOM.permutation(train.user)
    )

    def fit(trained_on: CandidateData) -> float:
        tower = CandidateTower()
        weights.load(tower, train_candidate(trained_on, untrained(), config).tensors)
        with torch.inference_mode():
            posts = tower(torch.as_tensor(data.base[held_out], dtype=torch.float32)).numpy()
        return float((posts * data.user[held_out]).sum(1).mean())

    assert fit(train) > fit(shuffled) + 0.2


def test_the_same_data_and_seed_give_the_same_weights() -> None:
    data = planted_pairs(100)
    config = CandidateConfig(epochs=2, max_seconds=PATIENCE_S)
    one, two = (train_candidate(data, untrained(), config).tensors for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_towers_train_and_run_wherever_there_is_a_device() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.second_device"],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "two devices" in report.pop("refused")
    assert report.pop("operations") > 1000
    assert report.pop("device") == "elsewhere:0"
    assert len(report) == 4
    assert max(report.values()) < 1e-5


def test_cuda_is_taken_where_there_is_one_and_made_reproducible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        assert weights.device() == torch.device("cuda")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_data_that_is_not_finite_is_refused() -> None:
    data = planted_pairs(10)
    data.base[3, 5] = np.nan
    with pytest.raises(ValueError, match="base"):
        train_candidate(data, untrained())


def test_rows_of_posts_that_are_not_there_are_refused() -> None:
    data = planted_pairs(10)
    data.negatives[2, 1] = len(data.base)
    with pytest.raises(ValueError, match="negatives"):
        train_candidate(data, untrained())


def test_no_positives_are_refused() -> None:
    with pytest.raises(ValueError, match="no positives"):
        train_candidate(first(planted_pairs(3), 0), untrained())


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


def cut(history: History, end: int) -> History:
    """The engagements before position `end`."""
    return History(*(values[:end] for values in vars(history).values()))


@pytest.mark.parametrize("loss", ["sampled_softmax", "triplet"])
def test_the_user_tower_predicts_the_topic_of_the_next_post(loss: str) -> None:
    topics = unit(10, 128)
    config = UserConfig(loss=loss, steps=150, max_seconds=PATIENCE_S)
    known, test = planted_histories(150, topics), planted_histories(40, topics)
    result = train(known, unit(200, 128), config)
    users = encode_users([cut(h, 7) for h in test], result.tensors, config)
    targets = np.stack([h.posts[7] for h in test])
    own = (users * targets).sum(1)
    others = (users @ targets.T).mean(1)
    assert own.mean() > others.mean() + 0.2
    assert np.allclose(np.linalg.norm(users, axis=1), 1, atol=1e-5)


def test_padding_and_order_in_the_batch_do_not_change_a_users_vector() -> None:
    histories = planted_histories(4, unit(3, 128))
    histories[1] = cut(histories[1], 3)
    config = UserConfig(steps=3, max_seconds=PATIENCE_S)
    tensors = train(histories, unit(20, 128), config).tensors
    together = encode_users(histories, tensors)
    alone = np.concatenate([encode_users([h], tensors) for h in histories])
    turned = encode_users(histories[::-1], tensors)[::-1]
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(together, turned, atol=1e-5)


def test_a_window_holds_what_was_before_its_target_and_never_the_target_or_what_came_later() -> (
    None
):
    histories = planted_histories(3, unit(1, 128))
    table = Histories(histories, 3)
    for user, history in enumerate(histories):
        for target in range(1, 8):
            begin = table.starts[user]
            rows, is_there = table.before(np.array([begin]), np.array([begin + target]))
            seen = table.hours[rows[is_there]].tolist()
            assert seen == [float(hour) for hour in range(max(0, target - 3), target)]
            expected = history.post_ids[max(0, target - 3) : target]
            assert table.post_ids[rows[is_there]].tolist() == expected.tolist()


def test_users_are_encoded_from_the_same_inputs_as_they_are_trained_on() -> None:
    """The vector of a history is that of a window before an engagement that follows it."""
    histories = planted_histories(5, unit(3, 128))
    config = UserConfig(steps=3, max_seconds=PATIENCE_S, history_length=4)
    tensors = train(histories, unit(20, 128), config).tensors
    tower = UserTower(3, 2, config)
    weights.load(tower, tensors)
    table = Histories(histories, 4)
    rows = table.before(table.starts, table.ends - 1)
    with torch.inference_mode():
        trained = tower(*table.inputs(*rows, torch.device("cpu"))).numpy()
    encoded = encode_users([cut(history, 7) for history in histories], tensors, config)
    assert np.allclose(trained, encoded, atol=1e-5)


def test_users_without_a_history_get_the_zero_vector_and_can_not_be_trained_on() -> None:
    empty = cut(planted_histories(1, unit(1, 128))[0], 0)
    config = UserConfig(steps=3, max_seconds=PATIENCE_S)
    for histories in ([empty], []):
        with pytest.raises(ValueError, match="no user"):
            train(histories, unit(5, 128), config)
    tensors = train(planted_histories(3, unit(1, 128)), unit(5, 128), config).tensors
    assert not encode_users([empty], tensors).any()


def test_an_unknown_author_is_the_zero_vector_before_and_after_training() -> None:
    histories = planted_histories(5, unit(3, 128))
    result = train(histories, unit(20, 128), UserConfig(steps=5, max_seconds=PATIENCE_S))
    start = np.ones((3, 64), np.float32)
    start[0] = 0
    assert not result.tensors["author.weight"][0].any()
    again = train(
        histories, unit(20, 128), UserConfig(steps=5, max_seconds=PATIENCE_S),
        {"author.weight": start},
    )  # fmt: skip
    assert not again.tensors["author.weight"][0].any()
    assert (again.tensors["author.weight"][1:] != 1).all()


def test_negatives_are_corrected_by_how_often_they_are_expected_among_all_candidates() -> None:
    base, user = unit(4, 384), unit(6, 128)
    positive, negative = np.array([0, 0, 1, 2, 0, 1]), np.array([[3, 2], [3, 0]] * 3)
    mask = np.ones((6, 2), bool)
    mask[4, 1] = False
    data = CandidateData(base, user, positive, negative, mask)
    tensors = untrained()
    config = CandidateConfig(epochs=1, max_seconds=PATIENCE_S, batch_size=6)
    result = train_candidate(data, tensors, config)

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
    config = CandidateConfig(loss=loss, epochs=20, max_seconds=PATIENCE_S, anchor_weight=0)

    def cosine(trained_on: CandidateData) -> float:
        tower = CandidateTower()
        weights.load(tower, train_candidate(trained_on, untrained(), config).tensors)
        posts = tower(torch.as_tensor(rejected, dtype=torch.float32)).detach().numpy()
        return float((posts * user).sum(1).mean())

    with_them = replace(
        data,
        base=np.concatenate([data.base, rejected]),
        rejected_user=user,
        rejected=len(data.base) + np.arange(100),
    )
    assert cosine(with_them) < cosine(data) - 0.1


@pytest.mark.parametrize("width", [0, 5])
@pytest.mark.parametrize("loss", ["sampled_softmax", "squared_error"])
def test_the_candidate_tower_trains_without_negatives_and_anchors(loss: str, width: int) -> None:
    data = planted_pairs(20)
    alone = CandidateData(
        data.base, data.user, data.positive, np.zeros((20, width), int), np.zeros((20, width), bool)
    )
    config = CandidateConfig(loss=loss, epochs=2, max_seconds=PATIENCE_S)
    assert train_candidate(alone, untrained(), config).is_finite


def test_one_pair_alone_leaves_finite_weights() -> None:
    config = CandidateConfig(epochs=2, max_seconds=PATIENCE_S)
    assert train_candidate(first(planted_pairs(2), 1), untrained(), config).is_finite


def test_a_training_that_diverges_is_not_finite() -> None:
    config = CandidateConfig(epochs=4, max_seconds=PATIENCE_S, learning_rate=1e30)
    assert not train_candidate(planted_pairs(50), untrained(), config).is_finite


def test_padding_of_negatives_does_not_change_the_training() -> None:
    data = planted_pairs(40)
    padded = replace(
        data,
        negatives=np.concatenate([data.negatives, RANDOM.integers(0, 40, (40, 3))], axis=1),
        mask=np.concatenate([data.mask, np.zeros((40, 3), bool)], axis=1),
    )
    config = CandidateConfig(epochs=2, max_seconds=PATIENCE_S)
    one, two = (train_candidate(d, untrained(), config).tensors for d in (data, padded))
    assert all(np.abs(one[name] - two[name]).max() < 1e-4 for name in one)


@pytest.mark.parametrize(
    "name", ["base", "user", "negatives", "mask", "anchor_live", "rejected_user"]
)
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
    known, test = planted_histories(150, topics), planted_histories(40, topics)
    last = RANDOM.permutation(np.stack([h.posts[-1] for h in known]))
    shuffled = [
        replace(h, posts=np.vstack([h.posts[:-1], target]), is_positive=np.arange(8) == 7)
        for h, target in zip(known, last, strict=True)
    ]
    honest = [replace(h, is_positive=np.arange(8) == 7) for h in known]
    targets = np.stack([h.posts[7] for h in test])
    config = UserConfig(steps=60, max_seconds=PATIENCE_S)

    def lead(histories: list[History]) -> float:
        tensors = train(histories, unit(200, 128), config).tensors
        users = encode_users([cut(h, 7) for h in test], tensors, config)
        return float((users * targets).sum(1).mean() - (users @ targets.T).mean())

    assert lead(honest) > lead(shuffled) + 0.2


def test_the_same_histories_and_seed_give_the_same_user_tower() -> None:
    histories, pool = planted_histories(10, unit(3, 128)), unit(20, 128)
    config = UserConfig(steps=5, max_seconds=PATIENCE_S)
    one, two = (train(histories, pool, config).tensors for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_history_whose_times_run_backwards_is_refused() -> None:
    history = planted_histories(1, unit(1, 128))[0]
    with pytest.raises(ValueError, match="hours"):
        train([replace(history, hours=history.hours[::-1])], unit(5, 128), UserConfig())


@pytest.mark.parametrize("name", ["posts", "hours", "authors", "actions", "post_ids"])
def test_a_broken_history_is_refused_by_name(name: str) -> None:
    history = planted_histories(1, unit(1, 128))[0]
    values = getattr(history, name).copy().astype(float)
    values[2] = 3 if name in ("authors", "actions") else np.nan
    broken = replace(history, **{name: values})
    tensors = train([history], unit(5, 128), UserConfig(steps=1, max_seconds=PATIENCE_S)).tensors
    with pytest.raises(ValueError, match=name):
        train([broken], unit(5, 128), UserConfig())
    with pytest.raises(ValueError, match=name):
        encode_users([broken], tensors)


def test_engagements_with_the_post_of_the_target_are_not_in_its_window() -> None:
    """A click before the like of a post would give the answer away."""
    history = planted_histories(1, unit(1, 128))[0]
    ids = history.post_ids.copy()
    ids[4] = ids[6]
    table = Histories([replace(history, post_ids=ids)], 30)
    rows, is_there = table.before(np.array([0]), np.array([6]))
    assert table.hours[rows[is_there]].tolist() == [0.0, 1.0, 2.0, 3.0, 5.0]
    of_one_post = replace(history, post_ids=np.repeat(ids[:1], 8))
    with pytest.raises(ValueError, match="no user"):
        train([of_one_post], unit(5, 128), UserConfig())


def test_one_user_of_constant_posts_leaves_finite_weights() -> None:
    history = planted_histories(1, unit(1, 128))[0]
    constant = replace(history, posts=np.repeat(unit(1, 128), 8, axis=0))
    result = train([constant], unit(1, 128), UserConfig(steps=3, max_seconds=PATIENCE_S))
    assert result.is_finite
    assert np.isfinite(encode_users([constant], result.tensors)).all()


def test_a_negative_comes_from_the_period_of_its_target() -> None:
    draw, ids = np.random.default_rng(0), [np.array([1])]
    many = Negatives(pool_of(unit(1000, 128)), ids, 1, torch.device("cpu"))
    rows = many.of_the_period(np.repeat([0.0, 500.0, 999.0], 50), draw)
    assert np.abs(many.hours[rows].reshape(3, 50) - [[0.0], [500.0], [999.0]]).max() <= 64
    few = Negatives(pool_of(unit(2, 128)), ids, 1, torch.device("cpu"))
    assert set(few.of_the_period(np.array([5.0, 7.0]), draw).tolist()) <= {0, 1}


def test_negatives_of_a_user_are_corrected_by_how_often_a_step_is_expected_to_meet_them() -> None:
    pool = Pool(np.arange(100, 400), unit(300, 128), RANDOM.permutation(np.arange(300.0)))
    # Two of three users are drawn, each with one of its posts: 7, 8 or 100, which is in the pool.
    targets = [np.array([7, 7, 8]), np.array([100]), np.array([8, 100])]
    negatives = Negatives(pool, targets, 2, torch.device("cpu"))
    in_pool = 256 / 300
    expected = [2 / 3 * 2 / 3, 2 / 3 * (1 / 3 + 1 / 2), 2 / 3 * (1 + 1 / 2) + in_pool, in_pool]
    assert np.allclose(np.exp(negatives.log_expected(np.array([7, 8, 100, 333]))), expected)
    draw = np.random.default_rng(0)
    met = np.zeros(400)
    for _ in range(3000):
        met[negatives.post_ids[negatives.draw(draw)]] += 1 / 3000
        for user in draw.permutation(3)[:2]:
            met[draw.choice(targets[user])] += 1 / 3000
    assert np.allclose(met[[7, 8, 100, 333]], expected, atol=0.05)

    # The loss is that of all posts, of which these are a sample: nothing of the target's own id.
    user, wanted = unit(2, 128), unit(2, 128)
    ids, drawn = np.array([8, 100]), np.flatnonzero(np.isin(negatives.post_ids, [100, 333]))
    got = _next_loss(
        torch.as_tensor(user, dtype=torch.float32), torch.as_tensor(wanted, dtype=torch.float32),
        ids, negatives, drawn, UserConfig(temperature=0.5),
    ).item()  # fmt: skip
    places = {post_id: vector for post_id, vector in zip(pool.post_ids, pool.posts, strict=True)}
    total = 0.0
    for row, others in enumerate(([100, 333, "second"], [333, "first"])):
        own = np.exp(user[row] @ wanted[row] / 0.5)
        rest = 0.0
        for other in others:
            vector = {"first": wanted[0], "second": wanted[1]}.get(other)
            post_id = {"first": 8, "second": 100}.get(other, other)
            vector = places[post_id] if vector is None else vector
            rest += np.exp(user[row] @ vector / 0.5) / expected[[7, 8, 100, 333].index(post_id)]
        total -= np.log(own / (own + rest)) / 2
    assert got == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ["post_ids", "posts", "hours"])
def test_a_pool_that_does_not_fit_is_refused_by_name(name: str) -> None:
    histories, pool = planted_histories(3, unit(3, 128)), pool_of(unit(20, 128))
    values = getattr(pool, name).astype(float)
    values[3] = np.nan
    with pytest.raises(ValueError, match=f"{name} of the pool"):
        train_user(histories, replace(pool, **{name: values}), {}, 3, 2)
    if name != "post_ids":
        with pytest.raises(ValueError, match=f"{name} of the pool"):
            train_user(histories, replace(pool, **{name: values[:5]}), {}, 3, 2)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_tower_of_any_depth_is_run_with_its_own_config(layers: int) -> None:
    config = UserConfig(layers=layers, steps=2, max_seconds=PATIENCE_S)
    histories = planted_histories(3, unit(3, 128))
    result = train(histories, unit(20, 128), config)
    stored = UserConfig.of({**result.config, "event_types": ["like"]})
    assert stored == config
    assert np.isfinite(encode_users(histories, result.tensors, stored)).all()
    with pytest.raises(ValueError, match="blocks"):
        encode_users(histories, result.tensors, UserConfig(layers=layers + 1))
