"""Texts of callers, encoded by a real worker between two polls and between two batches."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from python_jobs.db import Connection, connect, rows, value
from python_jobs.errors import CommandError
from python_jobs.worker.jobs import encode
from python_jobs.worker.process import Worker
from tests.support.database import add_user, as_user
from tests.support.patience import wait_until
from tests.support.workers import running_worker

READY = "select status, base_embedding, embedding from public.embed_text(%s)"
QUEUED = "select count(*) from two_tower.requested_texts"


def ask(connection: Connection, user: str, text: str) -> Any:
    """An answer as a client gets it."""
    with connection.transaction(), as_user(connection, user):
        return rows(connection, READY, text)[0]


def test_a_text_is_answered_by_a_worker_that_had_nothing_to_do(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        user = add_user(connection)
        assert ask(connection, user, "a boat on the sea").status == "no_worker"
        with running_worker(url):
            answers = {
                text: wait_until(
                    lambda text=text: (
                        (found := ask(connection, user, text)).status == "ready" and found
                    )
                )
                for text in ("a boat on the sea", "a ship under sail", "tax law")
            }
            assert ask(connection, user, "another").status == "waiting"
    boat, ship, tax = (np.array(each.base_embedding) for each in answers.values())
    assert boat @ ship > boat @ tax + 0.2
    assert np.allclose(boat, encode.encoder().encode(["a boat on the sea"])[0], atol=0.02)
    assert all(len(each.embedding) == 128 for each in answers.values())


def test_a_drained_queue_holds_no_text_that_waits(fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        user = add_user(connection)
        connection.execute("update two_tower.settings set requested_texts_per_minute = 200")
        for number in range(150):
            ask(connection, user, f"text {number}")
        Worker(url).run(drain=True)
        assert value(connection, f"{QUEUED} where base_embedding is null") == 0
        assert value(connection, QUEUED) == 150


def test_a_text_does_not_wait_for_all_posts(fresh_database: Callable[[], str]) -> None:
    """It gets in between two pieces of one batch."""
    url = fresh_database()
    with connect(url, autocommit=True) as connection, connect(url, autocommit=True) as other:
        user = add_user(connection)
        connection.execute(
            "insert into public.posts (author_id, content)"
            " select null, 'post ' || g from generate_series(1, %s) g",
            [3 * encode.PIECE],
        )
        order: list[str] = []
        real = encode.encoder().encode

        def watched(texts: list[str]) -> Any:
            if not order:
                ask(other, user, "search")
            order.append(texts[0].split()[0])
            return real(texts)

        with patch.object(encode.encoder(), "encode", watched):
            assert encode.encode_posts(connection) == {"posts": 3 * encode.PIECE}
        assert order == ["post", "search", "post", "post"]


def test_an_encoder_that_fails_is_told_once_and_the_text_waits(
    fresh_database: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    url = fresh_database()
    calls = itertools.count()
    twice = threading.Event()

    def broken(name: str) -> Any:
        if next(calls):
            twice.set()
        raise FileNotFoundError("no weights")

    worker = Worker(url)
    with connect(url, autocommit=True) as connection, caplog.at_level(logging.ERROR):
        user = add_user(connection)
        ask(connection, user, "a boat")
        free = "update two_tower.requested_texts set claimed_until = '-infinity'"
        with patch.object(encode, "encoder", broken):
            running = threading.Thread(target=worker.run, args=[False])
            running.start()
            try:
                wait_until(lambda: connection.execute(free.encode()) and twice.is_set())
            finally:
                worker.is_stopping.set()
                running.join()
            assert [each for each in caplog.messages if "no weights" in each] == [
                "encode_texts failed: no weights"
            ]
            connection.execute(free.encode())
            with pytest.raises(CommandError, match="no weights"):
                Worker(url).run(drain=True)
        assert ask(connection, user, "a boat").status == "waiting"
