"""The user tower: from a user's last engagements to the vector of what comes next."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_jobs.worker.stopping import leave_if_told
from python_jobs.worker.towers import losses, weights
from python_jobs.worker.towers.histories import OUTPUT, Histories, History, Negatives, Pool

SIZE = 64  # of the embeddings of authors and actions, which are tables
UNKNOWN = 0  # row of the authors for one of whom nothing is known: the zero vector


@dataclass(frozen=True)
class UserConfig:
    """How to build and train. loss: sampled_softmax or triplet (the specification's).

    A step trains on one positive each of batch_size users, drawn at random.
    """

    layers: int = 1
    heads: int = 4
    history_length: int = 30
    loss: str = "sampled_softmax"
    temperature: float = 0.1
    margin: float = 0.3
    learning_rate: float = 1e-3
    batch_size: int = 128
    steps: int = 200
    max_seconds: float = 90.0
    seed: int = 0

    @classmethod
    def of(cls, stored: dict[str, Any]) -> UserConfig:
        """The config of a stored version; what else stands there is not its business."""
        return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})


class Block(nn.Module):
    """Attention and two layers, each on normalised input and added to it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(SIZE)
        self.attention = nn.MultiheadAttention(SIZE, heads, batch_first=True)
        self.between = nn.LayerNorm(SIZE)
        self.wide = nn.Linear(SIZE, 2 * SIZE)
        self.narrow = nn.Linear(2 * SIZE, SIZE)

    def forward(self, tokens: Tensor, mask: Tensor, of: slice) -> Tensor:
        """tokens [b, t, size], mask [b, t]; states [b, s, size] of the tokens `of` among them."""
        ready = self.before(tokens)
        attended, _ = self.attention(
            ready[:, of], ready, ready, key_padding_mask=~mask, need_weights=False
        )
        state: Tensor = tokens[:, of] + attended
        widened: Tensor = self.wide(self.between(state))
        narrowed: Tensor = self.narrow(F.relu(widened))
        return state + narrowed


class UserTower(nn.Module):
    """Transformer over engagements; the newest one's output is projected to norm 1."""

    def __init__(self, authors: int, actions: int, config: UserConfig) -> None:
        super().__init__()
        self.author = nn.Embedding(authors, SIZE, padding_idx=UNKNOWN)
        self.action = nn.Embedding(actions, SIZE)
        self.post = nn.Linear(OUTPUT, SIZE)
        self.recency = nn.Linear(1, SIZE)
        self.blocks = nn.ModuleList(Block(config.heads) for _ in range(config.layers))
        self.projection = nn.Linear(SIZE, OUTPUT)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Random weights. Not by the global generator: something else in the process may draw from
        it meanwhile."""
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name in ("author.weight", "action.weight"):
                parameter.normal_(0, 0.1, generator=draw)
            elif parameter.ndim == 2:
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=draw)
            elif name.endswith("bias"):
                parameter.zero_()
        self.author.weight[UNKNOWN] = 0

    def forward(
        self, posts: Tensor, authors: Tensor, actions: Tensor, ages: Tensor, mask: Tensor
    ) -> Tensor:
        """posts [b, t, 128], authors and actions [b, t], ages [b, t] in hours before the newest,
        mask [b, t] true where there is an engagement; the newest is last. Returns [b, 128]."""
        states = (
            self.post(posts)
            + self.author(authors)
            + self.action(actions)
            + self.recency(torch.log1p(ages)[..., None])
        )  # [b, t, size]
        for place, block in enumerate(self.blocks, start=1):
            # Of the last block only the newest engagement's state is used.
            states = block(states, mask, slice(-1 if place == len(self.blocks) else None, None))
        return F.normalize(self.projection(states[:, -1]), dim=-1)


def train_user(
    histories: list[History],
    pool: Pool,
    start: dict[str, np.ndarray],
    authors: int,
    actions: int,
    config: UserConfig | None = None,
) -> weights.TrainingResult:
    """Trains to tell the next positive engagement from other posts.

    The triplet loss draws its negative from the period of the target, the other from the whole
    pool. start: tensors to go on from; those that are missing begin at random. Deterministic for a
    seed on one machine. Raises ValueError when no user has a positive after an engagement with
    another post, and for histories, pool or weights that do not fit.
    """
    config = config or UserConfig()
    for history in histories:
        history.validate(authors, actions)
    pool.validate()
    table = Histories(histories, config.history_length) if histories else None
    targets = table.targets() if table else []
    if table is None or not targets or len(pool.post_ids) == 0:
        raise ValueError("There is no user with an engagement before a positive one.")
    device = weights.device()
    draw = np.random.default_rng(config.seed)
    tower = UserTower(authors, actions, config)
    tower.initialise(config.seed)
    weights.load(tower, {**weights.dump(tower), **start})
    tower.to(device)
    begins = np.array([table.starts[table.ends > rows[0]][0] for rows in targets])
    count = min(config.batch_size, len(targets))
    negatives = Negatives(pool, [table.post_ids[rows] for rows in targets], count, device)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.learning_rate)
    deadline = time.monotonic() + config.max_seconds
    trace: list[float] = []
    while len(trace) < config.steps and (not trace or time.monotonic() < deadline):
        leave_if_told()
        users = draw.permutation(len(targets))[:count]
        target = np.array([draw.choice(targets[user]) for user in users])
        vectors = tower(*table.inputs(*table.before(begins[users], target), device))
        wanted = torch.as_tensor(table.posts[target], device=device)
        if config.loss == "triplet":
            other = negatives.posts[negatives.of_the_period(table.hours[target], draw)]
            loss = losses.triplet(
                (vectors * wanted).sum(-1), (vectors * other).sum(-1), config.margin
            )
        else:
            loss = _next_loss(
                vectors, wanted, table.post_ids[target], negatives, negatives.draw(draw), config
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        trace.append(loss.item())
    tenth = max(1, len(trace) // 10)
    metrics = {
        "users": len(histories), "samples": sum(len(rows) for rows in targets),
        "steps": len(trace),
        "first_loss": float(np.mean(trace[:tenth])), "last_loss": float(np.mean(trace[-tenth:])),
    }  # fmt: skip
    return weights.TrainingResult(weights.dump(tower), metrics, asdict(config))


def _next_loss(
    user: Tensor,
    target: Tensor,
    target_ids: np.ndarray,
    negatives: Negatives,
    drawn: np.ndarray,
    config: UserConfig,
) -> Tensor:
    """user, target [b, 128], target_ids [b]; drawn: rows [n] of the negatives."""
    if config.loss != "sampled_softmax":
        raise ValueError(f"There is no loss called {config.loss}.")
    ids = np.concatenate([negatives.post_ids[drawn], target_ids])
    log_expected = torch.as_tensor(negatives.log_expected(ids), device=user.device)
    is_other = torch.as_tensor(ids != target_ids[:, None], device=user.device)
    return losses.sampled_softmax(
        (user * target).sum(-1),
        user @ torch.cat([negatives.posts[drawn], target]).T,  # [b, n + b]
        log_expected.expand(len(user), -1),
        is_other,
        config.temperature,
    )


def encode_users(
    histories: list[History], tensors: dict[str, np.ndarray], config: UserConfig | None = None
) -> np.ndarray:
    """The users' vectors [n, 128], of norm 1; zero for a user without engagements.

    config: the one that the tensors were trained with. Raises ValueError for what does not fit.
    """
    config = config or UserConfig()
    for name in ("author.weight", "action.weight"):
        if name not in tensors:
            raise ValueError(f"{name} is missing.")
    authors, actions = len(tensors["author.weight"]), len(tensors["action.weight"])
    for history in histories:
        history.validate(authors, actions)
    vectors = np.zeros((len(histories), OUTPUT), dtype=np.float32)
    known = np.array([i for i, history in enumerate(histories) if len(history.hours)], dtype=int)
    if not len(known):
        return vectors
    tower = UserTower(authors, actions, config)
    weights.load(tower, tensors)
    device = weights.device()
    tower.to(device).eval()
    table = Histories([histories[i] for i in known], config.history_length)
    with torch.inference_mode():
        for begin in range(0, len(known), config.batch_size):
            part = slice(begin, begin + config.batch_size)
            rows = table.window(table.starts[part], table.ends[part])
            vectors[known[part]] = tower(*table.inputs(*rows, device)).cpu().numpy()
    return vectors
