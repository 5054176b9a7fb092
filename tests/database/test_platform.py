"""What a hosted server does that the one of the tests does not: modules, limits, defaults."""

from __future__ import annotations

import pytest
from pglast.parser import scan

from python_jobs.db import Connection

OURS = "pronamespace in ('public'::regnamespace, 'two_tower'::regnamespace)"
# Words before "update" that make it part of something else.
NO_STATEMENT = {"do", "for", "key", "or", "after", "before"}


def without_where(body: str) -> list[str]:
    """Updates and deletes of a body that name no rows. Parts of `with` end at their parenthesis."""
    tokens = [token for token in scan(body) if token.name not in ("SQL_COMMENT", "C_COMMENT")]
    words = [body.encode()[token.start : token.end + 1].decode().lower() for token in tokens]
    found = []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        is_update = word == "update" and before not in NO_STATEMENT
        if is_update or (word == "delete" and words[place + 1 : place + 2] == ["from"]):
            depth, end, names_rows = 0, place, False
            while end < len(words) and words[end] != ";" and depth >= 0:
                depth += (words[end] == "(") - (words[end] == ")")
                names_rows = names_rows or (words[end] == "where" and depth == 0)
                end += 1
            if not names_rows:
                found.append(" ".join(words[place:end]))
    return found


def test_every_update_and_delete_names_its_rows(db: Connection) -> None:
    """The platform loads safeupdate into the sessions of its API, which refuses others (21000)."""
    bodies = db.execute(f"select proname, prosrc from pg_proc where {OURS}".encode()).fetchall()
    assert {name: found for name, body in bodies if (found := without_where(body))} == {}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("update t set a = 1;", ["update t set a = 1"]),
        (
            "with x as (delete from t returning *) select 1 where true",
            ["delete from t returning * )"],
        ),
        ("update t set a = (select 1 where true) where id;", []),
        ("update t set a = (select 1 where b)", ["update t set a = ( select 1 where b )"]),
        ("insert into t values (1) on conflict do update set a = 1; select 1 for update;", []),
    ],
)
def test_an_update_without_rows_would_be_found(body: str, found: list[str]) -> None:
    assert without_where(body) == found


def test_what_forbids_scans_also_forbids_jit(db: Connection) -> None:
    """Before Postgres 18 a scan that is needed all the same costs 10^10, and JIT sets in."""
    rows = db.execute(
        "select proname, 'jit=off' = any (proconfig) as has_none from pg_proc"
        " where 'enable_seqscan=off' = any (proconfig)"
    ).fetchall()
    assert len(rows) >= 2
    assert [row.proname for row in rows if not row.has_none] == []
