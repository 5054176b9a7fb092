"""The candidate tower: from a post's base embedding to its place among the live vectors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

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


def fit_projection(base: np.ndarray) -> np.ndarray:
    """Orthonormal rows W [128, 384] that keep most of the base embeddings [n, 384]: PCA.

    Not centred, because cosines are about the origin: subtracting the mean changes their order.
    Fewer posts than 128 leave directions that no post tells apart; they are filled up by the
    eigenvectors that follow. Raises ValueError for an empty base and for values not finite.
    """
    if base.ndim != 2 or base.shape[1] != BASE or len(base) == 0:
        raise ValueError(f"base must be [n, {BASE}] with n > 0, not {base.shape}.")
    if not np.isfinite(base).all():
        raise ValueError("base holds values that are not finite.")
    exact = base.astype(np.float64)
    _, vectors = np.linalg.eigh(exact.T @ exact)  # columns, by rising eigenvalue
    rows = vectors[:, : -OUTPUT - 1 : -1].T  # [128, 384]
    # An eigenvector is known up to its sign: the largest entry is made positive.
    largest = rows[np.arange(OUTPUT), np.abs(rows).argmax(1)]
    return np.asarray(rows * np.sign(largest)[:, None], dtype=np.float32)


def projection_tensors(projection: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors with which the tower is the projection W [128, 384] itself, at norm 1.

    hidden = [W; -W] and output = [I, -I], because relu(Wx) - relu(-Wx) = Wx.
    Raises ValueError for another shape.
    """
    if projection.shape != (OUTPUT, BASE):
        raise ValueError(f"The projection must be [{OUTPUT}, {BASE}], not {projection.shape}.")
    identity = np.eye(OUTPUT, dtype=np.float32)
    return {
        "hidden.weight": np.concatenate([projection, -projection]).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, dtype=np.float32),
        "output.weight": np.concatenate([identity, -identity], axis=1),
        "output.bias": np.zeros(OUTPUT, dtype=np.float32),
    }


@dataclass(frozen=True)
class CandidateConfig:
    """How to train. loss: sampled_softmax or squared_error. anchor_weight: of the fit to live
    vectors, which keeps the tower in their space. Times in seconds."""

    loss: str = "sampled_softmax"
    temperature: float = 0.2
    anchor_weight: float = 16.0
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    batch_size: int = 128
    epochs: int = 20
    max_seconds: float = 30.0
    seed: int = 0


@dataclass
class CandidateData:
    """user [n, 128], positive [n, 384], negatives [n, k, 384] with mask [n, k]; anchors: base
    [m, 384] and live [m, 128] embeddings of engaged posts, weight [m]; rejected: user [e, 128]
    and base [e, 384] of explicit negatives."""

    user: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray
    mask: np.ndarray
    anchor_base: np.ndarray
    anchor_live: np.ndarray
    anchor_weight: np.ndarray
    rejected_user: np.ndarray = field(default_factory=lambda: np.zeros((0, OUTPUT)))
    rejected_base: np.ndarray = field(default_factory=lambda: np.zeros((0, BASE)))

    def validate(self) -> None:
        """Raises ValueError for empty data, shapes that do not fit, and values not finite."""
        n, m, e = len(self.user), len(self.anchor_base), len(self.rejected_user)
        if n == 0:
            raise ValueError("There are no positives to train on.")
        k = self.negatives.shape[1] if self.negatives.ndim == 3 else 0
        shapes = {
            "user": (n, OUTPUT), "positive": (n, BASE), "negatives": (n, k, BASE), "mask": (n, k),
            "anchor_base": (m, BASE), "anchor_live": (m, OUTPUT), "anchor_weight": (m,),
            "rejected_user": (e, OUTPUT), "rejected_base": (e, BASE),
        }  # fmt: skip
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name} must be {shape}, not {values.shape}.")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds values that are not finite.")
        if m and ((self.anchor_weight < 0).any() or not self.anchor_weight.any()):
            raise ValueError("anchor_weight must not be negative, nor zero throughout.")

    def draws(self) -> Draws:
        """Which rows are the same post, and how often each post is drawn."""
        mask = self.mask.astype(bool)
        rows = np.concatenate([self.positive, self.negatives[mask]]).astype(np.float32)
        _, post = np.unique(rows, axis=0, return_inverse=True)
        post = post.reshape(-1)
        liked, drawn = post[: len(self.user)], post[len(self.user) :]
        negative = np.zeros(mask.shape, dtype=np.int64)
        negative[mask] = drawn
        count = int(post.max()) + 1
        return Draws(
            *(torch.as_tensor(part) for part in (
                liked,
                negative,
                np.bincount(liked, minlength=count) / len(liked),
                np.bincount(drawn, minlength=count) / max(1, len(drawn)),
            ))
        )  # fmt: skip


