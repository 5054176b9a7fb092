"""What attached tables cost: their writes, pages under their policies, events that name keys.

Two kinds of table are attached: posts with bigint keys, which are their ids, and articles with
uuids. Each has a bare twin with the same columns, keys and policies. The cases of a group take
turns, some statements each, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from python_jobs.db import Connection, connect
from python_jobs.laboratory.bench.cpu import backend_cpu_us
from python_jobs.laboratory.bench.feed import READERS, user_id
from python_jobs.laboratory.bench.world import World
from python_jobs.laboratory.server import USER_ID

ARTICLES = 2000
PAGE = 50
BATCH = 100
WARM_UP = 5
ONE_READABLE_IN = 1000

_ARTICLE_KEY = "('00000000-0000-4000-9000-' || lpad(to_hex({}), 12, '0'))::uuid"
_ARTICLES = """
  create table public.articles (
    id uuid primary key default gen_random_uuid(),
    author_id uuid default auth.uid() references auth.users (id) on delete set null,
    content text not null,
    created_at timestamptz not null default now()
  );
  create index articles_author_id_created_at_idx on public.articles (author_id, created_at desc);
  create policy "articles are read by all" on public.articles
    for select to authenticated using (true);
  create policy "authors write their own" on public.articles
    for insert to authenticated with check (author_id = (select auth.uid()));
  alter table public.articles enable row level security;
  grant all on public.articles to authenticated, service_role;
  alter table public.articles owner to postgres;
  insert into public.articles (id, author_id, content)
  select {article}, {author}, 'article ' || g from generate_series(1, {articles}) g;
  set role postgres;
  select two_tower.attach_posts('public.articles', content => '{{content}}', author => 'author_id',
    created_at => 'created_at');
  reset role;
  select two_tower.reconcile('articles');

  -- Their ids are -1, -2 and so on. Each has the vector of a post.
  set session_replication_role = replica;
  insert into two_tower.live_embeddings
    (slot, post_id, source_id, embedding, author_id, created_at, model_version)
  select v.slot, p.id, p.source_id, v.embedding, p.author_id, p.created_at, v.model_version
  from two_tower.posts p join two_tower.live_embeddings v on v.slot = 0 and v.post_id = -p.id
  where p.id < 0;
  update two_tower.posts set encoded_hash = content_hash where id < 0;
  set session_replication_role = origin;
"""
_TWIN = """
  alter table public.{table} add column views integer not null default 0;
  create table public.plain_{table} (like public.{table} including all);
  insert into public.plain_{table} select * from public.{table};
  select setval(pg_get_serial_sequence('public.plain_{table}', 'id'), 1000000000);
  alter table public.plain_{table} add foreign key (author_id)
    references {authors} on delete set null;
  create policy "authors write their own" on public.plain_{table}
    for insert to authenticated with check (author_id = (select auth.uid()));
  alter table public.plain_{table} enable row level security;
  grant all on public.plain_{table} to authenticated, service_role;
"""
_PROFILES = """
  insert into public.profiles (user_id) select id from auth.users on conflict do nothing;
"""
_ADD_PROFILES = """
  create trigger add_profile_of_author before insert or update of author_id on public.plain_posts
    for each row execute function public.add_profile_of_author();
"""
# As long as posts are, unlike those of fill_feed(): reading them is what a page is compared with.
_TEXTS = """
  set session_replication_role = replica;
  update public.posts set content = content || repeat(' and some words of it', 14);
  set session_replication_role = origin;
"""
_POLICY = """
  alter policy "posts that are not deleted are read by signed-in users" on public.posts using ({})
"""
_RECOMMENDED = f"select * from public.recommended_posts({PAGE})"
_INSERT = """
  insert into public.{table} (author_id, content)
  select auth.uid(), repeat('and some words of it ', 14) || %(n)s::integer
  from generate_series(1, {rows})
"""
_UPDATE = """
  update public.{table} set views = views + 1
  where id = any (array(select {key} from generate_series(1, {rows}) g))
"""
_LIKE = """
  insert into public.engagement_events ({}, event_type) values ({}, 'like')
