"""Columns of the app on the tables in `public`: the engine asks for its own by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from psycopg import sql

from python_jobs.db import Connection, connect, value
from tests.support.composites import whole_rows
from tests.support.database import add_user, as_user
from tests.support.engagements import Stream, add_posts, insert_events
from tests.support.invariants import assert_consistent
from tests.support.learning import TOLERANCE, rng
from tests.support.reference import Event, Post
from tests.support.twin import Twin

TABLES = ("posts", "profiles", "follows", "author_blocks", "engagement_events")
CHANGES = {
    "nullable": ["add column app_note text"],
    "default": ["add column app_note text default 'none'"],
    "not null": ["add column app_level integer not null default 7"],
    "rewritten": ["add column app_key uuid not null default gen_random_uuid()"],
    "generated": ["add column app_half integer generated always as (21 * 2) stored"],
    "identity": ["add column app_number bigint generated always as identity"],
    "dropped": ["add column app_old integer", "add column app_note text", "drop column app_old"],
}
# Every name that a table or a function of the engine gives to a column.
OUR_NAMES = """
  select a.attname as name from pg_catalog.pg_attribute a
    join pg_catalog.pg_class c on c.oid = a.attrelid
  where c.relnamespace = 'two_tower'::regnamespace and c.relkind in ('r', 'p', 'v', 'c')
    and a.attnum > 0 and not a.attisdropped
  union
  select x.name from pg_catalog.pg_proc p cross join lateral unnest(p.proargnames) as x (name)
  where p.pronamespace in ('two_tower'::regnamespace, 'public'::regnamespace)
    and x.name !~ '^(p_|$)'
