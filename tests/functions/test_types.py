"""The types are those of the database, and the functions hold to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from difflib import unified_diff
from itertools import islice
from pathlib import Path

import pytest

from python_jobs.local.deno import DENO_IS_MISSING, find_deno
from python_jobs.local.node import NodeTools
from python_jobs.local.types import generate_types
from tests.support.database import PROJECT
from tests.support.patience import PATIENCE_S

FUNCTIONS = PROJECT / "supabase" / "functions"
TYPES = FUNCTIONS / "_shared" / "database.types.ts"
CLIENT = Path(__file__).with_name("types_of_a_client.ts")


@pytest.fixture(scope="module")
def run_deno(node_tools: NodeTools) -> Callable[..., None]:
    """Runs Deno; fails with what it says."""
    deno = find_deno()
    if deno is None:
        pytest.skip(f"no Deno: {DENO_IS_MISSING}")

    def run(*arguments: str, cwd: Path) -> None:
        done = subprocess.run(
            [str(deno), *arguments],
            cwd=cwd,
            env={**os.environ, "DENO_DIR": str(node_tools.folder / "deno"), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr

    return run


def test_the_types_are_what_the_cli_says_of_the_database(
    clone_database: Callable[[], str], node_tools: NodeTools, run_deno: object
) -> None:
    made = generate_types(clone_database(), node_tools.run_cli).splitlines()
    difference = unified_diff(TYPES.read_text().splitlines(), made, "file", "database", n=0)
    shown = "\n".join(islice(difference, 40))
    assert not shown, f"database.types.ts is stale: run `make docs`\n{shown}"


def test_functions_hold_to_their_types_and_to_the_rules(run_deno: Callable[..., None]) -> None:
    files = sorted(str(file) for file in FUNCTIONS.glob("*/*.ts"))
    run_deno("check", *files, cwd=FUNCTIONS)
    run_deno("lint", cwd=FUNCTIONS)
    run_deno("fmt", "--check", cwd=FUNCTIONS)


def test_a_client_gets_unions_and_no_null_where_there_is_none(
    run_deno: Callable[..., None], node_tools: NodeTools
) -> None:
    with tempfile.TemporaryDirectory(dir=node_tools.folder) as name:
        for file in (CLIENT, TYPES):
            shutil.copy(file, name)
        run_deno("check", "--node-modules-dir=manual", CLIENT.name, cwd=Path(name))
