"""Several interests: a page has a place for each, and a reader of one notices nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from python_jobs.operations.switch import finish_switch
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, delete_posts, store
from tests.support.reference import BASE_DIMENSIONS

PAGE = "select post_id, score, source from two_tower.recommend_for(%s, %s)"
INTERESTS = "select interest, vector::real[] as vector, weight from two_tower.list_interests(%s)"


class World:
    """Posts about five subjects, by many authors, and one reader."""

    def __init__(self, db: Connection, posts: int = 60) -> None:
        self.db = db
        self.rng = np.random.default_rng(18)
        self.centres = self.rng.normal(size=(5, BASE_DIMENSIONS))
        self.reader = add_user(db)
        self.authors = [add_user(db) for _ in range(40)]
        db.execute("update two_tower.settings set learned_events_per_minute = 1000")
        self.subject: dict[int, int] = {}
        self.posts = [self.write(subject, posts) for subject in range(5)]

    def write(self, subject: int, count: int, authors: Sequence[str] = ()) -> list[int]:
        """Posts about a subject: two of them have a cosine of about two thirds."""
        ids = add_posts(self.db, count, authors or list(self.rng.permutation(self.authors)))
        noise = 0.7 * self.rng.normal(size=(count, BASE_DIMENSIONS))
        store(self.db, ids, (self.centres[subject] + noise).tolist())
        self.subject |= dict.fromkeys(ids, subject)
        return ids

    def send(self, posts: Sequence[int], kind: str = "like", reader: str = "") -> None:
        """One statement, an event a post."""
        self.db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, p, %s from unnest(%s::bigint[]) with ordinality as x (p, n) order by n",
            [reader or self.reader, kind, list(posts)],
        )

    def page(self, limit: int = 20) -> list[int]:
        """A page of the reader."""
        return [row.post_id for row in rows(self.db, PAGE, self.reader, limit)]

    def subjects(self, posts: Sequence[int]) -> Counter[int]:
        """How many of the posts are about each subject."""
        return Counter(self.subject[post] for post in posts)

    def interests(self) -> dict[int, float]:
        """The subject that each interest is about, and the weight."""
        vectors = {
            row.post_id: np.array(row.vector)
            for row in rows(
                self.db,
                "select post_id, embedding::real[] as vector from two_tower.post_embeddings",
            )
        }
        found: dict[int, float] = {}
        for row in rows(self.db, INTERESTS, self.reader):
            nearest = max(vectors, key=lambda post: float(vectors[post] @ np.array(row.vector)))
            found[self.subject[nearest]] = found.get(self.subject[nearest], 0) + row.weight
        return found

    def list(self) -> list[tuple[int, int]]:
        """The reader's positives with their numbers."""
        (row,) = rows(
            self.db,
            "select positive_ids, positive_interests from two_tower.user_embeddings"
            " where user_id = %s",
            self.reader,
        )
        return list(zip(row.positive_ids, row.positive_interests, strict=True))


@pytest.fixture
def world(db: Connection) -> World:
    return World(db)


def build_index(db: Connection) -> None:
    db.execute("update two_tower.settings set exact_scan_limit = 0")
    db.execute("select two_tower.build_serving_index('test')")


@pytest.mark.parametrize("is_indexed", [False, True])
def test_25_likes_of_one_subject_are_not_forgotten_for_5_of_another(
    world: World, is_indexed: bool
) -> None:
    world.send([*world.posts[0][:25], *world.posts[1][:5]])
    if is_indexed:
        build_index(world.db)
    found = world.interests()
    assert set(found) == {0, 1}
    assert found[0] == pytest.approx(0.764, abs=0.001)  # sums of .97^k: 15.3 of 20
    page = world.page()
    assert len(page) == len(set(page)) == 20
    shown = world.subjects(page)
    assert shown[0] >= 12  # .8 * .764 * 20
    assert shown[1] >= 3


