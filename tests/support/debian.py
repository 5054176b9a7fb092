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


def locate(major: str) -> tuple[Path, Path]:
    """The root of a Debian, and in it the folder of its Postgres."""
    root = Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER)).absolute() / major
    return root, root / "usr/lib/postgresql" / major


def debian_binaries(major: str) -> Binaries:
    """The installation of a major version, which the command has made."""
    root, installation = locate(major)
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


def fill(root: Path, release: Release, major: str, mirror: str) -> None:
    """Fills an empty folder with a Debian."""
    packages = release.packages.format(major)
    debootstrap = ["debootstrap", "--variant=minbase", f"--include={packages}"]
    subprocess.run([*debootstrap, release.suite, str(root), mirror], check=True)
    script = release.then.format(mirror=mirror)
    subprocess.run(["chroot", str(root), "sh", "-ec", script], check=True)


def wrap_programs(root: Path, installation: Path) -> None:
    """Puts scripts in place of the programs: Postgres finds its files by the name it is run as."""
    loader = next(root.glob("usr/lib/*-linux-gnu*/ld-linux-*.so.*"))
    start = [str(loader), "--inhibit-cache", "--library-path", str(loader.parent)]
    scripts, programs = installation / "bin", installation / "programs"
    unfinished = installation / "bin.partial"
    scripts.rename(programs)
    unfinished.mkdir()
    for program in programs.iterdir():
        command = [*start, "--argv0", str(scripts / program.name), str(program)]
        script = unfinished / program.name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        script.chmod(0o755)
    unfinished.rename(scripts)


@click.command()
@click.argument("major", type=click.Choice(list(RELEASES)))
@click.option("--mirror", help="Where packages come from; else the mirror that apt uses here.")
def main(major: str, mirror: str | None) -> None:
    """Make Debian's Postgres MAJOR for tests, with pgvector, pg_cron and plpgsql_check.

    It lies in the folder that TWO_TOWER_TEST_DEBIAN names, or else in /var/tmp/two-tower-debian.
    """
    root, installation = locate(major)
    if not root.exists():
        mirror = mirror or configured_mirror()
        root.mkdir(parents=True)
        fill(root, RELEASES[major], major, mirror)
        wrap_programs(root, installation)
    if not is_finished(installation):
        raise click.UsageError(f"An earlier run has not finished {root}: remove it.")
    click.echo(output(str(installation / "bin/postgres"), "--version").strip())


if __name__ == "__main__":
    main()