"""
EARLIEST = "select min(starts_at) from two_tower.partitions"


class App:
    """An app in use, over one session at a time; the reference follows all that is learned."""

    def __init__(self, connection: Connection) -> None:
        self.twin = Twin(connection, rng(31), users=8, posts=40)
        self.stream = Stream(self.twin.rng, self.twin.user_ids, self.twin.post_ids)
        connection.execute(
            "update two_tower.settings"
            " set events_kept_for = '100 years', training_examples_kept_for = '100 years'"
        )
        for author in self.twin.authors:
            connection.execute(
                "insert into two_tower.author_embeddings (author_id, embedding)"
                " values (%s, %s::real[]::extensions.vector)",
                [author, self.twin.rng.normal(size=64).tolist()],
            )

    def use(self, connection: Connection) -> None:
        """Does in one session all that goes through tables in `public`."""
        self.twin.connection = connection
        self.send_events()
        self.send_a_batch()
        self.wait_for_the_encoder()
        self.freeze_and_resume()
        self.block_and_lift()
        self.follow_and_fill_in_a_profile()
        self.read_pages()
        self.make_partitions()
        self.train_and_checkpoint()
        self.twin.fold()
        assert self.twin.difference() < TOLERANCE
        self.twin.assert_same_verdicts()
        assert_consistent(connection)

    def send_events(self) -> None:
        for size in (1, 1, 1, 1, 1, 1, 30):
            self.twin.insert(self.stream.next(size))

    def send_a_batch(self) -> None:
        user_id = self.twin.user_ids[0]
        kinds = ["view", "like", "reply", "unlike"]
        batch = [
            {"post_id": self.twin.post_ids[3], "event_type": kind, "client_event_id": uuid.uuid4()}
            for kind in kinds
        ]
        record = (
            "select event_id, created_at from public.record_engagements((select jsonb_agg("
            " to_jsonb(x)) from unnest(%s::bigint[], %s::text[], %s::uuid[])"
            " as x (post_id, event_type, client_event_id)))"
        )
        columns = [[event[name] for event in batch] for name in batch[0]]
        answers = []
        for _ in ("sent", "sent again"):
            with self.twin.connection.transaction(), as_user(self.twin.connection, user_id) as me:
                answers.append(me.execute(record, columns).fetchall())
        assert answers[0] == answers[1]
        self.twin.replay(
            [
                (row.event_id, Event(user_id, self.twin.post_ids[3], kind, None, row.created_at))
                for row, kind in zip(answers[0], kinds, strict=True)
            ]
        )

    def wait_for_the_encoder(self) -> None:
        (late,) = add_posts(self.twin.connection, 1, self.twin.authors)
        self.twin.reference.posts[late] = Post()
        for kind in ("like", "hide", "repost"):
            self.twin.insert([Event(user_id, late, kind) for user_id in self.twin.user_ids[1:4]])
        assert value(self.twin.connection, "select count(*) from two_tower.deferred_events") == 9
        self.twin.encode(late)
        assert value(self.twin.connection, "select count(*) from two_tower.deferred_events") == 0
        edit = "update public.posts set content = content || '!' where id = %s"
        self.twin.connection.execute(edit, [late])
        waiting = "select content from two_tower.posts_to_encode() where post_id = %s"
        assert value(self.twin.connection, waiting, late).endswith("!")
        self.twin.delete_post(late)

    def freeze_and_resume(self) -> None:
        connection = self.twin.connection
        value(connection, "select two_tower.freeze('a test')")
        self.twin.reference.is_frozen = True
        for size in (1, 1, 20):
            self.twin.insert(self.stream.next(size))
        value(connection, "select two_tower.resume()")
        self.twin.reference.is_frozen = False
        assert self.twin.learn_deferred() > 0
        value(connection, "select two_tower.freeze('a test')")
        like = Event(add_user(connection), self.twin.post_ids[0], "like", None, self.stream.now)
        (passed_over,) = insert_events(connection, [like])
        value(connection, "select two_tower.resume(1, true)")
        reason = "select reason from two_tower.unlearned_events where event_id = %s"
        assert value(connection, reason, passed_over) == "skipped"

    def block_and_lift(self) -> None:
        connection, user_id = self.twin.connection, self.twin.user_ids[5]
        post_id = self.twin.post_ids[7]
        author = value(connection, "select author_id from public.posts where id = %s", post_id)
        read = "select embedding::real[] from two_tower.author_embeddings where author_id = %s"
        lift = "delete from public.author_blocks where author_id = %s"
        with connection.transaction(), as_user(connection, user_id):
            connection.execute(lift, [author])
        # A new like, which its author takes along, and then the block.
        liked = self.twin.post_ids[8:16]
        self.twin.insert([Event(user_id, post, "click", None, self.stream.now) for post in liked])
        before = np.array(value(connection, read, author))
        self.twin.insert([Event(user_id, post_id, "block_author", None, self.stream.now)])
        assert np.abs(np.array(value(connection, read, author)) - before).max() > 1e-4
        with connection.transaction(), as_user(connection, user_id):
            assert connection.execute(lift, [author]).rowcount == 1
        assert np.abs(np.array(value(connection, read, author)) - before).max() < TOLERANCE

    def follow_and_fill_in_a_profile(self) -> None:
        connection, user_id = self.twin.connection, add_user(self.twin.connection)
        with connection.transaction(), as_user(connection, user_id):
            connection.execute("insert into public.profiles (bio) values ('tea')")
            connection.execute("update public.profiles set bio = 'coffee'")
            follow = "insert into public.follows (followed_id) values (%s)"
            connection.execute(follow, [self.twin.authors[0]])
            posts = connection.execute("select author_id from public.recent_from_followed()")
            assert {str(author) for (author,) in posts} == {self.twin.authors[0]}
        text = "select content from two_tower.profiles_to_encode() where user_id = %s"
        assert value(connection, text, user_id) == "coffee"

    def read_pages(self) -> None:
        connection = self.twin.connection
        value(connection, "select two_tower.build_serving_index()")
        value(connection, "select two_tower.refresh_popular_candidates()")
        reader = add_user(connection)
        with connection.transaction(), as_user(connection, reader):
            page = connection.execute("select * from public.recommend(10)").fetchall()
            assert len(page) == 10
            (why,) = connection.execute(
                "select reason from public.explain_recommendation(%s)", [page[0].post_id]
            ).fetchone() or ("",)
            assert why == "eligible"
            for call in ("similar_posts(%s)", "popular_posts()"):
                parameters = [page[0].post_id] if "%s" in call else []
                posts = connection.execute(f"select * from public.{call}".encode(), parameters)
                assert posts.fetchall(), call

    def make_partitions(self) -> None:
        connection = self.twin.connection
        old = value(connection, EARLIEST) - timedelta(hours=1)
        user_id, post_id = self.twin.user_ids[6], self.twin.post_ids[0]
        (event_id,) = self.twin.insert([Event(user_id, post_id, "view", None, old)])
        place = "select tableoid::regclass::text from public.engagement_events where id = %s"
        assert value(connection, place, event_id) == "two_tower.engagement_events_history"
        assert value(connection, "select two_tower.create_partitions_back_to(%s)", old) >= 2
        assert value(connection, place, event_id) != "two_tower.engagement_events_history"
        connection.execute("update two_tower.partitioned_tables set ahead = ahead + 1")
        assert value(connection, "select two_tower.create_partitions_ahead()") >= 2

    def train_and_checkpoint(self) -> None:
        connection = self.twin.connection
        histories = "select count(*) from two_tower.user_histories(null, %s::uuid[])"
        assert value(connection, histories, self.twin.user_ids) > 0
        value(connection, "select count(*) from two_tower.held_out_posts(0)")
        value(connection, "select count(*) from two_tower.held_out_users(0)")
        value(connection, "select two_tower.refresh_serving_index()")
        assert value(connection, "select two_tower.checkpoint()") > 0


def change_tables(connection: Connection, change: str) -> None:
    """Changes each table in `public` as a migration of an app does."""
    for table in TABLES:
        if change == "our names":
            ours = (
                f"select x.name from ({OUR_NAMES}) x where not exists (select from"
                " pg_catalog.pg_attribute a where a.attrelid = %s::regclass and a.attname = x.name)"
            )
            names = connection.execute(ours.encode(), [f"public.{table}"]).fetchall()
            steps = [
                sql.SQL("add column {} text").format(sql.Identifier(name)) for (name,) in names
            ]
            assert len(steps) > 200
        else:
            steps = [sql.SQL(step) for step in CHANGES[change]]
        for step in steps:
            alter = sql.SQL("alter table {} ").format(sql.Identifier("public", table))
            connection.execute(alter + step)


@pytest.mark.parametrize("change", [*CHANGES, "our names"])
def test_columns_of_the_app_break_nothing(fresh_database: Callable[[], str], change: str) -> None:
    url = fresh_database()
    with connect(url, autocommit=True) as session, connect(url, autocommit=True) as migration:
        if change == "identity" and session.info.server_version < 170000:
            pytest.skip("partitioned tables have identity columns since Postgres 17")
        app = App(session)
        app.use(session)
        change_tables(migration, change)
        app.use(session)  # its plans are older than the change
        with connect(url, autocommit=True) as new_session:
            app.use(new_session)


def test_a_column_of_the_app_is_stored_with_the_event_that_is_learned(db: Connection) -> None:
    db.execute("alter table public.engagement_events add column app_version text")
    user = add_user(db)
    (post_id,) = add_posts(db, 1, [add_user(db)], rng())
    event_id = value(
        db,
        "insert into public.engagement_events (user_id, post_id, event_type, app_version)"
        " values (%s, %s, 'like', '1.2') returning id",
        user,
        post_id,
    )
    stored = "select app_version from public.engagement_events where id = %s"
    assert value(db, stored, event_id) == "1.2"
    learned = "select count(*) from two_tower.training_examples where event_id = %s"
    assert value(db, learned, event_id) == 1


def test_rows_move_into_a_partition_whose_columns_are_in_another_order(db: Connection) -> None:
    history = "two_tower.engagement_events_history"
    db.execute("alter table public.engagement_events add column first text, add column second text")
    db.execute(f"alter table public.engagement_events detach partition {history}".encode())
    db.execute(f"alter table {history} drop column first".encode())
    db.execute(f"alter table {history} add column first text".encode())
    db.execute(f"alter table public.engagement_events attach partition {history} default".encode())
    user = add_user(db)
    (post_id,) = add_posts(db, 1, [user])
    old = value(db, EARLIEST) - timedelta(hours=1)
    db.execute(
        "insert into public.engagement_events"
        " (user_id, post_id, event_type, created_at, first, second)"
        " values (%s, %s, 'view', %s, 'one', 'two')",
        [user, post_id, old],
    )
    value(db, "select two_tower.create_partitions_back_to(%s)", old)
    moved = db.execute(
        "select first, second, tableoid::regclass::text from public.engagement_events"
        " where user_id = %s",
        [user],
    ).fetchone()
    assert moved is not None
    assert (moved.first, moved.second) == ("one", "two")
    assert moved.tableoid != history


# The row types of tables in public, and all types that hold one: arrays, domains, composites.
HOLDING_TYPES = """
  with recursive holding (type) as (
    select c.reltype from pg_catalog.pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
    union
    select x.type from holding h cross join lateral (
      select t.oid from pg_catalog.pg_type t
      where t.typelem = h.type or t.typbasetype = h.type
      union all
      select c.reltype from pg_catalog.pg_attribute a
        join pg_catalog.pg_class c on c.oid = a.attrelid
      where a.atttypid = h.type and not a.attisdropped and c.reltype <> 0
    ) x (type)
  )
