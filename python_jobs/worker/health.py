"""An HTTP endpoint for whoever starts and restarts workers: Docker, Kubernetes, a monitor."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from python_jobs.errors import CommandError

PATIENCE_S = 60.0  # a worker calls its database twice a second, in a long job too


class Pulse:
    """When the database last answered, and what is being done. Safe to use from several threads."""

    def __init__(self, name: str, is_stopping: threading.Event) -> None:
        self.name = name
        self._is_stopping = is_stopping
        self._answered_at: float | None = None
        self._is_away = False
        self._jobs: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def note_answer(self) -> None:
        """The database has answered just now."""
        self._answered_at, self._is_away = time.monotonic(), False

    def note_loss(self) -> None:
        """A connection was lost."""
        self._is_away = True

    @contextmanager
    def doing(self, job_id: int, kind: str) -> Iterator[None]:
        """Within the block this job is done."""
        with self._lock:
            self._jobs[job_id] = (kind, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._jobs[job_id]

    def describe(self) -> tuple[bool, dict[str, object]]:
        """Whether the worker is well, and what to say of it. Times in seconds."""
        now = time.monotonic()
        silence = None if self._answered_at is None else now - self._answered_at
        is_heard = silence is not None and silence < PATIENCE_S and not self._is_away
        with self._lock:
            begun = list(self._jobs.values())
        jobs = [{"kind": kind, "seconds": round(now - at, 1)} for kind, at in begun]
        if self._is_stopping.is_set():
            state = "is stopping"
        elif is_heard:
            state = "works" if jobs else "waits for work"
        else:
            state = "waits for its database"
        said: dict[str, object] = {"worker": self.name, "state": state, "jobs": jobs}
        said["database_answered_seconds_ago"] = None if silence is None else round(silence, 1)
        return is_heard and not self._is_stopping.is_set(), said


@contextmanager
def served(pulse: Pulse, host: str, port: int | None) -> Iterator[None]:
    """Within the block, GET / answers 200 while the worker is well, else 503, with JSON.

    port: None for no endpoint. Raises CommandError where the port is taken.
    """
    if port is None:
        yield
        return
    try:
        server = ThreadingHTTPServer((host, port), _handler(pulse))
    except OSError as error:
        raise CommandError(f"Port {port} of {host} can not be used: {error.strerror}.") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(pulse: Pulse) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for who connects and says nothing

        def do_GET(self) -> None:
            is_well, said = pulse.describe()
            body = json.dumps(said).encode() + b"\n"
            self.send_response(200 if is_well else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            """Which Python this is, is nobody's business."""
            return "two-tower"

        def log_message(self, format: str, *args: object) -> None:
            """A probe each second is no news."""

    return Handler
