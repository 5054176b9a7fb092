"""recommend while the database is slow, or is not there: what is popular, from memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.functions import Functions, FunctionServers
from tests.support.patience import wait_until

ASKED = {"table": "articles", "limit": 20}


@pytest.fixture(scope="module")
def impatient(servers: FunctionServers) -> Functions:
    """Functions that wait for the database no longer than half a second."""
    return servers.start(RECOMMEND_DEADLINE_MS="500")


@contextmanager
def locked(functions: Functions) -> Iterator[None]:
    """Nobody reads the tables meanwhile."""
    with functions.database() as connection, connection.transaction():
        connection.execute("lock table public.articles, public.posts in access exclusive mode")
        yield


@pytest.fixture(scope="module")
def remembered(impatient: Functions) -> str:
    """The token of a user, once the function remembers popular articles: after a first request."""
    token = impatient.sign_up()

    def remembers() -> bool:
        impatient.call("recommend", token=token, params=ASKED)
        with locked(impatient):
            return impatient.call("recommend", token=token, params=ASKED).status_code == 200

    wait_until(remembers)
    return token


def check_popular(functions: Functions, token: str) -> None:
    """Three pages of popular rows that everybody may read, without a repeat; then a refusal."""
    shown: list[int] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        answer = functions.call("recommend", token=token, params={**ASKED, **cursor})
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said["fallback"] is True
        assert answer.headers["x-fallback"] == "popular"
        assert answer.headers["cache-control"] == "no-store"
        assert all(row["is_public"] for row in said["rows"])
        shown += [row["id"] for row in said["rows"]]
        cursor = {"cursor": said["cursor"]}
    assert len(shown) == len(set(shown)) == 60
    # Nothing is known of a table that is not for everybody, and of other columns.
    for unknown in ({"table": "posts"}, {"select": f"n{secrets.token_hex(4)}:title"}):
        status, _ = functions.refusal("recommend", token=token, params={**ASKED, **unknown})
        assert status == 503
    assert functions.refusal("recommend", params=ASKED) == (401, "no_token")


def is_itself(functions: Functions, token: str) -> Any:
    answer = functions.call("recommend", token=token, params=ASKED)
    return answer.status_code == 200 and answer.json()["fallback"] is False


def test_a_database_that_is_slow_leaves_what_is_popular(
    impatient: Functions, remembered: str
) -> None:
    with locked(impatient):
        check_popular(impatient, remembered)
    wait_until(lambda: is_itself(impatient, remembered))


def test_a_database_that_is_stopped_leaves_what_is_popular(
    servers: FunctionServers, impatient: Functions, functions: Functions, remembered: str
) -> None:
    token = functions.sign_up()
    servers.cluster.stop("immediate")
    try:
        check_popular(impatient, remembered)
        for name, body in (("engage", []), ("embed", {"text": "a"})):
            assert functions.refusal(name, "POST", token, json=body)[0] == 503
        assert functions.refusal("recommend", token=token, params={"table": "posts"})[0] == 503
    finally:
        servers.cluster.start()
    wait_until(lambda: is_itself(impatient, remembered))
    wait_until(lambda: is_itself(functions, token))
