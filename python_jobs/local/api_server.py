"""The server of REST, Auth and Edge Functions of the local stack, as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

from python_jobs.errors import LocalStackError
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.node import POSTGREST_IS_MISSING, NodeTools
from python_jobs.local.postgres import HOST, port_answers
from python_jobs.state import ApiKeys

START_TIMEOUT_S = 120  # of a busy machine: elsewhere it answers within a second


class ApiServer:
    """REST, Auth and Edge Functions over one database, on 127.0.0.1.

    database_url: as role `authenticator`.
    """

    def __init__(
        self,
        tools: NodeTools,
        port: int,
        keys: ApiKeys,
        log_path: Path,
        *,
        database_url: str,
        functions: EdgeFunctions,
    ) -> None:
        self.tools = tools
        self.database_url = database_url
        self.functions = functions
        self.port = port
        self.keys = keys
        self.log_path = log_path

    @property
    def url(self) -> str:
        """Base URL for the client libraries."""
        return f"http://{HOST}:{self.port}"

    def is_running(self) -> bool:
        """True when a server with these very keys answers: only it accepts the secret one.

        It does so without the database too.
        """
        return self._answers("/auth/v1/health")

    def _answers(self, path: str) -> bool:
        request = urllib.request.Request(
            f"{self.url}{path}", headers={"apikey": self.keys.secret_key}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def start(self) -> int:
        """Starts the server and returns its process id once it answers.

        Raises LocalStackError when there is no PostgREST, the port is taken or the server ends at
        once.
        """
        postgrest = self.tools.find_postgrest()
        if postgrest is None:
            raise LocalStackError(POSTGREST_IS_MISSING)
        if port_answers(self.port):
            raise LocalStackError(
                f"Port {self.port} is in use by another program: stop it, or choose another port"
                " (two-tower up --api-port)."
            )
        settings = {
            "database_url": self.database_url,
            "port": self.port,
            "postgrest": str(postgrest),
            "functions": self.functions.settings(
                self.tools.folder / "deno",
                self.database_url.replace("//authenticator:", "//postgres:"),
            ),
            **asdict(self.keys),
        }
        with self.log_path.open("w") as log:
            process = subprocess.Popen(
                self.tools.command("api.mjs"),
                cwd=self.tools.folder,
                env={**os.environ, "TWO_TOWER_API": json.dumps(settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if port_answers(self.port) and self._answers("/rest/v1/"):
                return process.pid
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
        errors = [line for line in self.log_path.read_text().splitlines() if "rror" in line]
        raise LocalStackError(
            f"The API server did not start ({(errors or ['no message'])[0].strip()}):"
            f" its log is {self.log_path}."
        )

    def stop(self, pid: int) -> None:
        """Ends the server if it is the one that answers; a reused process id is left alone."""
        if not self.is_running():
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while port_answers(self.port) and time.monotonic() < deadline:
            time.sleep(0.05)
