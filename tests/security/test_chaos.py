"""Postgres, REST and workers killed, cut off and stopped while clients are at work."""

from __future__ import annotations

import pytest

from python_jobs.local.node import POSTGREST_IS_MISSING, NodeTools
from tests.support.chaos import ATTACKS, chaos_stack, run_chaos


@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize(
    "kills",
    [pytest.param(len(ATTACKS), id="each"), pytest.param(1000, marks=pytest.mark.long)],
)
def test_kills_under_load_lose_nothing_acknowledged_double_nothing_and_leave_no_queue(
    node_tools: NodeTools, kills: int
) -> None:
    if node_tools.find_postgrest() is None:
        pytest.skip(POSTGREST_IS_MISSING)
    with chaos_stack(node_tools) as stack:
        result = run_chaos(stack, kills, print)
    assert result.kills.total() == kills
    assert result.acknowledged > 100
    assert result.posts > 0
    assert (result.lost, result.doubled) == (0, 0)
    assert (result.posts_lost, result.posts_doubled) == (0, 0)
    assert not result.unfinished
    assert not result.refusals
