"""The state file of the local stack: what runs where, with the secrets."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from python_jobs.project import project_dir


@dataclass(frozen=True)
class ApiKeys:
    """The secrets of one stack: two API keys and the one that signs the users' tokens (HS256)."""

    publishable_key: str
    secret_key: str
    jwt_secret: str

    @classmethod
    def generate(cls) -> ApiKeys:
        """New random keys, in the form of Supabase's own."""
        return cls(
            publishable_key=f"sb_publishable_{secrets.token_urlsafe(24)}",
            secret_key=f"sb_secret_{secrets.token_urlsafe(24)}",
            jwt_secret=secrets.token_urlsafe(48),
        )


@dataclass(frozen=True)
class State:
    """What runs where, with the secrets; lies in .two-tower/state.json, readable by its owner."""

    database_url: str
    database_port: int
    data_dir: str
    api_url: str | None
    api_port: int
    api_pid: int | None
    publishable_key: str
    secret_key: str
    jwt_secret: str

    @property
    def keys(self) -> ApiKeys:
        """The keys of the REST and Auth server."""
        return ApiKeys(self.publishable_key, self.secret_key, self.jwt_secret)


def state_dir(project: Path | None = None) -> Path:
    """The folder of what the local stack keeps of itself; it may not exist yet."""
    return (project or project_dir()) / ".two-tower"


def read_state(project: Path | None = None) -> State | None:
    """The description of the last `up`, or None before the first and after a broken write."""
    try:
        return State(**json.loads(_path(project).read_text()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None


def write_state(state: State, project: Path | None = None) -> None:
    """Replaces the file in one step; its folder exists."""
    partial = _path(project).with_suffix(".partial")
    partial.touch(0o600)
    partial.write_text(json.dumps(asdict(state), indent=2) + "\n")
    partial.replace(_path(project))


def _path(project: Path | None) -> Path:
    return state_dir(project) / "state.json"
