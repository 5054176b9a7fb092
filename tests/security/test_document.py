"""docs/security.md: promises name tests that are there, and its tables are those of access.py."""

from __future__ import annotations

import ast
import re

from docs.generator.access import with_access
from tests.support.database import PROJECT

PAGE = (PROJECT / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 40
    missing = [
        f"{path}::{name}"
        for path, name in named
        if name
        not in {
            each.name
            for each in ast.parse((PROJECT / path).read_text()).body
            if isinstance(each, ast.FunctionDef)
        }
    ]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    promises = PAGE.split("## Promises")[1].split("### Measured")[0]
    lines = [line for line in promises.splitlines() if line.startswith("|")]
    rows = [line for line in lines if "---" not in line and "shown by" not in line]
    assert len(rows) > 40
    assert [line for line in rows if not NAMED.search(line)] == []


def test_the_tables_of_who_may_do_what_are_those_that_are_tried() -> None:
    assert with_access(PAGE) == PAGE, "run make docs"
