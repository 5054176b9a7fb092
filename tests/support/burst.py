"""A thousand requests at once. `python -m tests.support.burst` prints how fast they are."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from python_jobs.local.node import NodeTools
from python_jobs.state import state_dir
from tests.support.database import PROJECT
from tests.support.functions import Functions, function_servers
from tests.support.patience import PATIENCE_S

REQUESTS = 1000
AT_ONCE = 100


async def _send(functions: Functions, token: str) -> tuple[Counter[int], list[float]]:
    statuses: Counter[int] = Counter()
    seconds: list[float] = []
    limits = httpx.Limits(max_connections=AT_ONCE)
    headers = {"Authorization": f"Bearer {token}"}
    address = f"{functions.api.url}/functions/v1/recommend"

    async def one(client: httpx.AsyncClient) -> None:
        began = time.perf_counter()
        answer = await client.get(address, params={"table": "articles"})
        seconds.append(time.perf_counter() - began)
        statuses[answer.status_code] += 1
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["hint"]

    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits, headers=headers) as client:
        await asyncio.gather(*(one(client) for _ in range(REQUESTS)))
    return statuses, seconds


def send_burst(functions: Functions) -> tuple[Counter[int], list[float]]:
    """Sends all requests for pages together. Returns statuses, and seconds of each in its queue."""
    token = functions.sign_up()
    with ThreadPoolExecutor(1) as thread:  # the caller's may have an event loop that runs
        return thread.submit(lambda: asyncio.run(_send(functions, token))).result()


def main() -> None:
    """Print the figure."""
    tools = NodeTools(state_dir(PROJECT) / "node")
    tools.install(print)
    with function_servers(tools) as servers:
        functions = servers.start()
        functions.call("recommend", token=functions.sign_up(), params={"table": "articles"})
        began = time.perf_counter()
        statuses, seconds = send_burst(functions)
        took = time.perf_counter() - began
    print(f"{REQUESTS} requests, {AT_ONCE} connections: {took:.1f} s, {REQUESTS / took:.0f}/s")
    print(f"statuses {dict(statuses)}; median {sorted(seconds)[len(seconds) // 2]:.2f} s")


if __name__ == "__main__":
    main()
