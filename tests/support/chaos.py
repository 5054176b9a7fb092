"""Everything is killed, cut and stopped while clients are at work. Nothing acknowledged is lost.

`python -m tests.support.chaos --kills 1000` runs it, and prints what became of it.

Clients know what they sent and what was acknowledged. They send again what was not, as an app's
queue does, and each event has a client_event_id. So in the end every event is stored once.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
from psycopg import errors

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.api_server import ApiServer
from python_jobs.local.deno import EdgeFunctions
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import Cluster, free_port, port_answers
from python_jobs.state import ApiKeys, state_dir
from tests.support.api import Api
from tests.support.database import PROJECT, add_user
from tests.support.engagements import Stream, add_posts
from tests.support.invariants import assert_consistent
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.reference import Event
from tests.support.servers import durable_server, kill_all_of
from tests.support.workers import RunningWorker

LEASE_S = 5.0
USERS_OF_A_CLIENT = 6
ENOUGH = 6  # batches acknowledged between two kills: there is load on what is killed
UNFINISHED = """
  select 'job ' || kind as what from two_tower.jobs where state in ('pending', 'running')
  union all select 'deferred event' from two_tower.deferred_events
  union all select 'deferred step' from two_tower.deferred_steps
  union all select 'text' from two_tower.posts
    where is_listed and encoded_hash is distinct from content_hash
"""
INSERT = """
  insert into public.engagement_events (user_id, post_id, event_type, dwell_ms, client_event_id)
  select * from unnest(%s::uuid[], %s::bigint[], %s::text[], %s::integer[], %s::uuid[])
