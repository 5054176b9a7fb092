"""The life cycle of the engine in somebody's project: install, push, uninstall, install again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner, Result

from python_jobs import project as projects
from python_jobs.cli import main
from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.node import NodeTools
from python_jobs.migrate import migrate, with_sslmode
from python_jobs.migrations.files import Migration, engine_files, find_migrations
from python_jobs.project import engine_dir
from python_jobs.worker.process import Worker
from tests.support.catalogue import describe
from tests.support.database import PROJECT, add_user, as_user
from tests.support.realtime import REALTIME

ARTICLES = """
  create table public.articles (id uuid primary key default gen_random_uuid(), title text);
  insert into public.articles (title) values ('Sailing at dawn');
"""
ATTACHED = """
  select two_tower.attach_posts('public.articles', content => '{title}');
  create view public.front_page as select title from public.articles_page;
"""
ENGINE = engine_files(find_migrations(PROJECT))
NUMBERS = {each.title[5:]: number for number, each in ENGINE.items()}
STARTER_TABLES = ("profiles", "posts", "follows")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folder of a project with a table of its own."""
    migrations = tmp_path / "supabase" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "20250101000000_articles.sql").write_text(ARTICLES)
    return tmp_path


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the engine of this test alone, which is the one that commands write from."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PROJECT / "supabase", folder / "supabase")
    monkeypatch.setattr(projects, "_CHECKOUT", folder)
    assert engine_dir() == folder
    return folder


def run(command: str, *arguments: str, url: str = "") -> Result:
    """A command of two-tower as its user calls it, with a database or without."""
    environment = {"TWO_TOWER_DATABASE_URL": url}
    return CliRunner().invoke(main, [command, *arguments], env=environment)


def says(result: Result) -> str:
    """What a command printed, on one line; it succeeded."""
    assert result.exit_code == 0, result.output
    assert [line for line in result.output.splitlines() if len(line) > 80 and "/" not in line] == []
    return " ".join(result.output.split())


def push(url: str, app: Path, node_tools: NodeTools) -> None:
    """`supabase db push` of the project."""
    done = node_tools.run_cli(
        *("db", "push", "--yes", f"--remote={with_sslmode(url)}", "--workdir", str(app)), cwd=app
    )
    assert done.returncode == 0, done.stderr


def engine_in(app: Path) -> list[Migration]:
    return [each for each in find_migrations(app) if each.number]


def installed(url: str) -> dict[str, str]:
    with connect(url) as connection:
        found = rows(connection, "select number, hash from two_tower.installed_files")
    return {row.number: row.hash for row in found}


def like_and_read(connection: Connection) -> list[int]:
    """Likes a post of somebody else, and returns the page of who liked it: other posts."""
    author, reader = add_user(connection), add_user(connection)
    posts = rows(
        connection,
        "insert into public.posts (author_id, content)"
        " select %s, 'post ' || n from generate_series(1, 5) n returning id",
        author,
    )
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5, 384)).astype(np.float32)
    value(
        connection,
        "select two_tower.store_base_embeddings(%s::bigint[], %s)",
        [post.id for post in posts],
        list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
    )
    with as_user(connection, reader):
        connection.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, 'like')",
            [posts[0].id],
        )
        page = rows(connection, "select post_id from public.recommend(10)")
    learned = "select count(*) from two_tower.user_embeddings where user_id = %s"
    assert value(connection, learned, reader) == 1
    assert {row.post_id for row in page} == {post.id for post in posts[1:]}
    return [post.id for post in posts]


