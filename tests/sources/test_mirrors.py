"""The app's own profiles, follows and blocks."""

from __future__ import annotations

from typing import Any

import pytest

from python_jobs.db import Connection, rows, value
from tests.support.app import App
from tests.support.database import add_user
from tests.support.engagements import base_vectors, store
from tests.support.learning import rng

FOLLOWS = """
  select f.follower_id::text, f.followed_id::text from two_tower.follows f order by 1, 2
"""
BLOCKS = "select user_id::text, author_id::text, kind from two_tower.blocks order by 1, 2"


def walk(app: App) -> None:
    while value(app.connection, "select two_tower.reconcile_sources()"):
        pass


def author_id(db: Connection, key: str) -> str:
    return str(value(db, "select two_tower.author_id_of(%s)::text", key))


@pytest.fixture(params=["uuid", "text"])
def people(app: App, request: pytest.FixtureRequest) -> App:
    """Tables of follows and blocks whose authors have keys of a type."""
    app.key_type = request.param
    app.run(f"create table public.fans (fan uuid, star {request.param}, primary key (fan, star))")
    app.run(
        f"create table public.bans (who uuid, whom {request.param}, how text,"
        " primary key (who, whom))"
    )
    return app


def star(app: App, number: int) -> str:
    kind = app.key_type
    return f"00000000-0000-4000-8000-{number:012d}" if kind == "uuid" else f"Author {number}"


def truth(app: App) -> list[Any]:
    return rows(
        app.connection,
        "select fan::text, two_tower.author_id_of(star::text)::text from public.fans"
        " where fan is not null and star is not null order by 1, 2",
    )


def test_follows_are_mirrored(people: App) -> None:
    db = people.connection
    users = [add_user(db) for _ in range(3)]
    for user in users:
        people.run("insert into public.fans values (%s, %s)", user, star(people, 1))
    people.run("select two_tower.attach_follows('public.fans', 'fan', 'star')")
    walk(people)
    assert rows(db, FOLLOWS) == truth(people)
    assert len(truth(people)) == 3
    people.run(
        f"insert into public.fans select %s::uuid, v from unnest(%s::{people.key_type}[]) v",
        users[0],
        [star(people, n) for n in range(2, 6)],
    )
    people.run(
        f"update public.fans set star = %s::{people.key_type} where star::text = %s",
        star(people, 9),
        star(people, 3),
    )
    people.run(
        "delete from public.fans where fan = %s and star::text = %s", users[0], star(people, 1)
    )
    assert rows(db, FOLLOWS) == truth(people)
    people.run("alter table public.fans disable trigger user")
    people.run("delete from public.fans where star::text = %s", star(people, 2))
    people.run("insert into public.fans values (%s, %s)", users[2], star(people, 8))
    people.run("alter table public.fans enable trigger user")
    people.run("select two_tower.reconcile('fans')")
    assert rows(db, FOLLOWS) == truth(people)
    people.run("truncate public.fans")
    walk(people)
    assert rows(db, FOLLOWS) == []


def test_detaching_follows_empties_the_mirror_in_ticks(people: App) -> None:
    db = people.connection
    people.run("select two_tower.attach_follows('public.fans', 'fan', 'star')")
    people.run(
        "insert into public.fans select gen_random_uuid(), %s from generate_series(1, 2500)",
        star(people, 1),
    )
    people.run("select two_tower.detach('public.fans')")
    assert len(rows(db, FOLLOWS)) == 2500
    walk(people)
    assert rows(db, FOLLOWS) == []


@pytest.mark.parametrize("rows_before", [0, 3])
def test_another_table_of_follows_replaces_the_mirror_and_loses_nothing(
    people: App, rows_before: int
) -> None:
    db = people.connection
    people.run("select two_tower.attach_follows('public.fans', 'fan', 'star')")
    people.run(
        "insert into public.fans select gen_random_uuid(), %s from generate_series(1, 2500)",
        star(people, 1),
    )
    people.run("create table public.subscribers (a uuid, b text)")
    people.run(
        "insert into public.subscribers select gen_random_uuid(), 'x' from generate_series(1, %s)",
        rows_before,
    )
    people.run("select two_tower.detach('public.fans')")
    people.run("select two_tower.attach_follows('public.subscribers', 'a', 'b')")
    for number in range(10):
        people.run("insert into public.subscribers values (gen_random_uuid(), %s)", f"y{number}")
        people.run("select two_tower.reconcile_sources()")
    walk(people)
    assert len(rows(db, FOLLOWS)) == rows_before + 10