"""


@dataclass
class Ledger:
    """What clients were told: events and posts that are stored, by their keys."""

    events: list[uuid.UUID] = field(default_factory=list)
    posts: list[str] = field(default_factory=list)
    batches: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    resent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, way: str, keys: list[uuid.UUID]) -> None:
        with self.lock:
            self.batches[way] += 1
            self.events += keys


class Stack:
    """Postgres, REST and two workers over it; each part can be killed, and started again."""

    def __init__(self, cluster: Cluster, tools: NodeTools, log_path: Path) -> None:
        self.cluster = cluster
        self.api_server = ApiServer(
            *(tools, free_port(), ApiKeys.generate(), log_path),
            database_url=cluster.url(user="authenticator"),
            functions=EdgeFunctions(PROJECT, {}),
        )
        self.api = Api(self.api_server.url, cluster.url(), self.api_server.keys)
        self.gateway_pid = 0
        self.workers: list[RunningWorker] = []

    def start(self) -> None:
        """Starts what does not run."""
        self.cluster.start()
        if not port_answers(self.api_server.port):
            self.gateway_pid = self.api_server.start()
        while len(self.workers) < 2:
            options = ("--lease", str(LEASE_S))
            self.workers.append(RunningWorker(self.cluster.url(), *options))

    def stop(self) -> None:
        """Ends workers and API as an operator does."""
        for worker in self.workers:
            worker.stop()
        self.workers.clear()
        self.api_server.stop(self.gateway_pid)

    def query(self, statement: str, *arguments: Any) -> Any:
        """The first value of a statement, on a connection of its own."""
        with connect(self.cluster.url(), autocommit=True) as connection:
            return value(connection, statement, *arguments)

    # What happens to it. Each leaves the stack running.

    def kill_worker(self) -> None:
        self.workers.pop(0).kill()
        self.start()

    def stop_worker_past_its_lease(self) -> None:
        """A process that does not notice for how long it stood still."""
        worker = self.workers[0]
        os.kill(worker.process.pid, signal.SIGSTOP)
        time.sleep(LEASE_S + 1)
        os.kill(worker.process.pid, signal.SIGCONT)

    def kill_gateway(self) -> None:
        os.kill(self.gateway_pid, signal.SIGKILL)
        wait_until(lambda: not port_answers(self.api_server.port))
        self.start()

    def kill_postgrest(self) -> None:
        """What serves before it ends with it, as it should."""
        for pid in _descendants(self.gateway_pid):
            if "postgrest" in _name(pid):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not port_answers(self.api_server.port))
        self.start()

    def kill_backend(self) -> None:
        """One process of Postgres: the server ends all others, and recovers by itself."""
        with suppress(psycopg.OperationalError):
            pid = self.query(
                "select pid from pg_stat_activity where datname = current_database()"
                " and pid <> pg_backend_pid() order by state = 'active' desc, random() limit 1"
            )
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(self.cluster.is_running)

    def kill_postgres(self) -> None:
        kill_all_of(self.cluster)
        self.start()

    def cut_connections(self) -> None:
        self.query(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )

    def fill_queues(self) -> None:
        """Texts that wait for the encoder, and likes that wait for them."""
        self.query(
            "with made as (insert into public.posts (author_id, content)"
            "  select null, 'a flood of texts, number ' || n from generate_series(1, 300) n"
            "  returning id), liked as ("
            "  insert into public.engagement_events (user_id, post_id, event_type)"
            "  select u.id, m.id, 'like' from made m cross join lateral ("
            "    select id from two_tower.users order by hashtext(id::text || m.id) limit 2) u"
            "  returning 1) select count(*) from liked"
        )


ATTACKS: list[Callable[[Stack], None]] = [
    Stack.kill_postgres,
    Stack.kill_worker,
    Stack.cut_connections,
    Stack.kill_backend,
    Stack.kill_postgrest,
    Stack.fill_queues,
    Stack.kill_postgres,
    Stack.kill_gateway,
    Stack.stop_worker_past_its_lease,
    Stack.kill_backend,
]


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            parents.setdefault(parent, []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


class Client:
    """Sends events of its own users, each batch again and again until it is acknowledged."""

    def __init__(
        self, stack: Stack, ledger: Ledger, seed: int, users: list[str], posts: list[int]
    ) -> None:
        self.stack, self.ledger = stack, ledger
        self.users = users
        self.stream = Stream(np.random.default_rng(seed), users, posts)
        self.is_over = threading.Event()

    def run(self) -> None:
        """Until it is over, and the last batch is acknowledged."""
        while not self.is_over.is_set():
            events = self.stream.next(int(self.stream.rng.integers(1, 9)))
            keys = [uuid.uuid4() for _ in events]
            deadline = time.monotonic() + PATIENCE_S
            while not self.send(events, keys):
                self.ledger.resent += 1
                assert time.monotonic() < deadline, "a batch is never acknowledged"
                time.sleep(0.05)
            self.ledger.acknowledge(type(self).__name__, keys)

    def send(self, events: list[Event], keys: list[uuid.UUID]) -> bool:
        """Whether the batch was acknowledged."""
        raise NotImplementedError


class DirectClient(Client):
    """A back end: an insert for all users, on a connection that it opens again when it is lost."""

    connection: Connection | None = None

    def send(self, events: list[Event], keys: list[uuid.UUID]) -> bool:
        columns = [
            [event.user_id for event in events],
            [event.post_id for event in events],
            [event.event_type for event in events],
            [event.dwell_ms for event in events],
            keys,
        ]
        try:
            if self.connection is None or self.connection.closed:
                url = self.stack.cluster.url()
                self.connection = psycopg.connect(url, autocommit=True, connect_timeout=30)  # type: ignore[assignment]
            assert self.connection is not None
            self.connection.execute(INSERT, columns)
        except errors.UniqueViolation:
            return True  # it was stored, and the answer was lost
        except psycopg.OperationalError:
            return False
        return True


class ApiClient(Client):
    """An app: a batch of one user over REST, and now and then a post and a page."""

    def send(self, events: list[Event], keys: list[uuid.UUID]) -> bool:
        user = self.users[keys[0].int % len(self.users)]
        body = [
            {
                "post_id": event.post_id,
                "event_type": event.event_type,
                "dwell_ms": event.dwell_ms,
                "client_event_id": str(key),
            }
            for event, key in zip(events, keys, strict=True)
        ]
        headers = self.stack.api.headers(self.stack.api.token(user))
        each = keys[0].int % 2 == 0
        answer = self._post("rpc/record_engagements", {"p_events": body, "p_each": each}, headers)
        if answer is None:
            return False
        said = answer.json()
        if any(row["status"] == "refused" for row in said):
            self.ledger.refusals += [row["message"] for row in said]
        if keys[0].int % 5 == 0:
            text = f"a post with key {keys[0]}"
            if self._post("posts", {"content": text, "author_id": user}, headers) is not None:
                with self.ledger.lock:
                    self.ledger.posts.append(text)
            self._post("rpc/recommend", {"p_limit": 10}, headers)
        return True

    def _post(self, path: str, body: Any, headers: dict[str, str]) -> httpx.Response | None:
        """The answer of a request that was done; None where it is not known to be."""
        try:
            answer = httpx.post(
                f"{self.stack.api.url}/rest/v1/{path}", json=body, headers=headers, timeout=60
            )
        except httpx.HTTPError:
            return None
        if answer.status_code < 300:
            return answer
        # A server that starts or ends is a 5xx. Where its connection to the database breaks under a
        # request, PostgREST says 400 with an empty code.
        if answer.status_code < 500 and answer.json()["code"]:
            self.ledger.refusals.append(answer.text)
        return None


@dataclass
class Result:
    """What became of a run."""

    kills: Counter[str]
    acknowledged: int
    lost: int
    doubled: int
    posts: int
    posts_lost: int
    posts_doubled: int
    batches: Counter[str]
    resent: int
    refusals: list[str]
    unfinished: list[str]
    learned: int

    def __str__(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kills})\n"
            f"{self.acknowledged} events acknowledged in {dict(self.batches)} batches,"
            f" {self.resent} sent again: {self.lost} lost, {self.doubled} doubled\n"
            f"{self.posts} posts acknowledged: {self.posts_lost} lost,"
            f" {self.posts_doubled} doubled\n"
            f"{self.learned} events learned; left in queues: {len(self.unfinished)}"
        )


def run_chaos(stack: Stack, kills: int, say: Callable[[str], None] = lambda text: None) -> Result:
    """Kills so many times under load, lets the rest finish, and checks every invariant."""
    with connect(stack.cluster.url(), autocommit=True) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert value(connection, f"show {name}") == "on"
        # A user's minute is no subject here, and would make the end wait for minutes.
        connection.execute("update two_tower.settings set learned_events_per_minute = 1000000")
        users = [add_user(connection) for _ in range(6 * USERS_OF_A_CLIENT)]
        posts = add_posts(connection, 240, users[:4], np.random.default_rng(8))[:60]
    stack.start()
    ledger = Ledger()
    clients = [
        (ApiClient if number % 2 else DirectClient)(
            stack, ledger, number, users[number * USERS_OF_A_CLIENT :][:USERS_OF_A_CLIENT], posts
        )
        for number in range(6)
    ]
    failures: list[BaseException] = []
    threads = [threading.Thread(target=_note(client.run, failures)) for client in clients]
    done: Counter[str] = Counter()
    for thread in threads:
        thread.start()
    try:
        for number in range(kills):
            _wait_for_load(ledger, failures)
            attack = ATTACKS[number % len(ATTACKS)]
            attack(stack)
            done[attack.__name__] += 1
            if (number + 1) % 50 == 0:
                say(f"{number + 1} kills, {len(ledger.events)} events acknowledged")
        _wait_for_load(ledger, failures)
    finally:
        for client in clients:
            client.is_over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures
    say("the clients have stopped; what waits is worked off")
    return _settle(stack, ledger, done, say)


def _note(run: Callable[[], None], failures: list[BaseException]) -> Callable[[], None]:
    def noted() -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    return noted


def _wait_for_load(ledger: Ledger, failures: list[BaseException]) -> None:
    """Until clients of both kinds have got on since this was called."""
    before = Counter(ledger.batches)

    def is_enough() -> bool:
        assert not failures, failures
        return all(
            ledger.batches[way.__name__] >= before[way.__name__] + ENOUGH
            for way in (ApiClient, DirectClient)
        )

    wait_until(is_enough)


def _wait_while_it_shrinks(count: Callable[[], int]) -> None:
    """Until nothing is left; what is left may take long, as long as it gets less."""
    while left := count():
        wait_until(lambda left=left: count() < left)


def _settle(
    stack: Stack, ledger: Ledger, kills: Counter[str], say: Callable[[str], None]
) -> Result:
    """Waits until all queues are empty, counts, and checks every invariant."""
    with connect(stack.cluster.url(), autocommit=True) as connection:
        _wait_while_it_shrinks(lambda: len(rows(connection, UNFINISHED)))
        stack.stop()
        unfinished = [row.what for row in rows(connection, UNFINISHED)]
        stored = Counter(
            row.key
            for row in rows(
                connection,
                "select client_event_id as key from public.engagement_events"
                " where client_event_id is not null",
            )
        )
        kept = Counter(
            row.content
            for row in rows(
                connection, "select content from public.posts where content like 'a post with%%'"
            )
        )
        learned = value(connection, "select count(*) from two_tower.training_examples")
        result = Result(
            kills=kills,
            acknowledged=len(ledger.events),
            lost=sum(1 for key in ledger.events if key not in stored),
            doubled=sum(1 for count in stored.values() if count > 1),
            posts=len(ledger.posts),
            posts_lost=sum(1 for text in ledger.posts if text not in kept),
            posts_doubled=sum(1 for count in kept.values() if count > 1),
            batches=ledger.batches,
            resent=ledger.resent,
            refusals=ledger.refusals,
            unfinished=unfinished,
            learned=learned,
        )
        say(str(result))
        connection.execute("set work_mem = '256MB'")
        assert_consistent(connection)
        say("every invariant holds")
        return result


@contextmanager
def chaos_stack(tools: NodeTools) -> Iterator[Stack]:
    """A stack that keeps what it acknowledges, not yet started."""
    with durable_server() as cluster:
        stack = Stack(cluster, tools, cluster.data_dir.parent / "api.log")
        try:
            yield stack
        finally:
            stack.stop()


def main() -> None:
    """Print the figures of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    kills = parser.parse_args().kills
    tools = NodeTools(state_dir(PROJECT) / "node")
    tools.install(print)
    began = time.monotonic()
    with chaos_stack(tools) as stack:
        run_chaos(stack, kills, print)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
