"""Edge functions over a database of their own, with an app's table, and users who call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from python_jobs.db import Connection, connect
from python_jobs.local.api_server import ApiServer
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.migrate import migrate
from python_jobs.state import ApiKeys
from tests.support.api import Api
from tests.support.database import PROJECT, add_user, reachable_folder
from tests.support.patience import PATIENCE_S
from tests.support.servers import chosen_binaries

METRICS_SECRET = "a-secret-of-the-tests-long-enough"
# The platform's limits, far away: a busy machine is no database that does not answer.
PATIENT = {
    "RECOMMEND_DEADLINE_MS": "600000",
    "EMBED_WAIT_MS": "1000",
    "METRICS_SECRET": METRICS_SECRET,
}
FIRST_ARTICLE = 2**53 + 1  # what a JavaScript number cannot hold
ARTICLES = 150
# Odd ones are for everybody, even ones for those who have signed in.
APP = f"""
create table public.articles (id bigint primary key, title text, is_public boolean not null);
alter table public.articles enable row level security;
create policy read on public.articles for select to authenticated using (true);
create policy read_public on public.articles for select to anon using (is_public);
revoke all on public.articles from anon, authenticated, service_role;
grant select on public.articles to anon, authenticated;
insert into public.articles
select {FIRST_ARTICLE} + i, 'Article ' || i, i % 2 = 1 from generate_series(1, {ARTICLES}) i;
select two_tower.attach_posts('public.articles', content => '{{title}}',
  popular_for_anon => true);
insert into auth.users (id, email) values
  ('00000000-0000-4000-8000-000000000001', 'a@example.com');
insert into public.posts (author_id, content)
select '00000000-0000-4000-8000-000000000001', 'Post ' || i from generate_series(1, 5) i;
"""


@dataclass
class Functions:
    """The functions of one server, as clients see them."""

    api: Api

    def call(
        self,
        name: str,
        method: str = "GET",
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """A request; every answer of a function may be read by pages of other origins."""
        answer = httpx.request(
            method,
            f"{self.api.url}/functions/v1/{name}",
            headers={**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})},
            timeout=PATIENCE_S,
            **options,
        )
        assert answer.headers["access-control-allow-origin"] == "*"
        return answer

    def refusal(self, *arguments: Any, **options: Any) -> tuple[int, str]:
        """Status and code of an answer that says what to do."""
        answer = self.call(*arguments, **options)
        said = answer.json()
        assert set(said) == {"code", "message", "hint"}, said
        assert all(isinstance(part, str) and part for part in said.values()), said
        if answer.status_code in (429, 503):
            assert int(answer.headers["retry-after"]) > 0
        return answer.status_code, said["code"]

    def database(self) -> Connection:
        """A connection as role postgres that commits each statement."""
        return connect(self.api.database_url, autocommit=True)

    def sign_up(self) -> str:
        """A new user's token."""
        with self.database() as connection:
            return self.api.token(add_user(connection), lifetime_s=86_400)


class FunctionServers:
    """A Postgres of its own with the engine and an app's table, and servers over it."""

    def __init__(self, tools: NodeTools, folder: Path) -> None:
        self.tools = tools
        self.folder = folder
        self.cluster = Cluster(
            folder / "postgres",
            free_port(),
            binaries=chosen_binaries(),
            settings={"fsync": "off", "full_page_writes": "off"},
        )
        self._running: list[tuple[ApiServer, int]] = []

    def start(self, **secrets: str) -> Functions:
        """The functions of this project, with other settings than PATIENT has."""
        server = ApiServer(
            *(self.tools, free_port(), ApiKeys.generate()),
            self.folder / f"api-{len(self._running)}.log",
            database_url=self.cluster.url(user="authenticator"),
            functions=EdgeFunctions(PROJECT, {**PATIENT, **secrets}),
        )
        self._running.append((server, server.start()))
        return Functions(Api(server.url, self.cluster.url(), server.keys))

    def stop(self) -> None:
        """Ends all of it."""
        for server, pid in self._running:
            server.stop(pid)
        self.cluster.stop("immediate")


@contextmanager
def function_servers(tools: NodeTools) -> Iterator[FunctionServers]:
    """Servers while the block lasts."""
    with reachable_folder() as folder:
        servers = FunctionServers(tools, folder)
        servers.cluster.start()
        try:
            bootstrap(servers.cluster.url(user=SUPERUSER), servers.cluster.password)
            migrate(servers.cluster.url(), PROJECT)
            with connect(servers.cluster.url(), autocommit=True) as connection:
                connection.execute(APP.encode())
                while connection.execute(KNOWN).fetchone() != (ARTICLES,):
                    connection.execute("select two_tower.tick()")
                encode(connection)
            yield servers
        finally:
            servers.stop()


def encode(connection: Connection) -> None:
    """Stores vectors of all posts, without the seconds that the encoder takes to load."""
    ids = [row[0] for row in connection.execute("select id from two_tower.posts order by id")]
    vectors = np.random.default_rng(0).normal(size=(len(ids), 384)).astype(np.float32)
    connection.execute(
        "select two_tower.store_base_embeddings(%s::bigint[], %s)", [ids, list(vectors)]
    )
    connection.execute("select two_tower.refresh_popular_candidates()")


KNOWN = """
  select count(*)::integer from two_tower.posts p join two_tower.sources s on s.id = p.source_id
  where s.name = 'articles'
"""
