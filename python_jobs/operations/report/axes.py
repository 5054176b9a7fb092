"""The two directions in which vectors differ most: where things lie on a map."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axes:
    """Two orthogonal directions through the middle of the posts.

    version: of the candidate tower that the vectors are of. middle: (128,). directions: (2, 128).
    reach: (2,), how far most posts lie from the middle.
    """

    version: int
    middle: np.ndarray
    directions: np.ndarray
    reach: np.ndarray

    @classmethod
    def fit(cls, version: int, vectors: np.ndarray) -> Axes:
        """Principal axes of vectors (n, 128). Each points to where its largest number is positive,
        so that a map is not mirrored from one time to the next."""
        middle = vectors.mean(axis=0)
        _, _, directions = np.linalg.svd(vectors - middle, full_matrices=False)
        directions = directions[:2]
        largest = np.abs(directions).argmax(axis=1)
        directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
        reach = np.quantile(np.abs((vectors - middle) @ directions.T), 0.99, axis=0)
        return cls(version, middle, directions, np.maximum(reach, 1e-9))

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """Points (n, 2) of vectors (n, 128), from -1 to 1: what lies further out is on the edge."""
        places = (vectors - self.middle) @ self.directions.T / self.reach
        return np.asarray(np.clip(places, -1, 1))

    @property
    def name(self) -> str:
        """The same for the same axes: a path over two maps would mean nothing."""
        return hashlib.sha256(self.directions.tobytes()).hexdigest()[:12]
