"""The candidate tower: from a post's base embedding to its place among the live vectors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_jobs.towers import losses, weights

BASE, HIDDEN, OUTPUT = 384, 256, 128


class CandidateTower(nn.Module):
    """Two layers, 384 -> 256 -> 128, ReLU between, output of norm 1; the same as in SQL."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(BASE, HIDDEN)
        self.output = nn.Linear(HIDDEN, OUTPUT)

    def forward(self, base: Tensor) -> Tensor:
        """[..., 384] -> [..., 128]."""
        return F.normalize(self.output(F.relu(self.hidden(base))), dim=-1)


@dataclass(frozen=True)
class CandidateConfig:
    """How to train. loss: sampled_softmax or squared_error. anchor_weight: of the fit to live
    vectors, which keeps the tower in their space. Times in seconds."""

    loss: str = "sampled_softmax"
    temperature: float = 0.2
    anchor_weight: float = 4.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    epochs: int = 20
    max_seconds: float = 30.0
    seed: int = 0


@dataclass
class CandidateData:
    """user [n, 128], positive [n, 384], negatives [n, k, 384] with mask [n, k]; anchors: base
    [m, 384] and live [m, 128] embeddings of engaged posts, weight [m]."""

    user: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray
    mask: np.ndarray
    anchor_base: np.ndarray
    anchor_live: np.ndarray
    anchor_weight: np.ndarray

    def validate(self) -> None:
        """Raises ValueError for empty data, shapes that do not fit, and values not finite."""
        if len(self.user) == 0:
            raise ValueError("There are no positives to train on.")
        if self.user.shape[1:] != (OUTPUT,) or self.positive.shape[1:] != (BASE,):
            raise ValueError("user must be [n, 128] and positive [n, 384].")
        for name, values in vars(self).items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds values that are not finite.")


def train_candidate(
    data: CandidateData, start: dict[str, np.ndarray], config: CandidateConfig | None = None
) -> weights.TrainingResult:
    """Trains from `start` and returns the new tensors with first and last loss.

    Deterministic for a seed on one machine. Raises ValueError for data or weights that do not fit.
    """
    config = config or CandidateConfig()
    data.validate()
    torch.manual_seed(config.seed)
    tower = CandidateTower()
    weights.load(tower, start)
    user, positive, negatives, anchor_base, anchor_live, anchor_weight = (
        torch.as_tensor(part, dtype=torch.float32)
        for part in (
            data.user, data.positive, data.negatives,
            data.anchor_base, data.anchor_live, data.anchor_weight,
        )
    )  # fmt: skip
    mask = torch.as_tensor(data.mask)
    optimizer = torch.optim.AdamW(
        tower.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    deadline = time.monotonic() + config.max_seconds
    history: list[float] = []
    for _ in range(config.epochs):
        total = 0.0
        for batch in torch.split(torch.randperm(len(user)), config.batch_size):
            loss = _pair_loss(
                tower, user[batch], positive[batch], negatives[batch], mask[batch], config
            )
            if len(anchor_base):
                picked = torch.multinomial(anchor_weight, config.batch_size, replacement=True)
                fit = (tower(anchor_base[picked]) * anchor_live[picked]).sum(-1)
                loss = loss + config.anchor_weight * (1 - fit).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item() * len(batch)
        history.append(total / len(user))
        if time.monotonic() > deadline:
            break
    metrics = {
        "pairs": len(user), "anchors": len(anchor_base), "epochs": len(history),
        "first_loss": history[0], "last_loss": history[-1],
    }  # fmt: skip
    return weights.TrainingResult(weights.dump(tower), metrics, asdict(config))


def _pair_loss(
    tower: CandidateTower,
    user: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor,
    config: CandidateConfig,
) -> Tensor:
    posts = tower(positive)  # [b, 128]
    own = (user * posts).sum(-1)  # [b]
    recorded = (user[:, None] * tower(negatives)).sum(-1)  # [b, k]
    if config.loss == "squared_error":
        similarity = torch.cat([own, recorded[mask]])
        label = torch.arange(len(similarity)) < len(own)
        return losses.squared_error(similarity, label)
    if config.loss != "sampled_softmax":
        raise ValueError(f"There is no loss called {config.loss}.")
    # Other posts of the batch are negatives too, drawn as often as they are liked.
    same = (positive[:, None] == positive[None]).all(-1)  # [b, b]
    in_batch_log_q = torch.log(same.float().mean(1)).expand(len(user), -1)
    recorded_log_q = torch.full_like(recorded, -float(np.log(max(1, recorded.shape[1]))))
    return losses.sampled_softmax(
        own,
        torch.cat([recorded, user @ posts.T], dim=1),
        torch.cat([recorded_log_q, in_batch_log_q], dim=1),
        torch.cat([mask, ~same], dim=1),
        config.temperature,
    )
