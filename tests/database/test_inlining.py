"""Functions that are inlined: they cost no call, and so may stand in any formula."""

from __future__ import annotations

import pytest

from python_jobs.db import Connection
from tests.support.catalogue import INLINED, INLINED_ROWS


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


@pytest.mark.parametrize("name", INLINED_ROWS)
def test_a_plan_scans_what_the_function_reads_and_no_function(db: Connection, name: str) -> None:
    plan = db.execute(
        f"explain (verbose, costs off) select m.id from {INLINED_ROWS[name]} m".encode()
    ).fetchall()
    assert not any("Function" in line for (line,) in plan)