def test_install_push_uninstall_and_install_again(
    app: Path, create_database: Callable[..., str], node_tools: NodeTools
) -> None:
    url = create_database()
    push(url, app, node_tools)
    wrote = says(run("install", "--into", str(app), "--starter", url=url))
    assert f"Wrote {len(ENGINE)} files into " in wrote  # a warning may stand before it
    assert wrote.endswith("Next: supabase db push")
    push(url, app, node_tools)
    assert installed(url) == {number: each.hash for number, each in ENGINE.items()}
    assert migrate(url, PROJECT) == []
    assert says(run("install", "--into", str(app), url=url)).startswith("Nothing to write")
    with connect(url) as connection:
        posts = like_and_read(connection)
        connection.execute(
            "create view public.likes as"
            "  select user_id, post_id from public.engagement_events where event_type = 'like';"
            "create view public.likers as select user_id from public.likes;"
            "create table public.notes (at timestamptz default two_tower.now(),"
            "  kind two_tower.prior_source,"
            "  of_user uuid constraint note_of_a_known_user references two_tower.users);"
            "create policy operators_read on public.notes using (two_tower.is_operator());"
        )
        connection.execute(ATTACHED)

    removal = run("uninstall", "--into", str(app), url=url)
    assert [line for line in removal.output.splitlines() if line.startswith("- ")] == [
        "- column kind of table notes",
        "- constraint note_of_a_known_user on table notes",
        "- policy operators_read on table notes",
        "- view front_page",
        "- view likers",
        "- view likes",
    ]
    assert says(removal).endswith("Next: stop the workers, then supabase db push")
    refused = run("install", "--into", str(app), url=url)
    assert "has not had" in refused.output
    assert "two_tower_uninstall.sql yet" in refused.output
    push(url, app, node_tools)
    with connect(url) as connection:
        left = rows(
            connection,
            "select relname as name from pg_class where relnamespace = 'public'::regnamespace"
            "   and relkind in ('r', 'v')"
            " union all select proname from pg_proc where pronamespace = 'public'::regnamespace"
            " union all select 'two_tower' from pg_namespace where nspname = 'two_tower'"
            " union all select 'a grant' from pg_namespace, aclexplode(nspacl) as a"
            "   where a.grantee = 'two_tower_worker'::regrole",
        )
        assert sorted(row.name for row in left) == sorted(
            ["add_profile_of_author", "articles", "notes", *STARTER_TABLES]
        )
        assert value(connection, "select title from public.articles") == "Sailing at dawn"
        kept = rows(connection, "select id from public.posts order by id")
        assert [row.id for row in kept] == posts
        connection.execute("insert into public.notes default values")
        connection.execute("insert into public.articles (title) values ('At dusk')")
        connection.execute("insert into public.posts (content) values ('the app goes on')")
        assert value(connection, "select count(at) from public.notes") == 1

    assert "There is nothing to remove" in run("uninstall", "--into", str(app), url=url).output
    refused = run("install", "--into", str(app), "--starter", url=url)
    assert refused.exit_code == 1
    assert refused.output.splitlines()[0] == (
        "Error: Nothing was changed: 3 things are in the way."
    )
    with connect(url) as connection:
        connection.execute("drop table public.profiles, public.posts, public.follows")
    assert "Wrote" in says(run("install", "--into", str(app), "--starter", url=url))
    push(url, app, node_tools)
    assert installed(url).keys() == ENGINE.keys()
    with connect(url) as connection:
        like_and_read(connection)


@pytest.mark.parametrize("way", ["cli", "psycopg"])
def test_migrate_installs_again_after_a_removal(
    way: str, app: Path, create_database: Callable[..., str], node_tools: NodeTools
) -> None:
    """The history has the stamps of the checkout's files already, from before the removal."""
    url = create_database()
    cli = node_tools.run_cli if way == "cli" else None
    migrate(url, PROJECT, cli=cli)
    says(run("uninstall", "--into", str(app), url=url))
    assert len(migrate(url, app, cli=cli)) == 2
    with connect(url) as connection:
        connection.execute("drop table public.profiles, public.posts, public.follows")
    applied = migrate(url, PROJECT, cli=cli)
    assert [name.split("_", 1)[1] for name in applied] == [
        f"{each.name}.sql" for each in ENGINE.values()
    ]
    assert migrate(url, PROJECT, cli=cli) == []


