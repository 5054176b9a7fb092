"""An app with posts of two kinds, served with its feed, and a real browser to use it with."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from python_jobs.db import connect, rows
from python_jobs.laboratory.feed.server import FeedServer
from python_jobs.state import State
from tests.support.api import Api
from tests.support.database import PROJECT, add_user
from tests.support.engagements import store
from tests.support.patience import PATIENCE_S, wait_until

WIDTHS = {"wide": (1280, 860), "phone": (390, 844)}
AUTHORS = ("Comets", "Gardens", "Harbours", "Engines")
POSTS = 60


@dataclass
class FeedApp:
    """The starter app with posts, its API, and the server of the page."""

    api: Api
    url: str

    def rows(self, query: str, *arguments: Any) -> list[Any]:
        """All rows of a query, as the database's owner."""
        with connect(self.api.database_url) as connection:
            return rows(connection, query, *arguments)


@pytest.fixture(scope="session")
def feed_app(
    start_api: Callable[[str], Api], clone_database: Callable[[], str]
) -> Iterator[FeedApp]:
    """Each author writes of one thing: the vectors of the author's posts lie close together."""
    api = start_api(clone_database())
    rng = np.random.default_rng(1)
    middles = rng.normal(size=(len(AUTHORS), 384))
    with connect(api.database_url, autocommit=True) as connection:
        ids = []
        for name in AUTHORS:
            author = add_user(connection)
            connection.execute(
                "insert into public.profiles (user_id, handle) values (%s, %s)", [author, name]
            )
            ids.append(author)
        posts = rows(
            connection,
            "insert into public.posts (author_id, content, created_at)"
            " select (%s::uuid[])[1 + n %% 4], 'Post ' || n || '. A second sentence.',"
            " now() - n * interval '1 minute' from generate_series(1, %s) n returning id",
            ids,
            POSTS,
        )
        vectors = middles[[(n + 1) % 4 for n in range(POSTS)]] + rng.normal(size=(POSTS, 384))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store(connection, [post.id for post in posts], [list(map(float, v)) for v in vectors])
    state = State(
        database_url=api.database_url,
        database_port=0,
        data_dir="",
        api_url=api.url,
        api_port=0,
        api_pid=None,
        publishable_key=api.keys.publishable_key,
        secret_key=api.keys.secret_key,
        jwt_secret=api.keys.jwt_secret,
    )
    server = FeedServer(state, PROJECT / ".two-tower", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield FeedApp(api, server.url)
    server.shutdown()
    server.server_close()


@dataclass
class Reader:
    """Somebody at the feed, signed up; `page` is playwright's."""

    app: FeedApp
    page: Any
    email: str
    errors: list[str] = field(default_factory=list)

    @property
    def posts(self) -> Any:
        """The posts that are on the page."""
        return self.page.locator("article:visible")

    def titles(self) -> list[str]:
        """Of all posts on the page, from the top."""
        return list(self.page.locator("article:visible h3").all_inner_texts())

    def events(self) -> list[tuple[str, str, int | None]]:
        """What is stored: title, type, dwell_ms."""
        return [
            tuple(row)
            for row in self.app.rows(
                "select split_part(p.content, '.', 1) as title, e.event_type, e.dwell_ms"
                " from public.engagement_events e join auth.users u on u.id = e.user_id"
                " join public.posts p on p.id = e.post_id where u.email = %s order by e.id",
                self.email,
            )
        ]

    def wait_for(self, title: str, event_type: str) -> None:
        """Until such an event is stored. The browser goes on meanwhile."""
        wait_until(lambda: self.page.wait_for_timeout(50) or self.has(title, event_type))

    def has(self, title: str, event_type: str) -> bool:
        """Whether such an event is stored."""
        return (title, event_type) in [event[:2] for event in self.events()]


@pytest.fixture
def sign_up(browser: Any, feed_app: FeedApp) -> Iterator[Callable[..., Reader]]:
    """Factory: a new reader whose feed is filled, on a screen of one of WIDTHS.

    A script that fails in the page fails the test.
    """
    readers: list[Reader] = []
    with ExitStack() as stack:

        def make(width: str = "wide") -> Reader:
            size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
            context = browser.new_context(viewport=size, reduced_motion="reduce")
            stack.callback(context.close)
            context.set_default_timeout(1000 * PATIENCE_S)
            page = context.new_page()
            reader = Reader(feed_app, page, f"{secrets.token_hex(8)}@example.com")
            readers.append(reader)
            page.on("pageerror", lambda error: reader.errors.append(str(error)))
            page.goto(feed_app.url)
            page.get_by_label("E-mail").fill(reader.email)
            page.get_by_label("Password").fill(secrets.token_hex(16))
            page.get_by_role("button", name="Sign up").click()
            reader.posts.first.wait_for()
            return reader

        yield make
    assert [error for reader in readers for error in reader.errors] == []