@pytest.mark.parametrize("is_indexed", [False, True])
def test_three_subjects_liked_in_turn_are_all_on_the_page(world: World, is_indexed: bool) -> None:
    world.send([post for turn in zip(*world.posts[:3], strict=True) for post in turn][:30])
    if is_indexed:
        build_index(world.db)
    shown = world.subjects(world.page())
    assert min(shown[subject] for subject in range(3)) >= 5


def test_twelve_scrolled_pages_go_on_about_all_three_subjects(
    db: Connection,
) -> None:
    world = World(db, posts=120)
    world.send([post for subject in range(3) for post in world.posts[subject][:5]])
    pages = []
    for _ in range(12):
        page = world.page()
        pages.append(world.subjects(page))
        world.send(page, "view")
        own = [post for post in page if world.subject[post] < 3]
        world.send([post for post in own if world.rng.random() < 0.7])
    for subject in range(3):
        assert min(page[subject] for page in pages[:5]) >= 2
        assert sum(page[subject] for page in pages) >= 15


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_scroll_gives_each_subject_its_share_also_one_of_less_than_a_place_a_page(
    db: Connection, is_indexed: bool
) -> None:
    world = World(db, posts=120)
    # Weights by decay .97: about .63, .26 and .11, which is less than a place of ten.
    world.send([*world.posts[2][:5], *world.posts[1][:8], *world.posts[0][:17]])
    if is_indexed:
        build_index(db)
    db.execute("update two_tower.settings set exploration_share = 0, popularity_weight = 0")
    weights = world.interests()
    assert set(weights) == {0, 1, 2}
    assert 0.1 <= weights[2] < 0.125
    shown: Counter[int] = Counter()
    cursor = None
    for number in range(1, 11):
        with as_user(db, world.reader):
            page = rows(db, "select * from public.recommend(10, p_cursor => %s)", cursor)
        assert len(page) == 10
        cursor = page[-1].cursor
        shown += world.subjects([row.post_id for row in page])
        for subject, weight in weights.items():
            # .8 of its weight, but for what is not a whole place and for posts between subjects.
            assert shown[subject] >= 0.8 * weight * 10 * number - 2, (number, shown, weights)
    assert shown[2] >= 4


@pytest.mark.parametrize("is_indexed", [False, True])
def test_the_page_of_a_reader_of_one_interest_is_that_of_the_one_vector(
    world: World, is_indexed: bool
) -> None:
    world.send(world.posts[2][:15])
    if is_indexed:
        build_index(world.db)
    assert set(world.interests()) == {2}
    page = rows(world.db, PAGE, world.reader, 20)
    world.db.execute("update two_tower.settings set interest_share = 0")
    assert rows(world.db, PAGE, world.reader, 20) == page


def test_without_an_index_one_scan_finds_what_all_interests_are_owed(world: World) -> None:
    world.send([*world.posts[0][:10], *world.posts[1][:10], *world.posts[2][:10]])
    assert len(rows(world.db, INTERESTS, world.reader)) == 3
    posts = value(world.db, "select count(*) from two_tower.live_embeddings")
    read = (
        "select seq_tup_read + idx_tup_fetch from pg_stat_xact_all_tables"
        " where relname = 'live_embeddings'"
    )
    loaded = "select two_tower.load_reader(%s)"
    found = "select two_tower.find_interest_posts(two_tower.load_reader(%s), '{}')"
    before = value(world.db, read)
    value(world.db, loaded, world.reader)
    between = value(world.db, read)
    assert len(value(world.db, found, world.reader)) >= 3 * 20
    assert value(world.db, read) - between <= between - before + posts