def test_a_project_is_pushed_as_the_checkout_is_migrated(
    app: Path, create_database: Callable[..., str], shared_database: str, node_tools: NodeTools
) -> None:
    url = create_database()
    says(run("install", "--into", str(app), "--starter"))
    (app / "supabase" / "migrations" / "20250101000000_articles.sql").unlink()
    push(url, app, node_tools)
    with psycopg.connect(url) as ours, psycopg.connect(shared_database) as usual:
        found, expected = describe(ours), describe(usual)
    del found["history"], expected["history"]
    assert found == expected


@pytest.mark.parametrize("schema", ["public", "My vectors"])
def test_pgvector_may_lie_anywhere(
    schema: str, app: Path, create_database: Callable[..., str], node_tools: NodeTools
) -> None:
    by_migrate, by_push = (create_database(vector_schema=schema) for _ in range(2))
    migrate(by_migrate, PROJECT)
    says(run("install", "--into", str(app), "--starter", "--vector-schema", schema))
    push(by_push, app, node_tools)
    for url in (by_migrate, by_push):
        with connect(url) as connection:
            like_and_read(connection)
            value(connection, "select two_tower.tick()")
            bodies = "select proname from pg_proc where prosrc ~ '\\mextensions\\M'"
            assert rows(connection, bodies) == []
        assert installed(url) == {number: each.hash for number, each in ENGINE.items()}
    assert says(run("install", "--into", str(app), url=by_push)).startswith("Nothing to write")
    assert "My vectors" not in run("uninstall", "--into", str(app), url=by_push).output
    push(by_push, app, node_tools)


def test_a_worker_finds_pgvector_anywhere(create_database: Callable[..., str]) -> None:
    url = create_database(vector_schema="My vectors")
    migrate(url, PROJECT)
    with connect(url, autocommit=True) as connection:
        # The encoder reads nothing in the first one: a batch of no vector comes first.
        for text, encoded in (("\u200b", 0), ("Of bread and butter.", 1)):
            connection.execute("insert into public.posts (content) values (%s)", [text])
            Worker(url).run(drain=True)
            assert value(connection, "select count(*) from two_tower.live_embeddings") == encoded
        assert value(connection, "select count(*) from two_tower.posts where is_unreadable") == 1


def test_files_for_another_schema_of_pgvector_are_refused(
    app: Path, create_database: Callable[..., str]
) -> None:
    url = create_database(vector_schema="public")
    says(run("install", "--into", str(app)))
    refused = run("install", "--into", str(app), url=url)
    assert refused.exit_code == 1
    assert "- pgvector lies in schema public, files have it in extensions: write" in refused.output
    with pytest.raises(psycopg.errors.UndefinedObject, match="does not lie in"):
        psycopg.connect(url).execute(ENGINE[NUMBERS["schemas"]].text.encode())


def test_starter_and_seed_are_written_only_for_who_asks(app: Path, checkout: Path) -> None:
    migrations = checkout / "supabase" / "migrations"
    starter = migrations / "20261101009900_two_tower_9900_starter.sql"
    for path in migrations.glob("*_two_tower_9???_*.sql"):
        path.unlink()
    starter.write_text("create table public.threads (id bigint primary key);\n")
    engine = find_migrations(checkout)
    says(run("install", "--into", str(app)))
    assert [each.number for each in engine_in(app)] == [each.number for each in engine[:-1]]
    assert "add --starter" in run("install", "--into", str(app), "--seed").output
    seed = app / "supabase" / "seed.sql"
    assert not seed.exists()
    said = says(run("install", "--into", str(app), "--starter", "--seed"))
    assert said.startswith("Wrote one file into ")
    assert engine_in(app)[-1].title == "9900_starter"
    assert seed.read_text() == (checkout / "supabase" / "seed.sql").read_text()
    seed.write_text("select 1;")
    said = says(run("install", "--into", str(app), "--starter", "--seed"))
    assert "Left as it is: the project's seed.sql." in said
    assert seed.read_text() == "select 1;"


