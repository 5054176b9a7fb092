"""The user tower: from a user's last engagements to the vector of what comes next."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_jobs.towers import losses, weights

OUTPUT = 128
PERIOD = 64  # posts of the pool around a target in time, which count as of the same period


@dataclass(frozen=True)
class UserConfig:
    """How to build and train. loss: sampled_softmax or triplet (the specification's)."""

    embedding_size: int = 64
    layers: int = 1
    heads: int = 4
    history_length: int = 30
    loss: str = "sampled_softmax"
    temperature: float = 0.1
    margin: float = 0.3
    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 10
    max_seconds: float = 60.0
    seed: int = 0


@dataclass
class History:
    """One user's engagements, oldest first: post vectors [t, 128], authors [t] and actions [t] as
    rows of the tables of their embeddings, times [t] in hours, is_positive [t]."""

    posts: np.ndarray
    authors: np.ndarray
    actions: np.ndarray
    hours: np.ndarray
    is_positive: np.ndarray

    def before(self, end: int, length: int) -> History:
        """The last `length` engagements before position `end`: never `end` itself."""
        part = slice(max(0, end - length), end)
        return History(*(values[part] for values in vars(self).values()))

    def without(self, post: np.ndarray) -> History:
        """The engagements with other posts than the one whose vector is `post` [128]."""
        other = ~(self.posts == post).all(axis=1)
        return History(*(values[other] for values in vars(self).values()))

    def validate(self, authors: int, actions: int) -> None:
        """Raises ValueError for shapes that do not fit, values that are not finite, times that
        run backwards (the future would be read as the past), and rows outside of the tables."""
        length = len(self.hours)
        shapes = {"posts": (length, OUTPUT), "authors": (length,), "actions": (length,),
                  "hours": (length,), "is_positive": (length,)}  # fmt: skip
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


class UserTower(nn.Module):
    """Transformer over engagements; the newest one's output is projected to norm 1."""

    def __init__(self, authors: int, actions: int, config: UserConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.author = nn.Embedding(authors, size)
        self.action = nn.Embedding(actions, size)
        nn.init.normal_(self.author.weight, std=0.1)
        nn.init.normal_(self.action.weight, std=0.1)
        self.post = nn.Linear(OUTPUT, size)
        self.recency = nn.Linear(1, size)
        layer = nn.TransformerEncoderLayer(
            size, config.heads, 2 * size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.projection = nn.Linear(size, OUTPUT)

    def forward(
        self, posts: Tensor, authors: Tensor, actions: Tensor, ages: Tensor, mask: Tensor
    ) -> Tensor:
        """posts [b, t, 128], authors and actions [b, t], ages [b, t] in hours before the newest,
        mask [b, t] true where there is an engagement; the newest is last. Returns [b, 128]."""
        tokens = (
            self.post(posts)
            + self.author(authors)
            + self.action(actions)
            + self.recency(torch.log1p(ages)[..., None])
        )  # [b, t, size]
        states = self.encoder(tokens, src_key_padding_mask=~mask)
        return F.normalize(self.projection(states[:, -1]), dim=-1)


def pad(histories: list[History]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `UserTower.forward`, padded in front. Raises ValueError for an empty history."""
    length = max(len(h.hours) for h in histories)
    posts = torch.zeros(len(histories), length, OUTPUT)
    authors = torch.zeros(len(histories), length, dtype=torch.long)
    actions = torch.zeros(len(histories), length, dtype=torch.long)
    ages = torch.zeros(len(histories), length)
    mask = torch.zeros(len(histories), length, dtype=torch.bool)
    for row, history in enumerate(histories):
        count = len(history.hours)
        if count == 0:
            raise ValueError("A history is empty.")
        posts[row, -count:] = torch.as_tensor(history.posts, dtype=torch.float32)
        authors[row, -count:] = torch.as_tensor(history.authors)
        actions[row, -count:] = torch.as_tensor(history.actions)
        ages[row, -count:] = torch.as_tensor(
            np.maximum(0.0, history.hours[-1] - history.hours), dtype=torch.float32
        )
        mask[row, -count:] = True
    return posts, authors, actions, ages, mask


def train_user(
    histories: list[History],
    pool: np.ndarray,
    start: dict[str, np.ndarray],
    authors: int,
    actions: int,
    config: UserConfig | None = None,
    pool_hours: np.ndarray | None = None,
) -> weights.TrainingResult:
    """Trains to tell the next positive engagement from posts of `pool` [m, 128].

    pool_hours: when the posts of the pool were created [m], on the clock of the histories; the
    triplet loss then draws its negative from the same period, else from the whole pool.
    start: tensors to go on from; those that are missing begin at random. Deterministic for a seed
    on one machine. Raises ValueError when no user has a positive after an engagement with another
    post, and for histories, pool or weights that do not fit.
    """
    config = config or UserConfig()
    torch.manual_seed(config.seed)
    tower = UserTower(authors, actions, config)
    weights.load(tower, {**weights.dump(tower), **start})
    for history in histories:
        history.validate(authors, actions)
    if pool.ndim != 2 or pool.shape[1] != OUTPUT or not np.isfinite(pool).all():
        raise ValueError(f"pool must be finite and [m, {OUTPUT}], not {pool.shape}.")
    # A click before the like of one post would give the answer away.
    candidates = (
        (
            history.before(end, config.history_length).without(history.posts[end]),
            history.posts[end],
            history.hours[end],
        )
        for history in histories
        for end in range(1, len(history.hours))
        if history.is_positive[end]
    )
    samples = [sample for sample in candidates if len(sample[0].hours)]
    if not samples or len(pool) == 0:
        raise ValueError("There is no user with an engagement before a positive one.")
    if pool_hours is not None:
        if pool_hours.shape != (len(pool),) or not np.isfinite(pool_hours).all():
            raise ValueError(f"pool_hours must be finite and [{len(pool)}].")
        order = np.argsort(pool_hours, kind="stable")
        pool, pool_hours = pool[order], pool_hours[order]
    pool_posts = torch.as_tensor(pool, dtype=torch.float32)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.learning_rate)
    deadline = time.monotonic() + config.max_seconds
    trace: list[float] = []
    while len(trace) < config.epochs and (not trace or time.monotonic() < deadline):
        total, seen = 0.0, 0
        for batch in torch.split(torch.randperm(len(samples)), config.batch_size):
            chosen = [samples[i] for i in batch.tolist()]
            target = torch.as_tensor(np.stack([t for _, t, _ in chosen]), dtype=torch.float32)
            users = tower(*pad([h for h, _, _ in chosen]))
            if config.loss == "triplet":
                when = np.array([hour for _, _, hour in chosen])
                other = pool_posts[_same_period(when, pool_hours, len(pool))]
                own, wrong = (users * target).sum(-1), (users * other).sum(-1)
                loss = losses.triplet(own, wrong, config.margin)
            else:
                loss = _next_loss(users, target, pool_posts, config)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total, seen = total + loss.item() * len(chosen), seen + len(chosen)
            if time.monotonic() > deadline:
                break
        trace.append(total / seen)
    metrics = {
        "users": len(histories), "samples": len(samples), "epochs": len(trace),
        "first_loss": trace[0], "last_loss": trace[-1],
    }  # fmt: skip
    return weights.TrainingResult(weights.dump(tower), metrics, asdict(config))


def _same_period(hours: np.ndarray, pool_hours: np.ndarray | None, count: int) -> Tensor:
    """For each target, a random row [b] of the pool, sorted by time, from around its time."""
    if pool_hours is None:
        return torch.randint(count, (len(hours),))
    width = min(PERIOD, count)
    middle = torch.as_tensor(np.searchsorted(pool_hours, hours))
    first = (middle - width // 2).clamp(0, count - width)
    return first + torch.randint(width, (len(hours),))


def _next_loss(user: Tensor, target: Tensor, pool: Tensor, config: UserConfig) -> Tensor:
    own = (user * target).sum(-1)  # [b]
    if config.loss != "sampled_softmax":
        raise ValueError(f"There is no loss called {config.loss}.")
    # The pool is a uniform sample, so its posts need no correction; those of the batch do.
    picked = pool[torch.randperm(len(pool))[:256]]
    same = (target @ target.T) > 0.9999
    in_batch_log_q = torch.log(same.float().mean(1)).expand(len(user), -1)
    pool_log_q = torch.full((len(user), len(picked)), -float(np.log(len(picked))))
    is_target = (target @ picked.T) > 0.9999
    return losses.sampled_softmax(
        own,
        torch.cat([user @ picked.T, user @ target.T], dim=1),
        torch.cat([pool_log_q, in_batch_log_q], dim=1),
        torch.cat([~is_target, ~same], dim=1),
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
    tower = UserTower(authors, actions, config)
    weights.load(tower, tensors)
    tower.eval()
    vectors = np.zeros((len(histories), OUTPUT), dtype=np.float32)
    known = [i for i, history in enumerate(histories) if len(history.hours)]
    with torch.inference_mode():
        for begin in range(0, len(known), config.batch_size):
            part = known[begin : begin + config.batch_size]
            recent = [
                histories[i].before(len(histories[i].hours), config.history_length) for i in part
            ]
            vectors[part] = tower(*pad(recent)).numpy()
    return vectors
