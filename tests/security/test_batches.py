"""Batches of events, good and bad, by SQL and over HTTP: what becomes of each is known.

The model knows stored, known or refused of each event, and what is in the table afterwards.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np
import psycopg
import pytest
from hypothesis import given
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, connect, rows
from tests.security.fuzzing import SHORT_AND_LONG, run_each
from tests.security.model import POST, Model, Sent, batches
from tests.support.api import Api
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts
from tests.support.invariants import assert_consistent

STORED = """
  select post_id, event_type, dwell_ms, client_event_id from public.engagement_events
  where user_id = %s
"""


@dataclass
class Refusal:
    """Of a whole batch."""

    code: str
    message: str | None
    hint: str | None


Answers = list[dict[str, Any]] | Refusal


class Way(Protocol):
    """A way to record_engagements() for a user."""

    post: int
    db: Connection

    def new_user(self) -> str: ...

    def send(self, user: str, events: list[Any], is_each: bool) -> Answers: ...


def fill(event: Any, post: int) -> Any:
    """The event with the post's id, as a number where it is given as one."""
    if not isinstance(event, dict):
        return event
    given = {name: str(post) if each == POST else each for name, each in event.items()}
    if event.get("post_id") == POST:
        given["post_id"] = post
    return given


def check(way: Way, batch: list[Sent], is_each: bool) -> Counter[str]:
    """Sends a batch and then the same once more; compares answers and the table with the model."""
    user, model = way.new_user(), Model()
    seen: Counter[str] = Counter()
    for _ in range(2):
        wanted = model.send(batch, is_each)
        refused = [answer.codes for answer in wanted if answer.status == "refused"]
        got = way.send(user, [fill(sent.event, way.post) for sent in batch], is_each)
        if isinstance(got, Refusal):
            assert refused, got
            assert not is_each, got
            assert got.code in set[str]().union(*refused), got
            assert got.message, got
            assert got.hint, got
            seen["batches refused"] += 1
        else:
            assert is_each or not refused
            assert [row["place"] for row in got] == list(range(1, len(batch) + 1))
            assert [row["status"] for row in got] == [answer.status for answer in wanted]
            for sent, row, answer in zip(batch, got, wanted, strict=True):
                seen[answer.status] += 1
                if sent.client_event_id:
                    assert uuid.UUID(str(row["client_event_id"])) == sent.client_event_id
                if answer.status == "refused":
                    assert row["code"] in answer.codes, (sent, row)
                    assert row["message"], row
                    assert row["hint"], row
                else:
                    assert row["event_id"], row
        stored = rows(way.db, STORED, user)
        found = Counter((each.post_id, each.event_type, each.dwell_ms) for each in stored)
        assert found == Counter((way.post, sent.event_type, sent.dwell_ms) for sent in model.stored)
        given_ids = {sent.client_event_id for sent in model.stored if sent.client_event_id}
        assert given_ids <= {each.client_event_id for each in stored}
    return seen


class BySql:
    """Calls as a signed-in user, in one transaction."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        self.post = add_posts(db, 30, [add_user(db)], np.random.default_rng(1))[0]

    def new_user(self) -> str:
        return add_user(self.db)

    def send(self, user: str, events: list[Any], is_each: bool) -> Answers:
        call = "select * from public.record_engagements(%s, %s)"
        try:
            with self.db.transaction(), as_user(self.db, user):
                cursor = self.db.execute(call, [Jsonb(events), is_each])
                return [row._asdict() for row in cursor.fetchall()]
        except psycopg.Error as error:
            told = error.diag
            return Refusal(str(error.sqlstate), told.message_primary, told.message_hint)


class OverHttp:
    """Calls over PostgREST, with a token of each user."""

    def __init__(self, api: Api, db: Connection, http: httpx.Client) -> None:
        self.api, self.db, self.http = api, db, http
        self.post = add_posts(db, 30, [add_user(db)], np.random.default_rng(1))[0]

    def new_user(self) -> str:
        return add_user(self.db)

    def send(self, user: str, events: list[Any], is_each: bool) -> Answers:
        answer = self.http.post(
            f"{self.api.url}/rest/v1/rpc/record_engagements",
            headers=self.api.headers(self.api.token(user)),
            json={"p_events": events, "p_each": is_each},
        )
        said = answer.json()
        if answer.status_code == 200:
            return list(said)
        assert 400 <= answer.status_code < 500, answer.text
        return Refusal(said["code"], said["message"], said["hint"])


@pytest.mark.parametrize("examples", SHORT_AND_LONG)
def test_every_event_of_a_batch_is_answered_and_stored_as_the_model_says(
    db: Connection, examples: int
) -> None:
    way, seen = BySql(db), Counter[str]()

    @given(drawn=batches())
    def each(drawn: tuple[list[Sent], bool]) -> None:
        with db.transaction(force_rollback=True):
            seen.update(check(way, *drawn))

    run_each(each, examples)
    print(dict(seen))
    assert {"stored", "known", "refused", "batches refused"} <= set(seen)


@pytest.mark.parametrize("examples", SHORT_AND_LONG)
def test_over_http_a_batch_is_answered_as_the_model_says(
    api: Api, patient_http: httpx.Client, examples: int
) -> None:
    seen = Counter[str]()
    with connect(api.database_url, autocommit=True) as connection:
        way = OverHttp(api, connection, patient_http)

        @given(drawn=batches())
        def each(drawn: tuple[list[Sent], bool]) -> None:
            seen.update(check(way, *drawn))

        run_each(each, examples)
        assert_consistent(connection)
    print(dict(seen))
    assert {"stored", "known", "refused", "batches refused"} <= set(seen)
