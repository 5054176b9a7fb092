"""A user does all that users can do, is erased, and no column of any table names the user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from python_jobs.db import Connection, rows, value
from tests.operations.test_safety import World, finish_rollback
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, insert_events
from tests.support.reference import Event

# Where an operator's hand, or a race, leaves rows that nothing in this test makes.
RARE = {"two_tower.deferred_steps", "two_tower.schedule_counts", "two_tower.active_readers"}


def search(db: Connection, user: str) -> set[str]:
    """Tables with a row that has the id anywhere in it, by another search than the engine's."""
    tables = rows(
        db,
        "select format('%%I.%%I', relnamespace::regnamespace, relname) as name from pg_class"
        " where relnamespace in ('two_tower'::regnamespace, 'public'::regnamespace)"
        " and relkind in ('r', 'm')",
    )
    assert len(tables) > 90
    return {
        table.name
        for table in tables
        if value(
            db,
            f"select exists (select from {table.name} t where t::text ilike any (%s))",
            [f"%{user}%", f"%{user.replace('-', '')}%"],
        )
    }


def traces(db: Connection, user: str) -> dict[str, int]:
    """What find_user_traces() finds: rows by column."""
    return {
        f"{row.table_name}.{row.column_name}": row.found_rows
        for row in rows(db, "select * from two_tower.find_user_traces(%s)", user)
    }


def say_all(db: Connection, user: str, other: str, post: int) -> None:
    """What a user tells the engine beside events."""
    db.execute("update public.profiles set bio = 'sails' where user_id = %s", [user])
    db.execute("insert into public.profiles values (%s) on conflict do nothing", [user])
    with as_user(db, user):
        value(db, "select public.set_interests('{boats}', array[%s])", str(post))
        value(db, "select public.embed_text('a boat')")
        for kind in ("word", "tag"):
            db.execute("insert into public.muted_terms (kind, term) values (%s, 'tax')", [kind])
        db.execute("insert into public.follows (followed_id) values (%s)", [other])
    db.execute("insert into public.follows values (%s, %s)", [other, user])


def engage_all(world: World, user: str, posts: list[int]) -> None:
    """An event of each type, withdrawals and repeats among them."""
    db = world.connection
    types = [row.event_type for row in rows(db, "select event_type from two_tower.signals")]
    now = world.stream.now
    for number, kind in enumerate(["like", "repost", "hide", "not_interested", *types, *types]):
        now += timedelta(seconds=5)
        dwell = 8000 if kind == "dwell" else None
        insert_events(db, [Event(user, posts[number % 7], kind, dwell, now)])
    world.stream.now = now


