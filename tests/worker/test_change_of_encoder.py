"""From one encoder to another: a fit, a switch, and all texts anew, while pages go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, value
from python_jobs.worker.encoder import WIDTH, packaged_model
from python_jobs.worker.jobs.change_encoder import change_encoder
from python_jobs.worker.jobs.encode import encode_posts, encode_profiles, encoder
from python_jobs.worker.towers.fit import fit_tower
from tests.support.database import add_user, reachable_folder

DEFAULT = "all-MiniLM-L6-v2"
ACTIVE = "select two_tower.active_encoder()"
TOPICS = {
    "boats": ["a boat on the sea", "the ship is under sail", "sailors reach the harbour"],
    "taxes": ["the tax law has changed", "an audit of income taxes", "parliament votes on a levy"],
    "bread": ["sourdough needs flour and water", "the oven bakes a loaf", "a crust of rye bread"],
}


@pytest.fixture(scope="module")
def turned() -> Iterator[str]:
    """A folder with another model: MiniLM, turned in space, so that nothing fits together."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    random = np.random.default_rng(5).normal(size=(WIDTH, WIDTH))
    turn = Dense(WIDTH, WIDTH, bias=False, activation_function=torch.nn.Identity())
    turn.linear.weight.data = torch.tensor(np.linalg.qr(random)[0], dtype=torch.float32)
    model = SentenceTransformer(str(packaged_model()), local_files_only=True)
    with reachable_folder() as folder:
        SentenceTransformer(modules=[*model, turn]).save(str(folder))
        yield str(folder)