def test_owed_places_stand_last_and_take_nothing_from_the_best_of_the_page(world: World) -> None:
    world.db.execute("update two_tower.settings set exploration_share = 0")
    world.send([*world.posts[0][:25], *world.posts[1][:5]])
    page = rows(world.db, PAGE, world.reader, 20)
    world.db.execute("update two_tower.settings set interest_share = 0")
    by_vector = rows(world.db, PAGE, world.reader, 20)
    owed = 20 - len({row.post_id for row in page} & {row.post_id for row in by_vector})
    assert owed >= 8
    assert page[: 20 - owed] == [row for row in by_vector if row in page]
    assert {world.subject[row.post_id] for row in page[20 - owed :]} == {0}


def test_a_cold_reader_and_one_who_likes_nothing_have_no_owed_places(world: World) -> None:
    assert rows(world.db, INTERESTS, world.reader) == []
    loaded = "select (two_tower.load_reader(%s)).interest_places"
    world.db.execute("update two_tower.settings set cold_until = 10")
    world.send(world.posts[0][:3], "skip")
    assert rows(world.db, INTERESTS, world.reader) == []
    world.send([*world.posts[1][:3], *world.posts[2][:3]])
    assert len(rows(world.db, INTERESTS, world.reader)) == 2
    assert value(world.db, loaded, world.reader) is None
    world.send([*world.posts[1][3:5]])
    assert value(world.db, loaded, world.reader) is not None


def test_an_interest_of_less_than_a_tenth_is_left_out(world: World) -> None:
    world.send([*world.posts[0][:2], *world.posts[1][:30]])
    assert world.interests() == {1: pytest.approx(1)}
    assert {number for _, number in world.list()} == {1, 2}


