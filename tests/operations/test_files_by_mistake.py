"""Files that an operator hands in by mistake: one line that says what is wrong, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from python_jobs.cli import main

DEEP = "[" * 100_000 + "]" * 100_000
TENSOR = {"hidden.bias": np.zeros(256, np.float32)}
ABOUT = {"tower": "candidate_tower", "config": {}, "authors": []}
HEAD = "user,item,time,event_type\n"


def refused(*arguments: str) -> str:
    """What a command says that refuses its file."""
    ran = CliRunner().invoke(main, arguments)
    assert isinstance(ran.exception, SystemExit), ran.exception
    assert ran.exit_code in (1, 2)
    assert "Traceback" not in ran.output
    assert len([line for line in ran.output.splitlines() if line.startswith("Error: ")]) == 1
    return ran.output


def weights_file(path: Path, tensors: dict[str, Any] | None = None, **about: Any) -> str:
    """A file of weights with other tensors, or with other text about them, in JSON or as it is."""
    said = {name: json.dumps(told) for name, told in ABOUT.items()}
    said |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    save_file(TENSOR if tensors is None else tensors, path, said)
    return str(path)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"config": DEEP}, "recursion"),
        ({"config": '{"layers": ' * 5000 + "1" + "}" * 5000}, ""),
        ({"config": "{"}, "Expecting"),
        ({"config": "NaN"}, "no config"),
        ({"config": "[]"}, "no config"),
        ({"tower": "{}"}, "no tower"),
        ({"authors": "[1]"}, "no export"),
        ({"authors": "1"}, "no export"),
        ({"authors": '["00000000-0000-0000-0000-000000000000"]'}, "authors do not fit"),
    ],
)
def test_weights_with_text_that_is_none_of_ours(
    tmp_path: Path, about: dict[str, Any], reason: str
) -> None:
    said = refused("weights", "import", weights_file(tmp_path / "tower.safetensors", **about))
    assert "no export of a tower" in said
    assert reason in said


def test_weights_without_tensors(tmp_path: Path) -> None:
    assert "no tensors" in refused("weights", "import", weights_file(tmp_path / "tower", {}))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", DEEP.encode(), b"\xff" * 64, (10**18).to_bytes(8, "little") + b"{}", b"\0" * 64],
)
def test_weights_that_are_another_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tower.safetensors"
    path.write_bytes(content)
    assert "no safetensors file" in refused("weights", "import", str(path))


def test_weights_of_many_dimensions(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "tower", {"hidden.bias": np.zeros((2, 2, 2), np.float32)})
    assert "no export of a tower" in refused("weights", "import", path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "lacks the column user"),
        (b"user;item\n1;2\n", "lacks the column user"),
        (HEAD.encode("utf-16"), "no CSV in UTF-8"),
        ((HEAD + "josé,1,1,like\n").encode("latin-1"), "no CSV in UTF-8"),
        ((HEAD + "1,2,1,like\n").encode(), "1 events are too few"),
        ((HEAD + "1,2,1,like\n1,3,2,view\n").encode(), "2 events are too few"),
        ((HEAD + "1,2,1,view\n").encode(), "nothing to foresee"),
        ((HEAD + "1\n").encode(), "no user or no item"),
        ((HEAD + "1,2,1e300,like\n").encode(), "no time"),
        ((HEAD + "1,2,nan,like\n").encode(), "no time"),
        ((HEAD + '1,"' + "x" * 200_000 + '",1,like\n').encode(), "field larger"),
        (DEEP.encode(), "no CSV in UTF-8"),
    ],
)
def test_a_stream_that_is_none(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "stream.csv"
    path.write_bytes(content)
    assert reason in refused("evaluate", "--data", str(path))


@pytest.mark.parametrize("command", ["evaluate", "replay"])
@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ("1\t1\t5\t1e400\n", "line 1"),
        ("1\t1\t5\tnan\n", "line 1"),
        ("1\t1\t9\t1\n", "line 1"),
        ("1\t2\t5\t1\n", "film 2"),
        ("1\t1\t5\t1\n" * 2, "2 "),
        ("", "holds no ratings"),
    ],
)
def test_ratings_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_database: str, command: str,
    ratings: str, reason: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("TWO_TOWER_DATABASE_URL", shared_database)
    (tmp_path / "u.data").write_text(ratings)
    (tmp_path / "u.item").write_text("1|A film (1995)|||" + "|0" * 19 + "\n")
    assert reason in refused(command, "--path", str(tmp_path))


def test_films_that_are_not_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.item").write_bytes("Señor".encode("latin-1"))
    (tmp_path / "ml-100k.inter").write_text("")
    assert "not of MovieLens" in refused("evaluate", "--path", str(tmp_path))


@pytest.mark.parametrize("content", [DEEP, "{", "[]", "3", "\x00"])
def test_reports_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_database: str, content: str
) -> None:
    from python_jobs.laboratory.replay import command

    monkeypatch.setenv("TWO_TOWER_DATABASE_URL", shared_database)
    monkeypatch.setattr(command, "state_dir", lambda: tmp_path)
    (tmp_path / "demo.json").write_text(content)
    (tmp_path / "data").mkdir()
    said = refused("replay", "--path", str(tmp_path / "data"))
    assert ("no file of reports" in said) == (content != "[]")


@pytest.mark.parametrize("number", ["9223372036854775808", "-1", str(10**40)])
def test_a_version_that_no_table_holds(
    monkeypatch: pytest.MonkeyPatch, shared_database: str, tmp_path: Path, number: str
) -> None:
    monkeypatch.setenv("TWO_TOWER_DATABASE_URL", shared_database)
    refused("weights", "export", "--", number, str(tmp_path / "file"))
    refused("weights", "judge", "--", number)
    refused("weights", "force", "--", number, "why")


def test_an_export_into_a_folder_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, shared_database: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("TWO_TOWER_DATABASE_URL", shared_database)
    said = refused("weights", "export", "1", str(tmp_path / "nowhere" / "file"))
    assert "can not be written" in said
