"""Who runs Postgres: it refuses to run as root, so root lends it an unprivileged user."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from python_jobs.errors import LocalStackError


@dataclass(frozen=True)
class Identity:
    """User and group that own the data folder and run the server."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """True when the server runs as somebody else than this process."""
        return self.uid != os.geteuid()

    def process_options(self) -> dict[str, Any]:
        """Options for `subprocess` that start a program as this user."""
        if not self.is_other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Hands a file or folder to this user."""
        if self.is_other:
            os.chown(path, self.uid, self.gid)

    def can_reach(self, path: Path) -> bool:
        """True when this user may pass through every folder down to `path`.

        Asked of the kernel as that user, so that access lists and mounts count as well.
        """
        if not self.is_other:
            return True
        probe = subprocess.run(
            ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)],
            cwd="/",
            check=False,
            capture_output=True,
            **self.process_options(),
        )
        return probe.returncode == 0


@cache
def server_identity() -> Identity:
    """The current user; for root, `nobody` or else the first other user of the machine.

    initdb looks its user up by name, so a bare number would not do.
    """
    if os.geteuid() != 0:
        return Identity(os.geteuid(), os.getegid())
    others = sorted(
        (entry for entry in pwd.getpwall() if entry.pw_uid != 0),
        key=lambda entry: (entry.pw_name != "nobody", entry.pw_uid),
    )
    if not others:
        raise LocalStackError(
            "Postgres does not run as root and this machine has no other user:"
            " add one (useradd postgres) or run as an ordinary user."
        )
    return Identity(others[0].pw_uid, others[0].pw_gid)
