"""Workers as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def start_worker(url: str, *options: str) -> subprocess.Popen[str]:
    """A worker process over a database."""
    return subprocess.Popen(
        [sys.executable, "-m", "python_jobs", "worker", *options],
        env={**os.environ, "TWO_TOWER_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
