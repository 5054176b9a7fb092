"""The examples for back ends, as commands: a rendered page, and digests."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from python_jobs.local.node import find_node
from tests.examples.conftest import FeedApp
from tests.support.database import PROJECT
from tests.support.patience import PATIENCE_S

LANGUAGES = ("python", "js")


def run(language: str, script: str, folder: Path, app: FeedApp, *arguments: str) -> str:
    """What an example prints. Node finds its packages beside the script."""
    source = PROJECT / "examples" / language
    if language == "js":
        for path in source.glob("*.mjs"):
            shutil.copy(path, folder)
        (folder / "node_modules").symlink_to(PROJECT / ".two-tower" / "node" / "node_modules")
        command = [str(find_node()), str(folder / f"{script}.mjs")]
    else:
        command = [sys.executable, str(source / f"{script}.py")]
    done = subprocess.run(
        [*command, *arguments],
        env={
            **os.environ,
            "SUPABASE_URL": app.api.url,
            "SUPABASE_KEY": app.api.anon_key,
            "SUPABASE_SECRET_KEY": app.api.service_key,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_server_renders_the_page_that_the_reader_would_get(
    feed_app: FeedApp, tmp_path: Path, language: str
) -> None:
    client, user_id = feed_app.api.sign_up()
    rows = client.rpc("recommended_posts", {"p_limit": 20}).order("place").execute().data
    page = run(language, "page", tmp_path, feed_app, feed_app.api.token(user_id))
    shown = [unescape(part.split("</p>")[0]) for part in page.split("<article><p>")[1:]]
    assert shown == [row["content"] for row in rows]
    assert "<script" not in page
    after = client.rpc("recommended_posts", {"p_limit": 20}).select("id").execute().data
    assert {row["id"] for row in after}.isdisjoint(row["id"] for row in rows)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_people_wrote_is_text_on_a_rendered_page(
    feed_app: FeedApp, tmp_path: Path, language: str
) -> None:
    author, _ = feed_app.api.sign_up()
    author.table("profiles").insert({"handle": f"<b>{language}</b>"}).execute()
    text = f"<script>alert('{language}')</script>"
    post = author.table("posts").insert({"content": text}).execute().data[0]
    reader, user_id = feed_app.api.sign_up()
    others = reader.rpc("recommended_posts", {"p_limit": 500}).select("id").execute().data
    seen = [
        {"post_key": str(row["id"]), "event_type": "view"}
        for row in others
        if row["id"] != post["id"]
    ]
    reader.rpc("record_engagements", {"p_events": seen}).execute()
    try:
        page = run(language, "page", tmp_path, feed_app, feed_app.api.token(user_id))
    finally:
        feed_app.api.client(feed_app.api.service_key).table("posts").delete().eq(
            "id", post["id"]
        ).execute()
    assert text in unescape(page)
    assert "<script" not in page
    assert "<b>" not in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_digest_has_what_is_recommended_and_is_no_view(
    feed_app: FeedApp, tmp_path: Path, language: str
) -> None:
    client, user_id = feed_app.api.sign_up()
    address = feed_app.rows("select email from auth.users where id = %s", user_id)[0].email
    backend = feed_app.api.client(feed_app.api.service_key)
    found = backend.rpc("recommend_for", {"p_user_id": user_id, "p_limit": 5}).execute().data
    keys = [int(row["post_key"]) for row in found]
    contents = dict(feed_app.rows("select id, content from public.posts where id = any (%s)", keys))
    printed = run(language, "digest", tmp_path, feed_app)
    if language == "js":
        messages = [json.loads(line) for line in printed.splitlines()]
        (text,) = [message["text"] for message in messages if message["to"] == address]
    else:
        parts = [email.message_from_string(f"To: {part}") for part in printed.split("To: ")[1:]]
        (text,) = [str(part.get_payload()) for part in parts if part["To"] == address]
    assert text.strip().splitlines() == [f"- {contents[key]}" for key in keys]
    again = client.rpc("recommend", {"p_limit": 5}).execute().data
    assert [row["post_key"] for row in again] == [row["post_key"] for row in found]
