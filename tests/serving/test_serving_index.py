"""The serving index: it answers, stays fresh, is rebuilt beside itself, and nobody waits for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect, value
from python_jobs.laboratory.bench import serving
from python_jobs.laboratory.bench.feed import AUTHORS, READERS, fill_feed, live_vectors, user_id
from python_jobs.laboratory.bench.plan import explain_page
from python_jobs.laboratory.bench.serving import find_truth, recall_of_pages
from python_jobs.laboratory.bench.tables import show_serving
from python_jobs.laboratory.bench.world import World, world
from python_jobs.local.postgres import Cluster, free_port
from python_jobs.operations.switch import finish_switch
from python_jobs.worker.process import Worker
from tests.support.database import add_user, as_user, reachable_folder
from tests.support.engagements import add_posts, delete_posts
from tests.support.learning import copy_tower
from tests.support.patience import wait_until
from tests.support.servers import chosen_binaries

POSTS = 6000
PAGE = "select post_id from two_tower.recommend_for(%s, 50)"


@pytest.fixture(scope="module")
def feed() -> Iterator[World]:
    """Posts above settings.exact_scan_limit, indexed by a worker; readers with histories."""
    with world(READERS + AUTHORS, POSTS, binaries=chosen_binaries()) as made:
        fill_feed(made)
        with connect(made.url, autocommit=True) as connection:
            connection.execute(
                "update two_tower.schedules set is_enabled = false where kind like 'train%'"
            )
        Worker(made.url).run(drain=True)
        yield made


@pytest.fixture
def db(feed: World) -> Iterator[Connection]:
    """A transaction on the feed, rolled back after the test."""
    with connect(feed.url) as connection:
        yield connection
        connection.rollback()


def recalls(world: World) -> list[float]:
    """Recall of pages of readers with one and with four interests, against exact search."""
    with connect(world.url, autocommit=True) as connection:
        vectors = live_vectors(connection, world.posts)
        return [recall_of_pages(connection, find_truth(connection, vectors, k)) for k in (1, 4)]


def test_a_worker_builds_the_index_and_its_state_is_readable(db: Connection) -> None:
    with as_user(db, None, "service_role"):
        row = db.execute(
            "select side, reason, posts_when_built, index_bytes, age, recall, short_share"
            " from two_tower.serving_index"
        ).fetchone()
    assert row is not None
    assert row[:3] == (0, "job", POSTS)
    assert row[3] > 1_000_000
    assert row[4].total_seconds() >= 0
    assert row[5] > 0.9
    assert row[6] == 0


def test_pages_are_those_of_an_exact_search(feed: World) -> None:
    assert min(recalls(feed)) > 0.95


def test_the_hot_path_uses_the_index_and_scans_no_table_of_posts_users_or_events(
    db: Connection,
) -> None:
    for number in range(1, 21):
        assert len(db.execute(PAGE, [user_id(number)]).fetchall()) == 50
    scanned = db.execute(
        "select relname from pg_stat_xact_all_tables where seq_scan > 0 and relname ~"
        " '^(posts|engagement_events|user_posts|live_embed|user_embed|serving_embed|base_embed)'"
    ).fetchall()
    assert scanned == []
    searches = "select pg_stat_get_xact_numscans('two_tower.serving_embeddings_0_hnsw'::regclass)"
    interests = "select count(*) from two_tower.list_interests(%s)"
    counts = [value(db, interests, user_id(number)) for number in range(1, 21)]
    assert {*counts[::2]} == {1}
    assert {*counts[1::2]} <= {2, 3, 4}
    # One for each reader, and one for each interest of those who have several.
    assert value(db, searches) == 20 + sum(count for count in counts if count > 1)


def test_the_plans_of_a_page_can_be_read(feed: World) -> None:
    if not any(feed.binaries.root.rglob("auto_explain.*")):
        pytest.skip("this Postgres has no auto_explain, which shows the plans")
    shown = explain_page(feed, interests=4)
    assert "Index Scan using serving_embeddings_0_hnsw" in shown
    assert "# the nearest served copies" in shown
    assert "engagement_events" not in shown
    lines = shown.splitlines()
    assert [node for node, why in pairwise(lines) if why.strip() == "#"] == []  # without reason


READ_OF_LIVE_EMBEDDINGS = (
    "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_all_tables"
    " where relid = 'two_tower.live_embeddings'::regclass"
)


@pytest.fixture
def filled(db: Connection) -> Connection:
    """The other slot was filled just now, and statistics know nothing of it."""
    db.execute("truncate two_tower.serving_embeddings_1")
    db.execute("create temp table filled as select * from two_tower.live_embeddings where slot = 0")
    db.execute("update filled set slot = 1")
    db.execute("insert into two_tower.live_embeddings select * from filled")
    return db


def test_a_slot_that_was_filled_just_now_is_copied_post_by_post(filled: Connection) -> None:
    """A join by statistics, or an index of slots, reads all posts for each."""
    before = value(filled, READ_OF_LIVE_EMBEDDINGS)
    assert value(filled, "select two_tower.copy_missing_posts(1::smallint, 1::smallint)") == POSTS
    assert value(filled, READ_OF_LIVE_EMBEDDINGS) - before <= 5 * POSTS


def test_a_slot_that_was_filled_just_now_learns_and_loses_posts_one_by_one(
    filled: Connection,
) -> None:
    filled.execute("update two_tower.state set active_slot = 1, serving_side = null")
    before = value(filled, READ_OF_LIVE_EMBEDDINGS)
    like = (
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, n, 'like' from generate_series(1, 20) n"
    )
    filled.execute(like, [user_id(1)])
    learned = value(filled, READ_OF_LIVE_EMBEDDINGS)
    # Of each like some 60: its post, draws of negatives, those viewed before, the user's history.
    assert 0 < learned - before <= 20 * 200
    filled.execute("delete from two_tower.posts where id between 101 and 120")
    assert 0 < value(filled, READ_OF_LIVE_EMBEDDINGS) - learned <= 20 * 10


def test_posts_of_followed_authors_are_candidates_wherever_they_are(
    db: Connection,
) -> None:
    newcomer, author = user_id(READERS + 1), user_id(READERS + 1500)
    db.execute("insert into public.follows values (%s, %s)", [newcomer, author])
    rows = db.execute(
        "select author_id::text, source from two_tower.recommend_for(%s, 20)", [newcomer]
    ).fetchall()
    theirs = value(db, "select count(*) from public.posts where author_id = %s", author)
    assert rows.count((author, "followed")) == theirs == 3


def test_a_reader_who_has_seen_all_that_is_near_gets_what_comes_next(
    db: Connection,
) -> None:
    reader = user_id(1)
    db.execute(
        "insert into two_tower.user_posts (user_id, post_id, first_seen_at, last_event_at)"
        " select %s, n, now(), now() from unnest(two_tower.scan_posts("
        "   two_tower.load_reader(%s), 900, '{}')) n",
        [reader, reader],
    )
    db.execute("update two_tower.settings set exploration_share = 0")
    nearest = "select two_tower.find_nearest_posts(two_tower.encode_user(%s), 100, %s, '{}', %s)"
    narrow, wide = (value(db, nearest, reader, reader, is_wide) for is_wide in (False, True))
    assert len(narrow) < 50 < len(wide)
    assert len({row[0] for row in db.execute(PAGE, [reader])}) == 50


def test_a_reader_who_blocked_all_authors_that_are_near_is_served_by_a_scan(
    db: Connection,
) -> None:
    reader = user_id(1)
    db.execute(
        "insert into public.author_blocks (user_id, author_id, kind)"
        " select %s, author_id, 'mute_author' from unnest(two_tower.scan_posts("
        "   two_tower.load_reader(%s), 3000, '{}')) n"
        "   join public.posts p on p.id = n group by author_id on conflict do nothing",
        [reader, reader],
    )
    withheld = {
        row[0]
        for row in db.execute(
            "select author_id from two_tower.withheld_authors where user_id = %s", [reader]
        )
    }
    left = value(
        db,
        "select count(*) from public.posts p where not exists (select from two_tower.user_posts u"
        " where u.user_id = %s and u.post_id = p.id) and not p.author_id = any (%s)",
        reader,
        list(withheld),
    )
    rows = db.execute(
        "select post_id, author_id from two_tower.recommend_for(%s, 50)", [reader]
    ).fetchall()
    assert len(rows) == min(50, left)
    assert not withheld & {row[1] for row in rows}


@contextmanager
def reading(url: str, lengths: list[int]) -> Iterator[None]:
    """A reader who asks for pages all the time, and whom a lock would make fail."""
    stop = threading.Event()
    errors: list[Exception] = []

    def read() -> None:
        try:
            with connect(url, autocommit=True) as session:
                session.execute("set lock_timeout = '200ms'")
                number = 0
                while not stop.is_set():
                    number = number % READERS + 1
                    lengths.append(len(session.execute(PAGE, [user_id(number)]).fetchall()))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_readers_do_not_wait_for_a_build_and_a_build_that_fails_leaves_what_served(
    feed: World,
) -> None:
    with connect(feed.url, autocommit=True) as connection:
        before = value(connection, "select to_jsonb(s) from two_tower.state s")
        lengths: list[int] = []
        with reading(feed.url, lengths), connect(feed.url) as builder:
            builder.execute("select two_tower.build_serving_index('to fail')")
            read = len(lengths)
            wait_until(lambda: len(lengths) >= read + 20)  # while all its locks are held
            builder.rollback()
        assert value(connection, "select to_jsonb(s) from two_tower.state s") == before
    assert min(lengths) == 50
    assert min(recalls(feed)) > 0.95


def test_no_post_is_missing_that_was_stored_while_a_build_was_at_work(feed: World) -> None:
    stop = threading.Event()

    def store() -> None:
        chance = np.random.default_rng(4)
        with connect(feed.url, autocommit=True) as session:
            while not stop.is_set():
                session.execute(
                    "with p as (insert into public.posts (author_id, content)"
                    " values (null, 'meanwhile') returning id) select two_tower."
                    "store_base_embeddings(array(select id from p), %s)",
                    [[chance.normal(size=384).astype(np.float32)]],
                )

    with connect(feed.url, autocommit=True) as connection:
        posts = value(connection, "select max(id) from public.posts")
        thread = threading.Thread(target=store)
        thread.start()
        try:
            for _ in range(2):
                connection.execute("select two_tower.build_serving_index('while posts arrive')")
        finally:
            stop.set()
            thread.join()
        assert value(connection, "select max(id) from public.posts") > posts
        side = value(connection, "select serving_side from two_tower.state")
        missing = (
            "select count(*) from two_tower.live_embeddings v where v.slot = 0 and not exists"
            f" (select from two_tower.serving_embeddings_{side} s where s.post_id = v.post_id)"
        )
        assert value(connection, missing) == 0
        # A post that is removed for good takes its copy along.
        connection.execute("delete from public.posts where content = 'meanwhile'")
        copies = f"select count(*) from two_tower.serving_embeddings_{side}"
        assert value(connection, copies) == POSTS


def test_a_worn_index_is_rebuilt_beside_itself_and_recall_is_kept(feed: World) -> None:
    with (
        connect(feed.url, autocommit=True) as connection,
        connect(feed.superuser_url, autocommit=True) as owner,
    ):
        builds = value(connection, "select count(*) from two_tower.serving_builds")
        lengths: list[int] = []
        with reading(feed.url, lengths):
            for number in range(4):
                # All posts move by about .02, as many engagements would move them.
                owner.execute(
                    "update two_tower.live_embeddings v set embedding = extensions.l2_normalize("
                    "  v.embedding operator(extensions.+) (select array_agg((random() - .5) * .06)"
                    "  from generate_series(1, 128) where v.post_id > 0)::extensions.vector)"
                    " where v.post_id %% 4 = %s",
                    [number % 4],
                )
                while value(connection, "select two_tower.refresh_serving_index(2000)"):
                    pass
                while value(connection, "select position <> two_tower.first_bigint()"
                            " from two_tower.cursors where name = 'serving_round'"):  # fmt: skip
                    value(connection, "select two_tower.refresh_serving_index(2000)")
            replaced = value(connection, "select replaced from two_tower.serving_index")
            connection.execute("select two_tower.check_serving_index()")
            Worker(feed.url).run(drain=True)
        assert replaced > POSTS / 2
        assert value(connection, "select count(*) from two_tower.serving_builds") == builds + 1
        row = connection.execute(
            "select reason, replaced, recall >= recall_when_built - .02"
            " from two_tower.serving_index"
        ).fetchone()
        assert row == ("job", 0, True)
    assert min(lengths) == 50
    kept = recalls(feed)
    with connect(feed.url, autocommit=True) as connection:
        connection.execute("select two_tower.build_serving_index('to compare')")
    fresh = recalls(feed)
    assert min(k - f for k, f in zip(kept, fresh, strict=True)) > -0.02


SERVES = "select active_slot, serving_side, filling_version from two_tower.state"


def test_a_promotion_brings_an_index_of_its_own(fresh_database: Callable[[], str]) -> None:
    with connect(fresh_database(), autocommit=True) as connection:
        add_posts(connection, 80, [add_user(connection)], np.random.default_rng(3))
        connection.execute("update two_tower.settings set exact_scan_limit = 10")
        connection.execute("select two_tower.build_serving_index()")
        connection.execute(
            "select two_tower.begin_switch(two_tower.active_version('candidate_tower'))"
        )
        finish_switch(connection)
        assert connection.execute(SERVES).fetchone() == (1, 1, None)
        apart = (
            "select max(s.embedding::extensions.vector operator(extensions.<=>) v.embedding),"
            " count(*) from two_tower.serving_embeddings_1 s"
            " join two_tower.live_embeddings v on v.slot = 1 and v.post_id = s.post_id"
        )
        distance, copies = connection.execute(apart).fetchone() or (None, 0)
        assert distance < 1e-4
        assert copies == 80
        assert len(connection.execute(PAGE, [add_user(connection)]).fetchall()) == 50


def test_a_rollback_to_the_same_tower_waits_for_no_index(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as connection:
        add_posts(connection, 80, [add_user(connection)], np.random.default_rng(3))
        connection.execute("update two_tower.settings set exact_scan_limit = 10")
        connection.execute("update two_tower.schedules set is_enabled = false")
        connection.execute("select two_tower.build_serving_index()")
        value(connection, "select two_tower.checkpoint()")
        value(connection, "select two_tower.rollback()")
        while value(connection, "select filling_version is not null from two_tower.state"):
            value(connection, "select two_tower.tick()")  # no worker is there to build one
        assert connection.execute(SERVES).fetchone() == (1, 0, None)
        assert len(connection.execute(PAGE, [add_user(connection)]).fetchall()) == 50
        Worker(url).run(drain=True)
        assert connection.execute(SERVES).fetchone() == (1, 1, None)


def test_a_rollback_to_another_tower_brings_its_index(fresh_database: Callable[[], str]) -> None:
    with connect(fresh_database(), autocommit=True) as connection:
        add_posts(connection, 80, [add_user(connection)], np.random.default_rng(3))
        connection.execute("update two_tower.settings set exact_scan_limit = 10")
        connection.execute("update two_tower.schedules set is_enabled = false")
        connection.execute("select two_tower.build_serving_index()")
        first = value(connection, "select two_tower.active_version('candidate_tower')")
        number = value(connection, "select two_tower.checkpoint()")
        connection.execute("select two_tower.begin_switch(%s)", [copy_tower(connection)])
        finish_switch(connection)
        assert connection.execute(SERVES).fetchone() == (1, 1, None)
        value(connection, "select two_tower.rollback(%s)", number)
        for _ in range(40):  # without a worker, what serves goes on serving
            value(connection, "select two_tower.tick()")
        assert connection.execute(SERVES).fetchone() == (1, 1, first)
        finish_switch(connection)
        assert connection.execute(SERVES).fetchone() == (0, 0, None)
        built = "select model_version from two_tower.serving_builds order by id desc limit 1"
        assert value(connection, built) == first
        assert len(connection.execute(PAGE, [add_user(connection)]).fetchall()) == 50


def test_a_rollback_keeps_no_index_where_all_posts_are_scanned(
    fresh_database: Callable[[], str],
) -> None:
    with connect(fresh_database(), autocommit=True) as connection:
        add_posts(connection, 80, [add_user(connection)], np.random.default_rng(3))
        connection.execute("update two_tower.settings set exact_scan_limit = 10")
        connection.execute("select two_tower.build_serving_index()")
        connection.execute("update two_tower.settings set exact_scan_limit = 100")
        value(connection, "select two_tower.checkpoint()")
        value(connection, "select two_tower.rollback()")
        finish_switch(connection)
        assert connection.execute(SERVES).fetchone() == (1, None, None)
        asked = "select count(*) from two_tower.jobs where kind = 'build_serving_index'"
        assert value(connection, asked) == 0
        assert len(connection.execute(PAGE, [add_user(connection)]).fetchall()) == 50


def test_a_copy_is_refreshed_when_it_has_drifted_and_not_before(
    db: Connection,
) -> None:
    side = value(db, "select serving_side from two_tower.state")
    copy = (
        f"select (s.embedding::extensions.vector operator(extensions.<=>) v.embedding) < .001"
        f" from two_tower.serving_embeddings_{side} s"
        " join two_tower.live_embeddings v using (post_id) where v.slot = 0 and post_id = 7"
    )
    for moved, is_written in ((0.05, 0), (0.3, 1)):
        db.execute(
            "update two_tower.live_embeddings set embedding = extensions.l2_normalize(embedding"
            " operator(extensions.+) (array[%s::real] || array_fill(0::real, array[127]))"
            "::extensions.vector) where slot = 0 and post_id = 7",
            [moved],
        )
        assert value(db, "select two_tower.copy_to_serving_index(array[7])") == is_written
    assert value(db, copy)


def test_a_deleted_post_is_never_on_a_page_and_its_copy_goes(db: Connection) -> None:
    side = value(db, "select serving_side from two_tower.state")
    first = [row[0] for row in db.execute(PAGE, [user_id(1)])]
    delete_posts(db, first[:10])
    second = [row[0] for row in db.execute(PAGE, [user_id(1)])]
    assert len(second) == 50
    assert not set(second) & set(first[:10])
    db.execute("select two_tower.copy_to_serving_index(%s::bigint[])", [first[:12]])
    copies = f"select count(*) from two_tower.serving_embeddings_{side} where post_id = any (%s)"
    assert value(db, copies, first[:12]) == 2


@pytest.fixture
def standby(feed: World) -> Iterator[Cluster]:
    """A hot standby of the feed, made by pg_basebackup."""
    with reachable_folder() as folder:
        copy = Cluster(
            folder / "postgres",
            free_port(),
            binaries=feed.binaries,
            settings=feed.cluster.settings,
        )
        copy._identity.own(folder)
        binaries = copy._reachable(feed.binaries)
        made = copy._run(
            [
                *(binaries.program("pg_basebackup"), "-D", str(copy.data_dir), "-R"),
                *("-d", feed.cluster.url(user="supabase_admin"), "-X", "stream", "-c", "fast"),
            ],
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        copy.start()
        yield copy
        copy.stop("immediate")


def test_a_hot_standby_serves_the_same_pages_and_follows(feed: World, standby: Cluster) -> None:
    with connect(feed.url, autocommit=True) as primary, connect(standby.url()) as copy:
        assert value(copy, "select pg_is_in_recovery()")
        reader = user_id(3)
        page = primary.execute(PAGE, [reader]).fetchall()
        assert len(page) == 50
        assert copy.execute(PAGE, [reader]).fetchall() == page
        newcomer = user_id(READERS + 1)
        assert len(copy.execute(PAGE, [newcomer]).fetchall()) == 50
        with as_user(copy, reader):
            for call in ("recommend(50)", "recommended_posts(50)", f"similar_posts({page[0][0]})"):
                assert len(copy.execute(f"select * from public.{call}".encode()).fetchall()) >= 20
            shown = copy.execute("select * from public.explain_recommendation(%s)", [page[0][0]])
            assert shown.fetchone() is not None
        copy.rollback()

        primary.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'like')",
            [reader, page[0][0]],
        )
        wait_until(
            lambda: page[0] not in copy.execute(PAGE, [reader]).fetchall() or copy.rollback()
        )
        copy.rollback()
        builds = value(primary, "select two_tower.build_serving_index('to follow')")
        wait_until(
            lambda: (
                value(copy, "select max(id) from two_tower.serving_builds") == builds
                or copy.rollback()
            )
        )
        assert len(copy.execute(PAGE, [reader]).fetchall()) == 50


def test_the_bench_measures_pages_against_the_bare_index(
    feed: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SAMPLE", 10)
    monkeypatch.setattr(serving, "WARM_UP", 5)
    said: list[str] = []
    report = serving.measure(feed, 800, 1, {"transactions": 5}, said.append)
    for state in ("fresh", "worn"):
        cases = report[state]["cases"]
        assert len(cases) == 2 * len(serving.INTERESTS) * len(serving.CLIENTS)
        assert all(0 < case["p50_ms"] <= case["p99_ms"] for case in cases)
        for interests, bare in report[state]["bare"].items():
            assert (
                bare["recall"] >= report[state]["recall"][interests] - 0.001 or bare["ef"] == 1000
            )
            assert 50 <= bare["rows"] <= bare["ef"]
    with connect(feed.url, autocommit=True) as connection:
        likes = "select count(*) from public.engagement_events where event_type = 'like'"
        assert value(connection, likes) >= 800
        assert value(connection, "select count(*) from two_tower.deferred_steps") == 0
    assert {b["is_kept"] for b in report["budgets"] if "recall@50" in b["budget"]} == {True}
    json.dumps(report, default=str)
    show_serving(report)
    assert "bare HNSW, ef" in capsys.readouterr().out


def test_a_build_for_a_switch_that_ended_meanwhile_is_refused(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    with (
        connect(url, autocommit=True) as connection,
        connect(url) as learner,
        connect(url, autocommit=True) as builder,
        ThreadPoolExecutor(1) as pool,
    ):
        add_posts(connection, 80, [add_user(connection)], np.random.default_rng(4))
        connection.execute("update two_tower.settings set exact_scan_limit = 10")
        value(connection, "select two_tower.checkpoint()")
        value(connection, "select two_tower.rollback()")
        while not value(connection, "select two_tower.is_slot_full()"):
            value(connection, "select two_tower.take_step()")
        # A session that learns keeps the build from its last moment, and ends the switch itself.
        learner.execute("select pg_advisory_xact_lock_shared(two_tower.switch_lock())")
        building = pool.submit(value, builder, "select two_tower.build_serving_index()")
        waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        wait_until(lambda: value(connection, waits))
        assert value(learner, "select two_tower.flip_slots()")
        learner.commit()
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            building.result()
        assert value(connection, "select count(*) from two_tower.serving_builds") == 0
        assert value(connection, "select serving_side is null from two_tower.state")
