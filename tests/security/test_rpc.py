"""Each function of the API with any arguments: rows, or a refusal that says what to do.

What no caller should ever get is an internal error, a time-out, or a refusal without a documented
code, a message and a hint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_jobs.db import Connection, connect
from tests.security.arguments import (
    ARGUMENTS,
    NAMES,
    OTHER_ID,
    Function,
    Sql,
    anything,
    calls,
    find_function,
    scalars,
)
from tests.security.fuzzing import SHORT_AND_LONG, run_each
from tests.support.api import Api


@pytest.fixture
def sql(db: Connection) -> Sql:
    return Sql(db)


@pytest.mark.parametrize("examples", SHORT_AND_LONG)
@pytest.mark.parametrize("name", NAMES)
def test_a_call_gives_rows_or_a_documented_refusal(sql: Sql, name: str, examples: int) -> None:
    function = find_function(sql.db, name)

    @given(given=calls(function))
    def each(given: dict[str, Any]) -> None:
        if error := sql.call(function, given):
            if error.sqlstate == "42883":  # an argument without a default was left out
                return
            told = f"{error.sqlstate} {error}"
            assert error.sqlstate in sql.documented, told
            assert error.diag.message_primary, told
            assert error.diag.message_hint, told

    run_each(each, examples)


@pytest.mark.parametrize("name", ["recommend", "recommended_posts", "recommend_for"])
def test_a_million_keys_are_refused(sql: Sql, name: str) -> None:
    keys = ["x"] * 1_000_000
    error = sql.call(
        find_function(sql.db, name),
        {"p_exclude": keys, "p_user_id": OTHER_ID}
        if name == "recommend_for"
        else {"p_exclude": keys},
    )
    assert error is not None
    assert error.sqlstate == "TT002"


# Codes of PostgREST itself: no such function with these arguments, a body that is no JSON, a
# request that it can not read.
POSTGREST_CODES = {"PGRST100", "PGRST102", "PGRST103", "PGRST202"}


def check_answer(answer: httpx.Response, codes: set[str]) -> str | None:
    """The code of a refusal; None for rows. Fails for what no client should ever see."""
    if answer.status_code < 300:
        return None
    told = f"{answer.status_code} {answer.text[:500]}"
    assert 400 <= answer.status_code < 500, told
    said = answer.json()
    # Values that fit no argument, Postgres refuses before any function runs: with no hint.
    is_ours = said["code"] in codes - {"22P02", "22003", "22P05"}
    assert is_ours or said["code"][:2] == "22" or said["code"] in POSTGREST_CODES, told
    assert said["message"], told
    assert said["hint"] or not is_ours, told
    return str(said["code"])


class OverHttp:
    """A user and a back end of the API, and the codes that they may be answered with."""

    def __init__(self, api: Api, db: Connection, http: httpx.Client) -> None:
        self.api, self.http = api, http
        self.sql = Sql(db)  # for what arguments stand for

    def post(self, function: Function, body: bytes) -> httpx.Response:
        return self.http.post(
            f"{self.api.url}/rest/v1/rpc/{function.name}",
            headers={**self.headers(function), "Content-Type": "application/json"},
            content=body,
        )

    def get(self, function: Function, query: dict[str, str]) -> httpx.Response:
        return self.http.get(
            f"{self.api.url}/rest/v1/rpc/{function.name}",
            headers=self.headers(function),
            params=query,
        )

    def headers(self, function: Function) -> dict[str, str]:
        if function.role == "service_role":
            return {"apikey": self.api.service_key}
        return self.api.headers(self.api.token(self.sql.me))


@pytest.fixture(scope="module")
def over_http(api: Api, patient_http: httpx.Client) -> Iterator[OverHttp]:
    with connect(api.database_url, autocommit=True) as connection:
        yield OverHttp(api, connection, patient_http)


def any_arguments(function: Function) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of the right type, of any other, left out, or unknown."""
    values = {
        name: st.one_of(ARGUMENTS[kind], ARGUMENTS[kind], anything)
        for name, kind in function.arguments.items()
    }
    return st.fixed_dictionaries({}, optional={**values, "p_unknown": scalars})


@pytest.mark.parametrize("examples", SHORT_AND_LONG)
@pytest.mark.parametrize("name", NAMES)
def test_over_http_a_call_gives_rows_or_a_refusal_of_the_client(
    over_http: OverHttp, name: str, examples: int
) -> None:
    function = find_function(over_http.sql.db, name)

    @given(given=any_arguments(function), by_get=st.booleans())
    def each(given: dict[str, Any], by_get: bool) -> None:
        filled = over_http.sql.fill(given)
        query = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in filled.items()
        }
        if by_get and sum(map(len, query.values())) < 5000:
            answer = over_http.get(function, query)
            if answer.status_code == 405:  # it writes
                return
        else:
            answer = over_http.post(function, json.dumps(filled).encode())
        check_answer(answer, over_http.sql.documented)

    run_each(each, examples)


EVENT = b'{"post_id": 1, "event_type": "view", "note": %s}'
# Bodies of record_engagements() that no client library makes, and what each is refused with.
RAW_BODIES = {
    "nothing": (b"", {"PGRST202"}),
    "no JSON": (b"{", {"PGRST102"}),
    "bytes that are no text": (b'{"p_events": ["\xff\xfe"]}', {"22021", "PGRST102"}),
    "NaN": (b'{"p_events": [' + EVENT % b"NaN" + b"]}", {"PGRST102"}),
    "a NUL": (b'{"p_events": [' + EVENT % b'"a\\u0000b"' + b"]}", {"22P05"}),
    "a NUL in a name": (b'{"p_events": [{"\\u0000": 1}]}', {"22P05"}),
    "half a character": (b'{"p_events": [' + EVENT % b'"\\ud800"' + b"]}", {"PGRST102"}),
    "a number of 200,000 digits": (b'{"p_events": [' + EVENT % (b"9" * 200_000) + b"]}", {"22003"}),
    "a number without end": (b'{"p_events": [' + EVENT % b"1e9999999" + b"]}", {"22003"}),
    "100,000 levels": (b'{"p_events": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {"54001"}),
    "100,000 objects in one another": (
        b'{"p_events": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        {"54001"},
    ),
}


@pytest.mark.parametrize("name", RAW_BODIES)
def test_a_body_that_no_library_makes_is_refused_clearly(over_http: OverHttp, name: str) -> None:
    body, codes = RAW_BODIES[name]
    answer = over_http.post(find_function(over_http.sql.db, "record_engagements"), body)
    assert 400 <= answer.status_code < 500, answer.text
    said = answer.json()
    assert said["code"] in codes, said
    assert said["message"], said
