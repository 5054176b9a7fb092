"""Debian's servers compile what looks costly, by default: seconds for a statement of milliseconds.

The platform has JIT off, but a Postgres of one's own may have it on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from python_jobs.db import Connection, connect, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts
from tests.support.learning import rng

# What a member of an app asks for, and part of a statement that it runs inside.
REQUESTS = {
    "insert into public.engagement_events (user_id, post_id, event_type, client_event_id)"
    f" select auth.uid(), min(id), 'like', '{uuid.uuid4()}' from public.posts": "client_event_id",
    "select * from public.recommend(50)": "two_tower.user_embeddings",
}


@pytest.fixture
def explained(
    cluster: Cluster, fresh_database: Callable[[], str]
) -> Iterator[tuple[Connection, list[str]]]:
    """A connection with JIT on, and what auto_explain says of all statements that it runs."""
    plans: list[str] = []
    name = fresh_database().rsplit("/", 1)[1]
    with connect(cluster.url(name, SUPERUSER)) as connection:
        if not value(connection, "select pg_jit_available()"):
            pytest.skip("this Postgres has no JIT; debian-17 has: see docs/CONTRIBUTING.md")
        add_posts(connection, 40, [add_user(connection)], rng())
        connection.commit()
        connection.execute("load 'auto_explain'")
        for setting, wanted in (
            ("jit", "on"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_analyze", "on"),
            ("auto_explain.log_nested_statements", "on"),
            ("client_min_messages", "log"),
        ):
            connection.execute("select set_config(%s, %s, false)", [setting, wanted])
        connection.commit()
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        yield connection, plans
        connection.rollback()


def run_as_member(connection: Connection, request: str) -> None:
    with as_user(connection, add_user(connection)):
        connection.execute(request.encode())


@pytest.mark.parametrize("request_", REQUESTS, ids=["like", "recommend"])
def test_a_request_compiles_nothing(explained: tuple[Connection, list[str]], request_: str) -> None:
    connection, plans = explained
    run_as_member(connection, request_)
    assert [plan for plan in plans if REQUESTS[request_] in plan and "plan:" in plan]
    assert [plan for plan in plans if "JIT:" in plan] == []


def test_a_compilation_would_be_seen(explained: tuple[Connection, list[str]]) -> None:
    connection, plans = explained
    connection.execute("set jit_above_cost = 0")
    run_as_member(connection, next(iter(REQUESTS)))
    assert [plan for plan in plans if "JIT:" in plan]
