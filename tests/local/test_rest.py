"""REST of the local stack: relationships, ranges, preferences and errors of a Supabase project."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest
from postgrest.exceptions import APIError
from supabase import Client

from tests.support.api import Api
from tests.support.patience import wait_until


@pytest.fixture
def author(app: Api) -> tuple[Client, dict[str, Any]]:
    """A signed-in client and its profile, with three posts and two comments on the first."""
    client, user_id = app.sign_up()
    posts = client.table("posts").insert([{"body": f"post {n}"} for n in "abc"]).execute().data
    comments = [{"post_id": posts[0]["id"], "body": f"comment {n}"} for n in "ab"]
    client.table("comments").insert(comments).execute()
    return client, {"id": user_id, "handle": user_id, "posts": posts}


def ask(app: Api, path: str, **headers: str) -> httpx.Response:
    """An anonymous GET below /rest/v1."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.get(f"{app.url}/rest/v1/{path}", headers={**app.headers(), **names}, timeout=300)


def test_rows_come_with_the_rows_that_they_refer_to_and_that_refer_to_them(
    app: Api, author: tuple[Client, dict[str, Any]]
) -> None:
    client, profile = author
    first = profile["posts"][0]["id"]

    def select(columns: str) -> Any:
        return client.table("posts").select(columns).eq("id", first).single().execute().data

    assert select("id,profiles(handle)") == {"id": first, "profiles": {"handle": profile["handle"]}}
    assert select("by:profiles(handle)")["by"] == {"handle": profile["handle"]}
    nested = select("comments(body,profiles(handle))")["comments"]
    assert sorted(comment["body"] for comment in nested) == ["comment a", "comment b"]
    assert {comment["profiles"]["handle"] for comment in nested} == {profile["handle"]}


def test_a_filter_on_related_rows_filters_them_and_with_inner_their_parents_too(
    author: tuple[Client, dict[str, Any]],
) -> None:
    client, profile = author
    posts = client.table("posts").select("body,comments(body)").eq("author_id", profile["id"])
    rows = posts.eq("comments.body", "comment a").order("id").execute().data
    assert [len(row["comments"]) for row in rows] == [1, 0, 0]
    posts = client.table("posts").select("body,comments!inner(body)").eq("author_id", profile["id"])
    rows = posts.eq("comments.body", "comment a").execute().data
    assert rows == [{"body": "post a", "comments": [{"body": "comment a"}]}]


def test_rows_of_a_function_that_returns_a_view_have_the_relationships_of_its_table(
    author: tuple[Client, dict[str, Any]],
) -> None:
    client, profile = author
    columns = "id,place,profiles(handle),comments(body)"
    page = client.rpc("recommended_posts", {"p_limit": 1000}).select(columns)
    rows = page.eq("author_id", profile["id"]).order("place").execute().data
    assert [row["id"] for row in rows] == [post["id"] for post in profile["posts"]]
    assert all(row["profiles"] == {"handle": profile["handle"]} for row in rows)
    assert [len(row["comments"]) for row in rows] == [2, 0, 0]


@pytest.mark.parametrize("related", ["unrelated", "nothing"])
def test_a_relationship_that_is_not_there_is_refused(related: str, app: Api) -> None:
    answer = ask(app, f"posts?select=*,{related}(id)")
    assert (answer.status_code, answer.json()["code"]) == (400, "PGRST200")


def test_ranges_and_counts_are_told_in_content_range(
    app: Api, author: tuple[Client, dict[str, Any]]
) -> None:
    _, profile = author
    path = f"posts?author_id=eq.{profile['id']}&order=id"
    answer = ask(app, path, prefer="count=exact", range="0-1")
    assert (answer.status_code, answer.headers["content-range"]) == (206, "0-1/3")
    assert [row["body"] for row in answer.json()] == ["post a", "post b"]
    assert ask(app, path).headers["content-range"] == "0-2/*"
    beyond = ask(app, path, prefer="count=exact", range="5-9")
    assert (beyond.status_code, beyond.json()["code"]) == (416, "PGRST103")


def test_a_count_without_rows_is_answered_to_head(author: tuple[Client, dict[str, Any]]) -> None:
    client, profile = author
    counted = client.table("posts").select("*", count="exact", head=True)
    answer = counted.eq("author_id", profile["id"]).execute()
    assert (answer.count, answer.data) == (3, [])


def test_at_most_a_thousand_rows_are_answered(app: Api) -> None:
    with psycopg.connect(app.database_url) as connection:
        connection.execute(
            "insert into public.unrelated select generate_series(1, 1001) on conflict do nothing"
        )
    assert len(ask(app, "unrelated").json()) == 1000


