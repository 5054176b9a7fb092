"""MovieLens 100K as a feed: films are posts, ratings are engagements.

GroupLens allows research use and no redistribution, so the data set is never part of this project:
it is read from a folder of the user's, or out of the recbole package, which carries it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from python_jobs.errors import CommandError

Row = TypeVar("Row")

PACKAGE = "recbole==1.2.1"
FILES = ("ml-100k.inter", "ml-100k.item")
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip

# What a rating stands for in a feed.
EVENT_OF_RATING = {5: "reply", 4: "like", 3: "view", 2: "skip", 1: "not_interested"}


@dataclass(frozen=True)
class Film:
    """A film: its key in the data set, the text of its post, the genre whose account posts it."""

    key: str
    text: str
    genre: str


@dataclass(frozen=True)
class Rating:
    """An engagement: who, with which film, what, and when (seconds since 1970)."""

    user: str
    film: str
    event_type: str
    seconds: float


@dataclass(frozen=True)
class MovieLens:
    """The data set, ratings in order of time; those of one second in the order of the file."""

    films: list[Film]
    ratings: list[Rating]


def load(path: Path | None, cache: Path) -> MovieLens:
    """Reads the data set from `path`, else from `cache`, which is filled with pip at need.

    path: a folder with u.data and u.item, or with ml-100k.inter and ml-100k.item; or one of these
    files, beside which the other one lies.
    Raises CommandError when it is nowhere to be had, or when a line of it cannot be read.
    """
    folder = path or cache
    if path is None and not all((cache / name).exists() for name in FILES):
        download(cache)
    if folder.is_file():
        folder = folder.parent
    if (folder / "u.data").exists() and (folder / "u.item").exists():
        return _read_grouplens(folder)
    if all((folder / name).exists() for name in FILES):
        return _read_recbole(folder)
    raise CommandError(
        f"{folder} holds no MovieLens 100K: it needs u.data and u.item, or {' and '.join(FILES)}."
    )


def download(cache: Path) -> None:
    """Takes the two files out of the recbole package; nothing is installed.

    Raises CommandError, naming both ways to the data, when pip cannot get the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        # only a wheel: a source package would run its own code to be looked into
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "--dest", folder, PACKAGE], capture_output=True, text=True)
        wheels = list(Path(folder).glob("recbole-*.whl"))
        if done.returncode != 0 or not wheels:
            raise CommandError(
                f"MovieLens 100K could not be had: pip cannot download {PACKAGE}. Go online, or"
                " give a folder that holds it with --path."
            )
        cache.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in FILES:
                partial = cache / f"{name}.partial"
                partial.write_bytes(wheel.read(f"recbole/dataset_example/ml-100k/{name}"))
                partial.replace(cache / name)


def _read_recbole(folder: Path) -> MovieLens:
    films = _parse(folder / "ml-100k.item", _recbole_film, skip=1)
    return _in_order(films, _parse(folder / "ml-100k.inter", _rating, skip=1), folder)


def _read_grouplens(folder: Path) -> MovieLens:
    films = _parse(folder / "u.item", _grouplens_film)
    return _in_order(films, _parse(folder / "u.data", _rating), folder)


def _in_order(films: list[Film], ratings: list[Rating], folder: Path) -> MovieLens:
    known = {film.key for film in films}
    if unknown := next((r.film for r in ratings if r.film not in known), None):
        raise CommandError(f"A rating in {folder} is of film {unknown}, which is in no list there.")
    if not ratings:
        raise CommandError(f"{folder} holds no ratings.")
    # sorted() is stable: ties stay in the order of the file
    return MovieLens(films, sorted(ratings, key=lambda rating: rating.seconds))


def _recbole_film(line: str) -> Film:
    key, title, year, genres = line.split("\t")
    return _film(key, title, year, genres.split())


def _grouplens_film(line: str) -> Film:
    fields = line.split("|")
    match = re.fullmatch(r"(.*?)\s*(?:\((\d{4})\))?\s*", fields[1])
    title, year = match.groups() if match else (fields[1], None)
    genres = [g for g, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
    return _film(fields[0], title, year or "", genres)


def _film(key: str, title: str, year: str, genres: list[str]) -> Film:
    dated = f"{title} ({year})" if year.isdigit() else title
    genres = genres or [GENRES[0]]
    return Film(key, f"{dated}. {', '.join(genres)}.", genres[0])


def _rating(line: str) -> Rating:
    user, film, stars, seconds = line.split("\t")
    return Rating(user, film, EVENT_OF_RATING[int(float(stars))], float(int(float(seconds))))


def _parse(path: Path, parse: Callable[[str], Row], skip: int = 0) -> list[Row]:
    # u.item is in Latin-1, the package's copy in UTF-8. Not splitlines(): it also ends a line at
    # characters that a title may hold.
    encoding = "latin-1" if path.name == "u.item" else "utf-8"
    rows = []
    try:
        text = path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not of MovieLens 100K: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if number <= skip or not line.strip():
            continue
        try:
            rows.append(parse(line.rstrip("\r")))
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise CommandError(f"{path}, line {number} is not of MovieLens 100K: {line}") from error
    return rows
