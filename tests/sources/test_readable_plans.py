"""What a page costs where the app's table is large: rows are read by their keys, under policies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from python_jobs.db import Connection, connect, rows
from tests.support.articles import Articles, create_articles, without_starter
from tests.support.database import add_user, as_user
from tests.support.engagements import base_vectors, store

ROWS = 100_000
ENCODED = 300


@pytest.fixture(scope="module", params=["lent", "bigint", "uuid", "text"])
def url(request: pytest.FixtureRequest) -> str:
    """A database with a large table, a few of whose posts are encoded; half are private."""
    made: str = request.getfixturevalue("clone_database")()
    with connect(made, autocommit=True) as connection:
        if request.param == "lent":
            without_starter(connection)
        else:
            connection.execute("select two_tower.detach('public.posts')")
        articles = create_articles(connection, request.param)
        connection.execute(
            "insert into public.articles (author_id, title, is_private)"
            " select gen_random_uuid(), 'article ' || n, n %% 2 = 0 from generate_series(1, %s) n",
            [ROWS],
        )
        encoded = [
            row[0]
            for row in connection.execute(
                "select id from two_tower.posts where source_id = %s order by id limit %s",
                [articles.source_id, ENCODED],
            )
        ]
        store(connection, encoded, base_vectors(np.random.default_rng(5), ENCODED))
        connection.execute("vacuum (analyze) public.articles, two_tower.posts")
    return made


@pytest.fixture
def db(url: str) -> Iterator[Connection]:
    """A transaction on it, rolled back after the test."""
    with connect(url) as connection:
        yield connection
        connection.rollback()


def read(db: Connection, tables: str = "'articles', 'posts'") -> dict[str, tuple[int, int]]:
    """Scans of whole tables, and rows fetched by an index, in this transaction so far."""
    return {
        row.relname: (row.seq_scan, row.idx_tup_fetch)
        for row in rows(
            db,
            "select relname::text, seq_scan, idx_tup_fetch from pg_stat_xact_user_tables"
            f" where relname in ({tables}) and (seq_scan > 0 or idx_tup_fetch > 0)",
        )
    }


CALLS = {
    "recommend": "select * from public.recommend(50)",
    "recommended": "select * from public.recommended_articles(50) order by place",
    "excluded": "select * from public.recommend(50, array(select gen_random_uuid()::text"
    " from generate_series(1, 1000)))",
    "similar": "select * from public.similar_posts(%(near)s, 50)",
    "explain": "select * from public.explain_recommendation(%(near)s)",
    "event": "insert into public.engagement_events (post_id, event_type) values (%(near)s, 'view')",
    "keyed": "insert into public.engagement_events (post_key, event_type) values (%(key)s, 'view')",
}


@pytest.mark.parametrize("name", CALLS)
def test_a_page_reads_registry_and_table_by_key(db: Connection, name: str) -> None:
    articles = Articles(db)
    reader = add_user(db)
    near = db.execute(
        "select p.id from two_tower.posts p join public.articles a on a.id::text = p.key"
        " where p.encoded_hash is not null and not a.is_private limit 1"
    ).fetchone()
    assert near is not None
    arguments = {"near": near[0], "key": articles.key_of(near[0])}
    before = read(db)
    with as_user(db, reader):
        # More than once: a session's later calls have plans of their own.
        for _ in range(7):
            found = db.execute(CALLS[name].encode(), arguments)
            if name in ("recommend", "recommended", "excluded"):
                assert len(found.fetchall()) == 50
    after = read(db)
    assert "articles" in after
    for table, (scans, fetched) in after.items():
        scans_before, fetched_before = before.get(table, (0, 0))
        assert scans == scans_before, f"{table} was read whole"
        # 7 pages of 50 posts: up to 1,000 are met a few times, so that authors take turns.
        # And keys that are excluded, or a place that is looked for on a page of 500.
        # And copies of each are looked for among at most 100 posts of its text.
        limit = 20_000 if name in ("excluded", "explain") else 10_000
        assert fetched - fetched_before < 7 * limit, table


def test_the_plan_under_policies_looks_keys_up(db: Connection) -> None:
    # As the planner tells it, for a client's role: no scan of the table, and no filter on its key.
    ids = [row[0] for row in rows(db, "select id from two_tower.posts where encoded_hash is not"
                                      " null order by id limit 50")]  # fmt: skip
    with as_user(db, add_user(db)):
        plan = "\n".join(
            row[0]
            for row in db.execute(
                "explain (costs off) select r from two_tower.readable_articles(%s::bigint[]) r",
                [ids],
            )
        )
    assert "Index Scan using articles_pkey" in plan or "Bitmap Index Scan on articles_pkey" in plan
    assert "Seq Scan" not in plan
