"""What can be attached, under whatever names, and what is refused, with what is said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from tests.support.app import App, differences, open_alerts, source
from tests.support.database import add_user, as_user
from tests.support.patience import wait_until

BLOCKERS = "select cardinality(pg_catalog.pg_blocking_pids(%s))"
CREATE = "create table public.things (id bigint primary key, title text, n integer, at date)"


def attach(table: str = "public.things", **parts: str) -> str:
    parts = {"content": "'{title}'", **parts}
    named = ", ".join(f"{name} => {part}" for name, part in parts.items())
    return f"select two_tower.attach_posts('{table}', {named})"


def test_who_does_not_own_the_table_is_refused(app: App) -> None:
    app.run("create role stranger")
    app.run("grant stranger to postgres")
    app.run(CREATE)
    app.run("grant usage on schema two_tower, public to stranger")
    app.run("grant execute on all functions in schema two_tower to stranger")
    app.run("set local role stranger")
    state, message, hint = app.refusal(attach())
    assert (state, message) == ("42501", "role stranger may not attach public.things")
    assert hint == "Attach it as a role that owns the table and is a member of postgres."
    app.run("reset role")


def test_a_client_may_not_call_attach(app: App) -> None:
    app.run(CREATE)
    with as_user(app.connection, add_user(app.connection)):
        assert app.refusal(attach())[0] == "42501"


@pytest.mark.parametrize(
    "create",
    [
        "create view public.things as select 1::bigint as id, 'x' as title",
        "create materialized view public.things as select 1::bigint as id, 'x' as title",
        "create table public.things (id bigint primary key, title text) partition by range (id)",
        "create table public.whole (id bigint primary key, title text) partition by range (id);"
        " create table public.things partition of public.whole default",
        "create table public.whole (id bigint primary key, title text);"
        " create table public.things (primary key (id)) inherits (public.whole)",
        "create table public.things (id bigint primary key, title text);"
        " create table public.heir () inherits (public.things)",
    ],
)
def test_what_is_no_ordinary_table_is_refused(app: App, create: str) -> None:
    for statement in create.split(";"):
        app.run(statement)
    state, message, hint = app.refusal(attach())
    assert (state, message) == ("42809", "public.things is not an ordinary table")
    assert "Attach a table of their keys and texts" in hint


def test_a_temporary_table_is_refused(app: App) -> None:
    app.run("create temporary table things (id bigint primary key, title text)")
    assert app.refusal(attach("pg_temp.things"))[0] == "42809"


def test_a_foreign_table_is_refused(cluster: Cluster, own_url: str) -> None:
    name = own_url.rsplit("/", 1)[1]
    with connect(cluster.url(name, SUPERUSER), autocommit=True) as owner:
        owner.execute("create foreign data wrapper none_at_all")
        owner.execute("create server nowhere foreign data wrapper none_at_all")
        owner.execute("create foreign table public.things (id bigint, title text) server nowhere")
        app = App(owner)
        assert app.refusal(attach())[0] == "42809"


@pytest.mark.parametrize(
    ("create", "parts", "said"),
    [
        ("(a int, b int, title text, primary key (a, b))", {}, "has no primary key of one column"),
        ("(id int, title text)", {}, "has no primary key of one column"),
        (
            "(id int primary key, slug text unique, title text)",
            {"key": "'slug'"},
            "has no column slug that is unique and not null",
        ),
        (
            "(id int primary key, slug text not null, title text)",
            {"key": "'slug'"},
            "has no column slug that is unique and not null",
        ),
        (
            "(id int primary key, title text, slug text not null unique deferrable)",
            {"key": "'slug'"},
            "has no column slug that is unique and not null",
        ),
        ("(id int primary key, title text)", {"key": "'slugg'"}, "has no column slugg that is"),
    ],
)
def test_a_table_without_a_key_of_one_column_is_refused(
    app: App, create: str, parts: dict[str, str], said: str
) -> None:
    app.run(f"create table public.things {create}")
    state, message, hint = app.refusal(attach(**parts))
    assert state == "42830"
    assert message.startswith(f"public.things {said}")
    assert hint == "Name a column that is unique and not null, such as key => 'slug'."


@pytest.mark.parametrize(
    ("key", "said"), [("numeric", "numeric"), ("char(8)", "character"), ("date", "date")]
)
def test_a_key_of_another_type_is_refused(app: App, key: str, said: str) -> None:
    app.run(f"create table public.things (id {key} primary key, title text)")
    state, message, hint = app.refusal(attach())
    assert (state, message) == ("42804", f"a key of type {said} is not supported")
    assert hint == "A key is smallint, integer, bigint, uuid, text or varchar."


def test_keys_that_are_equal_without_being_the_same_are_refused(app: App) -> None:
    try:
        app.run(
            "create collation public.any_case (provider = icu, locale = 'und-u-ks-level2',"
            " deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this build of Postgres has no ICU")
    app.run("create table public.things (id text collate public.any_case primary key, title text)")
    state, message, _ = app.refusal(attach())
    assert state == "42804"
    assert message == "column id has a collation to which different keys are equal"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"visible": "'exists (select from public.things)'"}, "cannot use subquery"),
        ({"visible": "'at < current_date'"}, "is not immutable"),
        ({"visible": "'now() > ''2020-01-01'''"}, "is not immutable"),
        ({"visible": "'random() > .5'"}, "is not immutable"),
        ({"author": "'user_idd'"}, 'column "user_idd" does not exist'),
        ({"visible": "'titel = ''x'''"}, 'column "titel" does not exist'),
        ({"visible": "'count(*) > 1'"}, "aggregate functions are not allowed"),
        ({"visible": "'no_such_function(id)'"}, "does not exist"),
        ({"visible": "'id = '"}, "syntax error"),
        ({"visible": "''"}, "syntax error"),
        ({"content": "array['title', 'titel']"}, 'column "titel" does not exist'),
        ({"content": "array['title', null]"}, "syntax error"),
        ({"created_at": "'tomorrow'"}, 'column "tomorrow" does not exist'),
        ({"visible": "'n / 0 = 1 or nope'"}, 'column "nope" does not exist'),
    ],
)
def test_an_expression_that_is_no_value_of_the_row_is_refused(
    app: App, parts: dict[str, str], said: str
) -> None:
    app.run(CREATE)
    state, message, hint = app.refusal(attach(**parts))
    (name,) = parts
    assert state == "22023"
    assert f"{name} => " in message
    assert "cannot be used" in message
    assert said in message
    assert hint.startswith("Give a column of the table, or an expression over its columns")


@pytest.mark.parametrize(
    ("parts", "said", "hint"),
    [
        ({"visible": "'n'"}, "visible => n is of type integer", "It must be boolean."),
        ({"visible": "'n + 1'"}, "visible => n + 1 is of type integer", "It must be boolean."),
        ({"tags": "'title'"}, "tags => title is of type text", "It must be text[]."),
        (
            {"created_at": "'n'"},
            "created_at => n is of type integer",
            "It must be timestamptz, timestamp or date.",
        ),
    ],
)
def test_a_part_of_the_wrong_type_is_refused(
    app: App, parts: dict[str, str], said: str, hint: str
) -> None:
    app.run(CREATE)
    assert app.refusal(attach(**parts)) == ("42804", said, hint)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (attach(content="'{}'"), "content is missing"),
        (attach(content="null"), "content is missing"),
        ("select two_tower.attach_profiles('public.things', null, '{title}')", "user is missing"),
        ("select two_tower.attach_follows('public.things', 'id', null)", "followed is missing"),
        ("select two_tower.attach_blocks('public.things', null, 'id')", "user is missing"),
    ],
)
def test_a_call_without_what_its_role_needs_is_refused(app: App, call: str, said: str) -> None:
    app.run(CREATE)
    state, message, hint = app.refusal(call)
    assert (state, message) == ("22023", said)
    assert hint.startswith("Name a column: ")


@pytest.mark.parametrize(
    "call",
    [
        "select two_tower.attach_follows('public.things', 'title', 'id')",
        "select two_tower.attach_blocks('public.people', 'name', 'id')",
    ],
)
def test_users_that_are_no_uuids_are_refused(app: App, call: str) -> None:
    app.run(CREATE)
    app.run("create table public.people (id bigint, name text)")
    state, message, hint = app.refusal(call)
    assert state == "42804"
    assert message.endswith("is of type text")
    assert hint == "Users are uuids, as auth.uid() is."


def test_a_table_of_profiles_needs_one_row_a_user(app: App) -> None:
    app.run("create table public.people (id uuid, about text)")
    call = "select two_tower.attach_profiles('public.people', 'id', '{about}')"
    assert app.refusal(call)[0] == "42830"
    app.run("alter table public.people add primary key (id)")
    assert value(app.connection, call) == "people"


def test_a_name_or_a_role_that_is_taken_is_refused(app: App) -> None:
    app.run(CREATE)
    app.run("create schema other")
    app.run("create table other.things (id bigint primary key, title text)")
    app.run(attach())
    state, message, hint = app.refusal(attach("other.things"))
    assert (state, message) == ("42710", "public.things is attached as things already")
    assert hint == "Give another name: name => '...'."
    app.run(attach("other.things", name="'others'"))

    app.run("create table public.likes (a uuid, b uuid, primary key (a, b))")
    app.run("create table public.loves (a uuid, b uuid, primary key (a, b))")
    app.run("select two_tower.attach_follows('public.likes', 'a', 'b')")
    state, message, hint = app.refusal("select two_tower.attach_follows('public.loves', 'a', 'b')")
    assert (state, message) == ("42710", "the follows are in public.likes already")
    assert "select two_tower.detach('public.likes');" in hint
    app.run("select two_tower.detach('public.likes')")
    app.run("select two_tower.attach_follows('public.loves', 'a', 'b')")


def test_a_page_never_takes_the_place_of_something_of_the_app(app: App) -> None:
    app.run(CREATE)
    app.run("create table public.things_page (id int)")
    state, message, hint = app.refusal(attach())
    assert state == "42710"
    assert message == "public.things_page exists already"
    assert hint.startswith("The pages of the table are named after it.")
    app.run("drop table public.things_page")
    app.run(
        "create function public.recommended_things(integer, text[]) returns int"
        " language sql as 'select 1'"
    )
    assert app.refusal(attach())[0] == "42710"
    app.run(attach(name="'news'"))
    # The same where an attached table is given another name.
    assert app.refusal(attach(name="'things'"))[0] == "42710"
    assert value(app.connection, "select public.recommended_things(1, '{}')") == 1


@pytest.mark.parametrize("name", ["'" + "x" * 48 + "'", "''", "'" + "é" * 24 + "'"])
def test_a_name_of_which_no_function_can_be_named_is_refused(app: App, name: str) -> None:
    app.run(CREATE)
    state, message, hint = app.refusal(attach(name=name))
    assert state == "42622"
    assert message.endswith("has not 1 to 47 bytes")
    assert hint == "Give a shorter one: name => '...'."


def test_a_table_whose_rows_the_engine_does_not_see_is_refused(
    cluster: Cluster, own_url: str
) -> None:
    name = own_url.rsplit("/", 1)[1]
    with connect(cluster.url(name, SUPERUSER)) as owner:
        app = App(owner)
        app.run(CREATE)
        app.run("alter table public.things owner to postgres")
        app.run("alter table public.things enable row level security")
        app.run("alter table public.things force row level security")
        app.run("alter role postgres nobypassrls")  # until the rollback
        state, message, hint = app.refusal(attach())
        assert (state, message) == ("42501", "role postgres does not see all rows of public.things")
        assert "alter table public.things no force row level security" in hint
        app.run("alter table public.things no force row level security")
        app.run(attach())

        app.run("create table public.secrets (id bigint primary key, title text)")
        app.run("revoke all on public.secrets from public, postgres")
        app.run("revoke pg_read_all_data from postgres")
        state, message, hint = app.refusal(attach("public.secrets"))
        assert (state, message) == ("42501", "role postgres may not read public.secrets")
        assert "grant select on public.secrets to postgres" in hint
        owner.rollback()


def test_a_virtual_column_is_refused_as_triggers_do_not_see_it(app: App) -> None:
    if app.connection.info.server_version < 180000:
        pytest.skip("virtual columns came with Postgres 18")
    app.run(
        "create table public.things (id bigint primary key, title text,"
        " loud text generated always as (upper(title)) virtual,"
        " calm text generated always as (lower(title)) stored)"
    )
    for part in ("'{loud}'", "array['loud || title']"):
        state, message, hint = app.refusal(attach(content=part))
        assert state == "22023"
        assert message.endswith("cannot be used: column loud is virtual")
        assert "make it a stored one" in hint
    app.run(attach(content="'{calm}'"))


NAMES = [
    ("public", "select", "order"),
    ("public", "My Articles", "Title Of It"),
    ("public", 'he said "no"', 'a "quoted" one'),
    ("public", "o'clock %s %I", "it's 100%"),
    ("public", "my default list, p_x (really) returns setof", "a default b"),
    ("Odd Schema", "x" * 63, "y" * 63),
    ("public", "статьи", "заголовок"),
    ("public", "found", "found"),
    ("public", "t", "t"),
]


@pytest.mark.parametrize(("schema", "table", "column"), NAMES)
def test_odd_names_are_attached_followed_read_and_detached(
    app: App, schema: str, table: str, column: str
) -> None:
    db = app.connection
    name = table if len(table.encode()) <= 47 else "long"
    at = sql.Identifier(schema, table)
    db.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
    db.execute(
        sql.SQL("create table {} ({} text primary key, {} text, tg_op text)").format(
            at, sql.Identifier(column), sql.Identifier(("k" + column)[:60])
        )
    )
    relation = at.as_string(db)
    call = (
        "select two_tower.attach_posts(%s::regclass, content => array[%s::text], name => %s,"
        " visible => 'tg_op is distinct from ''no''')"
    )
    content = ("k" + column)[:60]
    assert value(db, call, relation, content, name) == name
    insert = sql.SQL("insert into {} values ('a', 'text'), ('b', 'more')").format(at)
    db.execute(insert)
    assert app.keys(name) == ["a", "b"]
    db.execute(sql.SQL("delete from {} where {} = 'a'").format(at, sql.Identifier(column)))
    assert app.keys(name) == ["b"]
    assert value(db, "select two_tower.reconcile(%s)", name) > 0
    assert rows(db, "select content from two_tower.posts_to_encode()") == [("more",)]
    user = add_user(db)
    db.execute(sql.SQL("grant select on {} to authenticated").format(at))
    db.execute(sql.SQL("grant usage on schema {} to authenticated").format(sql.Identifier(schema)))
    with as_user(db, user):
        page = sql.SQL("select * from public.{}(5)").format(sql.Identifier(f"recommended_{name}"))
        (row,) = db.execute(page).fetchall()
        assert "b" in row
    value(db, "select two_tower.detach(%s::regclass)", relation)
    db.execute(insert.as_string(db).replace("'a'", "'c'").replace("'b'", "'d'").encode())
    assert app.keys(name) == ["b"]
    assert value(db, "select two_tower.reconcile(%s)", name) > 0
    assert app.keys(name) == []
    left = rows(
        db,
        "select proname from pg_proc where proname = any (%s)",
        [
            f"recommended_{name}",
            f"readable_{name}",
            f"newest_readable_{name}",
            f"muted_in_{name}",
        ],
    )
    assert left == []


@pytest.mark.parametrize("column", ["place", "score", "source", "arm", "cursor"])
def test_a_column_named_like_one_of_ours_keeps_its_name_on_the_page(app: App, column: str) -> None:
    app.run(
        f"create table public.things (id bigint primary key, title text, {column} text,"
        " page_arm text)"
    )
    app.run(attach())
    columns = rows(
        app.connection,
        "select attname from pg_attribute"
        " where attrelid = 'public.things_page'::regclass and attnum > 0 order by attnum",
    )
    assert [row[0] for row in columns] == [
        *(f"page_page_{own}" for own in ("place", "score", "source", "arm", "cursor")),
        "id",
        "title",
        column,
        "page_arm",
    ]


KEYS = [
    ("smallint", "7"),
    ("integer", "2147483647"),
    ("bigint", "9223372036854775807"),
    ("uuid", "5b1f0e0a-1c55-4f3e-9d5c-8f6f3c1a2b3c"),
    ("text", ""),
    ("text", "Ünïcode 'key'"),
    ("text", "x" * 2000),
    ("varchar(20)", "a-slug"),
    ("public.slug", "in-a-domain"),
]


@pytest.mark.parametrize(("key_type", "key"), KEYS)
def test_keys_of_every_type_are_followed_walked_and_named_by_events(
    app: App, key_type: str, key: str
) -> None:
    db = app.connection
    app.run("create domain public.slug as text check (value ~ '^[a-z-]*$')")
    app.create_articles(key_type)
    app.attach_articles()
    app.insert([key])
    assert app.keys() == [key]
    assert value(db, "select two_tower.reconcile('articles')") > 0
    assert differences(db) == []
    assert [row.content for row in rows(db, "select content from two_tower.posts_to_encode()")] == [
        f"a title {key}"
    ]
    app.run("grant select on public.articles to authenticated")
    user = add_user(db)
    with as_user(db, user):
        assert [
            row.id for row in rows(db, "select id::text from public.recommended_articles()")
        ] == [key]
        db.execute(
            "insert into public.engagement_events (post_key, event_type) values (%s, 'like')",
            [key.upper() if key_type == "uuid" else key],
        )
    app.run("delete from public.articles")
    assert app.keys() == []


def test_a_key_too_long_for_an_index_of_the_registry_is_passed_over(app: App) -> None:
    app.create_articles("text")
    app.attach_articles()
    app.insert(["short", "x" * 2001])
    assert app.keys() == ["short"]
    assert rows(app.connection, "select from two_tower.source_reports") == []
    app.run("select two_tower.reconcile('articles')")
    assert app.keys() == ["short"]
    assert source(app.connection).state == "attached"


@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamptz"])
def test_a_time_of_any_type_is_meant_in_utc_whatever_the_session(app: App, kind: str) -> None:
    db = app.connection
    app.run("set local timezone = 'Asia/Tokyo'")
    app.run("set local datestyle = 'SQL, DMY'")
    app.run(
        f"create table public.articles (id bigint primary key, title {kind}, published_at {kind})"
    )
    app.run(attach("public.articles", created_at="'published_at'"))
    app.run(
        "insert into public.articles values (1, '2026-03-01 00:00:00+00', %s)",
        "2026-03-01 00:00:00+00",
    )
    (known,) = app.known("created_at = '2026-03-01 00:00+00' as is_right")
    assert known.is_right or kind == "timestamptz"
    before = app.known("content_hash, created_at")
    app.run("set local timezone = 'UTC'")
    app.run("set local datestyle = 'ISO, MDY'")
    assert len(rows(db, "select from two_tower.posts_to_encode()")) == 1
    app.run("select two_tower.reconcile('articles')")
    assert app.known("content_hash, created_at") == before


@pytest.mark.parametrize("time", ["infinity", "-infinity", "4713-01-01 BC"])
def test_times_beyond_any_clock_are_kept_within_it(app: App, time: str) -> None:
    app.create_articles()
    app.run("alter table public.articles alter published_at type timestamptz")
    app.attach_articles()
    app.insert([1], published_at=time)
    (known,) = app.known(
        "extract(year from created_at at time zone 'UTC')::integer as year,"
        " isfinite(created_at) as is_finite"
    )
    assert (known.year, known.is_finite) == ((9999 if time == "infinity" else 1), True)


def test_content_of_any_type_is_its_text(app: App) -> None:
    db = app.connection
    app.run("create type public.mood as enum ('glad', 'sad')")
    app.run(
        'create table public.things (id bigint primary key, title text collate "C",'
        ' body text collate "POSIX", doc jsonb, mood public.mood, words text[], n integer)'
    )
    app.run("create table public.copy as select * from public.things")
    app.run(
        attach(
            content="array['title', 'body', 'doc->>''lead''', 'doc', 'mood', 'words', 'n']",
            language="'mood'",
        )
    )
    app.run(
        "insert into public.things values (1, 'T', null, '{\"lead\": \"L\"}', 'glad', '{a,b}', 5)"
    )
    (text,) = rows(db, "select content from two_tower.posts_to_encode()")
    assert text.content == 'T\nL\n{"lead": "L"}\nglad\na, b\n5'
    assert app.known("language", "things") == [("glad",)]


def test_attaching_again_changes_what_is_followed_and_keeps_ids(app: App) -> None:
    db = app.connection
    app.create_articles("uuid")
    app.attach_articles()
    app.insert(["5b1f0e0a-1c55-4f3e-9d5c-8f6f3c1a2b3c"], body="body")
    ids = app.known("p.id")
    app.run("select two_tower.attach_posts('public.articles', content => '{body}', name => 'news')")
    app.run("select two_tower.reconcile('news')")
    assert app.known("p.id", "news") == ids
    assert [row.content for row in rows(db, "select content from two_tower.posts_to_encode()")] == [
        "body"
    ]
    page = "select to_regclass('public.' || %s || '_page') is not null"
    assert (value(db, page, "articles"), value(db, page, "news")) == (False, True)
    assert value(db, "select count(*) from pg_proc where proname like '%%readable_articles'") == 0


def test_another_key_column_makes_other_posts(app: App) -> None:
    app.run(
        "create table public.things (id bigint primary key, slug text not null unique, title text)"
    )
    app.run(attach())
    app.run("insert into public.things select n, 's' || n, 'text' from generate_series(1, 30) n")
    assert source(app.connection, "things").lends_ids
    app.run(attach(key="'slug'"))
    app.run("select two_tower.reconcile('things')")
    assert len(app.keys("things")) == 30
    assert all(key.startswith("s") for key in app.keys("things"))
    assert all(row.id < 0 for row in app.known("p.id", "things"))
    assert open_alerts(app.connection) == {}


def test_a_table_attached_in_another_role_is_detached_first(app: App) -> None:
    app.run("create table public.likes (a uuid primary key, b uuid, title text)")
    app.run(attach("public.likes"))
    follows = "select two_tower.attach_follows('public.likes', 'a', 'b')"
    state, message, hint = app.refusal(follows)
    assert (state, message) == ("42710", "public.likes is attached as a table of posts")
    assert hint == (
        "First: select two_tower.detach('public.likes'); select two_tower.reconcile('likes');"
    )
    app.run("select two_tower.detach('public.likes')")
    assert app.refusal(follows)[0] == "42710"
    app.run("select two_tower.reconcile('likes')")
    assert value(app.connection, follows) == "likes"


def test_detaching_what_is_not_attached_is_refused(app: App) -> None:
    app.run(CREATE)
    state, message, hint = app.refusal("select two_tower.detach('public.things')")
    assert (state, message) == ("22023", "public.things is not attached")
    assert hint == "Attached tables: select relation, role, state from two_tower.sources."


def test_rows_written_while_a_table_is_attached_are_not_lost(own_url: str) -> None:
    with (
        connect(own_url, autocommit=True) as first,
        connect(own_url, autocommit=True) as writer,
        connect(own_url, autocommit=True) as watcher,
    ):
        app = App(first)
        app.create_articles()
        writer.execute("begin")
        writer.execute("insert into public.articles (id, title) values (1, 'early')")
        with ThreadPoolExecutor(1) as pool:
            attaching = pool.submit(app.attach_articles)
            wait_until(lambda: value(watcher, BLOCKERS, first.info.backend_pid))
            writer.execute("commit")
            attaching.result()
        first.execute("select two_tower.reconcile('articles')")
        assert app.keys() == ["1"]


def test_a_table_that_was_dropped_and_made_again_keeps_its_ids(app: App) -> None:
    db: Connection = app.connection
    app.create_articles("text")
    app.attach_articles()
    app.insert(["a", "b"])
    ids = app.known("p.id")
    app.run("drop table public.articles cascade")
    app.create_articles("text")
    assert app.attach_articles() == "articles"
    app.insert(["a", "b"])
    app.run("select two_tower.reconcile('articles')")
    assert app.known("p.id") == ids
    assert value(db, "select count(*) from two_tower.sources where name = 'articles'") == 1