@dataclass(frozen=True)
class Draws:
    """Posts as numbers: positive [n], negative [n, k]; by post, its share of the positives and of
    the recorded negatives [posts]."""

    positive: Tensor
    negative: Tensor
    positive_share: Tensor
    negative_share: Tensor


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
    rejected_user, rejected_base = (
        torch.as_tensor(part, dtype=torch.float32)
        for part in (data.rejected_user, data.rejected_base)
    )
    mask = torch.as_tensor(data.mask, dtype=torch.bool)
    draws = data.draws()
    optimizer = torch.optim.AdamW(
        tower.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    deadline = time.monotonic() + config.max_seconds
    history: list[float] = []
    while len(history) < config.epochs and (not history or time.monotonic() < deadline):
        total, seen = 0.0, 0
        for batch in torch.split(torch.randperm(len(user)), config.batch_size):
            loss = _pair_loss(
                tower, user[batch], positive[batch], negatives[batch], mask[batch],
                draws.positive[batch], draws.negative[batch], draws, config,
            )  # fmt: skip
            if len(rejected_user):
                # As many as in proportion to the positives, so that an epoch sees each about once.
                share = max(1, len(batch) * len(rejected_user) // len(user))
                some = torch.randint(len(rejected_user), (share,))
                cosine = (rejected_user[some] * tower(rejected_base[some])).sum(-1)
                loss = loss + _rejection_loss(cosine, config) * share / len(batch)
            if len(anchor_base):
                picked = torch.multinomial(anchor_weight, config.batch_size, replacement=True)
                fit = (tower(anchor_base[picked]) * anchor_live[picked]).sum(-1)
                loss = loss + config.anchor_weight * (1 - fit).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total, seen = total + loss.item() * len(batch), seen + len(batch)
            if time.monotonic() > deadline:
                break
        history.append(total / seen)
    metrics = {
        "pairs": len(user), "anchors": len(anchor_base), "rejected": len(rejected_user),
        "epochs": len(history),
        "first_loss": history[0], "last_loss": history[-1],
    }  # fmt: skip
    return weights.TrainingResult(weights.dump(tower), metrics, asdict(config))


def _pair_loss(
    tower: CandidateTower,
    user: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor,
    post: Tensor,
    negative_post: Tensor,
    draws: Draws,
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
    # Other posts of the batch are negatives too. A post can come from the batch and from the
    # recorded ones, which are drawn differently: what corrects both is how often it is expected
    # among all candidates of a user (the balance heuristic of Veach and Guibas, 1995).
    expected = len(user) * draws.positive_share + mask.sum(1).float().mean() * draws.negative_share
    log_expected = torch.log(expected).float()  # [posts]
    candidates = torch.cat([negative_post, post.expand(len(user), -1)], dim=1)  # [b, k + b]
    is_candidate = torch.cat([mask, torch.ones(len(user), len(user), dtype=torch.bool)], dim=1)
    return losses.sampled_softmax(
        own,
        torch.cat([recorded, user @ posts.T], dim=1),
        log_expected[candidates],
        is_candidate & (candidates != post[:, None]),
        config.temperature,
    )


def _rejection_loss(cosine: Tensor, config: CandidateConfig) -> Tensor:
    """Loss of explicit negatives, which were not sampled and thus need no correction."""
    if config.loss == "squared_error":
        return losses.squared_error(cosine, torch.zeros_like(cosine, dtype=torch.bool))
    return F.softplus(cosine / config.temperature).mean()
