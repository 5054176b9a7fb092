"""The towers alone: what they start as, that they learn, and that they refuse what is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    train_candidate,
)
from python_jobs.towers.user import History, UserConfig, encode_users, train_user
from python_jobs.worker import open_connection

RANDOM = np.random.default_rng(0)


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
    config = CandidateConfig(loss=loss, epochs=30)
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
    config = CandidateConfig(epochs=2)
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
    config = UserConfig(loss=loss, epochs=15)
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
    tensors = train_user(histories, unit(20, 128), {}, 3, 2, UserConfig(epochs=1)).tensors
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


def test_a_version_that_is_not_better_is_kept_as_rejected_and_changes_nothing(
    fresh_database: Callable[[], str],
) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        connection.execute("update two_tower.settings set gate_minimum_events = 50")
        grow(connection, is_predictable=False)
        vectors = "select embedding::text from two_tower.live_embeddings order by slot, post_id"
        before = connection.execute(vectors).fetchall()
        for train in (train_candidate_tower, train_user_tower):
            outcome = train(connection)
            if outcome["accepted"]:
                continue  # noise can win by luck; the next lines hold for what was rejected
            row = connection.execute(
                "select state, verdict, metrics from two_tower.model_weights where version = %s",
                [outcome["version"]],
            ).fetchone()
            assert row is not None
            assert row["state"] == "rejected"
            assert row["verdict"].startswith("rejected: ")
            assert row["metrics"]["gate"]["events"] >= 50
            assert connection.execute(vectors).fetchall() == before


def test_too_few_events_are_a_reason_to_reject(fresh_database: Callable[[], str]) -> None:
    with open_connection(fresh_database()) as connection:
        connection.execute("reset role")
        connection.execute("update two_tower.settings set gate_minimum_events = 150")
        grow(connection, is_predictable=True)
        connection.execute("update two_tower.settings set gate_minimum_events = 1000")
        outcome = train_candidate_tower(connection)
        assert "skipped" in outcome or not outcome["accepted"]


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
