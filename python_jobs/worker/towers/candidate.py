"""The candidate tower: from a post's base embedding to its place among the live vectors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_jobs.worker.stopping import leave_if_told
from python_jobs.worker.towers import losses, weights
from python_jobs.worker.towers.checks import check_arrays

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
    anchor_weight: float = 16.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    epochs: int = 6
    max_seconds: float = 25.0
    seed: int = 0


def _no(*shape: int) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(shape, dtype=np.int64 if len(shape) == 1 else np.float32)


@dataclass
class CandidateData:
    """base [posts, 384]; all other posts are rows of it. Positives: user [n, 128], positive [n],
    negatives [n, k] with mask [n, k]. Anchors, engaged posts with live vectors: anchor [m],
    anchor_live [m, 128], anchor_weight [m]. Explicit negatives: rejected_user [e, 128],
    rejected [e]."""

    base: np.ndarray
    user: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray
    mask: np.ndarray
    anchor: np.ndarray = field(default_factory=_no(0))
    anchor_live: np.ndarray = field(default_factory=_no(0, OUTPUT))
    anchor_weight: np.ndarray = field(default_factory=_no(0))
    rejected_user: np.ndarray = field(default_factory=_no(0, OUTPUT))
    rejected: np.ndarray = field(default_factory=_no(0))

    def validate(self) -> None:
        """Raises ValueError for empty data, shapes that do not fit, rows that are not there, and
        values not finite."""
        n, m, e = len(self.user), len(self.anchor), len(self.rejected)
        if n == 0:
            raise ValueError("There are no positives to train on.")
        k = self.negatives.shape[1] if self.negatives.ndim == 2 else 0
        check_arrays(self, "the data", {
            "base": (len(self.base), BASE), "user": (n, OUTPUT), "positive": (n,),
            "negatives": (n, k), "mask": (n, k), "anchor": (m,), "anchor_live": (m, OUTPUT),
            "anchor_weight": (m,), "rejected_user": (e, OUTPUT), "rejected": (e,),
        })  # fmt: skip
        for name in ("positive", "negatives", "anchor", "rejected"):
            rows = getattr(self, name)
            if rows.size and not (rows.min() >= 0 and rows.max() < len(self.base)):
                raise ValueError(f"{name} must be rows of base.")
        if m and ((self.anchor_weight < 0).any() or not self.anchor_weight.any()):
            raise ValueError("anchor_weight must not be negative, nor zero throughout.")


class _Tensors:
    """The data as tensors on a device, with how often each post is drawn [posts]."""

    def __init__(self, data: CandidateData, device: torch.device) -> None:
        def real(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        def rows(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=torch.long, device=device)

        self.base, self.user = real(data.base), real(data.user)
        self.positive, self.negatives = rows(data.positive), rows(data.negatives)
        self.mask = torch.as_tensor(data.mask, dtype=torch.bool, device=device)
        self.anchor, self.anchor_live = rows(data.anchor), real(data.anchor_live)
        self.anchor_weight = torch.as_tensor(data.anchor_weight, dtype=torch.float32)
        self.rejected_user, self.rejected = real(data.rejected_user), rows(data.rejected)
        drawn = data.negatives[data.mask.astype(bool)]
        self.positive_share = real(np.bincount(data.positive, minlength=len(data.base)))
        self.positive_share /= len(data.user)
        self.negative_share = real(np.bincount(drawn, minlength=len(data.base)))
        self.negative_share /= max(1, len(drawn))


def train_candidate(
    data: CandidateData, start: dict[str, np.ndarray], config: CandidateConfig | None = None
) -> weights.TrainingResult:
    """Trains from `start` and returns the new tensors with first and last loss.

    Deterministic for a seed on one machine; on CUDA where there is a device. Raises ValueError for
    data or weights that do not fit.
    """
    config = config or CandidateConfig()
    data.validate()
    device = weights.device()
    # Not the global generator: something else in the process may draw from it meanwhile.
    draw = torch.Generator().manual_seed(config.seed)
    tower = CandidateTower()
    weights.load(tower, start)
    tower.to(device)
    given = _Tensors(data, device)
    optimizer = torch.optim.AdamW(
        tower.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    deadline = time.monotonic() + config.max_seconds
    history: list[float] = []
    while len(history) < config.epochs and (not history or time.monotonic() < deadline):
        total, seen = 0.0, 0
        for batch in torch.split(
            torch.randperm(len(given.user), generator=draw), config.batch_size
        ):
            leave_if_told()
            loss = _loss(tower, given, batch.to(device), config, draw)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total, seen = total + loss.item() * len(batch), seen + len(batch)
            if time.monotonic() > deadline:
                break
        history.append(total / seen)
    metrics = {
        "pairs": len(data.user), "anchors": len(data.anchor), "rejected": len(data.rejected),
        "epochs": len(history), "first_loss": history[0], "last_loss": history[-1],
    }  # fmt: skip
    return weights.TrainingResult(weights.dump(tower), metrics, asdict(config))


def _loss(
    tower: CandidateTower,
    given: _Tensors,
    batch: Tensor,
    config: CandidateConfig,
    draw: torch.Generator,
) -> Tensor:
    """Loss of a batch of positives, with its share of explicit negatives and of anchors.

    Each post of the batch goes through the tower once, however often it takes part.
    """
    parts = [given.positive[batch], given.negatives[batch].flatten()]
    share = 0
    if len(given.rejected):
        # As many as in proportion to the positives, so that an epoch sees each about once.
        share = max(1, len(batch) * len(given.rejected) // len(given.user))
        some = torch.randint(len(given.rejected), (share,), generator=draw).to(batch.device)
        parts.append(given.rejected[some])
    if len(given.anchor):
        picked = torch.multinomial(
            given.anchor_weight, config.batch_size, replacement=True, generator=draw
        ).to(batch.device)
        parts.append(given.anchor[picked])
    posts, place = torch.unique(torch.cat(parts), return_inverse=True)
    # Not posts[place]: the gradient of index_select is summed in one order, on every run the same.
    vectors = tower(given.base[posts]).index_select(0, place)  # [all parts, 128]
    positive, negative, *rest = torch.split(vectors, [len(part) for part in parts])
    loss = _pair_loss(given, batch, positive, negative, config)
    if share:
        cosine = (given.rejected_user[some] * rest[0]).sum(-1)
        loss = loss + _rejection_loss(cosine, config) * share / len(batch)
    if len(given.anchor):
        fit = (rest[-1] * given.anchor_live[picked]).sum(-1)
        loss = loss + config.anchor_weight * (1 - fit).mean()
    return loss


def _pair_loss(
    given: _Tensors, batch: Tensor, positive: Tensor, negative: Tensor, config: CandidateConfig
) -> Tensor:
    """positive [b, 128], negative [b * k, 128]."""
    user, mask, posts = given.user[batch], given.mask[batch], given.positive[batch]
    own = (user * positive).sum(-1)  # [b]
    recorded = (user[:, None] * negative.view(*mask.shape, OUTPUT)).sum(-1)  # [b, k]
    if config.loss == "squared_error":
        similarity = torch.cat([own, recorded[mask]])
        label = torch.arange(len(similarity), device=own.device) < len(own)
        return losses.squared_error(similarity, label)
    if config.loss != "sampled_softmax":
        raise ValueError(f"There is no loss called {config.loss}.")
    # Other posts of the batch are negatives too. A post can come from the batch and from the
    # recorded ones, which are drawn differently: what corrects both is how often it is expected
    # among all candidates of a user (the balance heuristic of Veach and Guibas, 1995).
    recorded_count = mask.sum(1).float().mean()
    expected = len(user) * given.positive_share + recorded_count * given.negative_share
    candidates = torch.cat([given.negatives[batch], posts.expand(len(user), -1)], dim=1)
    in_batch = torch.ones(len(user), len(user), dtype=torch.bool, device=own.device)
    return losses.sampled_softmax(
        own,
        torch.cat([recorded, user @ positive.T], dim=1),  # [b, k + b]
        torch.log(expected)[candidates],
        torch.cat([mask, in_batch], dim=1) & (candidates != posts[:, None]),
        config.temperature,
    )


def _rejection_loss(cosine: Tensor, config: CandidateConfig) -> Tensor:
    """Loss of explicit negatives, which were not sampled and thus need no correction."""
    if config.loss == "squared_error":
        return losses.squared_error(cosine, torch.zeros_like(cosine, dtype=torch.bool))
    return F.softplus(cosine / config.temperature).mean()
