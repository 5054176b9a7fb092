"""Tables as apps have them, beside the engine and without the starter app's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from python_jobs.db import Connection, connect
from tests.support.app import App, detach_starter


@pytest.fixture
def app(db: Connection) -> App:
    """An app in a transaction that is rolled back; its own tables alone are attached."""
    detach_starter(db)
    return App(db)


@pytest.fixture
def own_url(fresh_database: Callable[[], str]) -> str:
    """A database of this test alone, where nothing but public.author_blocks is attached."""
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        detach_starter(connection)
    return url
