"""What one account did by the ten thousands costs no call more than a bound of rows.

A call that asks for the newest, the first or one of what an account has reads that, and no more:
by an index that gives the order, or that has both sides of a pair. Counted are the rows that each
of six calls reads: the last ones have generic plans. They are counted as on large tables, which
nobody reads whole, and as if each page of them was dear. There a bitmap or a hash that reads
everything of the account looks cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from python_jobs.db import Connection, connect, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.database import as_user
from tests.support.flooded import MANY, Flooded

READ = """
  select sum(coalesce(t.idx_tup_fetch, 0) + t.seq_tup_read)::bigint
  from pg_stat_xact_all_tables t where t.schemaname in ('two_tower', 'public', 'auth')
"""
SENDS = """
  insert into public.engagement_events (post_id, event_type, client_event_id)
  values (%s, %s, gen_random_uuid())
"""
RECORDS = """
  select * from public.record_engagements(jsonb_build_array(
    jsonb_build_object('post_id', %s::bigint, 'event_type', 'like'),
    jsonb_build_object('post_id', %s::bigint, 'event_type', 'view')))
"""
ASKS = "select * from public.export_my_data(100, %s)"

Call = tuple[str, Callable[[Flooded], Sequence[Any]]]


# Of each call: who makes it ("": the engine itself), and the most rows that it may read.
EVENTS: dict[str, tuple[Call, str, int]] = {
    "a like": ((SENDS, lambda w: [w.fresh[0], "like"]), "flooder", 1500),
    "a view": ((SENDS, lambda w: [w.fresh[0], "view"]), "flooder", 100),
    "a like of what was viewed often": ((SENDS, lambda w: [w.post, "like"]), "flooder", 1500),
    "an unlike": ((SENDS, lambda w: [w.liked, "unlike"]), "flooder", 1500),
    "a like of what is not encoded": ((SENDS, lambda w: [w.waiting, "like"]), "flooder", 100),
    "another's like of it": ((SENDS, lambda w: [w.waiting, "like"]), "reader", 100),
    "a block": ((SENDS, lambda w: [w.fresh[0], "block_author"]), "flooder", 100),
    "a batch": ((RECORDS, lambda w: w.fresh[:2]), "flooder", 1500),
}


def nothing(world: Flooded) -> list[Any]:
    return []


def an_author(world: Flooded) -> list[Any]:
    return [world.author]


PAGE = "select * from public.recommend(20)"
TAGGED = """select * from public.recommend(20, p_filter => '{"tags": ["none has it"]}')"""
FOLLOWED = """select * from public.recommend(20, p_filter => '{"followed": true}')"""
SIMILAR = "select * from public.similar_posts(%s)"
SEARCH = "select * from public.search_posts('a text that nobody had encoded', 20)"
TRENDING = "select * from public.trending_posts('none has it', 20)"
POPULAR = "select * from public.popular_posts(20)"
NEWEST = "select * from public.recent_from_followed(20)"
AUTHORED = "select * from public.more_from_author(%s)"
CANDIDATES = "select two_tower.list_candidates(two_tower.load_reader(%s), 20, '{}')"
OTHERS = "select two_tower.list_newest_of(two_tower.load_reader(%s), %s, 2, '{}')"
PAGES: dict[str, tuple[Call, str, int]] = {
    "a page": ((PAGE, nothing), "flooder", 6000),
    "a page of who follows one of many posts": ((PAGE, nothing), "reader", 6000),
    "candidates of who has seen all of them": ((CANDIDATES, lambda w: [w.fan]), "", 6000),
    "posts of followed authors": ((FOLLOWED, nothing), "reader", 6000),
    "a tag that no post has, while many wait": ((TAGGED, nothing), "reader", 30_000),
    "a search for a text without a vector": ((SEARCH, nothing), "reader", 2000),
    "what trends of a tag that no post has": ((TRENDING, nothing), "reader", 45_000),
    "similar posts": ((SIMILAR, lambda w: [w.liked]), "flooder", 6000),
    "popular posts": ((POPULAR, nothing), "flooder", 4000),
    "the newest of an author": ((AUTHORED, an_author), "reader", 4000),
    "the newest of an author, to who blocks many": ((AUTHORED, an_author), "flooder", 4000),
    "the newest of an author for a page": ((OTHERS, lambda w: [w.reader, w.author]), "", 2500),
    "the newest of followed authors": ((NEWEST, nothing), "reader", 1000),
    "the newest of an author of whom all is seen": ((NEWEST, nothing), "fan", 1000),
}
NEWEST_TIME, FIRST_ID = "2000-01-01", "00000000-0000-0000-0000-000000000000"
REQUESTS: dict[str, tuple[Call, str, int]] = {
    "a text": (("select * from public.embed_text('words')", nothing), "flooder", 500),
    "interests": (
        ("select public.set_interests('{boats}', array[%s])", lambda w: [str(w.fresh[0])]),
        "flooder",
        500,
    ),
    "a muted word": (
        ("insert into public.muted_terms (kind, term) values ('word', 'spoiler')", nothing),
        "flooder",
        300,
    ),
    "a lifted block": (
        (
            "delete from public.author_blocks where author_id = %s",
            lambda w: [w.blocked],
        ),
        "flooder",
        100,
    ),
    **{
        f"an export from table {place} on": (
            (ASKS, lambda w, at=[place, *keys]: [str(at).replace("'", '"')]),
            "flooder",
            500,
        )
        for place, keys in (
            (2, [NEWEST_TIME, "0"]),
            (3, ["0"]),
            (4, ["0", "0", NEWEST_TIME]),
            (5, [NEWEST_TIME, "0"]),
            (6, ["0"]),
            (14, [FIRST_ID]),
            (15, [FIRST_ID]),
            (16, [FIRST_ID]),
        )
    },
}
TICKS: dict[str, tuple[Call, str, int]] = {
    step: ((f"select two_tower.{step}", nothing), "", most)
    for step, most in (
        ("follow_readers()", 8000),
        ("count_engagements('train_candidate_tower')", 12_000),
        ("erase_users(1000)", 10_000),
        ("texts_to_encode()", 500),
        ("prune_requested_texts(1000)", 4000),
        ("posts_to_encode()", 4000),
        ("learn_deferred()", 2000),
    )
}
CALLS = EVENTS | PAGES | REQUESTS | TICKS


@pytest.fixture(scope="module")
def flooded(cluster: Cluster, clone_database: Callable[[], str]) -> tuple[str, Flooded]:
    url = clone_database()
    with connect(cluster.url(url.rsplit("/", 1)[1], SUPERUSER), autocommit=True) as loader:
        return url, Flooded(loader)


@pytest.fixture
def connection(flooded: tuple[str, Flooded]) -> Iterator[Connection]:
    with connect(flooded[0]) as connection:
        yield connection
        connection.rollback()


def rows_of_a_call(connection: Connection, user: str | None, statement: str, args: Any) -> int:
    """The most rows that one of six calls reads, each of which is taken back."""
    most = 0
    for _ in range(6):
        before = value(connection, READ)
        with (
            connection.transaction(force_rollback=True),
            as_user(connection, user) if user else nullcontext(),
        ):
            connection.execute(statement, args)
        most = max(most, value(connection, READ) - before)
    return most


@pytest.mark.parametrize("name", CALLS)
def test_a_flood_costs_a_call_no_more_than_its_bound(
    flooded: tuple[str, Flooded], connection: Connection, name: str
) -> None:
    (statement, arguments), who, most = CALLS[name]
    world = flooded[1]
    call = connection, getattr(world, who, None), statement, arguments(world)
    connection.execute("set enable_seqscan = off")
    for cost in (4, 1000):
        connection.execute("discard plans")
        connection.execute(f"set random_page_cost = {cost}")
        assert rows_of_a_call(*call) <= most


def test_what_is_known_names_many_blocked_authors(
    flooded: tuple[str, Flooded], connection: Connection
) -> None:
    with as_user(connection, flooded[1].flooder):
        blocked = value(
            connection,
            "select count(*) from public.what_is_known_of_me() where kind = 'block_author'",
        )
    assert blocked == MANY
