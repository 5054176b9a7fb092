"""An example of each function that clients call, and the database in which all are called.

The page shows what really came back; times, which are of the day, are replaced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from docs.generator.catalogue import Function
from python_jobs.db import Connection, rows
from tests.support.database import PROJECT, as_user

# Of supabase/seed.sql: who likes posts of ada, and ben, who is followed in the examples.
CALLER = "00000000-0000-4000-8000-000000000003"
FOLLOWED = "00000000-0000-4000-8000-000000000002"
SEARCH = "a boat on the lake"
WIDTH = 384


CLIENT = "authenticated"
BACK_END = "service_role"
# The first post, as the app knows it.
BY_KEY = {"p_post_key": "1", "p_post_source": "posts"}
THE_POST = ("p_post_id", *BY_KEY)


@dataclass(frozen=True)
class Example:
    """A call of a function of schema public: by the caller or, for back ends, the service role.

    instead: arguments that name the post in another way.
    shows:   what follows the call in the client library.
    """

    function: str
    arguments: dict[str, Any]
    instead: dict[str, Any] = field(default_factory=dict)
    role: str = CLIENT
    shows: str = ""

    def calls(self) -> list[dict[str, Any]]:
        """The arguments of each way to call it."""
        others = {name: given for name, given in self.arguments.items() if name not in THE_POST}
        return [self.arguments, *([{**others, **self.instead}] if self.instead else [])]


RECENT = {"max_age": "90 days"}
ASKED = {"p_filter": RECENT, "p_cursor": None}  # the first page

EXAMPLES = (
    Example("recommend", {"p_limit": 10, **ASKED, "p_exclude": ["4"]}),
    Example(
        "recommended_posts",
        {"p_limit": 10, **ASKED, "p_exclude": ["4", "5"]},
        shows=".order('place')",
    ),
    Example("similar_posts", {**BY_KEY, "p_limit": 5, "p_filter": RECENT}, {"p_post_id": 1}),
    Example("embed_text", {"p_text": SEARCH}),
    Example("search_posts", {"p_text": SEARCH, "p_limit": 5, "p_filter": RECENT}),
    Example("popular_posts", {"p_limit": 5, "p_filter": RECENT}),
    Example(
        "most_popular_posts", {"p_limit": 5, **ASKED, "p_exclude": ["4"]}, shows=".order('place')"
    ),
    Example("recent_from_followed", {"p_limit": 5}),
    Example("more_from_author", {"p_author_key": FOLLOWED, "p_limit": 5}),
    Example("trending_posts", {"p_tag": None, "p_limit": 5}),
    Example(
        "set_interests",
        {"p_texts": ["amateur radio"], "p_post_keys": ["3"], "p_post_source": "posts"},
    ),
    Example("what_is_known_of_me", {}),
    Example("export_my_data", {"p_limit": 2, "p_cursor": None}),
    Example(
        "export_user_data",
        {"p_user_id": CALLER, "p_limit": 1, "p_cursor": None},
        role=BACK_END,
    ),
    Example("reset_my_feed", {}),
    Example("explain_recommendation", {"p_post_id": 3}, {**BY_KEY, "p_post_key": "3"}),
    Example(
        "record_engagements",
        {
            "p_events": [
                {
                    "post_id": 3,
                    "event_type": "like",
                    "client_event_id": "6f1c2a34-5b7d-4e8f-9a01-23456789abcd",
                },
                {"post_key": "6", "event_type": "dwell", "dwell_ms": 8000.4},
                {"post_id": 999, "event_type": "like"},
            ],
            "p_each": True,
        },
    ),
    Example(
        "recommend_for",
        {"p_user_id": CALLER, "p_limit": 10, **ASKED, "p_exclude": ["4"]},
        role=BACK_END,
    ),
    Example("explain_for", {"p_user_id": CALLER, **BY_KEY}, {"p_post_id": 1}, role=BACK_END),
    Example("remove_post", {**BY_KEY, "p_reason": "spam"}, {"p_post_id": 1}, role=BACK_END),
    Example("restore_post", {"p_post_id": 1}, BY_KEY, role=BACK_END),
    Example("read_metrics", {}, role=BACK_END),
)


def seed(connection: Connection) -> None:
    """Fills a database as `supabase start` does, with vectors that tell authors apart.

    They stand for what an encoder would make. Nothing is explored: that depends on the hour.
    """
    connection.execute((PROJECT / "supabase" / "seed.sql").read_text().encode())
    connection.execute("update two_tower.settings set exploration_share = 0")
    connection.execute(
        "insert into public.follows (follower_id, followed_id) values (%s, %s)", [CALLER, FOLLOWED]
    )
    posts = rows(connection, "select id, author_id from public.posts order by id")
    topics = np.eye(WIDTH, dtype=np.float32)
    authors = sorted({post.author_id for post in posts})
    vectors = [
        topics[authors.index(post.author_id)] + topics[len(authors) + place] / 2
        for place, post in enumerate(posts)
    ]
    ids = [post.id for post in posts]
    connection.execute(
        "select two_tower.store_base_embeddings(%s::bigint[], %s)", [ids, list(vectors)]
    )
    connection.execute("select two_tower.refresh_popular_candidates()")
    with connection.transaction(), as_user(connection, CALLER):
        connection.execute("select public.embed_text(%s)", [SEARCH])
    (text,) = rows(connection, "select text_id from two_tower.texts_to_encode()")
    connection.execute(
        "select two_tower.store_text_embeddings(array[%s::bigint], array[%s])",
        [text.text_id, vectors[0] / np.linalg.norm(vectors[0])],
    )


def answer(
    connection: Connection, function: Function, role: str, arguments: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows that the caller gets, as the REST server passes arguments and rows on.

    A function that returns nothing answers with one empty row.
    """
    given = {each.name: each.type for each in function.arguments if each.name in arguments}
    columns = ", ".join(f"{name} {kind}" for name, kind in given.items())
    passed = ", ".join(f"{name} => given.{name}" for name in given)
    record = f"jsonb_to_record(%s::jsonb) as given ({columns})" if given else "(select %s) as given"
    query = (
        f"select to_jsonb(answer) from {record}"
        f" cross join lateral public.{function.name}({passed}) as answer"
    )
    who = CALLER if role == CLIENT else None
    with connection.transaction(force_rollback=True), as_user(connection, who, role):
        found = rows(connection, query, json.dumps(arguments))
    return [row[0] or {} for row in found]
