"""What all functions refuse alike: callers, bodies, methods; and pages of other origins."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tests.support.functions import METRICS_SECRET, Functions
from tests.support.patience import wait_until
from tests.support.workers import waiting_backend

FOR_USERS = [
    ("recommend", "GET", {"params": {"table": "articles"}}),
    ("recommend", "POST", {"json": {"table": "articles"}}),
    ("embed", "POST", {"json": {"text": "a"}}),
    ("engage", "POST", {"json": []}),
]
WITH_BODIES = ["recommend", "embed", "engage"]
MEGABYTE = 2**20


@pytest.mark.parametrize(("name", "method", "options"), FOR_USERS)
def test_who_has_not_signed_in_is_refused(
    functions: Functions, name: str, method: str, options: dict[str, Any]
) -> None:
    api = functions.api
    good = api.token("00000000-0000-4000-8000-000000000001")
    head, payload, signature = good.split(".")
    refused = {
        None: "no_token",
        api.anon_key: "no_token",
        api.service_key: "no_token",
        "abc": "bad_token",
        f"{head}.{payload[:-4]}!!!!.{signature}": "bad_token",
        f"{head}.bm9wZQ.{signature}": "bad_token",
        api.token(None): "no_user",
        api.token("00000000-0000-4000-8000-000000000001", lifetime_s=-60): "expired_token",
        f"{head}.{payload}.{signature[:-6]}AAAAAA": "PGRST301",
        api.token("no uuid"): "22P02",
    }
    for token, code in refused.items():
        headers = {"apikey": api.anon_key}
        status, said = functions.refusal(name, method, token, headers, **options)
        assert said == code
        assert status == (401 if code != "22P02" else 422)


@pytest.mark.parametrize("name", WITH_BODIES)
def test_bodies_that_are_no_json_too_deep_or_too_large_are_refused(
    functions: Functions, name: str
) -> None:
    token = functions.sign_up()

    def refusal(content: Any) -> tuple[int, str]:
        return functions.refusal(name, "POST", token, content=content)

    for malformed in (b"", b"{", b"[1,]", b"\xff\xfe", b"nul", b'"' * 1001, b'"\\"' * 200_000):
        assert refusal(malformed) == (400, "bad_json")
    for opening in (b"[", b'{"a":', b'[{"a":['):
        assert refusal(opening * 20) == (422, "too_deep")
        assert refusal(opening * (MEGABYTE // len(opening))) == (422, "too_deep")
    text = json.dumps([{"event_type": "[" * 100}])
    assert "too_deep" not in functions.call(name, "POST", token, content=text).text

    def endless() -> Iterator[bytes]:
        for _ in range(64):  # chunks, without a length that says how much comes
            yield b" " * 65_536

    for large in (b" " * (MEGABYTE + 1), b"x" * (30 * MEGABYTE), endless()):
        assert refusal(large) == (413, "too_large")


def test_a_body_of_a_megabyte_is_read(functions: Functions) -> None:
    token = functions.sign_up()
    body = b"[" + b" " * (MEGABYTE - 2) + b"]"
    assert functions.call("engage", "POST", token, content=body).json() == []
    status, code = functions.refusal("embed", "POST", token, json={"text": "x" * (MEGABYTE - 100)})
    assert (status, code) == (413, "TT002")


@pytest.mark.parametrize("name", [*WITH_BODIES, "metrics"])
def test_a_page_of_another_origin_may_call(functions: Functions, name: str) -> None:
    asked = "authorization,apikey,content-type,x-client-info,if-none-match"
    answer = functions.call(
        name,
        "OPTIONS",
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        },
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == asked
    method = "GET" if name == "metrics" else "POST"
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    token = METRICS_SECRET if name == "metrics" else functions.sign_up()
    read = functions.call(name, method, token, json={"text": "a", "table": "articles"})
    assert "X-Fallback" in read.headers["access-control-expose-headers"]


@pytest.mark.parametrize("name", [*WITH_BODIES, "metrics"])
def test_another_method_is_refused(functions: Functions, name: str) -> None:
    answer = functions.call(name, "DELETE", functions.sign_up())
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "OPTIONS" in answer.headers["allow"]


def test_events_whose_connection_breaks_are_to_be_sent_again(functions: Functions) -> None:
    """PostgREST says 503 or, now and then, 400 with an empty code: the function says 503."""
    event = {"post_id": 1, "event_type": "view"}
    token = functions.sign_up()
    with (
        suppress(psycopg.OperationalError),  # of the blocker, which is cut off too
        functions.database() as blocker,
        functions.database() as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        blocker.execute("begin; lock public.engagement_events")
        waiting = pool.submit(functions.refusal, "engage", "POST", token, json=[event])
        os.kill(waiting_backend(watcher, "record_engagements"), signal.SIGKILL)
        answer = waiting.result()
    assert answer in [(503, "PGRST001"), (503, "connection_lost")]
    wait_until(lambda: functions.call("engage", "POST", token, json=[]).status_code == 200)
