"""The local stack as a whole: Postgres, migrations, REST and Auth, and their state file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

from python_jobs.errors import LocalStackError
from python_jobs.local.api_server import ApiKeys, ApiServer
from python_jobs.local.bootstrap import Grants, bootstrap
from python_jobs.local.identity import server_identity
from python_jobs.local.node import NodeTools, find_node
from python_jobs.local.postgres import SUPERUSER, Cluster
from python_jobs.migrate import migrate
from python_jobs.project import project_dir

DATABASE_PORT = 54322
API_PORT = 54321


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


class Stack:
    """The stack of one project; its state is kept in the project's .two-tower folder."""

    def __init__(self, project: Path | None = None, tools_dir: Path | None = None) -> None:
        self.project = project or project_dir()
        self.state_dir = self.project / ".two-tower"
        self.state_path = self.state_dir / "state.json"
        self.tools = NodeTools(tools_dir or self.state_dir / "node")

    def read_state(self) -> State | None:
        """The description of the last `up`, or None before the first and after a broken write."""
        try:
            return State(**json.loads(self.state_path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def up(
        self,
        *,
        database_port: int | None = None,
        api_port: int | None = None,
        grants: Grants = "new",
        say: Callable[[str], None] = lambda message: None,
    ) -> State:
        """Starts what does not run yet, applies pending migrations and returns where it all is.

        Without ports, those of the last time are used again. grants: see `bootstrap`; it counts
        for a new database only. Without Node there is no REST and Auth: `api_url` is None.
        Raises LocalStackError.
        """
        last = self.read_state()
        cluster = Cluster(
            self._data_dir(), database_port or (last.database_port if last else DATABASE_PORT)
        )
        self.state_dir.mkdir(parents=True, exist_ok=True)
        if not cluster.is_running():
            say("Starting Postgres")
        cluster.start()
        with psycopg.connect(cluster.url(user=SUPERUSER)) as connection:
            row = connection.execute("select to_regnamespace('auth') is not null").fetchone()
        if not (row and row[0]):
            bootstrap(cluster.url(user=SUPERUSER), cluster.password, grants)
        has_node = find_node() is not None
        if has_node:
            self.tools.install(say)
        applied = migrate(cluster.url(), self.project, tools=self.tools if has_node else None)
        for name in applied:
            say(f"Applied {name}")

        keys = last.keys if last else ApiKeys.generate()
        api = self._api(cluster, api_port or (last.api_port if last else API_PORT), keys)
        pid = last.api_pid if last else None
        if has_node:
            if last and (applied or api.port != last.api_port):
                self.stop_api(last)
            if not api.is_running():
                say("Starting REST and Auth")
                pid = api.start()
        state = State(
            database_url=cluster.url(),
            database_port=cluster.port,
            data_dir=str(cluster.data_dir),
            api_url=api.url if has_node else None,
            api_port=api.port,
            api_pid=pid if has_node else None,
            **asdict(keys),
        )
        self._write_state(state)
        return state

    def down(self) -> bool:
        """Stops REST, Auth and Postgres; the data stays. Returns False when nothing was known."""
        state = self.read_state()
        if state is None or not Path(state.data_dir).exists():
            return False
        self.stop_api(state)
        Cluster(Path(state.data_dir), state.database_port).stop()
        return True

    def delete_data(self) -> None:
        """Deletes the data folder and all that was measured on it; keys and tools stay."""
        state = self.read_state()
        if state is not None:
            shutil.rmtree(state.data_dir, ignore_errors=True)
        (self.state_dir / "demo.json").unlink(missing_ok=True)

    def stop_api(self, state: State) -> None:
        """Stops REST and Auth if they run."""
        if state.api_pid:
            cluster = Cluster(Path(state.data_dir), state.database_port)
            self._api(cluster, state.api_port, state.keys).stop(state.api_pid)

    def _api(self, cluster: Cluster, port: int, keys: ApiKeys) -> ApiServer:
        return ApiServer(
            self.tools,
            port,
            keys,
            self.state_dir / "api.log",
            database_url=cluster.url(user="authenticator"),
            schema_url=cluster.url(),
        )

    def _data_dir(self) -> Path:
        """In the project, unless the user that runs Postgres cannot reach it (root's home)."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        if server_identity().can_reach(self.state_dir):
            return self.state_dir / "postgres"
        name = hashlib.sha256(str(self.project).encode()).hexdigest()[:12]
        folder = Path("/var/tmp") / f"two-tower-{name}"
        folder.mkdir(mode=0o755, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise LocalStackError(f"{folder} belongs to somebody else: remove it and try again.")
        return folder / "postgres"

    def _write_state(self, state: State) -> None:
        partial = self.state_path.with_suffix(".partial")
        partial.touch(0o600)
        partial.write_text(json.dumps(asdict(state), indent=2) + "\n")
        partial.replace(self.state_path)
