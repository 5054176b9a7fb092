"""The role for workers: it can do all of a worker's work, be watched, and nothing else."""

from __future__ import annotations

import re
import secrets
import urllib.request
from collections.abc import Callable, Iterator

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, Connection, connect, rows, value
from python_jobs.local.postgres import SUPERUSER, Cluster, free_port
from python_jobs.worker.jobs import HANDLERS
from python_jobs.worker.jobs.encode import encode_texts
from tests.support.database import PROJECT, add_user, as_user
from tests.support.patience import wait_until
from tests.support.tower_world import World, make_world
from tests.support.workers import RunningWorker, running_worker

ROLE = "two_tower_worker"


@pytest.fixture
def world(db: Connection) -> World:
    """A world in which every job has something to do, in a session that may act as a worker."""
    db.execute(f"grant {ROLE} to postgres".encode())
    world = make_world(db)
    db.execute("insert into public.posts (author_id, content) values (%s, 'new')", [world.author])
    db.execute("insert into public.profiles (user_id, bio) values (%s, 'sails')", [world.users[0]])
    db.execute("update two_tower.settings set exact_scan_limit = 10")
    return world


@pytest.mark.parametrize("kind", HANDLERS)
def test_it_does_every_job(world: World, kind: str) -> None:
    with as_user(world.connection, None, ROLE):
        assert HANDLERS[kind](world.connection)
    # That this pgvector is an old one is no failure of a job.
    alerts = "select count(*) from two_tower.alerts where subject <> 'pgvector'"
    assert value(world.connection, alerts) == 0


def test_it_encodes_texts_of_callers(world: World) -> None:
    db = world.connection
    with as_user(db, world.users[0]):
        db.execute("select public.embed_text('a boat')")
    with as_user(db, None, ROLE):
        assert encode_texts(db) == 1
        assert encode_texts(db) == 0


def test_it_ticks_and_takes_and_ends_a_job(world: World) -> None:
    db = world.connection
    with as_user(db, None, ROLE):
        value(db, "select two_tower.tick()")
        job = value(db, "select id from two_tower.claim_job('me', '{encode_posts}')")
        value(db, "select two_tower.heartbeat_job(%s, 'me')", job)
        assert HANDLERS["encode_posts"](db) == {"posts": 1}
        value(db, "select two_tower.complete_job(%s, 'me')", job)
    assert value(db, "select state from two_tower.jobs where id = %s", job) == "done"


@pytest.fixture
def login(cluster: Cluster, fresh_database: Callable[[], str]) -> Iterator[tuple[str, str]]:
    """A database, and the same by a login that is a member of the role: two URLs."""
    url = fresh_database()
    name = f"worker_{secrets.token_hex(4)}"
    with connect(cluster.url(user=SUPERUSER), autocommit=True) as server:
        secret = sql.Literal(cluster.password)
        server.execute(
            sql.SQL("create role {} login password {} in role {}").format(
                sql.Identifier(name), secret, sql.Identifier(ROLE)
            )
        )
        yield url, cluster.url(url.rsplit("/", 1)[1], name)
        server.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def test_a_login_of_its_own_drains_what_is_due(login: tuple[str, str]) -> None:
    url, by_login = login
    with connect(url, autocommit=True) as connection:
        add_posts = "insert into public.posts (author_id, content) values (%s, 'a text')"
        connection.execute(add_posts, [add_user(connection)])
        worker = RunningWorker(by_login, "--drain")
        assert worker.end() == 0, worker.lines
        assert value(connection, "select count(*) from two_tower.live_embeddings") == 1
        failed = "select array_agg(message) from two_tower.alerts where kind = 'call_failed'"
        assert value(connection, failed) is None


def test_a_monitor_with_that_login_gets_the_figures_and_answers_of_probes(
    login: tuple[str, str],
) -> None:
    url, by_login = login
    with connect(url, autocommit=True) as connection:
        value(connection, "select two_tower.record_metrics()")
        names = {row.name for row in rows(connection, "select name from public.read_metrics()")}
    asked = CliRunner().invoke(main, ["metrics"], env={URL_VARIABLE: by_login})
    assert asked.exit_code == 0, asked.output
    assert {name for name in names if f'metric="{name}"' in asked.output} == names
    port = free_port()
    with running_worker(by_login, "--health-port", str(port)):
        wait_until(lambda: _is_well(port))


def _is_well(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_it_reads_no_accounts(db: Connection) -> None:
    """What it may do in the schemas of the engine, tests/security/test_access.py tries."""
    db.execute(f"grant {ROLE} to postgres".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_user(db, None, ROLE):
        db.execute("select * from auth.users")


def test_it_may_execute_what_worker_and_monitor_call_and_no_function_more(db: Connection) -> None:
    python = PROJECT / "python_jobs"
    sources = [*(python / "worker").rglob("*.py"), python / "operations" / "metrics.py"]
    called = {
        name for path in sources for name in re.findall(r"two_tower\.(\w+)\(", path.read_text())
    }
    granted = db.execute(
        "select distinct p.proname from pg_proc p, aclexplode(p.proacl) a"
        " where a.grantee = %s::regrole and a.privilege_type = 'EXECUTE'",
        [ROLE],
    ).fetchall()
    assert called == {name for (name,) in granted}