def test_an_insert_answers_with_the_row_or_with_nothing_as_preferred(app: Api) -> None:
    _, user_id = app.sign_up()

    def insert(prefer: str) -> httpx.Response:
        headers = {**app.headers(app.token(user_id)), "Prefer": prefer}
        return httpx.post(f"{app.url}/rest/v1/posts", headers=headers, json={"body": "x"})

    quiet = insert("return=minimal")
    assert (quiet.status_code, quiet.content) == (201, b"")
    told = insert("return=representation")
    assert (told.status_code, [row["body"] for row in told.json()]) == (201, ["x"])


def test_duplicates_are_refused_merged_or_ignored(author: tuple[Client, dict[str, Any]]) -> None:
    client, profile = author
    row = {"id": profile["posts"][0]["id"], "body": "changed"}
    with pytest.raises(APIError) as refusal:
        client.table("posts").insert(row).execute()
    assert refusal.value.code == "23505"
    ignored = client.table("posts").upsert(row, ignore_duplicates=True).execute()
    assert ignored.data == []
    assert client.table("posts").upsert(row).execute().data[0]["body"] == "changed"


def test_single_refuses_none_and_many_and_maybe_single_only_many(
    author: tuple[Client, dict[str, Any]],
) -> None:
    client, profile = author
    mine = client.table("posts").select("*").eq("author_id", profile["id"])
    with pytest.raises(APIError) as many:
        mine.single().execute()
    assert many.value.code == "PGRST116"
    nobody = client.table("posts").select("*").eq("id", -1)
    assert nobody.maybe_single().execute() is None


def test_rows_are_answered_as_csv(author: tuple[Client, dict[str, Any]]) -> None:
    client, profile = author
    mine = client.table("posts").select("body").eq("author_id", profile["id"]).order("id")
    assert mine.csv().execute().data == 'body\n"post a"\n"post b"\n"post c"'


def test_large_keys_are_numbers_and_text_where_they_are_cast(
    author: tuple[Client, dict[str, Any]], app: Api
) -> None:
    client, _ = author
    key = 2**53 + 1 + secrets.randbelow(2**40)
    client.table("posts").insert({"id": key, "body": "far"}).execute()
    answer = ask(app, f"posts?select=id,key:id::text&id=eq.{key}")
    assert answer.text == f'[{{"id":{key},"key":"{key}"}}]'


def test_supabase_js_reads_pages_and_errors_as_supabase_py_does(
    author: tuple[Client, dict[str, Any]], run_js: Callable[[str], Any]
) -> None:
    _, profile = author
    seen = run_js(f"""
        const client = connect(anonKey);
        const mine = () => client.from("posts")
            .select("body,profiles(handle)", {{ count: "exact" }})
            .eq("author_id", "{profile["id"]}").order("id");
        return {{
            page: await mine().range(1, 2),
            many: await mine().single(),
            none: await client.from("posts").select().eq("id", -1).maybeSingle(),
            words: await client.rpc("count_words", {{ p_text: "a b c" }}, {{ get: true }}),
            wrong: await client.rpc("count_words", {{ p_nothing: 1 }}),
        }};
    """)
    assert seen["page"]["count"] == 3
    related = {"handle": profile["handle"]}
    assert seen["page"]["data"] == [{"body": f"post {n}", "profiles": related} for n in "bc"]
    assert (seen["many"]["status"], seen["many"]["error"]["code"]) == (406, "PGRST116")
    assert (seen["none"]["data"], seen["none"]["error"]) == (None, None)
    assert seen["words"]["data"] == 3
    assert (seen["wrong"]["status"], seen["wrong"]["error"]["code"]) == (404, "PGRST202")


def test_what_a_migration_makes_is_served_without_a_restart(app: Api) -> None:
    name = f"later_{secrets.token_hex(4)}"
    assert ask(app, name).status_code == 404
    with psycopg.connect(app.database_url) as connection:
        connection.execute(f"create table public.{name} (id bigint)")
        connection.execute(f"grant select on public.{name} to anon")
    wait_until(lambda: ask(app, name).status_code == 200)
    with psycopg.connect(app.database_url) as connection:
        connection.execute(f"drop table public.{name}")
    wait_until(lambda: ask(app, name).status_code == 404)


def test_a_secret_key_is_refused_in_a_browser(app: Api) -> None:
    headers = {"apikey": app.service_key, "User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}
    answer = httpx.get(f"{app.url}/rest/v1/posts", headers=headers)
    assert (answer.status_code, answer.json()["message"]) == (
        401,
        "Forbidden use of secret API key in browser",
    )
