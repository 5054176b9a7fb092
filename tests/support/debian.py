"""Postgres as Debian builds it, in a folder: the nearest thing to the platform's without Docker.

`python -m tests.support.debian 17`, run once as root, lets `TWO_TOWER_TEST_POSTGRES=debian-17` run
tests on it, as any user.

debootstrap fills the folder. The programs run outside of it, each started by the folder's own
dynamic loader with the folder's libraries: no chroot, no mount, whatever this machine's libraries.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click

from python_jobs.errors import LocalStackError
from python_jobs.local.postgres import Binaries

FOLDER_VARIABLE = "TWO_TOWER_TEST_DEBIAN"
DEFAULT_FOLDER = "/var/tmp/two-tower-debian"
SERVER = "postgresql-{0},postgresql-{0}-cron,postgresql-{0}-plpgsql-check"
# Debian 12 has no pgvector that is new enough: the source that Debian 13 has is built against it.
BUILD_PGVECTOR = """
  echo "deb-src {mirror} trixie main" > /etc/apt/sources.list.d/trixie.list
  apt-get update
  cd /usr/src
  apt-get source pgvector
  cd pgvector-*/
  make install
"""


@dataclass(frozen=True)
class Release:
    """Which Debian has a major version, as which packages, and what is run in it after that."""

    suite: str
    packages: str
    then: str = ":"


RELEASES = {
    "15": Release(
        "bookworm", f"{SERVER},postgresql-server-dev-{{0}},gcc,make,dpkg-dev", BUILD_PGVECTOR
    ),
    "17": Release("trixie", f"{SERVER},postgresql-{{0}}-pgvector"),
}


def debian_binaries(major: str) -> Binaries:
    """The installation of a major version, which the command has made."""
    root = Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER)) / major
    installation = root / "usr/lib/postgresql" / major
    if not is_finished(installation):
        raise LocalStackError(
            f"No Postgres {major} in {root}: run `python -m tests.support.debian {major}` as root."
        )
    return Binaries(installation, int(major))


def is_finished(installation: Path) -> bool:
    """True once its programs are wrapped, which is done last."""
    return all((installation / folder / "postgres").exists() for folder in ("programs", "bin"))


def output(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def configured_mirror() -> str:
    """The mirror of Debian that apt uses on this machine."""
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    found = output("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()
    if not found:
        raise click.UsageError("apt names no mirror of Debian here: give one by --mirror.")
    return found[0]


def wrap_programs(root: Path, installation: Path) -> None:
    """Puts scripts in place of the programs, in the folder that Postgres finds its files from."""
    loader = next(root.glob("usr/lib/*-linux-gnu*/ld-linux-*.so.*"))
    programs = installation / "programs"
    wrappers = installation / "bin"
    wrappers.rename(programs)
    wrappers.with_suffix(".partial").mkdir()
    for program in programs.iterdir():
        command = shlex.join(
            [
                *(str(loader), "--inhibit-cache", "--library-path", str(loader.parent)),
                *("--argv0", str(wrappers / program.name), str(program)),
            ]
        )
        script = wrappers.with_suffix(".partial") / program.name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    wrappers.with_suffix(".partial").rename(wrappers)


@click.command()
@click.argument("major", type=click.Choice(list(RELEASES)))
@click.option(
    "--folder",
    type=click.Path(path_type=Path, resolve_path=True),
    default=DEFAULT_FOLDER,
    envvar=FOLDER_VARIABLE,
    show_default=True,
    help=f"Where installations lie; {FOLDER_VARIABLE} names it to the tests.",
)
@click.option("--mirror", help="Where packages come from; else the mirror that apt uses here.")
def main(major: str, folder: Path, mirror: str | None) -> None:
    """Make Debian's Postgres MAJOR for tests, with pgvector, pg_cron and plpgsql_check."""
    root, release = folder / major, RELEASES[major]
    installation = root / "usr/lib/postgresql" / major
    if not root.exists():
        mirror = mirror or configured_mirror()
        root.mkdir(parents=True)
        packages = release.packages.format(major)
        fill = ("debootstrap", "--variant=minbase", f"--include={packages}")
        subprocess.run([*fill, release.suite, str(root), mirror], check=True)
        script = release.then.format(mirror=mirror)
        subprocess.run(["chroot", str(root), "sh", "-ec", script], check=True)
        wrap_programs(root, installation)
    if not is_finished(installation):
        raise click.UsageError(f"An earlier run has not finished {root}: remove it.")
    click.echo(output(str(installation / "bin/postgres"), "--version").strip())


if __name__ == "__main__":
    main()