def test_a_pair_that_stands_twice_is_there_until_both_are_gone(app: App) -> None:
    db = app.connection
    app.run("create table public.fans (id serial primary key, fan uuid, star text)")
    app.run("select two_tower.attach_follows('public.fans', 'fan', 'star')")
    user = add_user(db)
    app.run(
        "insert into public.fans (fan, star) values (%s, 'a'), (%s, 'a'), (%s, null)",
        user,
        user,
        user,
    )
    app.run("delete from public.fans where id = 1")
    assert len(rows(db, FOLLOWS)) == 1
    app.run("update public.fans set star = null where id = 2")
    assert rows(db, FOLLOWS) == []
    app.run("update public.fans set star = 'b'")
    app.run("update public.fans set star = 'c' where id = 2")
    assert {row[1] for row in rows(db, FOLLOWS)} == {author_id(db, "b"), author_id(db, "c")}


def test_the_apps_own_blocks_decide_and_block_events_only_teach(people: App) -> None:
    db = people.connection
    users = [add_user(db) for _ in range(2)]
    key = people.key_type
    people.create_articles()
    people.key_type = key
    people.run(f"alter table public.articles alter user_id type {key} using user_id::text::{key}")
    people.attach_articles()
    people.run(
        "insert into public.articles (id, title, user_id) select n, 't', %s"
        " from generate_series(1, 3) n",
        star(people, 1),
    )
    store(db, [1, 2, 3], base_vectors(rng(), 3))
    people.run("select two_tower.add_users(%s::uuid[])", users)
    people.run(
        "insert into public.author_blocks values (%s, %s, 'block_author')",
        users[0],
        author_id(db, star(people, 1)),
    )
    assert len(rows(db, BLOCKS)) == 1
    people.run("select two_tower.detach('public.author_blocks')")
    people.run("select two_tower.attach_blocks('public.bans', 'who', 'whom', 'how')")
    walk(people)
    assert rows(db, BLOCKS) == []

    def page(user: str) -> int:
        return len(rows(db, "select from two_tower.recommend_for(%s, 10)", user))

    people.run(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " values (%s, 1, 'block_author')",
        users[0],
    )
    assert rows(db, BLOCKS) == []
    assert value(db, "select count(*) from public.author_blocks") == 1  # the one from before
    assert value(db, "select count(*) from two_tower.unlearned_events") == 0
    assert page(users[0]) == 2
    people.run("insert into public.bans values (%s, %s, 'mute_author')", users[0], star(people, 1))
    assert page(users[0]) == 0
    assert [row.kind for row in rows(db, BLOCKS)] == ["mute_author"]
    people.run("update public.bans set how = 'any word of the app'")
    assert [row.kind for row in rows(db, BLOCKS)] == ["block_author"]
    people.run("update public.bans set how = null")
    assert [row.kind for row in rows(db, BLOCKS)] == ["block_author"]
    people.run("delete from public.bans")
    assert page(users[0]) == 2
    assert page(users[1]) == 3


def test_profiles_of_the_app_are_followed(app: App) -> None:
    db = app.connection
    app.run("create table public.accounts (account uuid primary key, about text, likes text[])")
    users = [add_user(db) for _ in range(3)]
    app.run("insert into public.accounts values (%s, 'early', '{a}')", users[0])
    app.run("select two_tower.attach_profiles('public.accounts', 'account', '{about,likes}')")
    walk(app)
    app.run("insert into public.accounts values (%s, 'x', '{b,c}'), (%s, null, null)", *users[1:])
    app.run("insert into public.accounts values (gen_random_uuid(), 'nobody of auth.users', null)")
    waiting = "select user_id::text, content from two_tower.profiles_to_encode()"
    # A blank profile says nothing of its user.
    assert dict(rows(db, waiting)) == {users[0]: "early\na", users[1]: "x\nb, c"}
    app.run("update public.accounts set about = 'anew' where account = %s", users[0])
    app.run("delete from public.accounts where account = %s", users[1])
    assert dict(rows(db, waiting)) == {users[0]: "anew\na"}
    app.run("alter table public.accounts disable trigger user")
    app.run("update public.accounts set about = 'quietly' where account = %s", users[2])
    app.run("delete from public.accounts where account = %s", users[0])
    app.run("alter table public.accounts enable trigger user")
    app.run("select two_tower.reconcile('accounts')")
    assert dict(rows(db, waiting)) == {users[2]: "quietly"}
    app.run("select two_tower.detach('public.accounts')")
    walk(app)
    assert rows(db, "select from two_tower.profile_embeddings") == []


def test_an_author_in_capitals_is_the_same_user(db: Connection) -> None:
    user = add_user(db)
    assert author_id(db, user.upper()) == user
