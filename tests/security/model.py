"""What becomes of a batch of events, told from what a client sends alone."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.support.reference import EVENT_TYPES

POST = "<post>"  # in drawn events: the id of a post of the database

# Ways to give a field, with what it comes to, or the codes of the refusals that may come of it.
# Those that reading the event refuses come before any look at what is stored.
POSTS: list[tuple[dict[str, Any], Any]] = [
    ({"post_id": POST}, POST),
    ({"post_id": f"{POST}"}, POST),
    ({"post_key": POST}, POST),
    ({"post_key": POST, "post_source": "posts"}, POST),
    ({"post_id": POST, "post_key": "x"}, POST),
    ({"post_id": POST, "post_source": "nobody"}, POST),
    ({"post_id": None, "post_key": POST}, POST),
]
BAD_POSTS: list[tuple[dict[str, Any], str]] = [
    ({}, "23502"),
    ({"post_id": None}, "23502"),
    ({"post_id": 10**15}, "23503"),
    ({"post_id": 0}, "23503"),
    ({"post_id": -(2**63)}, "23503"),
    ({"post_key": "x"}, "23503"),
    ({"post_key": ""}, "23503"),
    ({"post_key": "💥" * 1000}, "23503"),
    ({"post_key": POST, "post_source": "nobody"}, "22023"),
]
UNREADABLE_POSTS: list[tuple[dict[str, Any], str]] = [
    ({"post_id": 1.5}, "22P02"),
    ({"post_id": True}, "22P02"),
    ({"post_id": "NaN"}, "22P02"),
    ({"post_id": {"a": [1]}}, "22P02"),
    ({"post_id": 10**30}, "22003"),
    ({"post_id": 1e300}, "22003"),
]
BAD_TYPES: list[tuple[dict[str, Any], str]] = [
    ({}, "23502"),
    ({"event_type": None}, "23502"),
    ({"event_type": "adore"}, "23514"),
    ({"event_type": ""}, "23514"),
    ({"event_type": "LIKE"}, "23514"),
    ({"event_type": 5}, "23514"),
    ({"event_type": {"like": True}}, "23514"),
    ({"event_type": "x" * 5000}, "23514"),
]
DWELLS: list[tuple[dict[str, Any], int | None]] = [
    ({}, None),
    ({"dwell_ms": None}, None),
    ({"dwell_ms": 0}, 0),
    ({"dwell_ms": 1999.6}, 2000),
    ({"dwell_ms": 1e300}, 2**31 - 1),
]
BAD_DWELLS: list[tuple[dict[str, Any], str]] = [
    ({"dwell_ms": -1}, "23514"),
    ({"dwell_ms": -0.25}, "23514"),
    ({"dwell_ms": -1e300}, "23514"),
]
UNREADABLE_DWELLS: list[tuple[dict[str, Any], str]] = [
    ({"dwell_ms": "8123"}, "22P02"),
    ({"dwell_ms": False}, "22P02"),
    ({"dwell_ms": [1]}, "22P02"),
]
# What a client may not say, or what nobody knows: it changes nothing.
OTHER_FIELDS: list[dict[str, Any]] = [
    {},
    {},
    {"user_id": "00000000-0000-0000-0000-000000000000"},
    {"id": 1, "created_at": "2001-01-01"},
    {"deep": [[[[[[[[{"a": {"b": [None] * 20}}]]]]]]]]},
    {"": "", "§": "💥"},
]


@dataclass
class Sent:
    """An event as it is sent, and what its fields come to."""

    event: Any
    post: Any = None
    event_type: str = ""
    dwell_ms: int | None = None
    client_event_id: uuid.UUID | None = None
    unreadable: set[str] = field(default_factory=set)
    faults: set[str] = field(default_factory=set)


@st.composite
def sent_events(draw: st.DrawFn, client_event_ids: list[uuid.UUID]) -> Sent:
    """One event, mostly a good one."""
    if draw(st.integers(0, 40)) == 40:
        return Sent(draw(st.sampled_from([None, 1, "like", [], True])), unreadable={"22023"})
    is_good = draw(st.integers(0, 4)) < 4
    sent = Sent({})

    def choose(good: list[Any], bad: list[Any], unreadable: list[Any]) -> Any:
        kind = 0 if is_good else draw(st.sampled_from([0, 0, 1, 2]))
        fields, meaning = draw(st.sampled_from([good, bad or good, unreadable or good][kind]))
        sent.event |= fields
        if kind == 1 and bad:
            sent.faults.add(meaning)
        elif kind == 2 and unreadable:
            sent.unreadable.add(meaning)
        else:
            return meaning
        return None

    sent.post = choose(POSTS, BAD_POSTS, UNREADABLE_POSTS)
    types = [({"event_type": name}, name) for name in EVENT_TYPES]
    sent.event_type = choose(types, BAD_TYPES, [])
    sent.dwell_ms = choose(DWELLS, BAD_DWELLS, UNREADABLE_DWELLS)
    if sent.event_type == "dwell" and sent.dwell_ms is None:
        sent.faults.add("23514")
    known = [({"client_event_id": str(each)}, each) for each in client_event_ids]
    known += [({"client_event_id": str(each).upper()}, each) for each in client_event_ids[:1]]
    fresh: list[tuple[dict[str, Any], Any]] = [({}, None), ({"client_event_id": None}, None)]
    sent.client_event_id = choose(
        [*fresh, *known], [], [({"client_event_id": each}, "22P02") for each in ("nope", 5, "")]
    )
    sent.event |= draw(st.sampled_from(OTHER_FIELDS))
    return sent


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Sent], bool]:
    """A batch, and whether it is answered by event. Of the few client_event_ids some come twice."""
    ids = [uuid.UUID(int=draw(st.integers(0, 2**128 - 1))) for _ in range(3)]
    size = draw(st.sampled_from([0, 1, 2, 5, 9, 16, 70]))
    batch = draw(st.lists(sent_events(ids), min_size=size, max_size=size))
    return batch, draw(st.sampled_from([True, True, False]))


@dataclass
class Answer:
    """What is expected of one event: its status and, of a refusal, the codes that it may have."""

    status: str
    codes: set[str]


class Model:
    """What one user has stored."""

    def __init__(self) -> None:
        self.stored: list[Sent] = []

    def send(self, batch: list[Sent], is_each: bool) -> list[Answer]:
        """The answers; all or nothing: nothing is stored where one is refused."""
        before = list(self.stored)
        answers = [self._send(sent) for sent in batch]
        if not is_each and any(answer.status == "refused" for answer in answers):
            self.stored = before
        return answers

    def _send(self, sent: Sent) -> Answer:
        if sent.unreadable:
            return Answer("refused", sent.unreadable)
        if sent.client_event_id and sent.client_event_id in {
            each.client_event_id for each in self.stored
        }:
            return Answer("known", set())
        if sent.faults:
            return Answer("refused", sent.faults)
        self.stored.append(sent)
        return Answer("stored", set())
