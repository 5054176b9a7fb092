"""The loader of the data set: both layouts, order of ties, and clear words when it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_jobs.errors import CommandError
from python_jobs.laboratory import movielens

RATINGS = ["7\t1\t5\t100", "8\t2\t1\t50", "7\t2\t3\t100", "8\t1\t4\t100", "9\t1\t2\t60"]


@pytest.fixture
def grouplens(tmp_path: Path) -> Path:
    """The original layout: no header, genres as flags, Latin-1."""
    flags = ["0"] * 19
    animation, comedy = flags.copy(), flags.copy()
    animation[3] = comedy[5] = animation[5] = "1"
    films = [
        "|".join(["1", "Toy Story (1995)", "01-Jan-1995", "", "http://x", *animation]),
        "|".join(["2", "Été (1968)", "01-Jan-1968", "", "http://x", *comedy]),
    ]
    (tmp_path / "u.item").write_bytes("\n".join(films).encode("latin-1"))
    (tmp_path / "u.data").write_text("\n".join(RATINGS))
    return tmp_path


@pytest.fixture
def recbole(tmp_path: Path) -> Path:
    """The package's layout: a header, genres as words, UTF-8."""
    films = [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tToy Story\t1995\tAnimation Comedy",
        "2\tÉté\t1968\tComedy",
    ]
    (tmp_path / "ml-100k.item").write_text("\n".join(films), encoding="utf-8")
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (tmp_path / "ml-100k.inter").write_text("\n".join([header, *RATINGS]))
    return tmp_path


@pytest.mark.parametrize("layout", ["grouplens", "recbole"])
def test_both_layouts_give_the_same_films_and_ratings(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = movielens.load(request.getfixturevalue(layout), tmp_path / "cache")
    assert [(film.key, film.text, film.genre) for film in data.films] == [
        ("1", "Toy Story (1995). Animation, Comedy.", "Animation"),
        ("2", "Été (1968). Comedy.", "Comedy"),
    ]
    assert [(r.user, r.film, r.event_type) for r in data.ratings] == [
        ("8", "2", "not_interested"),
        ("9", "1", "skip"),
        ("7", "1", "reply"),  # the three of second 100 stand as in the file
        ("7", "2", "view"),
        ("8", "1", "like"),
    ]


def test_a_folder_without_the_data_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"u\.data and u\.item") as caught:
        movielens.load(tmp_path, tmp_path / "cache")
    assert "\n" not in caught.value.message


def test_without_a_network_both_ways_are_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CommandError, match="--path") as caught:
        movielens.load(None, tmp_path / "cache")
    assert "recbole" in caught.value.message
    assert "\n" not in caught.value.message


def test_every_rating_has_its_event_type() -> None:
    assert movielens.EVENT_OF_RATING == {
        5: "reply",
        4: "like",
        3: "view",
        2: "skip",
        1: "not_interested",
    }


@pytest.mark.parametrize(("layout", "name"), [("grouplens", "u.data"), ("recbole", "ml-100k.item")])
def test_a_file_stands_for_its_folder(
    layout: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(layout)
    assert movielens.load(folder / name, tmp_path / "cache") == movielens.load(folder, tmp_path)


def test_what_is_in_the_cache_is_not_downloaded_again(
    recbole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert len(movielens.load(None, recbole).ratings) == len(RATINGS)


@pytest.mark.parametrize(
    ("ratings", "complaint"),
    [
        ("7\t1\t4\n", "line 1 is not of MovieLens 100K"),
        ("7\t1\t4\t100\n7\t1\t6\t100\n", "line 2 is not of MovieLens 100K"),
        ("7\t1\tfour\t100\n", "line 1 is not of MovieLens 100K"),
        ("7\t99\t4\t100\n", "of film 99"),
        ("", "holds no ratings"),
    ],
)
def test_ratings_that_cannot_be_read_are_named_in_one_line(
    ratings: str, complaint: str, grouplens: Path, tmp_path: Path
) -> None:
    (grouplens / "u.data").write_text(ratings)
    with pytest.raises(CommandError, match=complaint) as caught:
        movielens.load(grouplens, tmp_path / "cache")
    assert "\n" not in caught.value.message