def test_owed_places_are_within_the_cap_on_authors_and_of_no_muted_one(
    db: Connection,
) -> None:
    world = World(db)
    loud, muted = world.authors[:2]
    liked = [*world.write(0, 12), *world.write(1, 12)]
    world.write(1, 40, [loud, muted])
    world.send([*liked[12:], *liked[:12]])
    world.send(world.write(3, 1, [muted]), "mute_author")
    for limit in (10, 20, 100):
        authors = Counter(
            row.author for row in rows(
                db,
                "select author_id::text as author from two_tower.recommend_for(%s, %s)",
                world.reader, limit,
            )
        )  # fmt: skip
        assert authors[muted] == 0
        assert authors[loud] <= max(1, limit // 20)
    world.send(liked[12:], "unlike")
    assert set(world.interests()) == {0}


def test_where_an_interest_has_nothing_left_others_fill_the_page(world: World) -> None:
    world.send([*world.posts[0][:20], *world.posts[1][:20]])
    delete_posts(world.db, [post for post in world.posts[0] if post not in world.posts[0][:20]])
    page = world.page()
    assert len(set(page)) == 20
    assert world.subjects(page)[0] == 0


def test_a_post_liked_and_reposted_stands_once_and_goes_with_the_like(world: World) -> None:
    world.send(world.posts[0][:3])
    before = world.list()
    world.send(world.posts[0][:2], "repost")
    assert world.list() == before
    world.send(world.posts[1][:1])
    world.send(world.posts[1][:1], "unlike")
    assert world.list() == before
    world.send(world.posts[0][:3], "unlike")
    assert world.list() == []
    assert value(world.db, "select interest_sums from two_tower.user_embeddings where user_id = %s",
                 world.reader) == [None, None]  # fmt: skip


def test_a_fifth_interest_takes_the_place_of_the_lightest(world: World) -> None:
    for subject, count in ((0, 4), (1, 2), (2, 4), (3, 3)):
        world.send(world.posts[subject][:count])
    assert set(world.interests()) == {0, 1, 2, 3}
    world.send(world.posts[4][:5])
    assert set(world.interests()) == {0, 2, 3, 4}
    assert not {post for post, _ in world.list()} & set(world.posts[1])


def test_only_the_last_positives_are_kept(world: World) -> None:
    world.db.execute("update two_tower.settings set interest_length = 12")
    world.send([*world.posts[0][:10], *world.posts[1][:10]])
    assert [post for post, _ in world.list()] == [*world.posts[0][8:10], *world.posts[1][:10]]
    world.send(world.posts[1][10:13])
    assert {number for _, number in world.list()} == {2}
    # The first number is free again, and the next interest gets it.
    world.send(world.posts[2][:1])
    assert world.list()[-1] == (world.posts[2][0], 1)


def test_numbers_follow_vectors_that_moved(world: World) -> None:
    """Numbers by chance, as after years of movement: the walk sorts them out."""
    world.send([*world.posts[0][:20], *world.posts[1][:15], *world.posts[2][:10]])
    numbers = [1 + (k > 15) + (k > 33) for k in range(45)]
    world.db.execute(
        "update two_tower.user_embeddings set positive_interests = %s::smallint[]"
        " where user_id = %s",
        [numbers, world.reader],
    )
    value(world.db, "select two_tower.request_regrouping()")
    while value(world.db, "select two_tower.regroup_interests(1)"):
        pass
    assert value(world.db, "select regrouped_up_to from two_tower.state") is None
    found = {(world.subject[post], number) for post, number in world.list()}
    assert len(found) == 3
    assert [post for post, _ in world.list()] == [
        *world.posts[0][:20], *world.posts[1][:15], *world.posts[2][:10]
    ]  # fmt: skip
    # The sums are those of the new numbers: what comes next finds its interest.
    world.send([world.posts[subject][25] for subject in range(3)])
    assert len({(world.subject[post], number) for post, number in world.list()}) == 3


def test_two_interests_that_are_one_become_one(world: World) -> None:
    world.send([*world.posts[0][:12], *world.posts[1][:12]])
    world.db.execute(
        "update two_tower.user_embeddings set positive_interests = %s::smallint[]"
        " where user_id = %s",
        [[1 + 2 * (k % 2) for k in range(12)] + [2] * 12, world.reader],
    )
    value(world.db, "select two_tower.request_regrouping()")
    value(world.db, "select two_tower.regroup_interests()")
    assert len({number for _, number in world.list()}) == 2
    assert len({(world.subject[post], number) for post, number in world.list()}) == 2


def test_a_walk_leaves_out_who_was_away_and_forgets_posts_that_are_gone(world: World) -> None:
    away = add_user(world.db)
    for reader in (world.reader, away):
        world.send([*world.posts[0][:6], *world.posts[1][:6]], reader=reader)
    world.db.execute(
        "update two_tower.user_embeddings set positive_interests = array_fill(1::smallint, '{12}'),"
        " updated_at = updated_at - case when user_id = %s then interval '8 days' else '0' end",
        [away],
    )
    world.db.execute("delete from two_tower.posts where id = %s", [world.posts[0][0]])
    value(world.db, "select two_tower.request_regrouping()")
    while value(world.db, "select two_tower.regroup_interests()"):
        pass
    assert [post for post, _ in world.list()] == [*world.posts[0][1:6], *world.posts[1][:6]]
    assert value(
        world.db,
        "select cardinality(positive_ids) from two_tower.user_embeddings where user_id = %s",
        away,
    ) == 12  # fmt: skip


def test_a_rollback_brings_interests_back(world: World) -> None:
    world.send([*world.posts[0][:10], *world.posts[1][:10]])
    sums = "select interest_sums::text from two_tower.user_embeddings where user_id = %s"
    before, sums_before = world.list(), value(world.db, sums, world.reader)
    checkpoint = value(world.db, "select two_tower.checkpoint('operator')")
    world.send([*world.posts[2][:10], *world.posts[3][:30]])
    world.send(world.posts[0][:5], "unlike")
    assert world.list() != before
    value(world.db, "select two_tower.rollback(%s)", checkpoint)
    finish_switch(world.db)
    assert world.list() == before
    assert value(world.db, sums, world.reader) == sums_before
    assert set(world.interests()) == {0, 1}
