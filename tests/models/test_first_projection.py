"""The projection that a project starts with is fitted to its own posts, and centred on them once
there are engagements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, connect, value
from tests.support.database import add_user
from tests.support.engagements import add_posts, insert_events
from tests.support.reference import Event


def vectors(connection: Connection, column: str) -> dict[int, np.ndarray[Any, Any]]:
    """A column of post_embeddings by post."""
    rows = connection.execute(
        f"select post_id, {column}::real[] from two_tower.post_embeddings order by 1".encode()
    )
    return {post_id: np.array(vector, float) for post_id, vector in rows}


VECTORS = ("base_embedding", "embedding")


def settle(connection: Connection) -> None:
    """Ticks until no version is being put in place."""
    for _ in range(20):
        value(connection, "select two_tower.tick()")
        if value(connection, "select filling_version is null from two_tower.state"):
            return
    raise AssertionError("the switch does not end")


@pytest.fixture
def posts(db: Connection) -> list[int]:
    """99 posts whose base embeddings all lean to one side, as those of one project do."""
    db.execute("update two_tower.schedules set is_enabled = false")
    return add_posts(db, 99, [add_user(db)], np.random.default_rng(81))


def test_the_hundredth_post_centres_the_projection(db: Connection, posts: list[int]) -> None:
    first = value(db, "select two_tower.active_version('candidate_tower')")
    assert not value(db, "select two_tower.improve_first_tower()")
    liked = posts[0]
    insert_events(db, [Event(add_user(db), liked, "like")])
    before = vectors(db, "embedding")
    add_posts(db, 1, [add_user(db)], np.random.default_rng(82))
    assert value(db, "select two_tower.tick()") == {"centred": 1}
    settle(db)
    version, config, verdict = db.execute(
        "select version, config, verdict from two_tower.model_weights where state = 'active'"
    ).fetchone() or (None, {}, None)
    assert version != first
    assert config["centred_on"] == 100
    assert verdict == "accepted: centred on 100 posts"

    base, live = vectors(db, "base_embedding"), vectors(db, "embedding")
    assert np.array_equal(live[liked], before[liked])
    untouched = [post_id for post_id in base if post_id != liked]
    texts = np.array([base[post_id] for post_id in untouched])
    placed = np.array([live[post_id] for post_id in untouched])
    # The common side is gone, and what tells posts apart is kept.
    assert np.mean(texts @ texts.T) > 0.1
    assert abs(np.mean(placed @ placed.T)) < 0.02
    centred = texts - np.mean([base[post_id] for post_id in base], axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    pairs = np.triu_indices(len(untouched), 1)
    wanted, got = (centred @ centred.T)[pairs], (placed @ placed.T)[pairs]
    assert np.corrcoef(wanted, got)[0, 1] > 0.5

    # Not again before there are ten times as many, nor for a version that was trained.
    assert not value(db, "select two_tower.improve_first_tower()")
    add_posts(db, 900, [add_user(db)], np.random.default_rng(83))
    db.execute("update two_tower.model_weights set config = config - 'start'")
    assert not value(db, "select two_tower.improve_first_tower()")
    db.execute(
        "update two_tower.model_weights set config = config || '{\"start\": 1}' where version = %s",
        [version],
    )
    assert value(db, "select two_tower.improve_first_tower()")
    settle(db)
    again = value(db, "select config from two_tower.model_weights where state = 'active'")
    assert again["centred_on"] == 1000


def spearman(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> float:
    """Rank correlation of the cosines of all pairs of rows."""
    ranks = []
    for rows in (one, two):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[np.triu_indices(len(rows), 1)]
        ranks.append(cosines.argsort().argsort())
    return float(np.corrcoef(*ranks)[0, 1])


def alike(db: Connection, count: int, seed: int) -> None:
    """Posts as texts are: they lean to one side and differ in few directions, with a long tail."""
    rng = np.random.default_rng(seed)
    spread = np.random.default_rng(5).normal(size=(384, 384)) / (1 + np.arange(384)[:, None])
    base = rng.normal(size=(count, 384)) @ spread + 2 * spread[0]
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    ids = [
        row[0]
        for row in db.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'post ' || n from generate_series(1, %s) n returning id",
            [count],
        )
    ]
    db.execute("select two_tower.store_base_embeddings(%s::bigint[], %s)", [ids, list(base)])


def test_the_projection_is_faithful_until_somebody_engages_and_then_centred(
    db: Connection,
) -> None:
    db.execute("update two_tower.schedules set is_enabled = false")
    alike(db, 100, 1)
    data_free = spearman(*(np.array(list(vectors(db, c).values())) for c in VECTORS))
    assert value(db, "select two_tower.tick()") == {"fitted": 1}
    settle(db)
    base, live = (np.array(list(vectors(db, column).values())) for column in VECTORS)
    fitted = spearman(base, live)
    assert fitted > max(0.95, data_free)
    stored = value(db, "select metrics from two_tower.model_weights where state = 'active'")
    assert stored["agreement"]["with_texts"] == pytest.approx(fitted, abs=0.002)
    assert value(db, "select two_tower.tick()") == {"serving_refreshed": 0}

    liked = next(iter(vectors(db, "embedding")))
    insert_events(db, [Event(add_user(db), liked, "like")])
    kept = vectors(db, "embedding")[liked]
    assert value(db, "select projection from two_tower.overview") == "fitted"
    assert value(db, "select two_tower.tick()") == {"centred": 1}
    settle(db)
    assert value(db, "select projection from two_tower.overview") == "centred"
    assert np.array_equal(vectors(db, "embedding")[liked], kept)
    base, live = (
        np.array([v for post_id, v in vectors(db, column).items() if post_id != liked])
        for column in VECTORS
    )
    assert abs(np.mean(live @ live.T)) < 0.05
    centred = base - base.mean(0)
    assert spearman(centred, live) > 0.95
    stored = value(db, "select metrics from two_tower.model_weights where state = 'active'")
    assert stored["agreement"]["with_texts"] < stored["agreement"]["with_centred_texts"]
    assert stored["agreement"]["with_centred_texts"] == pytest.approx(
        spearman(centred, live), abs=0.005
    )
    assert not value(db, "select two_tower.improve_first_tower()")
    states = db.execute(
        "select state, verdict from two_tower.model_weights order by version"
    ).fetchall()
    assert states == [
        ("archived", "first version"),
        ("archived", "accepted: fitted on 100 posts"),
        ("active", "accepted: centred on 100 posts"),
    ]


def test_a_view_centres_and_what_is_not_learned_yet_is_fitted_anew(db: Connection) -> None:
    db.execute("update two_tower.schedules set is_enabled = false")
    alike(db, 100, 1)
    assert value(db, "select two_tower.tick()") == {"fitted": 1}
    settle(db)
    insert_events(db, [Event(add_user(db), next(iter(vectors(db, "embedding"))), "view")])
    assert value(db, "select two_tower.tick()") == {"centred": 1}
    settle(db)
    alike(db, 900, 2)
    for step in ("fitted", "centred"):
        assert value(db, "select two_tower.tick()") == {step: 1}
        settle(db)
    assert not value(db, "select two_tower.improve_first_tower()")


def test_rows_are_orthonormal_also_where_posts_are_few(db: Connection) -> None:
    db.execute("update two_tower.schedules set is_enabled = false")
    alike(db, 120, 2)
    assert value(db, "select two_tower.improve_first_tower()") == "fitted"
    rows = db.execute(
        "select row::real[] from two_tower.model_tensors where name = 'hidden.weight'"
        " and version = (select filling_version from two_tower.state) order by row_index"
    ).fetchall()
    weight = np.array([row[0] for row in rows], float)
    assert np.abs(weight[:128] @ weight[:128].T - np.eye(128)).max() < 1e-4
    assert np.array_equal(weight[:128], -weight[128:])


def test_nothing_is_centred_while_learning_is_frozen_or_a_slot_is_filled(
    db: Connection, posts: list[int]
) -> None:
    add_posts(db, 1, [add_user(db)], np.random.default_rng(84))
    value(db, "select two_tower.freeze('a test')")
    assert not value(db, "select two_tower.improve_first_tower()")
    value(db, "select two_tower.resume()")
    version = value(db, "select two_tower.active_version('candidate_tower')")
    db.execute("update two_tower.state set filling_version = %s", [version])
    assert not value(db, "select two_tower.improve_first_tower()")
    db.execute("update two_tower.state set filling_version = null")
    assert value(db, "select two_tower.improve_first_tower()")


def test_two_ticks_at_once_fit_once(fresh_database: Any) -> None:
    url = fresh_database()
    with connect(url) as one, connect(url, autocommit=True) as other:
        add_posts(other, 100, [add_user(other)], np.random.default_rng(85))
        assert value(one, "select two_tower.tick()") == {"fitted": 1}
        assert "skipped" in value(other, "select two_tower.tick()")
        one.commit()
        settle(other)
        count = "select count(*) from two_tower.model_weights"
        assert value(other, count) == 2


@pytest.mark.parametrize("kind", ["one text", "two texts", "axes"])
def test_posts_that_do_not_differ_leave_a_projection_all_the_same(
    db: Connection, kind: str
) -> None:
    db.execute("update two_tower.schedules set is_enabled = false")
    rows = {"one text": [0] * 100, "two texts": [0, 1] * 50, "axes": list(range(100))}[kind]
    base = (
        np.eye(384)[rows]
        if kind == "axes"
        else np.random.default_rng(3).normal(size=(2, 384))[rows]
    )
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    base[:, 7] = 2e-36  # as the encoder leaves a dimension that it does not use
    ids = [
        row[0]
        for row in db.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'same' from generate_series(1, 100) returning id"
        )
    ]
    db.execute("select two_tower.store_base_embeddings(%s::bigint[], %s)", [ids, list(base)])
    for step in ("fitted", "centred"):
        assert value(db, "select two_tower.tick()") == {step: 1}
        settle(db)
        insert_events(db, [Event(add_user(db), ids[0], "like")])
    norms = value(
        db, "select max(abs(1 - extensions.vector_norm(embedding))) from two_tower.live_embeddings"
    )
    assert norms < 1e-4
