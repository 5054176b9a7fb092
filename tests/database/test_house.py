"""The plan of the house: a migration uses what stands in it or before it, and nothing later.

And every setting has a test.
"""

from __future__ import annotations

import re
from itertools import pairwise

import pglast
import pytest

from python_jobs.db import Connection
from python_jobs.migrations.files import find_migrations
from tests.support.database import PROJECT
from tests.support.migrations import code_of, qualified_names, statements

LONGEST_FILE = 400


def test_no_migration_uses_what_a_later_one_makes() -> None:
    every = statements()
    made_in = {each.makes: each.file for each in reversed(every) if each.makes}
    assert len(made_in) > 200
    back = {
        f"{each.file} uses {used} of {made_in[used]}"
        for each in every
        for used in each.uses
        if used in made_in and made_in[used] > each.file
    }
    assert sorted(back) == []


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        ("select two_tower.f(public.g()) -- two_tower.h", {"two_tower.f", "public.g"}),
        ("create table two_tower.t (a two_tower.u)", {"two_tower.t", "two_tower.u"}),
        ("select 'two_tower.f'", set()),
        (
            "create function two_tower.f() returns int language plpgsql as $$ declare"
            " v two_tower.t; begin /* two_tower.no */ perform two_tower.g(v); return 1; end $$",
            {"two_tower.f", "two_tower.t", "two_tower.g"},
        ),
        ("do $$ begin perform two_tower.f(); end $$", {"two_tower.f"}),
        ("comment on table two_tower.t is 'x'", set()),
    ],
)
def test_a_use_is_found_in_statements_and_bodies_and_nowhere_else(
    code: str, uses: set[str]
) -> None:
    (raw,) = pglast.parse_sql(code)
    assert {used for part in code_of(raw.stmt, code) for used in qualified_names(part)} == uses


def test_the_numbers_of_the_migrations_go_in_even_steps() -> None:
    versions = [int(each.version) for each in find_migrations(PROJECT) if not each.is_starter]
    assert {later - earlier for earlier, later in pairwise(versions)} == {50}


def test_a_migration_is_a_file_that_one_reads_at_a_sitting() -> None:
    lines = {
        migration.path.name: len(migration.path.read_text().splitlines())
        for migration in find_migrations(PROJECT)
    }
    assert {file: count for file, count in lines.items() if count > LONGEST_FILE} == {}


def test_the_plan_of_the_house_names_every_file() -> None:
    schemas, *others = find_migrations(PROJECT)
    plan = schemas.path.read_text().split("create schema")[0]
    assert [
        each.name
        for each in others
        if each.name.removeprefix(f"two_tower_{each.version[-4:]}_") not in plan
    ] == []


def test_every_setting_is_named_by_a_test(db: Connection) -> None:
    columns = db.execute(
        "select attname from pg_catalog.pg_attribute where attnum > 0 and not attisdropped"
        " and attrelid = 'two_tower.settings'::regclass and attname <> 'id' order by attnum"
    ).fetchall()
    assert len(columns) > 50
    words = {
        word
        for file in (PROJECT / "tests").rglob("*.py")
        for word in re.findall(r"\w+", file.read_text())
    }
    assert [column for (column,) in columns if column not in words] == []
