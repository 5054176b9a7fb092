"""recommend: pages of the app's rows, one after the other, and only what has changed."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.functions import ARTICLES, FIRST_ARTICLE, Functions


def page(functions: Functions, token: str, **parameters: Any) -> dict[str, Any]:
    answer = functions.call("recommend", token=token, params={"table": "articles", **parameters})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    assert set(said) == {"rows", "cursor", "fallback"}
    assert said["fallback"] is False
    return said


def test_a_page_has_rows_of_the_table_with_exact_ids_in_order(functions: Functions) -> None:
    rows = page(functions, functions.sign_up(), limit=7)["rows"]
    assert [row["place"] for row in rows] == list(range(1, 8))
    for row in rows:
        own = {"place", "score", "source", "arm", "cursor"}
        assert set(row) == own | {"id", "title", "is_public"}
        assert row["title"] == f"Article {row['id'] - FIRST_ARTICLE}"


def test_a_post_request_and_a_selection_give_the_same_page(functions: Functions) -> None:
    token = functions.sign_up()
    asked = {"table": "articles", "limit": 4, "select": "name:title,place"}
    by_post = functions.call("recommend", "POST", token, json=asked)
    assert [set(row) for row in by_post.json()["rows"]] == [{"name", "place"}] * 4
    assert page(functions, token, limit=4, select="name:title,place") == by_post.json()


def test_what_postgrest_refuses_is_refused(functions: Functions) -> None:
    token = functions.sign_up()

    def refusal(**parameters: Any) -> tuple[int, str]:
        return functions.refusal(
            "recommend", token=token, params={"table": "articles", **parameters}
        )

    assert refusal(select="nothing") == (400, "42703")
    assert refusal(select="*,users(*)") == (400, "PGRST200")
    assert refusal(key="slug") == (400, "42703")
    assert refusal(table="nothing") == (404, "PGRST202")


def test_five_pages_repeat_nothing_and_the_end_is_told(functions: Functions) -> None:
    token = functions.sign_up()
    keys: list[int] = []
    cursor: dict[str, Any] = {}
    for _ in range(5):
        said = page(functions, token, limit=20, select="id", **cursor)
        keys += [row["id"] for row in said["rows"]]
        cursor = {"cursor": said["cursor"]}
    assert len(keys) == len(set(keys)) == 100
    rest = page(functions, token, limit=100, select="id", **cursor)
    keys += [row["id"] for row in rest["rows"]]
    assert len(keys) == len(set(keys)) == ARTICLES
    end = page(functions, token, select="id", cursor=rest["cursor"])
    assert (end["rows"], end["cursor"]) == ([], None)


def test_a_cursor_that_was_not_given_out_is_refused(functions: Functions) -> None:
    token = functions.sign_up()
    cursor = page(functions, token, limit=3)["cursor"]
    version, payload = cursor.split(".")
    flipped = payload[:30] + ("A" if payload[30] != "A" else "B") + payload[31:]
    own = base64.urlsafe_b64encode(b'["1","2"]').decode().rstrip("=")
    forged = {
        "changed": f"{version}.{flipped}",
        "cut": cursor[:-3],
        "of another version": f"2.{payload}",
        "made up": f"{version}.{own}",
        "no cursor": "1",
        "huge": f"{version}.{payload * 300}",
    }
    for what, each in forged.items():
        asked = {"table": "articles", "cursor": each}
        refusal = functions.refusal("recommend", "POST", token, json=asked)
        assert refusal == (400, "bad_cursor"), what
    for other in ({"table": "posts"}, {"token": functions.sign_up()}):
        asked = {"table": other.get("table", "articles"), "cursor": cursor}
        assert functions.refusal("recommend", token=other.get("token", token), params=asked) == (
            400,
            "bad_cursor",
        )


def test_a_page_that_did_not_change_is_not_sent_again(functions: Functions) -> None:
    token = functions.sign_up()
    asked = {"table": "articles", "limit": 5, "select": "id"}

    def ask(**headers: str) -> Any:
        return functions.call("recommend", token=token, params=asked, headers=headers)

    first = ask()
    assert first.headers["cache-control"] == "private, max-age=0, stale-if-error=86400"
    assert first.headers["vary"] == "Authorization"
    assert first.headers["server-timing"].startswith("db;dur=")
    tag = first.headers["etag"]
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
        again = ask(**{"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert ask(**{"If-None-Match": '"other"'}).status_code == 200
    event = [{"post_key": str(first.json()["rows"][0]["id"]), "post_source": "articles"}]
    event[0]["event_type"] = "hide"
    functions.call("engage", "POST", token, json=event).raise_for_status()
    changed = ask(**{"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.json()["rows"][0] != first.json()["rows"][0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 101},
        {"limit": "many"},
        {"limit": 1.5},
        {"limit": [1]},
        {"table": "a,b"},
        {"table": 7},
        {"key": "id::text"},
        {"order": "place.desc"},
        {"select": "x" * 2001},
        {"select": {"a": 1}},
        {"cursor": ["1"]},
        {"offset": 3},
    ],
)
def test_a_wrong_parameter_is_named(functions: Functions, wrong: dict[str, Any]) -> None:
    asked = {"table": "articles", **wrong}
    answer = functions.call("recommend", "POST", functions.sign_up(), json=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")
    assert answer.json()["message"].startswith(next(iter(wrong)))


def test_a_table_is_named_by_the_request_or_by_the_environment(
    functions: Functions, servers: Any
) -> None:
    token = functions.sign_up()
    answer = functions.call("recommend", token=token)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")
    assert "several" in answer.json()["message"]
    other = servers.start(RECOMMEND_TABLE="posts")
    answer = other.call("recommend", token=other.sign_up(), params={"select": "content"})
    assert len(answer.json()["rows"]) == 5
