"""Functions that are inlined: they cost no call, and so may stand in any formula."""

from __future__ import annotations

import pytest

from python_jobs.db import Connection
from tests.support.catalogue import INLINED


@pytest.mark.parametrize("name", INLINED)
def test_a_plan_holds_the_body_of_the_function_and_no_call(db: Connection, name: str) -> None:
    db.execute(
        "create temporary table arguments"
        " (i integer, r real, d double precision, t text, v extensions.vector)"
    )
    plan = db.execute(
        f"explain (verbose, costs off) select {INLINED[name]} from arguments".encode()
    ).fetchall()
    output = next(line for (line,) in plan if "Output:" in line)
    assert f"{name}(" not in output
