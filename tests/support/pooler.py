"""pgbouncer in transaction mode: what a hosted project has at its pooler's port."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from python_jobs.local.identity import server_identity
from python_jobs.local.postgres import HOST, Cluster, free_port, port_answers
from tests.support.database import reachable_folder
from tests.support.patience import wait_until

SERVER_CONNECTIONS = 2


def find_pgbouncer() -> str | None:
    """The program, where it is installed; Debian's is on the path of root alone."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def pooler(cluster: Cluster, url: str) -> Iterator[str]:
    """The URL of a database through a pooler that has SERVER_CONNECTIONS to it for everybody."""
    program = find_pgbouncer()
    assert program is not None
    identity, port = server_identity(), free_port()
    with reachable_folder() as folder:
        users = Path(folder) / "users.txt"
        users.write_text(f'"postgres" "{cluster.password}"\n')
        configuration = Path(folder) / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host={HOST} port={cluster.port}\n"
            f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\n"
        )
        process = subprocess.Popen(
            [program, "--quiet", str(configuration)],
            stderr=subprocess.DEVNULL,
            **identity.process_options(),
        )
        try:
            wait_until(lambda: port_answers(port) or process.poll() is not None)
            yield url.replace(f":{cluster.port}/", f":{port}/")
        finally:
            process.terminate()
            process.wait()
