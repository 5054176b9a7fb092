"""Which Postgres a run is on, and a server of one test alone, to be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.postgres import (
    SUPERUSER,
    Binaries,
    Cluster,
    find_binaries,
    free_port,
    port_answers,
)
from python_jobs.migrate import migrate
from tests.support.database import PROJECT, reachable_folder
from tests.support.debian import debian_binaries
from tests.support.patience import wait_until

# Another Postgres for the whole run: a name of INSTALLATIONS, such as pixeltable-16, or debian-17.
BINARIES_VARIABLE = "TWO_TOWER_TEST_POSTGRES"


def chosen_binaries() -> Binaries:
    """The Postgres of this run, which every server of it is of."""
    name = os.environ.get(BINARIES_VARIABLE)
    if name and name.startswith("debian-"):
        return debian_binaries(name.removeprefix("debian-"))
    return find_binaries(name)


@contextmanager
def durable_server() -> Iterator[Cluster]:
    """A server that keeps what it acknowledges, with the migrations."""
    with reachable_folder() as folder:
        cluster = Cluster(folder / "postgres", free_port(), binaries=chosen_binaries())
        cluster.start()
        bootstrap(cluster.url(user=SUPERUSER), cluster.password)
        migrate(cluster.url(), PROJECT)
        yield cluster
        cluster.stop("immediate")


def kill_all_of(cluster: Cluster) -> None:
    """kill -9 of the server and each of its processes, at once: as a loss of power would."""
    postmaster = int((cluster.data_dir / "postmaster.pid").read_text().splitlines()[0])
    # One that is forked meanwhile would be missed, and can wait for ever for a lock of the dead.
    os.kill(postmaster, signal.SIGSTOP)
    wait_until(lambda: _state_and_parent(postmaster)[0] == "T")
    pids = [postmaster]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, parent = _state_and_parent(int(folder.name))
        except OSError:
            continue
        if parent == postmaster:
            pids.append(int(folder.name))
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: not port_answers(cluster.port))


def _state_and_parent(pid: int) -> tuple[str, int]:
    state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    return state, int(parent)
