"""What is simpler than learning, asked the same questions."""

from __future__ import annotations

import numpy as np

from python_jobs.laboratory.replay.report import PAGE

HALF_LIFE_S = 30 * 86400.0


class Baselines:
    """What is simpler than learning, over the same eligible posts: popularity and static content.

    base: the posts' base embeddings [n, 384]. Posts of equal score count as ranked in the
    baseline's favour; who has liked nothing yet gets the popular from both.
    """

    def __init__(self, base: np.ndarray) -> None:
        self._base = base
        self._popularity = np.zeros(len(base))
        self._at = 0.0
        self._seen: dict[str, set[int]] = {}
        self._liked: dict[str, np.ndarray] = {}

    def hits(self, user: str, post: int) -> dict[str, bool]:
        """Whether each method has the post among its first PAGE."""
        scores = {"popularity": self._popularity}
        liked = self._liked.get(user)
        scores["static content"] = self._popularity if liked is None else self._base @ liked
        blocked = list(self._seen.get(user, ()))
        found = {}
        for name, score in scores.items():
            own = score.copy()
            own[blocked] = -np.inf
            found[name] = bool((own > own[post]).sum() < PAGE)
        return found

    def add(self, user: str, post: int, is_positive: bool, seconds: float) -> None:
        """Learns one event."""
        self._seen.setdefault(user, set()).add(post)
        if is_positive:
            self._popularity *= 2 ** ((self._at - seconds) / HALF_LIFE_S) if self._at else 1
            self._at = seconds
            self._popularity[post] += 1
            self._liked[user] = (
                self._liked.get(user, np.zeros(self._base.shape[1])) + self._base[post]
            )
