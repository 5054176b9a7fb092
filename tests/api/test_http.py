"""The whole way through HTTP, as apps go it: real clients, real tokens, real refusals."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import numpy as np
import pytest
from postgrest.exceptions import APIError

from python_jobs.db import Connection, connect
from tests.support.api import Api

PAGE_COLUMNS = {
    *("post_id", "post_key", "post_source", "author_id", "created_at"),
    *("score", "source", "arm", "cursor"),
}


def store_random_embeddings(connection: Connection, post_ids: list[int]) -> None:
    """What a worker would store, without the seconds that the encoder takes to load."""
    vectors = np.random.default_rng(0).normal(size=(len(post_ids), 384)).astype(np.float32)
    connection.execute(
        "select two_tower.store_base_embeddings(%s::bigint[], %s)", [post_ids, list(vectors)]
    )


@pytest.fixture(scope="module")
def posts(api: Api) -> list[int]:
    """Thirty encoded posts of an author who signed up."""
    client, _ = api.sign_up()
    rows = (
        client.table("posts").insert([{"content": f"post {n}"} for n in range(30)]).execute().data
    )
    ids = [row["id"] for row in rows]
    with connect(api.database_url, autocommit=True) as connection:
        store_random_embeddings(connection, ids)
    return ids


def refusal(call: Any) -> APIError:
    """The error that a call to the API ends in."""
    with pytest.raises(APIError) as caught:
        call.execute()
    return caught.value


def test_a_like_over_http_teaches_and_its_post_is_not_recommended_again(
    api: Api, posts: list[int]
) -> None:
    client, user_id = api.sign_up()
    before = client.rpc("recommend", {"p_limit": 5}).execute().data
    assert len(before) == 5
    liked = before[0]["post_id"]
    client.table("engagement_events").insert({"post_id": liked, "event_type": "like"}).execute()
    after = client.rpc("recommend", {"p_limit": 100}).execute().data
    assert liked not in [row["post_id"] for row in after]
    assert set(after[0]) == PAGE_COLUMNS
    with connect(api.database_url) as connection:
        row = connection.execute(
            "select engagement_count, extensions.vector_norm(embedding)"
            " from two_tower.user_embeddings where user_id = %s",
            [user_id],
        ).fetchone()
    assert row is not None
    assert row[0] == 1
    assert abs(row[1] - 1) < 1e-5


def test_recommend_answers_to_get_as_to_post(api: Api, posts: list[int]) -> None:
    client, _ = api.sign_up()
    by_post = client.rpc("recommend", {"p_limit": 4}).execute().data
    by_get = client.rpc("recommend", {"p_limit": 4}, get=True).execute().data
    assert [r["post_id"] for r in by_get] == [r["post_id"] for r in by_post]


def test_an_event_in_the_name_of_another_user_is_refused(api: Api, posts: list[int]) -> None:
    client, _ = api.sign_up()
    _, other = api.sign_up()
    error = refusal(
        client.table("engagement_events").insert(
            {"post_id": posts[0], "event_type": "like", "user_id": other}
        )
    )
    assert error.code == "42501"


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("engagement_events", {"event_type": "like", "created_at": "2020-01-01T00:00:00Z"}),
        ("engagement_events", {"event_type": "like", "id": 1}),
        ("posts", {"content": "old", "created_at": "2020-01-01T00:00:00Z"}),
        ("posts", {"content": "mine", "id": 1}),
    ],
)
def test_a_column_that_is_the_servers_is_refused(
    api: Api, posts: list[int], table: str, row: dict[str, Any]
) -> None:
    client, _ = api.sign_up()
    if table == "engagement_events":
        row = {**row, "post_id": posts[0]}
    assert refusal(client.table(table).insert(row)).code == "42501"


def test_rows_of_other_people_are_invisible_and_fast(api: Api, posts: list[int]) -> None:
    mine, _ = api.sign_up()
    theirs, _ = api.sign_up()
    mine.table("engagement_events").insert({"post_id": posts[1], "event_type": "view"}).execute()
    assert len(mine.table("engagement_events").select("*").execute().data) == 1
    assert theirs.table("engagement_events").select("*").execute().data == []


def test_events_are_neither_changed_nor_deleted_by_clients(api: Api, posts: list[int]) -> None:
    client, user_id = api.sign_up()
    events = client.table("engagement_events")
    events.insert({"post_id": posts[1], "event_type": "view"}).execute()
    assert refusal(events.update({"event_type": "like"}).eq("user_id", user_id)).code == "42501"
    assert refusal(events.delete().eq("user_id", user_id)).code == "42501"


@pytest.mark.parametrize(
    "call",
    [
        "recommend",
        "similar_posts",
        "popular_posts",
        "recent_from_followed",
        "explain_recommendation",
        "record_engagements",
    ],
)
def test_an_anonymous_caller_is_refused_by_every_function(api: Api, call: str) -> None:
    arguments = {
        "similar_posts": {"p_post_id": 1},
        "explain_recommendation": {"p_post_id": 1},
        "record_engagements": {"p_events": []},
    }
    assert refusal(api.client().rpc(call, arguments.get(call, {}))).code == "42501"


@pytest.mark.parametrize("table", ["posts", "profiles", "follows", "engagement_events"])
def test_an_anonymous_caller_reads_no_table(api: Api, table: str) -> None:
    assert refusal(api.client().table(table).select("*")).code == "42501"


def test_the_private_schema_can_not_be_reached_over_the_api(api: Api) -> None:
    _, user_id = api.sign_up()
    token = api.token(user_id)
    for path in ("state", "rpc/tick"):
        answer = httpx.post(
            f"{api.url}/rest/v1/{path}",
            headers={**api.headers(token), "Content-Profile": "two_tower"},
            json={},
        )
        assert answer.status_code in (404, 406), answer.text
    answer = httpx.get(
        f"{api.url}/rest/v1/user_embeddings",
        headers={**api.headers(token), "Accept-Profile": "two_tower"},
    )
    assert answer.status_code in (404, 406), answer.text


def test_an_expired_token_is_refused(api: Api) -> None:
    token = api.token(str(uuid.uuid4()), lifetime_s=-60)
    answer = httpx.post(f"{api.url}/rest/v1/rpc/recommend", headers=api.headers(token), json={})
    assert answer.status_code == 401


def test_a_batch_and_its_retry_give_the_same_answer_and_are_stored_once(
    api: Api, posts: list[int]
) -> None:
    client, _ = api.sign_up()
    events = [
        {"post_id": post, "event_type": kind, "client_event_id": str(uuid.uuid4())}
        for post, kind in zip(posts, ["view", "like", "reply", "skip"], strict=False)
    ]
    first = client.rpc("record_engagements", {"p_events": events}).execute().data
    again = client.rpc("record_engagements", {"p_events": events}).execute().data
    assert [row["client_event_id"] for row in first] == [e["client_event_id"] for e in events]
    assert [row.pop("status") for row in first] == ["stored"] * 4
    assert [row.pop("status") for row in again] == ["known"] * 4
    assert again == first
    stored = client.table("engagement_events").select("id").execute().data
    assert len(stored) == len(events)


def test_a_batch_that_is_answered_by_event_loses_no_good_one(api: Api, posts: list[int]) -> None:
    """What an offline queue holds after a week: fractions, posts that are gone, old mistakes."""
    client, _ = api.sign_up()
    ids = [str(uuid.uuid4()) for _ in range(6)]
    events = [
        {"post_id": posts[0], "event_type": "dwell", "dwell_ms": 8123.400000095367},
        {"post_id": 10**15, "event_type": "like"},
        {"post_key": str(posts[1]), "event_type": "like"},
        {"post_id": posts[2], "event_type": "dwell", "dwell_ms": "8123"},
        {"post_id": posts[3], "event_type": "adore"},
        {"post_id": posts[4], "event_type": "view"},
    ]
    sent = [{**e, "client_event_id": i} for e, i in zip(events, ids, strict=True)]
    call = client.rpc("record_engagements", {"p_events": sent, "p_each": True})
    rows = call.execute().data
    assert [row["place"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["client_event_id"] for row in rows] == ids
    refused = {row["place"]: row["code"] for row in rows if row["status"] == "refused"}
    assert refused == {2: "23503", 4: "22P02", 5: "23514"}
    assert all(row["message"] and row["hint"] for row in rows if row["status"] == "refused")
    stored = client.table("engagement_events").select("id,dwell_ms").order("id").execute().data
    assert [row["id"] for row in stored] == [
        row["event_id"] for row in rows if row["status"] == "stored"
    ]
    assert stored[0]["dwell_ms"] == 8123
    again = client.rpc("record_engagements", {"p_events": sent, "p_each": True}).execute().data
    assert [row["event_id"] for row in again] == [row["event_id"] for row in rows]
    assert {row["status"] for row in again} == {"known", "refused"}


def test_a_batch_with_one_bad_event_stores_nothing(api: Api, posts: list[int]) -> None:
    client, _ = api.sign_up()
    events = [
        {"post_id": posts[0], "event_type": "view", "client_event_id": str(uuid.uuid4())},
        {"post_id": 10**15, "event_type": "view", "client_event_id": str(uuid.uuid4())},
    ]
    error = refusal(client.rpc("record_engagements", {"p_events": events}))
    assert error.code == "23503"
    assert "does not exist" in str(error.message)
    assert error.hint
    assert client.table("engagement_events").select("id").execute().data == []


def test_a_batch_of_more_than_500_events_or_a_megabyte_is_refused_with_its_own_code(
    api: Api, posts: list[int]
) -> None:
    client, _ = api.sign_up()
    event: dict[str, Any] = {"post_id": posts[0], "event_type": "view"}
    for events in ([event] * 501, [{**event, "note": "x" * 1_000_000}]):
        for each in (False, True):
            arguments = {"p_events": events, "p_each": each}
            assert refusal(client.rpc("record_engagements", arguments)).code == "TT002"


def test_blocking_an_author_hides_the_posts_until_the_block_is_lifted(
    api: Api, posts: list[int]
) -> None:
    client, _ = api.sign_up()
    other, _ = api.sign_up()
    made = other.table("posts").insert({"content": "by somebody else"}).execute().data[0]
    with connect(api.database_url, autocommit=True) as connection:
        store_random_embeddings(connection, [made["id"]])

    def shown() -> list[str]:
        rows = client.rpc("recommend", {"p_limit": 500}).execute().data
        return [row["author_id"] for row in rows]

    blocked = client.table("posts").select("author_id").eq("id", posts[0]).execute().data
    author = blocked[0]["author_id"]
    assert author in shown()
    client.table("engagement_events").insert(
        {"post_id": posts[0], "event_type": "block_author"}
    ).execute()
    assert author not in shown()
    assert made["author_id"] in shown()
    client.table("author_blocks").delete().eq("author_id", author).execute()
    assert author in shown()


def test_a_user_sees_why_a_post_is_recommended_and_why_not(api: Api, posts: list[int]) -> None:
    client, _ = api.sign_up()
    explain = client.rpc("explain_recommendation", {"p_post_id": posts[2]}).execute().data[0]
    assert explain["is_eligible"]
    assert explain["place"] >= 1
    client.table("engagement_events").insert({"post_id": posts[2], "event_type": "hide"}).execute()
    explain = client.rpc("explain_recommendation", {"p_post_id": posts[2]}).execute().data[0]
    assert not explain["is_eligible"]
    assert explain["reason"] == "you hid it"


def test_a_deleted_post_is_recommended_no_more(api: Api) -> None:
    author, _ = api.sign_up()
    reader, _ = api.sign_up()
    post = author.table("posts").insert({"content": "soon gone"}).execute().data[0]["id"]
    with connect(api.database_url, autocommit=True) as connection:
        store_random_embeddings(connection, [post])

    def shown() -> list[int]:
        rows = reader.rpc("recommend", {"p_limit": 500}).execute().data
        return [row["post_id"] for row in rows]

    assert post in shown()
    author.table("posts").update({"deleted_at": "now"}).eq("id", post).execute()
    assert post not in shown()


def test_a_back_end_gets_the_page_of_a_user_and_the_reasons_and_a_user_gets_neither(
    api: Api, posts: list[int]
) -> None:
    client, user = api.sign_up()
    back_end = api.client(api.service_key)
    own = client.rpc("recommend", {"p_limit": 5}).execute().data
    asked = {"p_user_id": user, "p_limit": 5, "p_exclude": []}
    page = back_end.rpc("recommend_for", asked).execute().data
    assert [row["post_id"] for row in page] == [row["post_id"] for row in own]
    reason = {"p_user_id": user, "p_post_id": posts[3]}
    explained = back_end.rpc("explain_for", reason).execute().data[0]
    assert (explained["is_eligible"], explained["reason"]) == (True, "eligible")
    assert refusal(client.rpc("recommend_for", asked)).code == "42501"
    assert refusal(client.rpc("explain_for", reason)).code == "42501"
    nobody = refusal(back_end.rpc("recommend_for", {"p_user_id": None}))
    assert nobody.code == "22023"
    assert nobody.hint
