"""A thousand requests at once are all answered."""

from __future__ import annotations

from tests.support.burst import REQUESTS, send_burst
from tests.support.functions import Functions


def test_a_thousand_requests_at_once_are_answered(functions: Functions) -> None:
    statuses, _ = send_burst(functions)
    assert sum(statuses.values()) == REQUESTS
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 0