"""
COLUMNS = f"""{HOLDING_TYPES}
  select format('%s.%s', a.attrelid::regclass, a.attname) as place
  from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
  where c.relnamespace = 'two_tower'::regnamespace and not a.attisdropped
    and a.atttypid in (select type from holding)
"""
SIGNATURES = f"""{HOLDING_TYPES}
  select distinct p.oid::regprocedure::text as place
  from pg_catalog.pg_proc p
    cross join lateral unnest(p.prorettype || p.proargtypes::oid[] || p.proallargtypes) as x (type)
  where p.pronamespace in ('two_tower'::regnamespace, 'public'::regnamespace)
    and x.type in (select type from holding)
    -- A page of rows of an attached table is written anew when the table changes.
    and not exists (select from two_tower.sources s
                    where p.proname = any (two_tower.list_page_functions(s.name)))
"""
BODIES = """
  select p.oid::regprocedure::text as name, p.prosrc as code, array(
    select r.name from pg_catalog.pg_trigger t
      cross join lateral (values (t.tgnewtable::text), (t.tgoldtable::text),
        (case when t.tgtype & 1 = 1 then 'new' end), (case when t.tgtype & 1 = 1 then 'old' end)
      ) as r (name)
    where t.tgfoid = p.oid and r.name is not null
      and t.tgrelid in (select oid from pg_catalog.pg_class
        where relnamespace = 'public'::regnamespace)
  ) as rows
  from pg_catalog.pg_proc p join pg_catalog.pg_language l on l.oid = p.prolang
  where p.pronamespace in ('two_tower'::regnamespace, 'public'::regnamespace)
    and l.lanname in ('sql', 'plpgsql') and p.prosqlbody is null
