"""The HTTP server of the feed: the page, where its API is, and the figures of the one who asks."""

from __future__ import annotations

import json
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from python_jobs.db import connect
from python_jobs.errors import CommandError
from python_jobs.laboratory.feed.caller import read_caller
from python_jobs.laboratory.feed.figures import read_health, read_reader
from python_jobs.laboratory.feed.map import PostMap
from python_jobs.local.postgres import HOST
from python_jobs.project import engine_dir
from python_jobs.state import State

PORT = 54330
ADDRESS_FILE = "feed.url"
CLIENT = Path("node/node_modules/@supabase/supabase-js/dist/umd/supabase.js")


class FeedServer(ThreadingHTTPServer):
    """Answers on 127.0.0.1 alone. Keys other than the publishable one never leave it.

    state: of the stack whose feed it is. folder: where the stack keeps its state and npm packages.
    port: 0 for any.
    """

    daemon_threads = True

    def __init__(self, state: State, folder: Path, port: int) -> None:
        self.state = state
        self.client = folder / CLIENT
        self.map = PostMap()
        pages = engine_dir() / "examples" / "feed"
        super().__init__((HOST, port), partial(Handler, directory=str(pages)))

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    """Files of examples/feed, and three answers that are made here."""

    server: FeedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A page of another site can give its name this address: so the name is looked at."""
        if self.headers.get("Host") not in self._names():
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", "Call it by its own address.")
        made = {
            "/config.js": self._config,
            "/supabase-js.js": self._client,
            "/figures": self._figures,
        }.get(self.path)
        if made:
            return made()
        super().do_GET()

    def do_HEAD(self) -> None:
        """As GET does, without the body."""
        self.do_GET()

    def _names(self) -> set[str]:
        return {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}

    def _config(self) -> None:
        state = self.server.state
        lines = [f"export const url = {json.dumps(state.api_url)};"]
        lines.append(f"export const key = {json.dumps(state.publishable_key)};")
        self._answer(HTTPStatus.OK, "text/javascript", "\n".join(lines) + "\n")

    def _client(self) -> None:
        """supabase-js is a script that sets a variable; a line makes a module of it."""
        script = self.server.client.read_text()
        self._answer(
            HTTPStatus.OK, "text/javascript", script + "\nexport const { createClient } = supabase;"
        )

    def _figures(self) -> None:
        secret = self.server.state.jwt_secret
        user_id = read_caller(self.headers.get("Authorization", ""), secret)
        if user_id is None:
            return self._refuse(HTTPStatus.UNAUTHORIZED, "Send the access token of a user.")
        try:
            with connect(self.server.state.database_url) as connection:
                reader, vector, learned = read_reader(connection, user_id)
                figures = {
                    "reader": reader,
                    "map": self.server.map.read(connection, vector, learned),
                    "health": read_health(connection),
                }
        except CommandError as error:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, error.message)
        self._answer(HTTPStatus.OK, "application/json", json.dumps(figures))

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._answer(status, "application/json", json.dumps({"message": message}))

    def _answer(self, status: HTTPStatus, content_type: str, body: str) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Nothing is kept: a file that is changed shows at once."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; what fails is, with its traceback."""


def serve(state: State, folder: Path) -> None:
    """Serves until the process ends, and writes where into the folder."""
    try:
        server = FeedServer(state, folder, PORT)
    except OSError:  # in use
        server = FeedServer(state, folder, 0)
    with server:
        (folder / ADDRESS_FILE).write_text(server.url)
        server.serve_forever()
