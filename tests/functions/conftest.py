"""One Postgres, and one server of the functions over it, which the tests here share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from python_jobs.local.deno import DENO_IS_MISSING, find_deno
from python_jobs.local.node import POSTGREST_IS_MISSING, NodeTools
from tests.support.functions import Functions, FunctionServers, function_servers


@pytest.fixture(scope="session")
def servers(node_tools: NodeTools) -> Iterator[FunctionServers]:
    """Where servers with settings of their own are started."""
    if node_tools.find_postgrest() is None:
        pytest.skip(POSTGREST_IS_MISSING)
    if find_deno() is None:
        pytest.skip(f"no Deno: {DENO_IS_MISSING}")
    with function_servers(node_tools) as servers:
        yield servers


@pytest.fixture(scope="session")
def functions(servers: FunctionServers) -> Functions:
    """The functions, with limits that a busy machine does not reach."""
    return servers.start()
