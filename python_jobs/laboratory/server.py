"""A Postgres of a measurement's own, with migrated databases, gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from python_jobs.db import Connection, connect
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import SUPERUSER, Binaries, Cluster, free_port
from python_jobs.migrate import migrate
from python_jobs.project import project_dir

# SQL for the id of user number {}, which a pgbench script can make as well.
USER_ID = "('00000000-0000-4000-8000-' || lpad(to_hex({}), 12, '0'))::uuid"


@contextmanager
def server(settings: dict[str, str], binaries: Binaries | None = None) -> Iterator[Cluster]:
    """A running server whose database `postgres` is migrated and empty. settings: as Cluster's."""
    with tempfile.TemporaryDirectory(prefix="two-tower-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "postgres"
        cluster = Cluster(folder, free_port(), binaries=binaries, settings=settings)
        cluster.start()
        try:
            bootstrap(cluster.url(user=SUPERUSER), cluster.password)
            migrate(cluster.url(), project_dir())
            yield cluster
        finally:
            cluster.stop("immediate")


@contextmanager
def databases() -> Iterator[Callable[[ExitStack], Connection]]:
    """A server of its own; gives a factory of migrated databases' connections."""
    with server({"fsync": "off", "max_wal_size": "4GB"}) as cluster:
        count = 0

        def make(on_exit: ExitStack) -> Connection:
            nonlocal count
            count += 1
            with connect(cluster.url("template1", SUPERUSER), autocommit=True) as session:
                session.execute(
                    f"create database eval_{count} template postgres owner postgres".encode()
                )
            connection = connect(cluster.url(f"eval_{count}"), autocommit=True)
            on_exit.callback(connection.close)
            return connection

        yield make
