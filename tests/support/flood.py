"""How much one account that floods slows all others. `python -m tests.support.flood` prints it.

The flood sends events over one connection, as fast as it gets answers. Then another sends as many
plain inserts a second, over one connection too. Beside each, other users like posts and read pages.
The budget: our flood slows their p50 by at most 1.5 x what the plain one does.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor

from python_jobs.laboratory.bench.pgbench import Run, pgbench
from python_jobs.laboratory.bench.world import World, filled_world
from python_jobs.laboratory.server import USER_ID

USERS, POSTS = 2000, 20_000
RUNS, SECONDS = 3, 12
PLAIN = (
    f"\\set p random(1, {POSTS})\n"
    "insert into public.plain_events (user_id, post_id, event_type)"
    f" values ({USER_ID.format('1')}, :p, 'like');\n"
)
# All by account 1: any posts, and one post back and forth, two events a statement.
FLOODS = {
    "likes": f"\\set p random(1, {POSTS})\n"
    "insert into public.engagement_events (user_id, post_id, event_type)"
    f" values ({USER_ID.format('1')}, :p, 'like');\n",
    "like and unlike of one post": "insert into public.engagement_events"
    " (user_id, post_id, event_type)"
    f" values ({USER_ID.format('1')}, 7, 'like'), ({USER_ID.format('1')}, 7, 'unlike');\n",
}
OTHERS = {
    "likes": f"\\set u random(2, {USERS})\n\\set p random_zipfian(1, {POSTS}, 1.05)\n"
    "insert into public.engagement_events (user_id, post_id, event_type)"
    f" values ({USER_ID.format(':u::integer')}, :p, 'like');\n",
    "pages": f"\\set u random(2, {USERS})\n"
    f"select * from public.recommend_for({USER_ID.format(':u::integer')}, 20);\n",
}


def beside(world: World, flood: str, others: str, rate: float | None) -> tuple[Run, Run]:
    """Runs a flood (at a rate, or at its own) and others beside it; returns both runs."""
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(pgbench, world, flood, seconds=SECONDS + 2, rate=rate)
        run = pgbench(world, others, clients=2, seconds=SECONDS)
        return flooding.result(), run


def measure(world: World, flood: str, others: str) -> tuple[float, float, float]:
    """p50 of the others in ms, beside our flood and the plain one, and statements a second."""
    ours, disturbed = beside(world, flood, others, None)
    world.fold()
    _, undisturbed = beside(world, PLAIN, others, ours.rate)
    world.fold()
    return disturbed.percentile(50), undisturbed.percentile(50), ours.rate


def main() -> None:
    """Print the ratio of each flood, run by run."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with filled_world(USERS, POSTS) as world:
        for script in (*FLOODS.values(), *OTHERS.values(), PLAIN):
            pgbench(world, script, transactions=50)
        for flood, flooding in FLOODS.items():
            for others, script in OTHERS.items():
                ratios = []
                for number in range(RUNS):
                    ours, plain, rate = measure(world, flooding, script)
                    ratios.append(ours / plain)
                    print(
                        f"{flood}, {rate:.0f}/s; {others} of others, run {number + 1}:"
                        f" p50 {ours:.2f} ms, beside plain inserts {plain:.2f} ms,"
                        f" ratio {ratios[-1]:.2f}",
                        flush=True,
                    )
                print(f"  median {statistics.median(ratios):.2f}, budget 1.5", flush=True)


if __name__ == "__main__":
    main()
