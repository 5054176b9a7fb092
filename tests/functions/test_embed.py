"""embed: the vectors of a text, by a worker, or when to ask again."""

from __future__ import annotations

import math

import httpx

from tests.support.functions import Functions
from tests.support.patience import wait_until
from tests.support.workers import running_worker


def test_texts_are_encoded_by_a_worker_and_lead_to_posts_like_them(functions: Functions) -> None:
    token = functions.sign_up()
    asked = {"text": "sailing boats", "similar": 3}
    assert functions.refusal("embed", "POST", token, json=asked) == (503, "no_worker")

    def answer() -> httpx.Response | None:
        answer = functions.call("embed", "POST", token, json=asked)
        assert answer.status_code == 200 or answer.json()["code"] in ("no_worker", "waiting")
        return answer if answer.status_code == 200 else None

    with running_worker(functions.api.database_url):
        wait_until(answer)

        def is_unreadable() -> bool:
            body = {"text": "🙂🎉"}
            return functions.refusal("embed", "POST", token, json=body) == (422, "unreadable")

        wait_until(is_unreadable)
    # Asked again: the worker may have fitted the first projection since.
    said = functions.call("embed", "POST", token, json=asked).json()
    assert (len(said["base_embedding"]), len(said["embedding"])) == (384, 128)
    for vector in (said["base_embedding"], said["embedding"]):
        assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-3)
    assert len(said["posts"]) == 3
    assert set(said["posts"][0]) >= {"post_id", "post_key", "post_source", "score"}
    without = functions.call("embed", "POST", token, json={"text": asked["text"]}).json()
    assert without == {key: said[key] for key in ("base_embedding", "embedding")}


def test_a_text_that_cannot_be_encoded_is_refused(functions: Functions) -> None:
    token = functions.sign_up()

    def refusal(**body: object) -> tuple[int, str]:
        return functions.refusal("embed", "POST", token, json=body)

    assert refusal(text=" \n") == (422, "22023")
    assert refusal(text="x" * 100_000) == (413, "TT002")
    assert refusal() == (422, "bad_question")
    assert refusal(text=["a"]) == (422, "bad_question")
    for similar in (0, 101, 1.5, "3", None):
        assert refusal(text="a", similar=similar) == (422, "bad_question")


def test_too_many_texts_of_one_user_are_refused(functions: Functions) -> None:
    token = functions.sign_up()
    with functions.database() as connection:
        connection.execute("update two_tower.settings set requested_texts_per_minute = 1")
    try:
        words = iter(range(1_000_000))

        def is_refused() -> bool:
            asked = {"text": f"word {next(words)}"}
            return functions.refusal("embed", "POST", token, json=asked) == (429, "TT005")

        wait_until(is_refused)
    finally:
        with functions.database() as connection:
            connection.execute("update two_tower.settings set requested_texts_per_minute = default")
