"""The README, followed word for word: an app with tables of its own attaches them and uses them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from supabase import Client

from python_jobs.db import Connection, connect, rows
from python_jobs.local.node import NodeTools, find_node
from python_jobs.migrate import migrate
from python_jobs.migrations.files import find_migrations
from tests.support.api import Api
from tests.support.database import PROJECT

README = (PROJECT / "README.md").read_text()

# Supabase's user management starter, and what an app adds to it.
APP = """
    create table public.profiles (
      id uuid primary key references auth.users on delete cascade,
      updated_at timestamptz,
      username text unique,
      full_name text,
      avatar_url text,
      website text
    );
    create table public.posts (
      id uuid primary key default gen_random_uuid(),
      author_id uuid not null default auth.uid() references public.profiles,
      title text not null,
      body text,
      status text not null default 'published',
      published_at timestamptz default now()
    );
    create table public.follows (
      follower_id uuid default auth.uid() references public.profiles,
      followed_id uuid references public.profiles,
      primary key (follower_id, followed_id)
    );
    alter table public.profiles enable row level security;
    alter table public.posts enable row level security;
    alter table public.follows enable row level security;
    create policy "profiles are read by all" on public.profiles for select using (true);
    create policy "users insert their own profile" on public.profiles for insert
      with check ((select auth.uid()) = id);
    create policy "published posts are read" on public.posts for select
      using (status = 'published' or author_id = (select auth.uid()));
    create policy "authors write" on public.posts for insert
      with check (author_id = (select auth.uid()));
    create policy "users follow" on public.follows for all
      using (follower_id = (select auth.uid()));
    grant select, insert on public.profiles, public.posts to authenticated;
    grant select, insert, delete on public.follows to authenticated;
"""
RUN = """
import {{ createClient }} from '@supabase/supabase-js'
const supabase = createClient({url}, {key},
  {{ global: {{ headers: {{ Authorization: 'Bearer ' + {token} }} }} }})
{snippet}
console.log(JSON.stringify({{ page, next, similar }}))
"""


def snippets(heading: str, language: str) -> list[str]:
    """The blocks of code of a section, without the indent of a list."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", README, re.M | re.S)
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", section, re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def encode_all(connection: Connection) -> None:
    """What a worker would store, without the seconds that the encoder takes to load."""
    waiting = rows(connection, "select * from two_tower.posts_to_encode(100)")
    vectors = np.random.default_rng(0).normal(size=(len(waiting), 384)).astype(np.float32)
    connection.execute(
        "select two_tower.store_base_embeddings(%s, %s, %s)",
        [
            [each.post_id for each in waiting],
            list(vectors),
            [each.content_hash for each in waiting],
        ],
    )


@dataclass
class App:
    """The app behind its API: a reader, and the keys of its posts. The last is a draft."""

    api: Api
    client: Client
    keys: list[str]


def posts_of(author: Client, author_id: str) -> list[str]:
    """Writes posts as an app does; returns their keys."""
    profile = {"id": author_id, "username": f"ada-{author_id[:4]}", "full_name": "Ada"}
    author.table("profiles").insert(profile).execute()
    posts: list[dict[str, Any]] = [{"title": f"Post {n}", "status": "published"} for n in range(12)]
    written = author.table("posts").insert([*posts, {"title": "Draft", "status": "draft"}])
    return [row["id"] for row in written.execute().data]


@pytest.fixture(scope="module")
def app(
    create_database: Callable[[], str],
    start_api: Callable[[str], Api],
    tmp_path_factory: pytest.TempPathFactory,
) -> App:
    """A project without the starter app, whose tables are attached as the README says."""
    url = create_database()
    project = tmp_path_factory.mktemp("project")
    (project / "supabase" / "migrations").mkdir(parents=True)
    for each in find_migrations(PROJECT):
        if not each.is_starter:
            shutil.copy(each.path, project / "supabase" / "migrations")
    migrate(url, project)
    (attach,) = snippets("Put it into your Supabase project", "sql")
    with connect(url) as connection:
        connection.execute(APP)
        connection.execute(attach.encode())
        connection.commit()
    api = start_api(url)
    keys = posts_of(*api.sign_up())
    with connect(url, autocommit=True) as connection:
        encode_all(connection)
    client, _ = api.sign_up()
    return App(api, client, keys)


def test_the_python_of_the_readme(app: App) -> None:
    use, moderate = snippets("Use it", "python")
    names: dict[str, Any] = {"client": app.client}
    exec(use, names)
    assert {row["id"] for row in names["page"]} == set(app.keys[:-1])
    assert [row["place"] for row in names["page"]] == list(range(1, len(app.keys)))
    assert names["why"][0]["reason"] == "you engaged with it"

    removing, restoring = moderate.splitlines()
    names = {"backend": app.api.client(app.api.service_key), "key": app.keys[0]}
    reader, _ = app.api.sign_up()
    for statement, is_there in ((removing, False), (restoring, True)):
        exec(statement, names)
        page = reader.rpc("recommend", {"p_limit": 20}).execute().data
        assert (app.keys[0] in [row["post_key"] for row in page]) == is_there


def test_the_javascript_of_the_readme(app: App, node_tools: NodeTools, tmp_path: Path) -> None:
    (snippet,) = snippets("Use it", "js")
    _, user_id = app.api.sign_up()
    settings = (app.api.url, app.api.anon_key, app.api.token(user_id))
    url, key, token = map(json.dumps, settings)
    script = tmp_path / "readme.mjs"
    script.write_text(RUN.format(url=url, key=key, token=token, snippet=snippet))
    (tmp_path / "node_modules").symlink_to(node_tools.folder / "node_modules")
    done = subprocess.run(
        [str(find_node()), str(script)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {row["id"] for row in answer["page"]} == set(app.keys[:-1])
    assert {row["author"]["username"][:4] for row in answer["page"]} == {"ada-"}
    assert answer["next"] == []
    assert len(answer["similar"]) == len(app.keys) - 2