@pytest.fixture(scope="module")
def narrow() -> Iterator[str]:
    """A folder with a model of 32 dimensions."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    with reachable_folder() as folder:
        AutoTokenizer.from_pretrained(packaged_model()).save_pretrained(folder)
        config = BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        BertModel(config).save_pretrained(folder)
        yield str(folder)


@pytest.fixture
def topics(db: Connection) -> dict[str, list[int]]:
    """120 posts of three topics, encoded by MiniLM; the first of each topic was engaged with."""
    db.execute("update two_tower.schedules set is_enabled = false")
    db.execute(
        "insert into public.profiles (user_id, bio, interests) values (%s, 'I sail', '{boats}')",
        [add_user(db)],
    )
    posts = {
        topic: [
            value(
                db,
                "insert into public.posts (author_id, content) values (null, %s) returning id",
                f"{texts[number % 3]}, {['early', 'late', 'today', 'again'][number % 4]} {number}",
            )
            for number in range(40)
        ]
        for topic, texts in TOPICS.items()
    }
    encode_posts(db)
    encode_profiles(db)
    for ids in posts.values():
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'like')",
            [add_user(db), ids[0]],
        )
    return posts


def choose(db: Connection, name: str) -> dict[str, Any]:
    """Names an encoder in the settings, and runs the job that this asks for."""
    db.execute("update two_tower.settings set encoder = %s", [name])
    asked = "select count(*) from two_tower.jobs where kind = 'change_encoder'"
    assert value(db, asked) == 1
    return change_encoder(db)


def settle(db: Connection) -> None:
    """Ticks until nothing is left but texts to encode."""
    for _ in range(200):
        did = value(db, "select two_tower.tick()")
        if not any(each not in (0, []) for each in did.values()):
            return
    raise AssertionError(f"ticks go on: {did}")


def vectors(db: Connection, ids: list[int]) -> np.ndarray:
    """Live vectors [n, 128] of posts."""
    query = (
        "select v.embedding::real[] from two_tower.post_embeddings v"
        " where v.post_id = any (%s) order by v.post_id"
    )
    return np.array([row[0] for row in db.execute(query, [ids])], float)


def near(db: Connection, posts: dict[str, list[int]]) -> float:
    """How much nearer posts of a topic are to each other than to others, in cosine."""
    middles = {topic: vectors(db, ids).mean(0) for topic, ids in posts.items()}
    same, other = [], []
    for topic, ids in posts.items():
        for name, middle in middles.items():
            (same if name == topic else other).extend(vectors(db, ids) @ middle)
    return float(np.mean(same) - np.mean(other))


def test_all_texts_are_encoded_anew_and_no_vector_is_lost_on_the_way(
    db: Connection, topics: dict[str, list[int]], turned: str
) -> None:
    every = sorted(post for ids in topics.values() for post in ids)
    before, apart = vectors(db, every), near(db, topics)
    did = choose(db, turned)
    assert did["begun"]
    assert did["held_out_cosine"] > 0.8
    assert value(db, ACTIVE) == DEFAULT
    settle(db)
    assert value(db, ACTIVE) == turned
    assert np.allclose(vectors(db, every), before, atol=1e-6)

    new = value(
        db,
        "insert into public.posts (author_id, content)"
        " values (null, 'a yacht leaves the harbour under sail') returning id",
    )
    assert encode_posts(db) == {"posts": len(every) + 1}
    assert encode_profiles(db) == {"profiles": 1}
    for table in ("base_embeddings", "profile_embeddings"):
        left = f"select count(*) from two_tower.{table} where base_embedding is not null and"
        assert value(db, f"{left} encoder = %s", turned) > 0
        assert value(db, f"{left} encoder <> %s", turned) == 0
    texts = [row[0] for row in db.execute("select content from public.posts order by id")]
    made = encoder(turned).encode(texts)
    base = "select base_embedding::real[] from two_tower.base_embeddings order by post_id"
    assert np.allclose(np.array([row[0] for row in db.execute(base)]), made, atol=0.02)

    touched = [ids[0] for ids in topics.values()]
    assert np.allclose(
        vectors(db, touched), before[[every.index(post) for post in touched]], atol=1e-6
    )
    assert near(db, topics) > 0.8 * apart
    middles = {topic: vectors(db, ids).mean(0) for topic, ids in topics.items()}
    yacht = vectors(db, [new])[0]
    assert max(middles, key=lambda topic: float(yacht @ middles[topic])) == "boats"
    assert not value(db, "select exists (select from two_tower.cursors where name ~ 'encoding')")


def test_a_page_is_full_at_every_step_of_the_change(
    db: Connection, topics: dict[str, list[int]], turned: str
) -> None:
    reader = add_user(db)
    page = "select count(*) from two_tower.recommend_for(%s, 50)"
    choose(db, turned)
    for _ in range(60):
        assert value(db, page, reader) == 50
        db.execute("select two_tower.tick()")
    encode_posts(db)
    assert value(db, page, reader) == 50


def test_a_model_of_another_width_is_refused_with_an_alert(
    db: Connection, topics: dict[str, list[int]], narrow: str
) -> None:
    did = choose(db, narrow)
    assert "32 values" in did["refused"]
    alert = db.execute(
        "select subject, message from two_tower.alerts"
        " where kind = 'encoder_refused' and closed_at is null"
    ).fetchall()
    assert [row.subject for row in alert] == [narrow]
    assert "32 values, the tables hold 384" in alert[0].message
    assert value(db, ACTIVE) == DEFAULT
    db.execute("insert into public.posts (author_id, content) values (null, 'another boat')")
    assert encode_posts(db) == {"posts": 1}


def test_a_model_that_is_not_there_is_refused_with_an_alert(db: Connection, tmp_path: Path) -> None:
    did = choose(db, str(tmp_path / "nothing"))
    assert "nothing" in did["refused"]
    assert value(db, ACTIVE) == DEFAULT


def test_what_another_encoder_made_is_not_stored(db: Connection) -> None:
    post_id = value(
        db, "insert into public.posts (author_id, content) values (null, 'a boat') returning id"
    )
    vector = [np.full(WIDTH, WIDTH**-0.5, dtype=np.float32)]
    store = "select two_tower.store_base_embeddings(%s::bigint[], %s, null, %s)"
    assert value(db, store, [post_id], vector, "another") == 0
    assert value(db, store, [post_id], vector, DEFAULT) == 1


def test_a_setting_that_has_changed_again_meanwhile_switches_nothing(
    db: Connection, topics: dict[str, list[int]], turned: str
) -> None:
    db.execute("update two_tower.settings set encoder = %s", [turned])
    version = change_encoder(db)["version"]
    db.execute("update two_tower.model_weights set state = 'candidate', verdict = null"
               " where version = %s", [version])  # fmt: skip
    db.execute("update two_tower.settings set encoder = 'a third'")
    assert not value(db, "select two_tower.switch_encoder(%s, %s)", turned, version)
    state = "select state from two_tower.model_weights where version = %s"
    assert value(db, state, version) == "rejected"


def test_without_posts_a_fit_is_an_orthonormal_projection() -> None:
    result = fit_tower(np.zeros((0, 384), np.float32), np.zeros((0, 128), np.float32), {})
    rows = result.tensors["hidden.weight"][:128]
    assert np.allclose(rows @ rows.T, 3 * np.eye(128), atol=1e-4)
    assert result.is_finite
