"""docs/reference.md is what the database says of itself, and its examples answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import unified_diff
from itertools import islice

import pytest

from docs.generator.attaching import CALLS, Attaching
from docs.generator.catalogue import Function, read_catalogue
from docs.generator.examples import EXAMPLES, Example, answer, seed
from docs.generator.expressions import readable_limit
from docs.generator.markdown import prose, slug
from docs.generator.page import generate
from python_jobs.db import Connection, connect
from tests.support.database import PROJECT

PAGE = PROJECT / "docs" / "reference.md"


def test_the_reference_is_what_the_database_and_the_commands_say(
    fresh_database: Callable[[], str],
) -> None:
    made = generate(fresh_database()).splitlines()
    difference = unified_diff(PAGE.read_text().splitlines(), made, "file", "database", n=0)
    shown = "\n".join(islice(difference, 40))
    assert not shown, f"docs/reference.md is stale: run `make docs`\n{shown}"


def test_every_link_of_the_reference_leads_to_a_heading_or_a_file() -> None:
    text = PAGE.read_text()
    headings = {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) > 100
    broken = {
        each
        for each in links
        if each.removeprefix("#") not in headings and not (PAGE.parent / each).is_file()
    }
    assert broken == set()


@pytest.fixture(scope="module")
def seeded(clone_database: Callable[[], str]) -> Iterator[Connection]:
    """The database of the examples."""
    with connect(clone_database()) as connection:
        seed(connection)
        connection.commit()
        yield connection


@pytest.fixture(scope="module")
def client_functions(seeded: Connection) -> dict[str, Function]:
    """The functions of schema public by name."""
    functions = read_catalogue(seeded).functions
    seeded.rollback()
    return {
        each.name: each
        for each in functions
        if each.schema == "public" and each.result != "trigger"
    }


def test_every_function_of_clients_has_an_example_of_all_its_arguments(
    client_functions: dict[str, Function],
) -> None:
    assert {each.function: {*each.arguments, *each.instead} for each in EXAMPLES} == {
        each.name: {argument.name for argument in each.arguments}
        for each in client_functions.values()
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.function)
def test_an_example_answers_a_signed_in_user_with_the_columns_that_it_says(
    seeded: Connection, client_functions: dict[str, Function], example: Example
) -> None:
    catalogue = read_catalogue(seeded)
    seeded.rollback()
    function = client_functions[example.function]
    columns = {column.name for column in catalogue.answer_of(function)}
    answers = [answer(seeded, function, example.role, each) for each in example.calls()]
    assert answers[0]
    assert [row.get("post_id") for row in answers[0]] == [row.get("post_id") for row in answers[-1]]
    for row in answers[0]:
        assert set(row) == columns


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.function)
def test_nobody_else_may_call_it(seeded: Connection, example: Example, role: str) -> None:
    allowed = seeded.execute(
        "select bool_or(has_function_privilege(%s, oid, 'execute')) from pg_proc"
        " where pronamespace = 'public'::regnamespace and proname = %s",
        [role, example.function],
    ).fetchone()
    assert allowed == (role == example.role,)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.function)
def test_a_call_that_attaches_shows_all_its_arguments(db: Connection, call: Attaching) -> None:
    functions = read_catalogue(db).functions
    (function,) = (each for each in functions if each.name == call.function)
    names = [argument.name for argument in function.arguments]
    assert {*names[: len(call.places)], *call.names} == set(names)
    assert len(call.places) + len(call.names) == len(names)


def test_every_function_table_view_and_type_has_a_comment(db: Connection) -> None:
    catalogue = read_catalogue(db)
    things = [*catalogue.functions, *catalogue.relations]
    assert {"table", "view", "type", "domain", "enum"} <= {
        each.kind for each in catalogue.relations
    }
    assert [f"{each.schema}.{each.name}" for each in things if not each.comment] == []


@pytest.mark.parametrize(
    ("condition", "limit"),
    [
        ("a between 1 and 1000000", "1 to 1,000,000"),
        ("a > 0 and a < 10", "above 0, below 10"),
        ("a >= 3", "3 or more"),
        ("3 >= a", "at most 3"),
        ("b between '1 minute' and '13 months'", "1 minute to 1 year 1 month"),
        ("c in ('x', 'y', 'z')", "`x`, `y` or `z`"),
        ("length(c) <= 10", "at most 10 characters"),
        ("0 <= all (d) and 10 >= all (d) and cardinality(d) < 5", "0 to 10 each, below 5 items"),
        ("a > 0 or a < -5", None),
        ("c ~ 'x'", None),
    ],
)
def test_a_check_is_read_as_a_person_says_it(
    db: Connection, condition: str, limit: str | None
) -> None:
    db.execute("set local intervalstyle = postgres_verbose")
    db.execute(
        f"create temporary table limited (a integer, b interval, c text, d real[],"
        f" constraint stated check ({condition}))".encode()
    )
    definition = db.execute(
        "select pg_get_constraintdef(oid, true) from pg_constraint where conname = 'stated'"
    ).fetchone()
    assert definition is not None
    assert readable_limit(definition[0]) == limit


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        ("Reads user_posts, then calls tick().", "Reads `user_posts`, then calls `tick()`."),
        (
            "As recommended_<table>(), of public.posts.",
            "As `recommended_<table>()`, of `public.posts`.",
        ),
        ("See settings.temperature, e.g. 1.", "See `settings.temperature`, e.g. 1."),
        ('Takes [{"post_id", "dwell_ms"?}].', 'Takes `[{"post_id", "dwell_ms"?}]`.'),
        ("a * b, and *bold* <b>", r"a * b, and \*bold\* &lt;b>"),
    ],
)
def test_names_in_a_comment_are_code_and_nothing_is_markup(comment: str, text: str) -> None:
    assert prose(comment) == text