"""


def places(connection: Connection) -> list[str]:
    """Where the engine holds on to the columns that a table in `public` has today."""
    found = [
        row.place
        for query in (COLUMNS, SIGNATURES)
        for row in connection.execute(query.encode()).fetchall()
    ]
    for body in connection.execute(BODIES.encode()).fetchall():
        found += [f"{body.name}: {place}" for place in whole_rows(body.code, TABLES, body.rows)]
    return sorted(found)


def test_nothing_of_the_engine_has_a_composite_type_of_a_table_in_public(db: Connection) -> None:
    assert len(db.execute(BODIES.encode()).fetchall()) > 100
    assert places(db) == []


@pytest.mark.parametrize(
    "made",
    [
        "create table two_tower.held (p public.posts)",
        "create table two_tower.held (p public.posts[])",
        "create type two_tower.held as (p public.follows)",
        "create view two_tower.held as select p from public.posts p",
        "create function two_tower.held(p public.posts) returns integer begin atomic select 1; end",
        "create function two_tower.held() returns setof public.posts language sql as 'select null'",
    ],
)
def test_a_composite_in_a_column_or_a_signature_would_be_found(db: Connection, made: str) -> None:
    db.execute("set local check_function_bodies = off")
    db.execute(made.encode())
    assert [place for place in places(db) if place.startswith("two_tower.held")]


@pytest.mark.parametrize(
    "code",
    [
        "declare v public.posts; begin end",
        "declare v public.posts%rowtype; begin end",
        "declare v public.posts[]; begin end",
        "select row(1, 2)::public.posts",
        "select cast(p_row as public.posts)",
        "begin select * into v from public.posts p; end",
        "select p.* from public.posts as p",
        "select 1 from two_tower.state s join (select p.* from public.posts p) x on true",
        "delete from public.posts where id = 1 returning *",
        "update public.posts set id = 1 returning posts.*",
        "insert into public.posts select * from unnest(p_posts)",
        "begin for v in select * from changed c order by c.id loop null; end loop; end",
        "select array_agg(p order by p.id) from public.posts p",
        "select two_tower.f(changed) from changed",
        "begin insert into two_tower.log values (changed.*); end",
    ],
)
def test_a_whole_row_in_a_body_would_be_found(code: str) -> None:
    assert whole_rows(code, TABLES, ["changed"])


@pytest.mark.parametrize(
    "code",
    [
        "select p.id, count(*), 2 * p.id from public.posts p join public.follows f on true",
        "select x.* from two_tower.state x where exists (select from public.posts p)",
        "select * from (select p.id from public.posts p) x",
        "begin perform p.id from public.posts p; select * into v from two_tower.state s; end",
        "select n.id, o.id from changed n join public.posts o on o.id = n.id",
        "select a operator(extensions.*) b from changed c",
        "select 'public.posts' -- public.posts",
        "begin return changed; end",
    ],
)
def test_columns_by_their_names_are_no_whole_row(code: str) -> None:
    assert whole_rows(code, TABLES, ["changed"]) == []
