"""A page of recommended posts in HTML, as a server renders it: no JavaScript is needed to read it.

    SUPABASE_URL=... SUPABASE_KEY=sb_publishable_... python page.py ACCESS_TOKEN > page.html

It asks with the reader's own access token, so the app's policies decide what is on it.
"""

from __future__ import annotations

import os
import sys
from html import escape

from supabase import create_client


def render_page(url: str, key: str, access_token: str) -> str:
    """The first page of the user whose token it is."""
    client = create_client(url, key)
    client.postgrest.auth(access_token)
    posts = (
        client.rpc("recommended_posts", {"p_limit": 20})
        .select("place, id, content, profiles(handle)")
        .order("place")
        .execute()
        .data
    )
    # What is sent is not yet seen: a page without JavaScript counts it as a view all the same.
    views = [{"post_key": str(post["id"]), "event_type": "view"} for post in posts]
    if views:
        client.rpc("record_engagements", {"p_events": views, "p_each": True}).execute()
    items = "\n".join(f"  <li>{render_post(post)}</li>" for post in posts)
    return (
        f'<!doctype html>\n<html lang="en">\n<title>For you</title>\n<ol>\n{items}\n</ol>\n</html>'
    )


def render_post(post: dict[str, object]) -> str:
    """One post. What people wrote is escaped."""
    author = post["profiles"]
    name = author["handle"] if isinstance(author, dict) else "someone"
    return f"<article><p>{escape(str(post['content']))}</p><p>{escape(str(name))}</p></article>"


if __name__ == "__main__":
    print(render_page(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"], sys.argv[1]))
