"""Pages of readers for whom little is left, against an exact scan of what is eligible to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from python_jobs.db import connect, value
from python_jobs.laboratory.bench.feed import readers, user_id
from python_jobs.laboratory.bench.pgbench import pgbench
from python_jobs.laboratory.bench.world import World

PAGE = 50

# What makes a reader one of them.
_SEE_ALL_BUT_FIVE = """
  insert into two_tower.user_posts (user_id, post_id, first_seen_at, last_event_at)
  select %s, p.id, now(), now() from two_tower.posts p order by p.id offset 5
  on conflict do nothing
"""
_BLOCK = """
  with authors as (select distinct p.author_id from two_tower.posts p)
  insert into public.author_blocks (user_id, author_id, kind)
  select %s, a.author_id, 'block_author' from authors a
  order by a.author_id limit (select count(*) {share} from authors)
  on conflict do nothing
"""
SITUATIONS = {
    "all but five posts are seen": _SEE_ALL_BUT_FIVE,
    "half of the authors are blocked": _BLOCK.format(share="/ 2"),
    "all authors but one are blocked": _BLOCK.format(share="- 1"),
}
_PAGE = "select * from two_tower.recommend_for('{user}', {page});"
# The vector is a constant: to find it is no part of a scan.
_SCAN = """
select v.post_id from two_tower.live_embeddings v
where v.slot = {slot} and v.is_listed and v.author_id is distinct from '{user}'::uuid
  and v.author_id not in (
    select a.author_id from two_tower.withheld_authors a where a.user_id = '{user}')
  and not exists (select from two_tower.user_posts u
    where u.user_id = '{user}' and u.post_id = v.post_id)
order by v.embedding operator(extensions.<#>) '{vector}'::extensions.vector limit {page};
"""


def measure(
    world: World, rounds: int, length: dict[str, Any], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """p50 of a page and of a scan, in ms, in turns, for a reader in each situation.

    world: with a serving index. The readers stay in their situations.
    """
    cases = []
    numbers = list(readers(1))[-len(SITUATIONS) :]
    with connect(world.superuser_url, autocommit=True) as connection:
        slot = value(connection, "select active_slot from two_tower.state")
        for (name, statement), number in zip(SITUATIONS.items(), numbers, strict=True):
            user = user_id(number)
            connection.execute(statement.encode(), [user])
            vector = value(connection, "select two_tower.encode_user(%s)::text", user)
            parts = {"user": user, "page": PAGE, "slot": slot, "vector": vector}
            cases.append((name, _PAGE.format(**parts), _SCAN.format(**parts)))
        connection.execute("vacuum (analyze) two_tower.user_posts, two_tower.blocks")
    figures = []
    for name, *scripts in cases:
        runs: list[list[float]] = [[], []]
        for _ in range(rounds):
            say(f"pages and scans where {name}")
            for medians, script in zip(runs, scripts, strict=True):
                medians.append(pgbench(world, script, **length).percentile(50))
        # pgbench tells whole microseconds.
        page, scan = (max(0.001, statistics.median(medians)) for medians in runs)
        figures.append({"situation": name, "p50_ms": page, "scan_ms": scan, "ratio": page / scan})
    return figures
