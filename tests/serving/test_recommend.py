"""recommend: nothing that is not eligible, nothing left out, however few are left."""

from __future__ import annotations

import random
import uuid

import numpy as np
import pytest

from python_jobs.db import Connection
from tests.support.database import add_user
from tests.support.engagements import add_posts

RANKED = "select post_id, score, source from two_tower.recommend_for(%s, %s, %s)"


class World:
    """A random world: users, encoded posts, events, blocks; and the rules of who may see what."""

    def __init__(self, db: Connection, seed: int, posts: int = 120) -> None:
        self.db = db
        chance = random.Random(seed)
        self.users = [add_user(db, uuid.UUID(int=chance.getrandbits(128))) for _ in range(6)]
        self.author: dict[int, str | None] = {}
        for number in range(posts):
            author = chance.choice([*self.users[3:], None])
            row = db.execute(
                "insert into public.posts (author_id, content) values (%s, %s) returning id",
                [author, f"post {number}"],
            ).fetchone()
            assert row is not None
            self.author[row[0]] = author
        self.posts = list(self.author)
        vectors = np.random.default_rng(seed).normal(size=(posts, 384)).astype(np.float32)
        db.execute(
            "select two_tower.store_base_embeddings(%s::bigint[], %s)", [self.posts, list(vectors)]
        )
        self.gone: dict[str, set[int]] = {user: set() for user in self.users}
        self.blocks: set[tuple[str, str]] = set()
        kinds = ["view", "like", "skip", "hide", "click"]
        for user in self.users[:4]:
            for post in chance.sample(self.posts, chance.randrange(0, posts // 2)):
                self.act(user, post, chance.choice(kinds))
        for _ in range(2):
            post = chance.choice([p for p, author in self.author.items() if author])
            self.act(self.users[0], post, chance.choice(["block_author", "mute_author"]))
        self.deleted = set(chance.sample(self.posts, 10))
        db.execute(
            "update public.posts set deleted_at = now() where id = any (%s)", [list(self.deleted)]
        )
        db.execute("select two_tower.apply_post_changes()")

    def act(self, user: str, post: int, kind: str) -> None:
        """One event."""
        self.db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, %s)",
            [user, post, kind],
        )
        self.gone[user].add(post)
        author = self.author[post]
        if kind in ("block_author", "mute_author") and author and author != user:
            self.blocks.add((user, author))
            if kind == "block_author":
                self.blocks.add((author, user))

    def eligible(self, user: str, exclude: set[int]) -> set[int]:
        """What the rules leave for a user."""
        return {
            post
            for post, author in self.author.items()
            if post not in self.deleted | self.gone[user] | exclude
            and author != user
            and (user, author) not in self.blocks
        }


def test_the_personal_part_is_the_cosine_with_the_re_encoded_user(
    db: Connection,
) -> None:
    world = World(db, seed=11)
    db.execute("update two_tower.settings set cold_until = 0, popularity_weight = 0")
    user = world.users[1]
    world.act(user, world.posts[0], "like")
    rows = db.execute(
        "select s.post_id, s.personal, v.embedding"
        " from two_tower.score_posts(two_tower.load_reader(%s), %s::bigint[]) s"
        " join two_tower.live_embeddings v using (post_id)",
        [user, world.posts],
    ).fetchall()
    row = db.execute("select two_tower.encode_user(%s)", [user]).fetchone()
    assert row is not None
    vector = np.asarray(row[0].to_numpy() if hasattr(row[0], "to_numpy") else row[0])
    for _, personal, embedding in rows:
        live = np.asarray(embedding.to_numpy() if hasattr(embedding, "to_numpy") else embedding)
        assert abs(personal - float(vector @ live)) < 1e-5


def test_a_user_of_whom_nothing_is_known_gets_popular_and_fresh_posts(
    db: Connection,
) -> None:
    world = World(db, seed=5)
    hit = next(p for p in world.posts if p not in world.deleted)
    for user in world.users[1:3]:
        world.act(user, hit, "repost")
    newcomer = add_user(db)
    db.execute("update two_tower.settings set exploration_share = 0")
    rows = db.execute(RANKED, [newcomer, 5, []]).fetchall()
    assert rows[0][0] == hit or rows[0][1] >= 1
    assert {row[2] for row in rows} <= {"popular", "fresh"}