"""
_CHECK = "alter table public.engagement_events {} trigger check_readable"


@dataclass(frozen=True)
class Case:
    """A statement that a session of its own repeats. %(n)s in it is another number each time.

    role: the session's; authenticated is another reader in each round. rows: that it writes.
    count: how often it runs in a round. before: what the superuser does before each round.
    """

    name: str
    statement: str
    role: str = "authenticated"
    rows: int = 1
    count: int = 20
    before: str = ""


@dataclass(frozen=True)
class Group:
    """Cases that are compared with the first of them. scene, after: the superuser's."""

    name: str
    cases: tuple[Case, ...]
    scene: str = ""
    after: str = ""


@dataclass
class Session:
    """A connection, and what was measured on it: a figure a round."""

    case: Case
    connection: Connection
    p50_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def run(self, reader: str, numbers: Iterator[int]) -> None:
        """One round."""
        claims = json.dumps({"role": self.case.role, "sub": reader})
        query = self.case.statement.encode()
        self.connection.execute("select set_config('request.jwt.claims', %s, false)", [claims])
        for _ in range(WARM_UP):
            self.connection.execute(query, {"n": next(numbers)})
        times = []
        cpu_us = backend_cpu_us(self.connection)
        for _ in range(self.case.count):
            began = time.perf_counter()
            self.connection.execute(query, {"n": next(numbers)})
            times.append(1000 * (time.perf_counter() - began))
        cpu_us = backend_cpu_us(self.connection) - cpu_us
        self.cpu_us.append(cpu_us / self.case.count)
        self.p50_ms.append(statistics.median(times))

    def figures(self, base: Session) -> dict[str, Any]:
        """As JSON: medians over rounds, and ratios to the base of the same round."""

        def ratio(of: Callable[[Session], list[float]]) -> float:
            return statistics.median(a / b for a, b in zip(of(self), of(base), strict=True))

        more = statistics.median(self.cpu_us) - statistics.median(base.cpu_us)
        return {
            "case": self.case.name,
            "p50_ms": statistics.median(self.p50_ms),
            "cpu_us": statistics.median(self.cpu_us),
            "p50_ratio": ratio(lambda session: session.p50_ms),
            "cpu_ratio": ratio(lambda session: session.cpu_us),
            "more_cpu_us_per_row": more / self.case.rows,
        }


def fill_articles(world: World) -> None:
    """Attaches articles to a world filled by fill_feed(), and makes the bare twins."""
    with connect(world.superuser_url, autocommit=True) as connection:
        statements = _ARTICLES.format(
            article=_ARTICLE_KEY.format("g"),
            author=USER_ID.format(f"{READERS + 1} + g % 100"),
            articles=ARTICLES,
        )
        connection.execute(statements.encode())
        connection.execute(_PROFILES.encode())
        for table, authors in (("posts", "public.profiles"), ("articles", "auth.users")):
            connection.execute(_TWIN.format(table=table, authors=authors).encode())
        connection.execute(_ADD_PROFILES.encode())
        connection.execute("vacuum (analyze)")


def reading_groups(tables: str) -> list[Group]:
    """Pages where all is readable. tables: which are attached."""
    return [
        Group(
            f"Page of {PAGE}, {tables} attached",
            (
                Case("recommend", f"select * from public.recommend({PAGE})"),
                Case("recommended_posts", _RECOMMENDED),
                Case(
                    "the core alone",
                    f"select * from two_tower.recommend_for(auth.uid(), {PAGE})",
                    "postgres",
                ),
            ),
        )
    ]


def restricted_groups() -> list[Group]:
    """Pages where little is readable."""
    return [
        Group(
            f"Page of {PAGE}, one post in {ONE_READABLE_IN:,} readable",
            (
                Case(
                    "the table's own newest",
                    f"select * from public.posts order by created_at desc limit {PAGE}",
                    count=5,
                ),
                Case("recommended_posts", _RECOMMENDED, count=5),
            ),
            _POLICY.format(f"deleted_at is null and id % {ONE_READABLE_IN} = 1"),
            _POLICY.format("deleted_at is null or author_id = (select auth.uid())"),
        )
    ]


