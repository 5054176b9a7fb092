"""A dump as the platform makes it, restored elsewhere: the schema auth is left out."""

from __future__ import annotations

import subprocess

from python_jobs.db import connect, rows
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.servers import chosen_binaries


def restore_dump(cluster: Cluster, source: str, target: str) -> None:
    """Copies one database into another, empty one: accounts first, then the dump of the rest."""
    with connect(source, autocommit=True) as connection:
        accounts = rows(connection, "select id, email from auth.users order by id")
    name, other = (url.rsplit("/", 1)[1] for url in (source, target))
    schemas = ("--exclude-schema=auth", "--exclude-schema=extensions")
    binaries = chosen_binaries()
    dump = subprocess.run(
        [binaries.program("pg_dump"), "--format=custom", *schemas, cluster.url(name, SUPERUSER)],
        capture_output=True,
        check=True,
    )
    with connect(cluster.url(other, SUPERUSER), autocommit=True) as owner:
        owner.execute("create extension if not exists vector with schema extensions")
        # The platform's dumps have no event triggers, pg_dump's have.
        owner.execute("drop event trigger pgrst_ddl_watch")
        owner.execute("drop event trigger pgrst_drop_watch")
        for account in accounts:
            owner.execute("insert into auth.users (id, email) values (%s, %s)", list(account))
    done = subprocess.run(
        [
            binaries.program("pg_restore"),
            "--exit-on-error",
            f"--dbname={cluster.url(other, SUPERUSER)}",
        ],
        input=dump.stdout,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
