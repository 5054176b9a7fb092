"""Writes what is generated: the reference, who may do what, and the types of functions.

Run it by `make docs`.
"""

from __future__ import annotations

from docs.generator.access import with_access
from docs.generator.page import generate
from python_jobs.db import connect
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.local.types import generate_types
from python_jobs.migrate import migrate
from python_jobs.state import state_dir
from tests.support.database import PROJECT, reachable_folder

DATABASE = "reference"
PAGE = PROJECT / "docs" / "reference.md"
SECURITY = PROJECT / "docs" / "security.md"
TYPES = PROJECT / "supabase" / "functions" / "_shared" / "database.types.ts"


def main() -> None:
    """Start a server, apply the migrations, write the page and the types."""
    SECURITY.write_text(with_access(SECURITY.read_text()))
    tools = NodeTools(state_dir(PROJECT) / "node")
    tools.install(print)
    with reachable_folder() as folder:
        cluster = Cluster(folder / "postgres", free_port(), settings={"fsync": "off"})
        cluster.start()
        try:
            with connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
                connection.execute(f"create database {DATABASE}".encode())
            bootstrap(cluster.url(DATABASE, SUPERUSER), cluster.password)
            migrate(cluster.url(DATABASE), PROJECT)
            PAGE.write_text(generate(cluster.url(DATABASE)))
            TYPES.write_text(generate_types(cluster.url(DATABASE), tools.run_cli))
        finally:
            cluster.stop("immediate")


if __name__ == "__main__":
    main()
