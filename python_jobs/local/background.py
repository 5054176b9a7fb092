"""A program of the local stack in the background: its pid and its log lie in the state folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Background:
    """One such program, by its name, running or not. folder: the state folder."""

    folder: Path
    name: str

    @property
    def log_path(self) -> Path:
        """What it prints."""
        return self.folder / f"{self.name}.log"

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> int:
        """Starts Python with these arguments, unless the program runs. Returns its pid."""
        if pid := self.pid():
            return pid
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        self._pid_path.write_text(str(process.pid))
        while self.pid() is None and process.poll() is None:
            time.sleep(0.01)  # the system does not know its command line yet
        return process.pid

    def stop(self) -> None:
        """Ends the program if it runs."""
        if pid := self.pid():
            os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._pid_path.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """The pid if it runs; a pid that now is another program's does not count."""
        try:
            pid = int(self._pid_path.read_text())
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
            return None
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"python_jobs" not in command.read_bytes():
            return None
        return pid

    @property
    def _pid_path(self) -> Path:
        return self.folder / f"{self.name}.pid"


def stop_all(folder: Path) -> None:
    """Ends all programs that were started here."""
    for path in folder.glob("*.pid"):
        Background(folder, path.stem).stop()
