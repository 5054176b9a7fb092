"""Streams of events of all kinds: SQL against the float64 reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from python_jobs.db import Connection
from tests.support.engagements import (
    Stream,
)
from tests.support.invariants import assert_consistent
from tests.support.learning import RULES, TOLERANCE, rng
from tests.support.twin import Twin


def run_stream(twin: Twin, size: int, count: int, *, check_every: int) -> float:
    """Sends a random stream in statements of one size; returns the largest difference seen.

    In between posts are encoded and deleted, and pushes are folded, some or all of them.
    """
    stream = Stream(twin.rng, twin.user_ids, [*twin.post_ids, *twin.unencoded])
    twin.rng.shuffle(stream.post_ids)
    for user_id in twin.user_ids[:10]:
        twin.give_base(user_id, 0.5)
    unencoded, largest, sent, checked = list(twin.unencoded), 0.0, 0, 0
    for number in range(count // size):
        twin.insert(stream.next(size))
        sent += size
        if (number + 1) % max(1, 60 // size) == 0:
            twin.fold(None if twin.rng.random() < 0.5 else int(twin.rng.integers(1, 40)))
        if unencoded and sent > count * (1 - len(unencoded) / (len(twin.unencoded) + 1)):
            twin.encode(unencoded.pop())
            twin.delete_post(int(twin.rng.choice(twin.post_ids)))
        if sent - checked >= check_every:
            checked = sent
            largest = max(largest, twin.difference())
    twin.fold()
    largest = max(largest, twin.difference())
    twin.assert_same_verdicts()
    return largest


def assert_stream_equals(connection: Connection, rule: str, size: int, count: int) -> None:
    twin = Twin(connection, rng(size), rule=rule, unencoded_posts=10)
    largest = run_stream(twin, size, count, check_every=max(500, count // 5))
    print(f"{rule}, {count} events, {size} a statement: largest difference {largest:.1e}")
    assert largest < TOLERANCE
    assert_consistent(connection)
    verdicts = Counter(twin.reference.verdicts.values())
    assert {"learn", "withdraw", "repeated", "nothing_to_withdraw", "seen"} <= set(verdicts)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("size", "count"), [(1, 600), (10, 1000), (100, 1500), (1000, 3000)])
def test_sql_equals_the_reference_over_a_random_stream(
    open_connection: Callable[..., Connection], rule: str, size: int, count: int
) -> None:
    assert_stream_equals(open_connection(), rule, size, count)


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1, 10, 100, 1000])
def test_sql_equals_the_reference_over_10000_events(
    open_connection: Callable[..., Connection], rule: str, size: int
) -> None:
    assert_stream_equals(open_connection(), rule, size, 10_000)


def test_the_rule_is_switched_at_run_time_and_no_user_starts_again(
    db: Connection,
) -> None:
    twin = Twin(db, rng(5), posts=60, users=10)
    stream = Stream(twin.rng, twin.user_ids, twin.post_ids)
    largest = 0.0
    for rule in ("contrastive", "literal", "contrastive", "literal"):
        twin.set_rule(rule)
        twin.insert(stream.next(150))
        twin.fold()
        largest = max(largest, twin.difference())
    assert largest < TOLERANCE


@pytest.mark.long
def test_ten_thousand_events_of_all_kinds_in_one_statement_equal_the_reference(
    open_connection: Callable[..., Connection],
) -> None:
    twin = Twin(open_connection(), rng(6), users=200, posts=400)
    twin.insert(Stream(twin.rng, twin.user_ids, twin.post_ids).next(10_000))
    twin.fold()
    assert twin.difference() < TOLERANCE
    twin.assert_same_verdicts()
