"""The local stack as a whole: Postgres, migrations, REST, Auth and Edge Functions, as one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from python_jobs.db import connect, value
from python_jobs.errors import LocalStackError
from python_jobs.local.api_server import ApiServer
from python_jobs.local.bootstrap import Grants, bootstrap
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.identity import server_identity
from python_jobs.local.node import NodeTools, find_node
from python_jobs.local.postgres import SUPERUSER, Cluster
from python_jobs.migrate import migrate
from python_jobs.project import project_dir
from python_jobs.state import ApiKeys, State, read_state, state_dir, write_state

DATABASE_PORT = 54322
API_PORT = 54321


class Stack:
    """The stack of one project; its state is kept in the project's .two-tower folder."""

    def __init__(self, project: Path | None = None, tools_dir: Path | None = None) -> None:
        self.project = project or project_dir()
        self.state_dir = state_dir(self.project)
        self.tools = NodeTools(tools_dir or self.state_dir / "node")

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
        for a new database only. Without Node or PostgREST there is no API: `api_url` is None.
        Without Deno there are no functions.
        Raises LocalStackError.
        """
        last = read_state(self.project)
        cluster = Cluster(
            self._data_dir(), database_port or (last.database_port if last else DATABASE_PORT)
        )
        self.state_dir.mkdir(parents=True, exist_ok=True)
        if not cluster.is_running():
            say("Starting Postgres")
        cluster.start()
        with connect(cluster.url(user=SUPERUSER)) as connection:
            is_made = value(connection, "select to_regnamespace('auth') is not null")
        if not is_made:
            bootstrap(cluster.url(user=SUPERUSER), cluster.password, grants)
        has_node = find_node() is not None
        if has_node:
            self.tools.install(say)
        has_api = has_node and self.tools.find_postgrest() is not None
        cli = self.tools.run_cli if has_node else None
        applied = migrate(cluster.url(), self.project, cli=cli, warn=say)
        for name in applied:
            say(f"Applied {name}")

        keys = last.keys if last else ApiKeys.generate()
        api = self._api(cluster, api_port or (last.api_port if last else API_PORT), keys)
        pid = last.api_pid if last else None
        if has_api:
            if last and api.port != last.api_port:
                self.stop_api(last)
            if not api.is_running():
                say("Starting REST, Auth and Edge Functions")
                pid = api.start()
        state = State(
            database_url=cluster.url(),
            database_port=cluster.port,
            data_dir=str(cluster.data_dir),
            api_url=api.url if has_api else None,
            api_port=api.port,
            api_pid=pid if has_api else None,
            **asdict(keys),
        )
        write_state(state, self.project)
        return state

    def down(self) -> bool:
        """Stops the API and Postgres; the data stays. Returns False when nothing was known."""
        state = read_state(self.project)
        if state is None or not Path(state.data_dir).exists():
            return False
        self.stop_api(state)
        Cluster(Path(state.data_dir), state.database_port).stop()
        return True

    def delete_data(self) -> None:
        """Deletes the data folder and all that was measured on it; keys and tools stay."""
        state = read_state(self.project)
        if state is not None:
            shutil.rmtree(state.data_dir, ignore_errors=True)
        (self.state_dir / "demo.json").unlink(missing_ok=True)

    def stop_api(self, state: State) -> None:
        """Stops REST, Auth and Edge Functions if they run."""
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
            functions=EdgeFunctions(self.project),
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