def test_warmth_grows_without_a_cliff(db: Connection) -> None:
    world = World(db, seed=6)
    db.execute("update two_tower.settings set cold_until = 10")
    user = add_user(db)
    world.gone[user] = set()
    warmth, popular = [], []
    for post in [p for p in world.posts if p not in world.deleted][:20]:
        row = db.execute(
            "select r.warmth, (select max(s.popular)"
            " from two_tower.score_posts(r, %s::bigint[]) s) as popular"
            " from two_tower.load_reader(%s) r",
            [world.posts, user],
        ).fetchone()
        assert row is not None
        warmth.append(row.warmth)
        popular.append(row.popular)
        world.act(user, post, "like")
    steps = np.diff(warmth)
    assert (warmth[0], warmth[-1]) == (0, 1)
    # The first engagement says most: the root of its share. Each later one changes less.
    assert steps.max() < np.sqrt(1 / 10) + 1e-6
    assert np.all(np.diff(steps[:10]) < 1e-6)
    assert popular[0] > 2 * popular[-1] > 0


@pytest.mark.parametrize(("limit", "expected"), [(None, 20), (0, 1), (-5, 1), (10**6, 120)])
def test_the_limit_is_clamped(db: Connection, limit: int | None, expected: int) -> None:
    world = World(db, seed=7)
    user = add_user(db)
    eligible = len(world.posts) - len(world.deleted)
    rows = db.execute(RANKED, [user, limit, None]).fetchall()
    assert len(rows) == min(expected, eligible)


def test_without_any_encoded_post_the_newest_posts_come(db: Connection) -> None:
    user = add_user(db)
    db.execute(
        "insert into public.posts (author_id, content) values (null, 'a'), (%s, 'b')", [user]
    )
    rows = db.execute(RANKED, [user, 5, []]).fetchall()
    assert [row[2] for row in rows] == ["recent"]


def test_an_empty_database_gives_an_empty_page(db: Connection) -> None:
    assert db.execute(RANKED, [add_user(db), 5, []]).fetchall() == []


def test_recommend_writes_nothing(db: Connection) -> None:
    world = World(db, seed=9, posts=30)
    db.execute("set transaction read only")
    assert db.execute(RANKED, [world.users[0], 5, []]).fetchall()


def test_followed_authors_count_at_once(db: Connection) -> None:
    world = World(db, seed=12)
    newcomer, author = add_user(db), world.users[4]
    before = [row[0] for row in db.execute(RANKED, [newcomer, 10, []])]
    db.execute("insert into public.follows values (%s, %s)", [newcomer, author])
    after = db.execute(RANKED, [newcomer, 10, []]).fetchall()
    theirs = [row for row in after if world.author[row[0]] == author]
    assert len(theirs) > sum(world.author[post] == author for post in before)


def test_explored_posts_are_spread_over_all_new_posts_and_leave_when_they_were_shown(
    db: Connection,
) -> None:
    db.execute("update two_tower.settings set exploration_share = .2, exploration_impressions = 3")
    vectors = np.random.default_rng(13).normal(size=(100, 384)).astype(np.float32)
    posts = [
        row[0]
        for row in db.execute(
            "insert into public.posts (author_id, content) select null, 'p' || n"
            " from generate_series(1, 100) n returning id"
        )
    ]
    db.execute("select two_tower.store_base_embeddings(%s::bigint[], %s)", [posts, list(vectors)])
    explored: list[int] = []
    for _ in range(60):
        reader = add_user(db)
        rows = db.execute(RANKED, [reader, 20, []]).fetchall()
        shown = [row[0] for row in rows if row[2] == "exploration"]
        assert len(shown) == 4 or len(shown) == 5
        explored += shown
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, p, 'view' from unnest(%s::bigint[]) p",
            [reader, shown],
        )
        db.execute("select two_tower.follow_events()")
    counts = [explored.count(post) for post in posts]
    assert max(counts) == 3
    assert sum(count > 0 for count in counts) > 75
    left = db.execute("select post_id from two_tower.exploration_pool").fetchall()
    assert {row[0] for row in left} == {p for p, n in zip(posts, counts, strict=True) if n < 3}


def test_a_share_of_less_than_a_post_is_a_post_on_some_pages(db: Connection) -> None:
    World(db, seed=14)
    pages = [db.execute(RANKED, [add_user(db), 5, []]).fetchall() for _ in range(60)]
    explored = [sum(row[2] == "exploration" for row in page) for page in pages]
    assert set(explored) == {0, 1}


