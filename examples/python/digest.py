"""A digest by e-mail of what waits for each user, written by a back end with the service role.

    SUPABASE_URL=... SUPABASE_SECRET_KEY=sb_secret_... python digest.py

Prints the messages; `smtplib.SMTP(...).send_message(message)` sends one. The service role reads all
rows: an app whose policies hide posts from some users asks for those with their own tokens.
"""

from __future__ import annotations

import os
from email.message import EmailMessage

from supabase import Client, create_client

POSTS = 5


def write_digest(backend: Client, user_id: str, address: str) -> EmailMessage | None:
    """The message to a user; None when there is nothing to tell. Writes nothing to the database."""
    found = backend.rpc("recommend_for", {"p_user_id": user_id, "p_limit": POSTS}).execute().data
    keys = [row["post_key"] for row in found if row["post_source"] == "posts"]
    rows = backend.table("posts").select("id, content").in_("id", keys).execute().data
    contents = {str(row["id"]): row["content"] for row in rows}
    if not contents:
        return None
    message = EmailMessage()
    message["To"] = address
    message["From"] = "feed@example.com"
    message["Subject"] = f"{len(contents)} posts for you"
    message.set_content("\n".join(f"- {contents[key]}" for key in keys if key in contents))
    return message


if __name__ == "__main__":
    backend = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_SECRET_KEY"])
    for user in backend.auth.admin.list_users():
        if user.email and (message := write_digest(backend, user.id, user.email)):
            print(message)
