"""The user tower: from a user's last engagements to the vector of what comes next."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_jobs.towers import losses, weights

OUTPUT = 128
SIZE = 64  # of the embeddings of authors and actions, which are tables
UNKNOWN = 0  # row of the authors for one of whom nothing is known: the zero vector
PERIOD = 64  # posts of the pool around a target in time, which count as of the same period


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


@dataclass
class History:
    """One user's engagements, oldest first: vectors [t, 128] and ids [t] of posts, authors [t] and
    actions [t] as rows of the tables of their embeddings, times [t] in hours, is_positive [t]."""

    posts: np.ndarray
    post_ids: np.ndarray
    authors: np.ndarray
    actions: np.ndarray
    hours: np.ndarray
    is_positive: np.ndarray

    def validate(self, authors: int, actions: int) -> None:
        """Raises ValueError for shapes that do not fit, values that are not finite, times that
        run backwards (the future would be read as the past), and rows outside of the tables."""
        length = len(self.hours)
        shapes = {"posts": (length, OUTPUT), "post_ids": (length,), "authors": (length,),
                  "actions": (length,), "hours": (length,), "is_positive": (length,)}  # fmt: skip
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name} of a history must be {shape}, not {values.shape}.")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} of a history holds values that are not finite.")
        if (np.diff(self.hours) < 0).any():
            raise ValueError("hours of a history must not decrease: oldest first.")
        for name, count in (("authors", authors), ("actions", actions)):
            values = getattr(self, name)
            if length and not (values.min() >= 0 and values.max() < count):
                raise ValueError(f"{name} of a history must be rows of a table of {count}.")


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


class Histories:
    """All histories in one table, from which windows [b, t] of engagements are cut."""

    def __init__(self, histories: list[History], length: int) -> None:
        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(h, name) for h in histories])

        self.length = length
        self.ends = np.cumsum([len(h.hours) for h in histories])
        self.starts = self.ends - [len(h.hours) for h in histories]
        self.posts = joined("posts").astype(np.float32)
        self.post_ids, self.hours = joined("post_ids"), joined("hours")
        self.authors, self.actions = joined("authors"), joined("actions")
        self.is_positive = joined("is_positive").astype(bool)

    def window(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [b, t] of the last `length` engagements from `start` on and before `end`, and where
        there is one; never `end` itself."""
        rows = end[:, None] + np.arange(-self.length, 0)
        is_there = rows >= start[:, None]
        return np.maximum(rows, 0), is_there

    def targets(self) -> list[np.ndarray]:
        """By user, the positives with an engagement with another post before them."""
        found = []
        for start, end in zip(self.starts, self.ends, strict=True):
            rows = start + 1 + np.flatnonzero(self.is_positive[start + 1 : end])
            begin = np.full(len(rows), start)
            found.append(rows[self.before(begin, rows)[1].any(axis=1)])
        return [rows for rows in found if len(rows)]

    def before(self, start: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The window before a target without the engagements with the target's own post: a click
        before the like of a post would give the answer away."""
        rows, is_there = self.window(start, target)
        return rows, is_there & (self.post_ids[rows] != self.post_ids[target][:, None])

    def inputs(self, rows: np.ndarray, is_there: np.ndarray, device: torch.device) -> list[Tensor]:
        """Arguments of `UserTower.forward`. Each row needs an engagement."""
        # The newest engagement must be last, also where the last places are masked.
        order = np.argsort(is_there, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        is_there = np.take_along_axis(is_there, order, axis=1)
        if not is_there[:, -1].all():
            raise ValueError("A history is empty.")
        ages = np.maximum(0.0, self.hours[rows[:, -1:]] - self.hours[rows]) * is_there
        return [
            torch.as_tensor(part, device=device)
            for part in (
                self.posts[rows], self.authors[rows], self.actions[rows],
                ages.astype(np.float32), is_there,
            )
        ]  # fmt: skip


@dataclass
class Pool:
    """Posts to draw negatives from: ids [m], vectors [m, 128], and when they were created [m], in
    hours, on the clock of the histories."""

    post_ids: np.ndarray
    posts: np.ndarray
    hours: np.ndarray

    def validate(self) -> None:
        """Raises ValueError, naming it, for a part that does not fit or is not finite."""
        count = len(self.post_ids)
        shapes = {"post_ids": (count,), "posts": (count, OUTPUT), "hours": (count,)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} of the pool must be finite and {shape}.")


class Negatives:
    """The pool on a device, with how often a step is expected to meet each post as a negative.

    A post comes from the pool, of which a step draws IN_STEP, or is another user's target; what
    corrects both is the sum of what is expected (the balance heuristic of Veach and Guibas, 1995).
    targets: by user, the ids of the posts of which one is drawn, of users of whom count are drawn.
    """

    IN_STEP = 256

    def __init__(
        self, pool: Pool, targets: list[np.ndarray], count: int, device: torch.device
    ) -> None:
        order = np.argsort(pool.hours, kind="stable")
        self.hours, self.post_ids = pool.hours[order], pool.post_ids[order]
        self.posts = torch.as_tensor(pool.posts[order], dtype=torch.float32, device=device)
        self.in_step = min(self.IN_STEP, len(order))
        chances = np.concatenate([np.full(len(ids), 1 / len(ids)) for ids in targets])
        self.known, place = np.unique(
            np.concatenate([*targets, self.post_ids]), return_inverse=True
        )
        self.expected = np.bincount(place, np.concatenate([
            chances * count / len(targets), np.full(len(order), self.in_step / len(order))
        ]))  # fmt: skip

    def log_expected(self, post_ids: np.ndarray) -> np.ndarray:
        """Of each of the posts [n], float32."""
        expected = self.expected[np.searchsorted(self.known, post_ids)]
        return np.asarray(np.log(expected), dtype=np.float32)

    def draw(self, draw: np.random.Generator) -> np.ndarray:
        """Rows of posts, none twice."""
        return draw.permutation(len(self.post_ids))[: self.in_step]

    def of_the_period(self, hours: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """For each time a row, at random from around it."""
        width = min(PERIOD, len(self.hours))
        first = np.searchsorted(self.hours, hours) - width // 2
        first = np.clip(first, 0, len(self.hours) - width)
        return np.asarray(first + draw.integers(width, size=len(hours)))


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
