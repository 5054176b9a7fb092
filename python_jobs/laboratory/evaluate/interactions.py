"""A stream of engagements to judge by: MovieLens 100K, or any CSV of the user's own."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from python_jobs.errors import CommandError
from python_jobs.laboratory.movielens import MovieLens

POSITIVE = frozenset({"like", "reply", "repost"})
EVENT_TYPES = POSITIVE | {
    *("view", "click", "dwell", "skip", "hide", "not_interested"),
    *("block_author", "mute_author", "unlike", "unrepost", "unhide", "undo_not_interested"),
}
COLUMNS = ("user", "item", "time", "event_type")
LONGEST_DWELL_MS = 2**31 - 1  # what an integer of Postgres holds


@dataclass(frozen=True)
class Engagement:
    """A row: who, with what, when (seconds since 1970), how, and how long for a dwell."""

    user: str
    item: str
    seconds: float
    event_type: str
    dwell_ms: int | None = None


@dataclass(frozen=True)
class Stream:
    """Engagements in order of time; users and items are numbers from 0.

    users, items: int [n]; seconds: float [n], since 1970; event_types: n names; texts: per item;
    dwell_ms: n durations, None for what is no dwell.
    """

    users: np.ndarray
    items: np.ndarray
    seconds: np.ndarray
    event_types: list[str]
    texts: list[str]
    dwell_ms: list[int | None]

    @property
    def user_count(self) -> int:
        """So many users there are."""
        return int(self.users.max()) + 1

    @property
    def is_positive(self) -> np.ndarray:
        """bool [n]: the engagements that a recommender should foresee."""
        return np.array([event_type in POSITIVE for event_type in self.event_types])

    def head(self, events: int | None) -> Stream:
        """The first so many engagements, with all items; all for None."""
        part = slice(events)
        return replace(
            self,
            users=self.users[part],
            items=self.items[part],
            seconds=self.seconds[part],
            event_types=self.event_types[part],
            dwell_ms=self.dwell_ms[part],
        )


def from_movielens(data: MovieLens) -> Stream:
    """Films as items; ratings 5, 4 are positive, 3 a view, 2, 1 negative."""
    return numbered(
        [Engagement(r.user, r.film, r.seconds, r.event_type) for r in data.ratings],
        {film.key: film.text for film in data.films},
    )


def from_csv(path: Path) -> Stream:
    """Columns user, item, time (seconds since 1970 or ISO 8601), event_type and, if there, text.

    A dwell needs a column dwell_ms. A time without a zone is UTC. Events of the same time stay in
    the order of the file. Raises CommandError that names the line which cannot be read.
    """
    rows: list[Engagement] = []
    texts: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            found = reader.fieldnames or []
        except (ValueError, csv.Error) as error:
            raise CommandError(f"{path} is no CSV in UTF-8: {error}") from error
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise CommandError(
                f"{path} lacks the column {missing[0]}: it needs {', '.join(COLUMNS)}."
            )
        try:
            for row in reader:
                rows.append(_engagement(row))
                texts[row["item"]] = texts.get(row["item"]) or row.get("text") or ""
        except (ValueError, OverflowError, csv.Error) as error:
            raise CommandError(f"{path}, line {reader.line_num}: {error}") from error
    if not any(row.event_type in POSITIVE for row in rows):
        raise CommandError(f"{path} holds no like, reply or repost: there is nothing to foresee.")
    texts = {item: text or item for item, text in texts.items()}
    return numbered(sorted(rows, key=lambda row: row.seconds), texts)


def _engagement(row: dict[str, str]) -> Engagement:
    if not row["user"] or not row["item"]:
        raise ValueError("no user or no item")
    event_type, dwell = row["event_type"], row.get("dwell_ms") or None
    if event_type not in EVENT_TYPES:
        raise ValueError(f"no event type: {event_type}")
    if event_type != "dwell":
        dwell = None
    elif dwell is None or not dwell.isdecimal() or int(dwell) > LONGEST_DWELL_MS:
        raise ValueError(f"no duration of a dwell in dwell_ms: {dwell}")
    seconds = _seconds(row["time"] or "")
    return Engagement(row["user"], row["item"], seconds, event_type, dwell and int(dwell))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            time = datetime.fromisoformat(text)
        except ValueError as error:
            raise ValueError(f"no time: {text}") from error
        return time.replace(tzinfo=time.tzinfo or UTC).timestamp()
    try:
        datetime.fromtimestamp(seconds, UTC)  # NaN, infinities, and years that no table holds
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"no time: {text}") from error
    return seconds


def numbered(rows: list[Engagement], texts: dict[str, str]) -> Stream:
    """Keys to numbers. Those of items are drawn: systems break ties by them, and the order of a
    file often is that of first engagements, which nobody knows beforehand."""
    users = {key: k for k, key in enumerate(dict.fromkeys(row.user for row in rows))}
    given = list(texts)
    keys = [given[k] for k in np.random.default_rng(1).permutation(len(given))]
    items = {key: k for k, key in enumerate(keys)}
    return Stream(
        np.array([users[row.user] for row in rows]),
        np.array([items[row.item] for row in rows]),
        np.array([row.seconds for row in rows]),
        [row.event_type for row in rows],
        [texts[key] for key in keys],
        [row.dwell_ms for row in rows],
    )