def writing_groups(posts: int) -> list[Group]:
    """Likes, updates and inserts."""
    article = f"1 + %(n)s::integer %% {ARTICLES}"
    key = f"({_ARTICLE_KEY.format(article)})::text"
    by_id = _LIKE.format("post_id", f"-({article})")
    by_key = _LIKE.format("post_key, post_source", f"{key}, 'articles'")
    keys = {
        "posts": f"1 + (%(n)s::bigint * {BATCH} + g) %% {posts}",
        "articles": _ARTICLE_KEY.format(f"1 + (%(n)s::integer * {BATCH} + g) %% {ARTICLES}"),
    }
    return [
        Group("Like of an article", (Case("by post_id", by_id), Case("by post_key", by_key))),
        Group(
            "Like of an article by post_id",
            (
                Case("readability not checked", by_id, before=_CHECK.format("disable")),
                Case("checked", by_id, before=_CHECK.format("enable")),
            ),
            after=_CHECK.format("enable"),
        ),
        *(
            _twins(f"Update of a counter in {table}, rows: {rows}",
                   _UPDATE.format(table="{table}", key=keys[table], rows=rows),
                   table, rows, "service_role")
            for table in keys for rows in (1, BATCH)
        ),
        *(
            _twins(f"Insert into {table}, rows: {rows}",
                   _INSERT.format(table="{table}", rows=rows), table, rows, "authenticated")
            for table in keys for rows in (1, BATCH)
        ),
    ]  # fmt: skip


def _twins(name: str, statement: str, table: str, rows: int, role: str) -> Group:
    return Group(
        name,
        tuple(
            Case(case, statement.format(table=prefix + table), role, rows, 20 if rows == 1 else 10)
            for case, prefix in (("bare", "plain_"), ("attached", ""))
        ),
    )


def measure(world: World, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures a world filled by fill_feed(), with an index; attaches articles to it."""
    with connect(world.superuser_url, autocommit=True) as superuser:
        superuser.execute("update two_tower.settings set learned_events_per_minute = 1000000")
        superuser.execute(_TEXTS.encode())
        superuser.execute("vacuum (full, analyze) public.posts")
    numbers = itertools.count()
    figures = {}
    for group in reading_groups("posts"):
        figures[group.name] = run_group(world, group, rounds, numbers, say)
    say("attaching articles")
    fill_articles(world)
    for group in [
        *reading_groups("posts and articles"),
        *restricted_groups(),
        *writing_groups(world.posts),
    ]:
        figures[group.name] = run_group(world, group, rounds, numbers, say)
        world.fold()
    return {"versions": world.versions(), "groups": figures, "budgets": budgets(figures)}


def run_group(
    world: World, group: Group, rounds: int, numbers: Iterator[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Figures of each case of a group."""
    with ExitStack() as stack:
        superuser = stack.enter_context(connect(world.superuser_url, autocommit=True))
        sessions = []
        for case in group.cases:
            # Prepared, as PostgREST prepares. Without helpers, whose CPU time would not count.
            connection = connect(
                world.url,
                autocommit=True,
                prepare_threshold=0,
                options="-c max_parallel_workers_per_gather=0",
            )
            sessions.append(Session(case, stack.enter_context(connection)))
            connection.execute(f"set role {case.role}".encode())
        if group.scene:
            superuser.execute(group.scene.encode())
        for number in range(rounds):
            for session in sessions:
                say(f"{group.name}: round {number + 1} of {rounds}, {session.case.name}")
                if session.case.before:
                    superuser.execute(session.case.before.encode())
                session.run(user_id(1 + number % READERS), numbers)
        if group.after:
            superuser.execute(group.after.encode())
    return [session.figures(sessions[0]) for session in sessions]


def budgets(figures: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each budget with its figure."""
    lines: list[tuple[str, float, float, str]] = []
    for name, cases in figures.items():
        last = cases[-1]
        if name.startswith("Insert") and name.endswith(f" {BATCH}"):
            lines.append((f"{name}: p50 against bare", last["p50_ratio"], 2, "x"))
            lines.append((f"{name}: CPU a row more", last["more_cpu_us_per_row"], 15, "us"))
        elif "readable" in name:
            lines.append((f"{name}: against the table's own", last["cpu_ratio"], 2, "x"))
        elif name.startswith("Page"):
            lines.append((f"{name}: recommended_posts", cases[1]["cpu_ratio"], 1.3, "x"))
    return [
        {
            "budget": name,
            "figure": figure,
            "bound": f"at most {bound} {unit}",
            "is_kept": figure <= bound,
        }
        for name, figure, bound, unit in lines
    ]
