"""What the database has that it did not have at a commit.

Run it by `python -m tests.support.catalogue_diff COMMIT [LATER]`.

Applies the migrations of both to a server of its own and compares the catalogues. Moving statements
between files prints no difference; renaming one prints that one.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import click

from python_jobs.db import connect
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from tests.support.catalogue import describe
from tests.support.database import PROJECT, reachable_folder

WIDTH = 300


def project_at(commit: str, folder: Path) -> Path:
    """The folder, with the migrations as they were at a commit."""
    done = subprocess.run(
        ["git", "archive", commit, "supabase/migrations"], cwd=PROJECT, capture_output=True
    )
    if done.returncode != 0:
        raise click.ClickException(done.stderr.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def catalogue(cluster: Cluster, name: str, project: Path) -> dict[str, list[str]]:
    """What a project's migrations make of a new database. The history of files is left out."""
    with connect(cluster.url(user=SUPERUSER), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    bootstrap(cluster.url(name, SUPERUSER), cluster.password)
    migrate(cluster.url(name), project)
    with connect(cluster.url(name)) as connection:
        described = describe(connection)
    del described["history"]
    return described


@click.command()
@click.argument("commit")
@click.argument("later", required=False)
def main(commit: str, later: str | None) -> None:
    """Compare the catalogue of COMMIT with that of LATER, or of the files as they are here."""
    with reachable_folder() as folder:
        before = project_at(commit, folder / "before")
        after = project_at(later, folder / "after") if later else PROJECT
        cluster = Cluster(folder / "postgres", free_port(), settings={"fsync": "off"})
        cluster.start()
        try:
            old, new = catalogue(cluster, "old", before), catalogue(cluster, "new", after)
        finally:
            cluster.stop("immediate")
    for part, lines in new.items():
        gone, come = set(old[part]) - set(lines), set(lines) - set(old[part])
        click.echo(f"{part}: {len(old[part])} and {len(lines)}, -{len(gone)} +{len(come)}")
        for mark, differing in (("-", gone), ("+", come)):
            for line in sorted(differing):
                click.echo(f"  {mark} {line[:WIDTH]}")


if __name__ == "__main__":
    main()
