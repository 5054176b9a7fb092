"""Writes docs/reference.md anew, from a server of its own. Run it by `make docs`."""

from __future__ import annotations

from docs.generator.page import generate
from python_jobs.db import connect
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from tests.support.database import PROJECT, reachable_folder

DATABASE = "reference"
PAGE = PROJECT / "docs" / "reference.md"


def main() -> None:
    """Start a server, apply the migrations, write the page."""
    with reachable_folder() as folder:
        cluster = Cluster(folder / "postgres", free_port(), settings={"fsync": "off"})
        cluster.start()
        try:
            with connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
                connection.execute(f"create database {DATABASE}".encode())
            bootstrap(cluster.url(DATABASE, SUPERUSER), cluster.password)
            migrate(cluster.url(DATABASE), PROJECT)
            PAGE.write_text(generate(cluster.url(DATABASE)))
        finally:
            cluster.stop("immediate")


if __name__ == "__main__":
    main()
