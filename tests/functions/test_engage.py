"""engage: any number of events, each answered, none stored twice."""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.functions import FIRST_ARTICLE, Functions


def event(article: int, event_type: str = "view", **more: Any) -> dict[str, Any]:
    """An event of an article, by its number."""
    return {
        "post_key": str(FIRST_ARTICLE + article),
        "post_source": "articles",
        "event_type": event_type,
        "client_event_id": str(uuid.uuid4()),
        **more,
    }


def answers(functions: Functions, token: str, body: Any) -> list[dict[str, Any]]:
    answer = functions.call("engage", "POST", token, json=body)
    assert answer.status_code == 200, answer.text
    said: list[dict[str, Any]] = answer.json()
    return said


def test_each_event_is_answered_and_a_retry_stores_nothing(functions: Functions) -> None:
    token = functions.sign_up()
    sent = [event(1), event(2, "like"), event(3, "love"), event(99_999), event(4, "dwell")]
    sent[4]["dwell_ms"] = 6000.4
    first = answers(functions, token, sent)
    assert [row["place"] for row in first] == [1, 2, 3, 4, 5]
    assert [row["status"] for row in first] == [
        *("stored", "stored", "refused", "refused", "stored")
    ]
    assert [row["client_event_id"] for row in first] == [each["client_event_id"] for each in sent]
    for row in first:
        is_refused = row["status"] == "refused"
        assert all(bool(row[part]) is is_refused for part in ("code", "message", "hint"))
    again = answers(functions, token, {"p_events": sent, "p_each": True})
    assert [row["status"] for row in again] == [*("known", "known", "refused", "refused", "known")]
    assert [row["event_id"] for row in again] == [row["event_id"] for row in first]


def test_more_events_than_a_call_of_sql_takes_are_answered_in_order(functions: Functions) -> None:
    token = functions.sign_up()
    sent = [event(1 + n % 150) for n in range(1200)]
    sent[700] = "no event"  # type: ignore[call-overload]
    said = answers(functions, token, sent)
    assert [row["place"] for row in said] == list(range(1, 1201))
    assert [row["status"] for row in said].count("stored") == 1199
    assert (said[700]["status"], said[700]["code"]) == ("refused", "22023")
    assert said[1100]["client_event_id"] == sent[1100]["client_event_id"]
    assert answers(functions, token, []) == []


def test_an_id_beyond_what_a_number_of_javascript_holds_is_not_rounded(
    functions: Functions,
) -> None:
    with functions.database() as connection:
        (post_id,) = connection.execute(
            "select p.id from two_tower.posts p where p.key = %s", [str(FIRST_ARTICLE + 1)]
        ).fetchone()  # type: ignore[misc]
    token = functions.sign_up()
    digits = str(2**53 + 1)
    body = f'[{{"post_id": {digits}, "event_type": "view"}}, {{"post_id": {post_id},'
    body += ' "event_type": "view"}]'
    answer = functions.call("engage", "POST", token, content=body)
    unknown, known = answer.json()
    assert (unknown["status"], known["status"]) == ("refused", "stored")
    assert digits in unknown["message"]


def test_what_is_no_list_of_events_is_refused(functions: Functions) -> None:
    token = functions.sign_up()

    def refusal(body: Any) -> tuple[int, str]:
        return functions.refusal("engage", "POST", token, json=body)

    for body in ("a", 1, {}, {"p_events": {}}, {"p_events": [], "p_each": "yes"}):
        assert refusal(body) == (422, "bad_events")
    assert refusal({"p_events": [event(1)] * 501, "p_each": False}) == (422, "bad_events")


def test_all_or_nothing_is_there_too(functions: Functions) -> None:
    token = functions.sign_up()
    good = event(1)
    asked = {"p_events": [good, event(2, "love")], "p_each": False}
    assert functions.refusal("engage", "POST", token, json=asked) == (400, "23514")
    assert answers(functions, token, [good])[0]["status"] == "stored"
