"""A page of another origin works against the local stack, as against a hosted project."""

from __future__ import annotations

import functools
import http.server
import json
import queue
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from python_jobs.local.node import NodeTools
from tests.support.api import Api
from tests.support.patience import PATIENCE_S

ORIGIN = "http://localhost:5173"
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "rest/v1/posts?select=*", "accept-profile,apikey,authorization,x-client-info"),
        ("GET", "rest/v1/posts?select=*", "apikey,range,range-unit,x-client-info"),
        ("HEAD", "rest/v1/posts?select=*", "apikey,authorization,prefer,x-client-info"),
        ("POST", "rest/v1/posts", "apikey,authorization,content-profile,content-type,prefer"),
        ("PATCH", "rest/v1/posts?id=eq.1", "apikey,authorization,content-type,prefer"),
        ("DELETE", "rest/v1/posts?id=eq.1", "apikey,authorization,x-client-info"),
        ("POST", "rest/v1/rpc/count_words", "apikey,authorization,content-type,x-client-info"),
        ("GET", "rest/v1/rpc/count_words?p_text=a", "apikey,authorization,x-client-info"),
        ("POST", "auth/v1/signup", "apikey,authorization,content-type,x-supabase-api-version"),
        ("POST", "auth/v1/token?grant_type=password", "apikey,authorization,content-type"),
        ("GET", "auth/v1/user", "apikey,authorization,x-client-info"),
        ("PUT", "auth/v1/user", "apikey,authorization,content-type"),
        ("POST", "auth/v1/logout?scope=global", "apikey,authorization,content-type"),
    ],
)
def test_a_preflight_allows_what_it_asks_for(
    method: str, path: str, headers: str, app: Api
) -> None:
    answer = httpx.options(
        f"{app.url}/{path}",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert method in answer.headers["access-control-allow-methods"].split(",")
    assert set(headers.split(",")) <= set(answer.headers["access-control-allow-headers"].split(","))


def test_a_page_may_read_every_answer_refusals_too(app: Api) -> None:
    with_key = {**app.headers(), "Origin": ORIGIN}
    service = {"apikey": app.service_key, "Origin": ORIGIN}
    duplicate = [{"id": secrets.randbits(60)}] * 2

    def ask(method: str, path: str, headers: dict[str, str], body: Any = None) -> httpx.Response:
        return httpx.request(method, f"{app.url}/{path}", headers=headers, json=body, timeout=300)

    answers = {
        200: ask("GET", "rest/v1/posts", with_key),
        201: ask("POST", "rest/v1/unrelated", service, {"id": secrets.randbits(60)}),
        400: ask("POST", "auth/v1/token?grant_type=password", with_key, {"email": "x@example.com"}),
        401: ask("GET", "rest/v1/posts", {"Origin": ORIGIN}),
        403: ask("GET", "auth/v1/admin/users", with_key),
        404: ask("GET", "rest/v1/nothing", with_key),
        409: ask("POST", "rest/v1/unrelated", service, duplicate),
        422: ask("POST", "auth/v1/signup", with_key, {"email": "x@example.com", "password": "x"}),
    }
    assert {status: answer.status_code for status, answer in answers.items()} == {
        status: status for status in answers
    }
    answers |= {
        "no such service": ask("GET", "storage/v1/bucket", with_key),
        "no key": ask("POST", "auth/v1/signup", {"Origin": ORIGIN}, {}),
    }
    for answer in answers.values():
        assert answer.headers.get_list("access-control-allow-origin") == ["*"]
        assert "Content-Range" in answer.headers["access-control-expose-headers"].split(",")


PAGE = """<!doctype html><script src="/supabase.js"></script><script>
const { url, key, email } = Object.fromEntries(new URLSearchParams(location.search));
const run = async () => {
  const client = supabase.createClient(url, key);
  const { data: { user } } = await client.auth.signUp({ email, password: "long enough" });
  const { data: [post] } = await client.from("posts").insert({ body: "from a page" }).select();
  const mine = () => client.from("posts").select("body,profiles(handle)", { count: "exact" });
  return {
    user: user.id,
    author: post.author_id,
    page: await mine().eq("author_id", user.id).range(0, 0),
    words: await client.rpc("count_words", { p_text: "a b" }),
    wordsByGet: await client.rpc("count_words", { p_text: "a b" }, { get: true }),
    refused: await client.from("posts").insert({ id: post.id, body: "twice" }),
    deleted: await client.from("posts").delete().eq("id", post.id),
    signedOut: await client.auth.signOut(),
  };
};
const tell = (result) => fetch("/result", { method: "POST", body: JSON.stringify(result) });
run().then(tell, (error) => tell({ error: String(error) }));
</script>"""


class PageServer(http.server.SimpleHTTPRequestHandler):
    """Serves the page and its scripts, and takes what the page reports."""

    results: queue.Queue[dict[str, Any]] = queue.Queue()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.results.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def origin(tmp_path: Path, node_tools: NodeTools) -> Iterator[str]:
    """Where the page lies: another port, so another origin than the stack's."""
    packages = node_tools.folder / "node_modules" / "@supabase" / "supabase-js"
    shutil.copy(packages / "dist" / "umd" / "supabase.js", tmp_path)
    (tmp_path / "page.html").write_text(PAGE)
    handler = functools.partial(PageServer, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Opens a URL in a headless Chromium, which ends with the test."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    browsers: list[subprocess.Popen[bytes]] = []

    def open_url(url: str) -> None:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browsers.append(subprocess.Popen([*command, profile, url], **quiet))

    yield open_url
    for browser in browsers:
        browser.terminate()
        browser.wait()


def test_a_page_in_a_browser_signs_up_writes_and_reads(
    app: Api, origin: str, open_page: Callable[[str], None]
) -> None:
    asked = {"url": app.url, "key": app.anon_key, "email": f"{secrets.token_hex(8)}@example.com"}
    open_page(str(httpx.URL(f"{origin}/page.html", params=asked)))
    seen = PageServer.results.get(timeout=PATIENCE_S)
    assert "error" not in seen, seen
    assert seen["author"] == seen["user"]
    assert seen["page"]["count"] == 1
    related = {"handle": seen["user"]}
    assert seen["page"]["data"] == [{"body": "from a page", "profiles": related}]
    assert (seen["words"]["data"], seen["wordsByGet"]["data"]) == (2, 2)
    assert (seen["refused"]["status"], seen["refused"]["error"]["code"]) == (409, "23505")
    assert seen["deleted"]["status"] == 204
    assert seen["signedOut"]["error"] is None