def test_a_page_is_read_by_key_however_small_the_tables_were_at_first(
    db: Connection,
) -> None:
    # Plans stay with the session: one made for an empty table is used when it is full.
    world = World(db, seed=16)
    db.execute("select two_tower.refresh_popular_candidates()")
    db.execute("analyze")
    query = (
        "select relname, seq_scan from pg_stat_xact_user_tables where seq_scan > 0 and relname ~"
        " '^(posts|follows|author_blocks|user_|live_|exploration_|popular_|engagement_)'"
    )
    before = db.execute(query).fetchall()
    newcomer = add_user(db)
    db.execute("insert into public.follows values (%s, %s)", [newcomer, world.users[3]])
    for _ in range(3):
        assert len(db.execute(RANKED, [newcomer, 20, []]).fetchall()) == 20
    assert db.execute(query).fetchall() == before


def test_a_positive_engagement_or_a_deletion_ends_the_exploration_of_a_post(
    db: Connection,
) -> None:
    world = World(db, seed=15, posts=20)
    db.execute("select two_tower.refresh_serving_index()")
    engaged = {
        row[0]
        for row in db.execute(
            "select e.post_id from public.engagement_events e join two_tower.signals s"
            " using (event_type) join public.posts p on p.id = e.post_id"
            " where s.strength > 0 and p.author_id is distinct from e.user_id"
        )
    }
    pool = {row[0] for row in db.execute("select post_id from two_tower.exploration_pool")}
    assert pool == set(world.posts) - engaged - world.deleted


@pytest.mark.parametrize(
    ("broken", "source"),
    [
        ([], {"personal", "popular", "fresh", "exploration"}),
        (
            ["make_page(two_tower.reader, integer, bigint[], bigint[])"],
            {"content", "popular", "recent"},
        ),
        (
            [
                "make_page(two_tower.reader, integer, bigint[], bigint[])",
                "take_turns(uuid, integer, uuid[])",
            ],
            set(),
        ),
    ],
)
def test_what_fails_is_made_up_for_by_simpler_rules(
    db: Connection, broken: list[str], source: set[str]
) -> None:
    world = World(db, seed=16)
    reader = world.users[1]
    db.execute("select two_tower.refresh_popular_candidates()")
    warnings: list[str] = []
    db.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    for number, function in enumerate(broken):
        db.execute(f"alter function two_tower.{function} rename to broken_{number}".encode())
    rows = db.execute(RANKED, [reader, 30, []]).fetchall()
    eligible = world.eligible(reader, set())
    assert {row[0] for row in rows} <= eligible
    assert len(rows) == (30 if source else 0)
    assert {row[2] for row in rows} <= source
    assert bool(warnings) == bool(broken)
    if len(broken) == 1:
        assert rows[0][2] == "content"


def test_an_author_fills_no_page_while_others_are_left(db: Connection) -> None:
    world = World(db, seed=17)
    db.execute("update two_tower.settings set author_share = 0.25, exploration_share = 0")
    rows = db.execute(RANKED, [world.users[0], 8, []]).fetchall()
    by_author = [world.author[row[0]] for row in rows if world.author[row[0]]]
    assert max(by_author.count(author) for author in by_author) <= 2


def test_one_reader_who_skips_a_new_post_does_not_end_its_exploration(db: Connection) -> None:
    author, reader, other = (add_user(db) for _ in range(3))
    db.execute("update two_tower.settings set exploration_age = '100 years'")
    posts = add_posts(db, 4, [author], np.random.default_rng(15))
    send = (
        "insert into public.engagement_events (user_id, post_id, event_type, dwell_ms)"
        " values (%s, %s, %s, %s)"
    )
    for user, post, kind, dwell_ms in (
        *((reader, posts[0], "view", None) for _ in range(9)),
        (reader, posts[0], "skip", None),
        (reader, posts[1], "dwell", 900),
        (author, posts[2], "like", None),
        (other, posts[3], "like", None),
    ):
        db.execute(send, [user, post, kind, dwell_ms])
    db.execute("select two_tower.follow_events()")
    left = db.execute("select post_id, impressions from two_tower.exploration_pool").fetchall()
    assert dict(left) == {posts[0]: 1, posts[1]: 0, posts[2]: 0}
