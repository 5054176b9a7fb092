"""Real one-line texts by subject: what the documentation of the pinned packages says.

A text is the first sentence of a docstring. Files are parsed, never imported. With the versions of
constraints.txt the texts are the same everywhere.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from python_jobs.errors import CommandError

WORDS = range(6, 31)
# A subject is some packages, or folders and modules in them.
SUBJECTS = {
    "geometry": "sympy/geometry scipy/spatial",
    "physics": "sympy/physics",
    "graphs": "networkx/algorithms networkx/generators networkx/classes",
    "statistics": "scipy/stats sympy/stats",
    "fonts": "fontTools",
    "plotting": "matplotlib/axes matplotlib/axis.py matplotlib/figure.py matplotlib/patches.py",
    "neural networks": "torch/nn torch/optim",
    "programming languages": "pygments/lexers pygments/formatters",
    "symmetry groups": "sympy/combinatorics sympy/liealgebras",
    "optimisation": "scipy/optimize sklearn/linear_model",
    "language models": "transformers/generation transformers/pipelines",
    "data validation": "pydantic",
    "arrays": "numpy/lib numpy/ma numpy/_core",
    "packaging": "setuptools packaging",
}
KEPT_APART = {
    "polynomials": "sympy/polys numpy/polynomial",
    "many machines": "torch/distributed",
    "machine learning": "sklearn/cluster sklearn/ensemble sklearn/metrics sklearn/preprocessing"
    " sklearn/svm sklearn/neighbors sklearn/decomposition",
    "matrices": "sympy/matrices scipy/sparse scipy/linalg",
    "calculus": "sympy/integrals sympy/solvers sympy/series scipy/integrate",
    "special functions": "sympy/functions scipy/special mpmath",
    "signals and images": "scipy/signal scipy/ndimage scipy/fft PIL",
    "web": "httpx httpcore urllib3 websockets h11 werkzeug anyio yarl",
    "terminals": "rich click typer tqdm",
    "compilers": "torch/fx torch/jit torch/onnx",
    "databases": "psycopg pglast sqlfluff postgrest",
    "stored files": "fsspec huggingface_hub",
    "logic and sets": "sympy/logic sympy/sets sympy/assumptions sympy/unify sympy/core",
    "type checking": "mypy",
}


def read_texts(subjects: dict[str, str], count: int) -> dict[str, list[str]]:
    """At most `count` texts of each subject, evenly taken from all of its files.

    A text that two subjects have belongs to the first. Raises CommandError for a subject whose
    packages are not installed.
    """
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for subject, places in subjects.items():
        texts = dict.fromkeys(text for place in places.split() for text in _texts_of(place))
        own = [text for text in texts if text not in taken]
        if not own:
            raise CommandError(f"The texts about {subject} are missing: pip install '.[dev]'.")
        taken.update(own)
        picks = np.linspace(0, len(own) - 1, min(count, len(own))).astype(int)
        found[subject] = [own[pick] for pick in picks]
    return found


def _texts_of(place: str) -> Iterator[str]:
    package, _, inside = place.partition("/")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root) / inside
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not any("test" in part or part == "_vendor" for part in file.parts):
                yield from _sentences(file)


def _sentences(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return  # a template of a package, or another Python's syntax
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            sentence = _first_sentence(ast.get_docstring(node) or "")
            if len(sentence.split()) in WORDS and sentence[0].isupper():
                yield sentence


def _first_sentence(docstring: str) -> str:
    """Without the markup of documentation; empty for what is an example."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?]) ", paragraph)[0]
    sentence = re.sub(r":[a-z:]+:(?=`)|[`*\\]|\[`?|`?\]", "", sentence)
    is_prose = not re.search(r">>>|--|\b(Args|Parameters)\b", sentence)
    return sentence if is_prose and len(sentence) <= 200 else ""
