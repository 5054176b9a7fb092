"""Posts are drawn by dense numbers, whatever their ids are, and however many were deleted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from python_jobs.db import Connection, value
from tests.support.database import add_user
from tests.support.engagements import Stream, add_posts, base_vectors, insert_events, store
from tests.support.invariants import assert_consistent
from tests.support.learning import World, rng
from tests.support.patience import wait_until
from tests.support.reference import Event
from tests.support.statistics import assert_uniform

BATCH = 100
ACTIVE = "slot = (select active_slot from two_tower.state)"
# How many rows of posts the transaction has read so far.
ROWS_READ = (
    "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables"
    " where relid = 'two_tower.live_embeddings'::regclass"
)


def add_posts_with_ids(connection: Connection, post_ids: Sequence[int], author: str) -> None:
    """Registers posts in the order given and encodes them, in batches in an order of their own."""
    shuffle = random.Random(5)
    for start in range(0, len(post_ids), BATCH):
        batch = list(post_ids[start : start + BATCH])
        connection.execute(
            "insert into two_tower.posts (id, source_id, key, author_key, created_at, arrived_at,"
            " content_hash) select i, s.id, i::text, %s, two_tower.now(), two_tower.now(), i"
            " from unnest(%s::bigint[]) i cross join two_tower.sources s where s.role = 'posts'",
            [author, batch],
        )
        shuffle.shuffle(batch)
        store(connection, batch, base_vectors(rng(), len(batch)))


def list_posts(connection: Connection, post_ids: Sequence[int], *, listed: bool = True) -> None:
    """Lists posts or takes them off the list, and carries that on, as a tick does."""
    connection.execute(
        "update two_tower.posts set is_visible = %s where id = any (%s)", [listed, list(post_ids)]
    )
    connection.execute(
        "insert into two_tower.post_changes (post_id) select unnest(%s::bigint[])", [list(post_ids)]
    )
    connection.execute("select two_tower.apply_post_changes(100000)")


def numbers(connection: Connection) -> dict[int, int]:
    """The number of each post that has one, by id."""
    return dict(
        connection.execute(
            f"select post_id, number from two_tower.live_embeddings"  # type: ignore[arg-type]
            f" where {ACTIVE} and number is not null"
        ).fetchall()
    )


def compact(connection: Connection, limit: int = 1000) -> int:
    """Takes steps until two rounds over all numbers had nothing to do; returns how many did."""
    steps = idle = 0
    while idle < 4 + 2 * len(numbers(connection)) // limit:
        moved = value(connection, "select two_tower.compact_numbers(%s)", limit)
        assert 0 <= moved <= limit
        steps, idle = (steps + 1, 0) if moved else (steps, idle + 1)
        assert steps < 1000, "it never ends"
    return steps


def assert_dense(connection: Connection) -> None:
    found = sorted(numbers(connection).values())
    assert found == list(range(found[0], found[0] + len(found)))
    wanted = value(connection, f"select count(*) from two_tower.live_embeddings where {ACTIVE}"
                               " and is_listed")  # fmt: skip
    assert len(found) == wanted


IDS = {
    "one huge id": [*range(1, 400), 1790000000000000, *range(401, 1001)],
    "burnt ids": [*range(1, 701), *range(5000001, 5000301)],
    "gaps": list(range(1, 50001, 50)),
    "ids that count down": list(range(-1, -1001, -1)),
}


@pytest.mark.parametrize("post_ids", IDS.values(), ids=IDS)
def test_draws_are_right_and_take_one_round_whatever_the_ids_are(
    db: Connection, post_ids: list[int]
) -> None:
    author = add_user(db)
    users = [add_user(db) for _ in range(60)]
    add_posts_with_ids(db, post_ids, author)
    db.execute("update two_tower.settings set recent_posts_pool = 100")
    given = numbers(db)
    assert sorted(given, key=lambda post_id: given[post_id]) == post_ids

    # A plan that was made for an empty table may read it by another index.
    db.execute("analyze two_tower.live_embeddings")
    before = value(db, ROWS_READ)
    for user in users:
        insert_events(db, [Event(user, post_ids[0], "like")])
    # A round tries 9 recent numbers and 9 of any post; the next one six times as many.
    assert (value(db, ROWS_READ) - before) / len(users) < 50
    negatives = {
        post_id
        for (ids,) in db.execute("select negative_ids from two_tower.training_examples")
        for post_id in ids
    }
    assert negatives <= set(post_ids[-100:])
    assert len(negatives) > 80
    pushed = Counter(
        post_id
        for (ids,) in db.execute("select pushed_ids from two_tower.deferred_steps")
        for post_id in ids
    )
    assert sum(pushed.values()) == 8 * len(users)
    assert len(pushed) > 300
    assert value(db, "select count(*) from two_tower.random_posts_as_of(7, 500)") == 500


def test_after_deletes_the_numbers_are_closed_and_draws_stay_uniform(db: Connection) -> None:
    author = add_user(db)
    users = [add_user(db) for _ in range(400)]
    post_ids = list(range(1, 1501))
    add_posts_with_ids(db, post_ids, author)
    db.execute("update two_tower.settings set recent_posts_pool = 100")
    left = sorted(random.Random(3).sample(post_ids, 200))
    gone = sorted(set(post_ids) - set(left))
    list_posts(db, gone, listed=False)
    assert set(numbers(db)) == set(left)

    assert compact(db, limit=25) > 5
    assert_dense(db)
    given = numbers(db)
    newest = sorted(given, key=lambda post_id: given[post_id])[-100:]
    assert sorted(newest) == left[-100:]

    liked, candidates = left[0], left[1:]
    insert_events(db, [Event(user, liked, "like") for user in users])
    drawn = Counter(
        post_id
        for (ids,) in db.execute("select pushed_ids from two_tower.deferred_steps")
        for post_id in ids
    )
    assert sum(drawn.values()) == 8 * len(users)
    assert_uniform(drawn, candidates)
    recent = Counter(
        post_id
        for (ids,) in db.execute("select negative_ids from two_tower.training_examples")
        for post_id in ids
    )
    assert_uniform(recent, left[-100:])


def test_numbers_that_were_burnt_by_aborted_encodings_are_closed(db: Connection) -> None:
    world = World(db, posts=150)
    value(db, "select setval('two_tower.post_numbers', 5000000)")
    newest = add_posts(db, 20, [world.author], rng())
    compact(db, limit=40)
    assert_dense(db)
    given = numbers(db)
    assert sorted(given, key=lambda post_id: given[post_id])[-20:] == newest
    assert min(given.values()) > 4_999_000


def test_a_restored_post_is_drawn_again_as_one_of_the_newest(db: Connection) -> None:
    world = World(db, posts=60)
    first = world.post_ids[0]
    list_posts(db, [first], listed=False)
    assert first not in numbers(db)
    for _ in range(5):
        list_posts(db, [first])
        list_posts(db, [first], listed=False)
    list_posts(db, [first])
    # A client that deletes and restores burns no number.
    assert value(db, "select last_value from two_tower.post_numbers") == max(numbers(db).values())
    assert value(db, "select two_tower.compact_numbers()") == 1
    compact(db)
    assert_dense(db)
    assert numbers(db)[first] == max(numbers(db).values())


def test_numbers_are_the_same_in_a_slot_that_is_filled(db: Connection) -> None:
    author = add_user(db)
    post_ids = [*range(-1, -301, -1), *range(1, 101)]
    add_posts_with_ids(db, post_ids, author)
    list_posts(db, [post_id for post_id in post_ids if post_id % 3 == 0], listed=False)
    value(db, "select two_tower.checkpoint('operator')")
    for _ in range(2):
        # A row of the slot that served before may have missed a change.
        db.execute(
            f"update two_tower.live_embeddings set number = null"  # type: ignore[arg-type]
            f" where not {ACTIVE} and post_id = -2"
        )
        value(db, "select two_tower.rollback()")
        value(db, "select two_tower.fill_slot(100)")
        list_posts(db, [-1, -200, 100], listed=False)
        compact(db, limit=30)
        before = numbers(db)
        slot = value(db, "select active_slot from two_tower.state")
        wait_until(
            lambda: (
                value(db, "select two_tower.take_step()") is not None
                and value(db, "select filling_version is null from two_tower.state")
            )
        )
        assert value(db, "select active_slot from two_tower.state") != slot
        assert_consistent(db)
        compact(db)
        assert_dense(db)
        assert set(numbers(db)) == set(before)
        list_posts(db, [-1, -200, 100])


def test_the_round_of_the_serving_index_meets_ids_below_zero(db: Connection) -> None:
    add_posts_with_ids(db, list(range(-1, -101, -1)), add_user(db))
    list_posts(db, range(-100, -90), listed=False)
    for left in (90, 80):
        for _ in range(5):
            value(db, "select two_tower.refresh_serving_index(30)")
        assert value(db, "select count(*) from two_tower.exploration_pool") == left
        list_posts(db, range(-90, -80), listed=False)


def test_an_update_of_a_vector_touches_no_index(db: Connection) -> None:
    world = World(db, posts=60)
    updates = (
        "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables"
        " where relid = 'two_tower.live_embeddings'::regclass"
    )
    (before,) = db.execute(updates)
    for number, post_id in enumerate(world.post_ids[::2]):
        world.send("like", post_id, world.user_ids[number % 2])
    value(db, "select two_tower.fold_steps(null)")
    (after,) = db.execute(updates)
    # Each like its own post, and the fold those that were engaged with.
    assert after[0] - before[0] > 40
    assert after[1] - before[1] == after[0] - before[0]


def test_two_sessions_that_encode_at_once_give_different_numbers(
    open_connection: Callable[..., Connection],
) -> None:
    first, second = open_connection(), open_connection()
    # Whoever waits for the other session here waits for itself.
    second.execute("set lock_timeout = '5min'")
    world = World(first, posts=100)
    mine, others, lost = (add_posts(first, 30, [world.author]) for _ in range(3))
    list_posts(first, [world.post_ids[10]], listed=False)
    with first.transaction():
        store(first, mine, base_vectors(rng(), 30))
        store(second, others, base_vectors(rng(), 30))
        # What the first session gave and has not committed is no hole.
        assert value(second, "select two_tower.compact_numbers()") == 0
    with first.transaction(force_rollback=True):
        store(first, lost, base_vectors(rng(), 30))
    store(second, lost, base_vectors(rng(), 30))
    given = numbers(first)
    assert len(set(given.values())) == len(given) == 189
    assert max(given.values()) - min(given.values()) == 219
    compact(second)
    assert_dense(first)
    assert_consistent(first)


def test_numbers_are_compacted_beside_writers_of_all_kinds(
    open_connection: Callable[..., Connection],
) -> None:
    first = open_connection()
    world = World(first, users=12, posts=200)
    first.execute("update two_tower.settings set recent_posts_pool = 30")
    value(first, "select two_tower.checkpoint('operator')")
    rounds = 60

    def like(connection: Connection, seed: int) -> None:
        stream = Stream(rng(seed), world.user_ids, world.post_ids[:20])
        for _ in range(rounds):
            insert_events(connection, stream.next(int(stream.rng.integers(1, 6))))

    def encode(connection: Connection, seed: int) -> None:
        for k in range(rounds // 2):
            posts = add_posts(connection, 4, [world.author])
            with connection.transaction(force_rollback=k % 5 == 0):
                store(connection, posts, base_vectors(rng(seed), 4))

    def hide(connection: Connection, seed: int) -> None:
        choose = random.Random(seed)
        for k in range(2 * rounds):
            change = "null" if k % 3 == 0 else "now()"
            connection.execute(
                f"update public.posts set deleted_at = {change}"  # type: ignore[arg-type]
                " where id = any (%s)",
                [choose.sample(world.post_ids, 4)],
            )
            connection.execute("select two_tower.apply_post_changes()")

    def fold(connection: Connection, _: int) -> None:
        for _ in range(rounds):
            value(connection, "select two_tower.fold_steps(20)")

    def switch(connection: Connection, _: int) -> None:
        for _ in range(2):
            value(connection, "select two_tower.begin_switch("
                              "two_tower.active_version('candidate_tower'))")  # fmt: skip
            wait_until(
                lambda: (
                    value(connection, "select two_tower.fill_slot(40)") == 0
                    and value(connection, "select two_tower.flip_slots()")
                )
            )

    work = [like, like, encode, encode, hide, hide, fold, switch]
    sessions = [open_connection() for _ in work]
    with ThreadPoolExecutor(len(work)) as pool:
        running: list[Future[None]] = [
            pool.submit(one, session, seed)
            for seed, (one, session) in enumerate(zip(work, sessions, strict=True))
        ]
        moved = 0
        while not all(future.done() for future in running):
            moved += value(first, "select two_tower.compact_numbers(50)")
        for future in running:
            future.result()
    assert moved > 0
    value(first, "select two_tower.apply_post_changes()")
    assert_consistent(first)
    compact(first)
    assert_dense(first)
    assert_consistent(first)