def live_through_it(world: World) -> str:
    """A user who was there when all that an operator can do was done."""
    db = world.connection
    world.learn()
    user, other = add_user(db), world.users[5]
    mine = add_posts(db, 2, [user], world.rng)
    blocked = add_posts(db, 7, [world.users[6]], world.rng)
    say_all(db, user, other, world.posts[3])
    db.execute("insert into two_tower.experiments (name) values ('one')")
    for arm in "ab":
        db.execute("insert into two_tower.experiment_arms values ('one', %s, 0.5, '{}')", [arm])
    value(db, "select two_tower.start_experiment('one')")
    engage_all(world, user, world.posts[60:67])
    value(db, "select two_tower.checkpoint('operator')")
    engage_all(world, user, [*blocked[:3], *world.posts[67:71]])
    # Others like the user's posts, and block the user, who is known as an author.
    version = value(
        db,
        "insert into two_tower.model_weights (tower, state, config)"
        " values ('user_tower', 'archived', '{}') returning version",
    )
    learned = "array_fill(.1, array[64])::real[]::extensions.vector"
    db.execute(
        f"insert into two_tower.model_authors values (%s, %s, {learned})".encode(), [version, user]
    )
    db.execute(
        "insert into two_tower.author_embeddings (author_id, embedding)"
        f" values (%s, {learned})".encode(),
        [user],
    )
    db.execute("update two_tower.settings set movement_per_hour = 0.05")
    for fan in world.users[3:]:
        world.stream.now += timedelta(seconds=5)
        insert_events(db, [Event(fan, mine[0], "like", None, world.stream.now)])
        insert_events(db, [Event(fan, mine[1], "block_author", None, world.stream.now)])
    db.execute("update two_tower.settings set movement_per_hour = default")
    value(db, "select two_tower.undo('spam', array[%s]::uuid[])", user)
    value(db, "select two_tower.undo('an hour', null, %s, %s)", *hour(world))
    while value(db, "select two_tower.undo_lessons(100)"):
        pass
    engage_all(world, user, world.posts[71:78])
    value(db, "select two_tower.freeze('a test')")
    engage_all(world, user, world.posts[78:85])
    value(db, "select two_tower.rollback()")
    finish_rollback(db)
    value(db, "select two_tower.resume()")
    value(db, "select two_tower.checkpoint('operator')")
    with as_user(db, user):
        value(db, "select public.reset_my_feed()")
    # More than a minute holds: some wait, and beyond their bound some are refused.
    db.execute(
        "update two_tower.settings set learned_events_per_minute = 3, waiting_events_per_user = 3"
    )
    engage_all(world, user, world.posts[85:92])
    value(db, "select two_tower.freeze('again')")
    engage_all(world, user, world.posts[92:99])
    value(db, "select two_tower.checkpoint('operator')")
    return user


def hour(world: World) -> tuple[datetime, datetime]:
    return world.stream.now - timedelta(hours=1), world.stream.now


def erase(db: Connection, user: str) -> None:
    """The account is deleted, and ticks go on for a while."""
    db.execute("delete from auth.users where id = %s", [user])
    now = datetime.now(UTC)
    for later in (timedelta(minutes=2), timedelta(minutes=8)):
        db.execute("select set_config('two_tower.now', %s, false)", [(now + later).isoformat()])
        for _ in range(60):
            value(db, "select two_tower.tick()")


def test_nothing_of_an_erased_user_is_found_in_any_column(db: Connection) -> None:
    world = World(db)
    user = live_through_it(world)
    other = world.users[5]
    personal = {
        row.name
        for row in rows(
            db,
            "select format('%%s.%%s', relnamespace::regnamespace, relname) as name"
            " from two_tower.personal_tables join pg_class c on c.oid = relation",
        )
    }
    found = traces(db, user)
    missing = {t for t in personal if not any(c.startswith(f"{t}.") for c in found)}
    assert missing <= RARE
    assert {
        *("two_tower.alerts.subject", "two_tower.posts.author_key", "public.posts.author_id")
    } <= (found.keys())
    reasons = rows(
        db,
        "select reason from two_tower.unlearned_events where user_id = %s union"
        " select reason from two_tower.deferred_events where user_id = %s",
        *(user, user),
    )
    assert {"repeated", "rate_limited", "frozen", "minute_full"} <= {row.reason for row in reasons}
    others = traces(db, other)
    erase(db, user)
    assert traces(db, user) == {}
    assert search(db, user) == set()
    assert len(rows(db, "select * from two_tower.recommend_for(%s, 10)", other)) == 10
    left = traces(db, other)
    lost = {name for name in others if left.get(name, 0) < others[name]}
    # Of others goes what was about the user, and what waited and is done.
    about = {"follows.follower_id", "follows.followed_id", "blocks.user_id"}
    assert lost <= {
        *(f"{schema}.{name}" for schema in ("public", "two_tower") for name in about),
        *("public.author_blocks.user_id", "two_tower.author_steps.user_id"),
        *("two_tower.deferred_events.user_id", "two_tower.deferred_steps.user_id"),
        "two_tower.schedule_counts.user_id",
    }
