"""`two-tower weights`: files of versions, and what an operator says about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, connect
from python_jobs.worker.jobs.versions import load, load_authors
from python_jobs.worker.towers.weights import export_file, import_file
from tests.support.tower_world import World, make_world


class Database:
    """A world, and commands run over it."""

    def __init__(self, url: str, world: World) -> None:
        self.url, self.world = url, world

    def run(self, *arguments: str) -> Result:
        """`two-tower weights` with these arguments."""
        return CliRunner().invoke(main, ["weights", *arguments], env={URL_VARIABLE: self.url})


@pytest.fixture
def database(fresh_database: Callable[[], str]) -> Iterator[Database]:
    """A database of its own: commands commit."""
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        yield Database(url, make_world(connection))


def test_an_export_is_imported_as_the_same_tensors_config_and_authors(
    database: Database, tmp_path: Path
) -> None:
    world = database.world
    for version in (world.better(), world.user_tower(layers=2)):
        author = world.value("select author_id from public.posts limit 1")
        world.connection.execute(
            "insert into two_tower.model_authors (version, author_id, embedding)"
            " values (%s, %s, array_fill(0.5::real, array[64])::extensions.vector)",
            [version, author],
        )
        path = tmp_path / f"{version}.safetensors"
        done = database.run("export", str(version), str(path))
        assert done.exit_code == 0, done.output
        metadata = import_file(path)[1]
        for key in ("config", "metrics", "trained_from", "held_out_from", "verdict"):
            assert key in metadata
        held_out = world.value("select two_tower.held_out_from()")
        assert json.loads(metadata["held_out_from"]) == held_out
        done = database.run("import", str(path))
        assert done.exit_code == 0, done.output
        copy = world.value("select max(version) from two_tower.model_weights")
        (one, config), (two, same) = load(world.connection, version), load(world.connection, copy)
        assert config == same
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)
        assert load_authors(world.connection, copy).keys() == {author}
        row = world.version(copy)
        assert (row["state"], row["verdict"]) == ("candidate", None)


def test_an_imported_version_is_judged_by_what_comes_after_it(
    database: Database, tmp_path: Path
) -> None:
    world = database.world
    path = tmp_path / "tower.safetensors"
    database.run("export", str(world.better()), str(path))
    database.run("import", str(path))
    version = world.value("select max(version) from two_tower.model_weights")
    done = database.run("judge", str(version))
    assert done.output.strip() == (
        f"Version {version}: too early to tell: 0 of 60 held-out events have come. Judge it later."
    )
    assert world.version(version)["state"] == "candidate"
    later = world.add_posts(160)
    for user in world.users[:32]:
        world.like(user, later, 4)
    done = database.run("judge", str(version))
    assert "accepted: better than the active version" in done.output, world.version(version)


def test_a_user_tower_is_judged_by_its_own_vectors(database: Database) -> None:
    version = database.world.user_tower()
    done = database.run("judge", str(version))
    assert done.exit_code == 0, done.output
    assert f"Version {version}: rejected: not better" in done.output


def test_a_forced_version_is_listed_with_who_and_why(database: Database) -> None:
    version = database.world.worse()
    assert database.run("force", str(version), "a trial").exit_code == 0
    database.world.settle()
    (row,) = [
        r for r in json.loads(database.run("list", "--json").output) if r["version"] == version
    ]
    assert row["state"] == "active"
    assert row["verdict"] == "forced by postgres: a trial"
    assert "forced by" in database.run("list").output
    again = database.run("force", str(version), "a trial")
    assert again.output == f"Version {version} is active already. Nothing was changed.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "999", "x.safetensors"), "There is no version 999"),
        (("judge", "1"), "version 1 is no candidate"),
        (("force", "999", "why"), "version 999 can not serve"),
    ],
)
def test_what_can_not_be_done_is_told_in_one_line(
    database: Database, arguments: tuple[str, ...], message: str
) -> None:
    done = database.run(*arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "shape", "tensor", "authors", "foreign"])
def test_a_file_that_is_no_tower_is_refused_and_stores_nothing(
    database: Database, tmp_path: Path, damage: str
) -> None:
    world = database.world
    path = tmp_path / "tower.safetensors"
    database.run("export", str(world.better()), str(path))
    tensors, metadata = import_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "shape":
        export_file(path, {**tensors, "output.weight": tensors["output.weight"][:5]}, metadata)
    elif damage == "tensor":
        export_file(path, {k: v for k, v in tensors.items() if k != "hidden.bias"}, metadata)
    elif damage == "authors":
        export_file(path, {**tensors, "author.weight": np.zeros((3, 64))}, metadata)
    else:
        export_file(path, tensors, {"made by": "another program"})
    before = world.value("select count(*) from two_tower.model_weights")
    done = database.run("import", str(path))
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert "Traceback" not in done.output
    assert world.value("select count(*) from two_tower.model_weights") == before
