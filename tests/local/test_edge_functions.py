"""Edge functions of the local stack: found, started, protected and ended as on the platform."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from python_jobs.local import deno
from python_jobs.local.api_server import ApiServer
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import free_port
from python_jobs.state import ApiKeys
from tests.support.api import Api
from tests.support.database import reachable_folder
from tests.support.patience import PATIENCE_S, wait_until

CONFIG = """
[functions.open]
verify_jwt = false
[functions.off]
enabled = false
[functions.elsewhere]
verify_jwt = false
entrypoint = "./functions/open/other.ts"
"""
# Answers what it was asked, and what it knows.
ECHO = """
Deno.serve(async (request) => Response.json({
  method: request.method,
  path: new URL(request.url).pathname + new URL(request.url).search,
  length: (await request.arrayBuffer()).byteLength,
  pid: Deno.env.get("SHOW_PID") && Deno.pid,
  environment: Deno.env.toObject(),
}, { status: 202, headers: { "X-Own": "yes" } }));
"""
FILES = {
    "config.toml": CONFIG,
    "functions/.env": "SHOW_PID=1\nFROM_FILE='a b'\n",
    "functions/open/index.ts": ECHO,
    "functions/open/other.ts": "Deno.serve(() => new Response('other'));",
    "functions/closed/index.ts": ECHO,
    "functions/off/index.ts": ECHO,
    "functions/broken/index.ts": "import { nothing } from './nowhere.ts'; nothing();",
    "functions/mortal/index.ts": "Deno.serve(() => Deno.exit(3));",
    "functions/_shared/index.ts": ECHO,
}


@pytest.fixture(scope="module")
def start(
    node_tools: NodeTools, clone_database: Callable[[], str]
) -> Iterator[Callable[[], tuple[ApiServer, int]]]:
    """Factory: a server of the functions above over one database, and its process id."""
    if node_tools.find_postgrest() is None or deno.find_deno() is None:
        pytest.skip("no PostgREST, or no Deno")
    url = clone_database().replace("//postgres:", "//authenticator:")
    running: list[tuple[ApiServer, int]] = []
    with reachable_folder() as project:
        for name, text in FILES.items():
            path = project / "supabase" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def start() -> tuple[ApiServer, int]:
            log = project / f"api-{len(running)}.log"
            functions = EdgeFunctions(project, {"GIVEN": "1"})
            server = ApiServer(
                *(node_tools, free_port(), ApiKeys.generate(), log),
                database_url=url,
                functions=functions,
            )
            running.append((server, server.start()))
            return running[-1]

        yield start
        for server, pid in running:
            server.stop(pid)


@pytest.fixture(scope="module")
def server(start: Callable[[], tuple[ApiServer, int]]) -> ApiServer:
    """The one that tests share."""
    return start()[0]


def call(server: ApiServer, path: str, method: str = "GET", **options: object) -> httpx.Response:
    url = f"{server.url}/functions/v1/{path}"
    return httpx.request(method, url, timeout=PATIENCE_S, **options)


def test_a_function_gets_the_request_and_what_a_hosted_one_knows(server: ApiServer) -> None:
    answer = call(server, "open/sub?a=1&b=%20", "POST", content=b"x" * 3_000_000)
    assert (answer.status_code, answer.headers["x-own"]) == (202, "yes")
    said = answer.json()
    assert (said["method"], said["path"], said["length"]) == (
        "POST",
        "/open/sub?a=1&b=%20",
        3_000_000,
    )
    known = said["environment"]
    assert known["SUPABASE_URL"] == server.url
    assert known["SUPABASE_ANON_KEY"] == server.keys.publishable_key
    assert known["SUPABASE_SERVICE_ROLE_KEY"] == server.keys.secret_key
    assert (known["FROM_FILE"], known["GIVEN"]) == ("a b", "1")
    with psycopg.connect(known["SUPABASE_DB_URL"]) as connection:
        assert connection.execute("select current_user").fetchone() == ("postgres",)
    assert "TWO_TOWER_API" not in known
    assert call(server, "elsewhere").text == "other"


def test_a_token_is_asked_for_unless_config_toml_says_otherwise(server: ApiServer) -> None:
    api = Api(server.url, "", server.keys)
    good, expired = api.token("a"), api.token("a", lifetime_s=-60)

    def status(**headers: str) -> tuple[int, str]:
        answer = call(server, "closed", headers=headers)
        assert answer.status_code == 202 or answer.headers["access-control-allow-origin"] == "*"
        return answer.status_code, answer.headers.get("sb-error-code", "")

    assert call(server, "open").status_code == 202
    assert call(server, "closed", "OPTIONS").status_code == 202
    assert status(Authorization=f"Bearer {good}") == (202, "")
    assert status(apikey=api.anon_key) == (202, "")
    assert status() == (401, "UNAUTHORIZED_NO_AUTH_HEADER")
    assert status(Authorization=good) == (401, "UNAUTHORIZED_INVALID_JWT_FORMAT")
    for token in (expired, good[:-2] + "xx", "a.b.c"):
        assert status(Authorization=f"Bearer {token}") == (401, "UNAUTHORIZED_LEGACY_JWT")


@pytest.mark.parametrize("name", ["nothing", "_shared", "off", "..%2fopen", "", ".env"])
def test_what_is_no_function_is_not_found(server: ApiServer, name: str) -> None:
    answer = call(server, name)
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_function_that_does_not_start_or_ends_is_told_and_started_again(
    server: ApiServer,
) -> None:
    key = {"apikey": server.keys.publishable_key}
    for _ in range(2):
        broken = call(server, "broken", headers=key)
        assert (broken.status_code, broken.json()["code"]) == (503, "BOOT_ERROR")
        ended = call(server, "mortal", headers=key)
        assert (ended.status_code, ended.json()["code"]) == (502, "WORKER_ERROR")
    os.kill(call(server, "open").json()["pid"], signal.SIGKILL)
    wait_until(lambda: call(server, "open").status_code == 202)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_functions_end_with_the_server_even_where_it_is_killed(
    start: Callable[[], tuple[ApiServer, int]], how: signal.Signals
) -> None:
    server, gateway = start()
    pid = call(server, "open").json()["pid"]
    os.kill(gateway, how)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_without_deno_everything_else_is_served(
    start: Callable[[], tuple[ApiServer, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deno, "find_deno", lambda: None)
    server, _ = start()
    answer = call(server, "open")
    assert (answer.status_code, answer.json()["code"]) == (503, "NO_DENO")
    assert "pip install deno" in answer.json()["hint"]
