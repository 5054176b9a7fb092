"""Peers at their best: their parameters are chosen on the stream's head, which the tail follows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from python_jobs.laboratory.evaluate.interactions import Stream
from python_jobs.laboratory.evaluate.measure import TAIL, choose_questions, run
from python_jobs.laboratory.evaluate.systems import RETRAININGS, Peer

QUESTIONS = 1000
RETRAININGS_PER_TRY = 8
GRIDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "ALS": [
        ("ALS", {"factors": factors, "alpha": alpha, "regularization": regularization})
        for factors, alpha, regularization in product((16, 32, 64), (1, 4), (0.1, 1, 10))
    ],
    "item-kNN": [
        (kind, {"K": neighbours})
        for kind, neighbours in product(
            ("CosineRecommender", "TFIDFRecommender", "BM25Recommender"), (20, 50, 200)
        )
    ],
}


def tuned_peer(stream: Stream, name: str, advance: Callable[[int], None]) -> Peer:
    """The peer with the best NDCG@10 on what comes before the tail, ready to run.

    name: of a grid. advance is called with the number of tries made. A try is trained less often
    than the peer is in the end, and not judged by the first quarter of what it is asked.
    """
    head = stream.head(int((1 - TAIL) * len(stream.users)))
    asked = choose_questions(head, QUESTIONS)
    found = []
    for number, (kind, config) in enumerate(GRIDS[name], start=1):
        peer = Peer(head, kind, config, max(1, len(head.users) // RETRAININGS_PER_TRY))
        ndcg = run(peer, head, asked).ndcg()
        found.append(float(ndcg[len(ndcg) // 4 :].mean()))
        advance(number)
    kind, config = GRIDS[name][int(np.argmax(found))]
    return Peer(stream, kind, config, max(1, len(stream.users) // RETRAININGS))
