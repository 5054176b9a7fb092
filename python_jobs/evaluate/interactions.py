"""A stream of engagements to judge by: MovieLens 100K, or any CSV of the user's own."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from python_jobs.errors import CommandError
from python_jobs.movielens import MovieLens

POSITIVE = frozenset({"like", "reply", "repost"})
EVENT_TYPES = POSITIVE | {
    *("view", "click", "dwell", "skip", "hide", "not_interested"),
    *("block_author", "mute_author", "unlike", "unrepost"),
}
COLUMNS = ("user", "item", "time", "event_type")


@dataclass(frozen=True)
class Stream:
    """Engagements in order of time; users and items are numbers from 0.

    users, items: int [n]; seconds: float [n], since 1970; event_types: n names; texts: per item.
    """

    users: np.ndarray
    items: np.ndarray
    seconds: np.ndarray
    event_types: list[str]
    texts: list[str]

    @property
    def user_count(self) -> int:
        """So many users there are."""
        return int(self.users.max()) + 1

    @property
    def is_positive(self) -> np.ndarray:
        """bool [n]: the engagements that a recommender should foresee."""
        return np.array([event_type in POSITIVE for event_type in self.event_types])

    def head(self, events: int | None) -> Stream:
        """The first so many engagements; all for None."""
        part = slice(events)
        return Stream(
            self.users[part],
            self.items[part],
            self.seconds[part],
            self.event_types[part],
            self.texts,
        )


def from_movielens(data: MovieLens) -> Stream:
    """Films as items; ratings 5, 4 are positive, 3 a view, 2, 1 negative."""
    return _number(
        [(r.user, r.film, r.seconds, r.event_type) for r in data.ratings],
        {film.key: film.text for film in data.films},
    )


def from_csv(path: Path) -> Stream:
    """Columns user, item, time (seconds since 1970 or ISO 8601), event_type and, if there, text.

    Raises CommandError that names the line which cannot be read.
    """
    rows: list[tuple[str, str, float, str]] = []
    texts: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise CommandError(f"{path} lacks the column {missing[0]}: it needs {COLUMNS}.")
        for number, row in enumerate(reader, start=2):
            try:
                seconds = _seconds(row["time"])
            except (TypeError, ValueError) as error:
                raise CommandError(f"{path}, line {number}: no time: {row['time']}") from error
            if row["event_type"] not in EVENT_TYPES:
                raise CommandError(f"{path}, line {number}: no event type: {row['event_type']}")
            rows.append((row["user"], row["item"], seconds, row["event_type"]))
            texts.setdefault(row["item"], row.get("text") or row["item"])
    if not any(row[3] in POSITIVE for row in rows):
        raise CommandError(f"{path} holds no like, reply or repost: there is nothing to foresee.")
    return _number(sorted(rows, key=lambda row: row[2]), texts)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def _number(rows: list[tuple[str, str, float, str]], texts: dict[str, str]) -> Stream:
    users = {key: k for k, key in enumerate(dict.fromkeys(row[0] for row in rows))}
    items = {key: k for k, key in enumerate(texts)}
    return Stream(
        np.array([users[row[0]] for row in rows]),
        np.array([items[row[1]] for row in rows]),
        np.array([row[2] for row in rows]),
        [row[3] for row in rows],
        list(texts.values()),
    )
