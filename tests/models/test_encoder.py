"""The sentence encoder, with its real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from python_jobs.worker.encoder import WIDTH, Encoder, packaged_model


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bfloat16"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """The packaged encoder: loading it takes seconds."""
    return Encoder(str(packaged_model()), bfloat16=request.param)


def test_vectors_have_the_width_of_the_tables_and_norm_one(encoder: Encoder) -> None:
    vectors = encoder.encode(["a boat on the sea", "tax law", "a ship under sail"])
    assert vectors.shape == (3, WIDTH)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    boat, tax, ship = vectors
    assert boat @ ship > boat @ tax + 0.2


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, WIDTH)


@pytest.mark.parametrize(
    "text",
    ["", " \n\t", "word " * 20_000, "x" * 100_000, "🙂" * 300, "a\0b", "lone \ud800 surrogate"],
    ids=["empty", "blank", "100 kB", "one long word", "emoji", "NUL", "surrogate"],
)
def test_any_text_gets_a_finite_vector_of_norm_one(encoder: Encoder, text: str) -> None:
    vector = encoder.encode([text])[0]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_text_has_the_same_vector_alone_and_among_others_of_any_length() -> None:
    encoder = Encoder(str(packaged_model()), bfloat16=False)
    texts = ["short", "a much longer text " * 40, "", "middle sized text about boats"] * 12
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts[:4]])
    assert np.abs(together[:4] - alone).max() < 1e-5
    assert np.abs(together - encoder.encode(texts[::-1])[::-1]).max() < 1e-5


def test_half_the_width_leaves_each_vector_where_it_was() -> None:
    texts = [
        "short",
        "a much longer text " * 40,
        "",
        "middle sized text about boats",
        "🙂 où 海",
    ] * 7
    wide, narrow = (
        Encoder(str(packaged_model()), bfloat16=each).encode(texts) for each in (False, True)
    )
    assert (wide != narrow).any()
    assert np.sum(wide * narrow, axis=1).min() > 0.9999


def test_a_model_of_another_width_is_refused_with_both_widths(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(packaged_model()).save_pretrained(tmp_path)
    narrow = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(narrow).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"32 values, the tables hold 384"):
        Encoder(str(tmp_path))
