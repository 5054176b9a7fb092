"""From a project with tables of its own to a personal page of its rows, as its developer goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.db import connect, rows, value
from python_jobs.migrate import migrate
from tests.support.database import add_user, as_user
from tests.support.workers import RunningWorker

# As projects begin: profiles that a trigger of Auth fills, and posts of the app.
PROFILES = """
create table public.profiles (
  id uuid primary key references auth.users on delete cascade,
  username text unique, full_name text, avatar_url text, website text
);
alter table public.profiles enable row level security;
create policy "anybody reads profiles" on public.profiles for select using (true);
grant select on public.profiles to authenticated;

create function public.add_profile() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.profiles (id, username) values (new.id, split_part(new.email, '@', 1));
  return new;
end
$$;
create trigger on_sign_up after insert on auth.users
  for each row execute function public.add_profile();
"""
POSTS = """
create table public.posts (
  id uuid primary key default gen_random_uuid(),
  author uuid not null default auth.uid() references public.profiles,
  title text not null,
  body text,
  status text not null default 'draft',
  inserted_at timestamptz not null default now()
);
alter table public.posts enable row level security;
create policy "published posts are read" on public.posts for select
  using (status = 'published' or author = (select auth.uid()));
create policy "authors write" on public.posts for all using (author = (select auth.uid()));
grant select, insert, update, delete on public.posts to authenticated;
"""
ATTACH = """
select two_tower.attach_posts('public.posts', content => '{title,body}', author => 'author',
  created_at => 'inserted_at', visible => $$status = 'published'$$);
select two_tower.attach_profiles('public.profiles', "user" => 'id',
  content => '{full_name,website}');
"""
TEXTS = (
    "Sailing across the Baltic with a small crew",
    "How to reef a mainsail when the wind picks up",
    "Anchoring overnight in a rocky bay",
    "A slow sourdough with rye and honey",
    "Roasting vegetables for a winter soup",
    "Pruning tomatoes on a city balcony",
)


def test_a_project_with_tables_of_its_own_gets_personal_pages_of_its_rows(
    tmp_path: Path, create_database: Callable[..., str]
) -> None:
    url, folder = create_database(), tmp_path / "supabase" / "migrations"
    folder.mkdir(parents=True)
    (folder / "20250101000000_profiles.sql").write_text(PROFILES)
    (folder / "20250102000000_posts.sql").write_text(POSTS)
    assert len(migrate(url, tmp_path)) == 2
    with connect(url) as connection:
        author = add_user(connection)
        insert = "insert into public.posts (author, title, status) values (%s, %s, 'published')"
        for text in TEXTS:
            connection.execute(insert.encode(), [author, text])

    done = CliRunner().invoke(main, ["install", "--into", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (folder / "20991231000000_attach.sql").write_text(ATTACH)
    migrate(url, tmp_path)
    worker = RunningWorker(url, "--drain")
    assert worker.end() == 0, worker.lines

    with connect(url) as connection:
        waiting = "select count(*) from two_tower.post_embeddings where embedding is not null"
        assert value(connection, waiting) == len(TEXTS)
        reader = add_user(connection)
        connection.execute(
            "insert into public.posts (author, title) values (%s, 'a draft about sails')", [author]
        )
        sailing = value(connection, "select id from public.posts where title = %s", TEXTS[0])
        with as_user(connection, reader):
            connection.execute(
                "insert into public.engagement_events (post_key, event_type) values (%s, 'like')",
                [str(sailing)],
            )
            page = rows(
                connection,
                "select r.title, p.username, r.place, r.source"
                " from public.recommended_posts(10) r join public.profiles p on p.id = r.author"
                " order by r.place",
            )
    chosen = [row.title for row in page if row.source != "exploration"]
    sailing = set(TEXTS[1:3]) & set(chosen)
    assert set(chosen[: len(sailing)]) == sailing
    assert {row.title for row in page} == set(TEXTS[1:])
    assert [row.place for row in page] == [1, 2, 3, 4, 5]