def test_only_what_is_new_is_written_after_all_that_the_project_has(
    app: Path, checkout: Path
) -> None:
    says(run("install", "--into", str(app)))
    before = find_migrations(app)
    migrations = app / "supabase" / "migrations"
    (migrations / "20991231235959_later.sql").write_text("select 1;")
    for number in ("9801", "9800"):
        path = checkout / "supabase" / "migrations" / f"1_two_tower_{number}_new.sql"
        path.write_text("select 1;\n")
    said = run("install", "--into", str(app))
    assert said.output.splitlines()[1:] == [
        "  21000101000000_two_tower_9800_new.sql",
        "  21000101000001_two_tower_9801_new.sql",
        "- No database was asked: set TWO_TOWER_DATABASE_URL to see what is in the way.",
        "Next: supabase db push",
    ]
    assert find_migrations(app)[: len(before)] == before
    assert says(run("install", "--into", str(app))).startswith("Nothing to write")


def test_what_the_database_has_is_not_written(app: Path, shared_database: str) -> None:
    said = says(run("install", "--into", str(app), url=shared_database))
    assert said == "Nothing to write: the engine's files are there."


def test_edited_files_and_those_of_another_version_are_named_and_left(
    app: Path, checkout: Path
) -> None:
    says(run("install", "--into", str(app)))
    clock, settings = (
        each.path for each in engine_in(app) if each.title[5:] in ("clock", "settings")
    )
    edited = clock.read_text().replace("stable", "volatile")
    clock.write_text(edited)
    (ours,) = (checkout / "supabase" / "migrations").glob(f"*_{settings.stem.split('_', 1)[1]}.sql")
    ours.write_text(ours.read_text() + "\n-- of a later day\n")
    said = says(run("install", "--into", str(app)))
    assert f"- Left as it is: {clock.name} was edited." in said
    assert f"- Left as it is: {settings.name} is of another version." in said
    assert said.count("Left as it is") == 2
    assert clock.read_text() == edited
    ours.write_text(ENGINE[NUMBERS["settings"]].text)
    settings.write_text(settings.read_text() + "select 'appended';\n")
    assert f"- Left as it is: {settings.name} was edited." in says(
        run("install", "--into", str(app))
    )


def test_a_migration_that_the_app_begins_next_sorts_after_the_files_of_the_engine(
    app: Path,
) -> None:
    says(run("install", "--into", str(app)))
    next_stamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    assert max(each.version for each in find_migrations(app)) < next_stamp


def test_a_folder_that_is_no_project_and_stamps_that_are_no_times_are_refused(
    app: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    refused = run("install", "--into", str(tmp_path / "empty"))
    assert "has no folder supabase: run supabase init there." in refused.output
    (app / "supabase" / "migrations" / "9_mine.sql").write_text("select 1;")
    refused = run("install", "--into", str(app))
    assert "Migration 9 sorts after any time stamp" in refused.output
    assert engine_in(app) == []


def test_files_of_a_newer_engine_are_refused(app: Path, fresh_database: Callable[[], str]) -> None:
    url = fresh_database()
    with psycopg.connect(url) as connection:
        connection.execute(
            "insert into two_tower.installed_files (number, name, hash)"
            " values ('8999', 'to_come', repeat('0', 64))"
        )
    assert (
        "has file 8999 of a newer Two-Tower" in run("install", "--into", str(app), url=url).output
    )
    path = app / "supabase" / "migrations" / "20990101000000_two_tower_8998_to_come.sql"
    path.write_text("select 1;\n")
    assert "is of a newer Two-Tower" in run("install", "--into", str(app)).output


def test_the_policy_of_broadcasts_comes_and_goes_with_the_engine(
    app: Path, create_database: Callable[..., str]
) -> None:
    policies = "select count(*) from pg_policy where polrelid = 'realtime.messages'::regclass"
    url = create_database()
    with connect(url, autocommit=True) as connection:
        connection.execute(REALTIME.encode())
        migrate(url, PROJECT)
        assert value(connection, policies) == 1
        says(run("uninstall", "--into", str(app), url=url))
        migrate(url, app)
        assert value(connection, policies) == 0
