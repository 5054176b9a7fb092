"""No author fills the pages of strangers, whatever it writes, while others write too."""

from __future__ import annotations

import uuid
from collections import Counter

import numpy as np
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, base_vectors, store


@pytest.fixture(autouse=True)
def _copies_count(db: Connection) -> None:
    """The bound on authors holds by itself: see test_copies for what else keeps copies away."""
    db.execute("update two_tower.settings set copy_similarity = null")


def add_flood(db: Connection, author: str, count: int, vector: list[float]) -> list[int]:
    """Near-duplicates of one vector."""
    posts = add_posts(db, count, [author])
    noise = 0.01 * np.random.default_rng(2).normal(size=(count, len(vector)))
    store(db, posts, (np.array(vector) + noise).tolist())
    return posts


def engage(db: Connection, user: str, posts: list[int], kind: str) -> None:
    """One event a post."""
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, unnest(%s::bigint[]), %s",
        [user, posts, kind],
    )


def authors_of(db: Connection, reader: str, limit: int = 20) -> Counter[str | None]:
    """The authors on a page of recommend_for(), each with its posts there."""
    query = "select author_id::text as author_id from two_tower.recommend_for(%s, %s)"
    return Counter(row.author_id for row in rows(db, query, reader, limit))


def build_index(db: Connection) -> None:
    """Pages come from the serving index from now on, however few posts there are."""
    db.execute("update two_tower.settings set exact_scan_limit = 0")
    db.execute("select two_tower.build_serving_index('test')")


@pytest.mark.parametrize("flood", [150, 1200])
@pytest.mark.parametrize("is_indexed", [False, True])
def test_near_duplicates_of_one_author_are_one_post_in_twenty(
    db: Connection, is_indexed: bool, flood: int
) -> None:
    random = np.random.default_rng(1)
    spammer, reader, honest = add_user(db), add_user(db), [add_user(db) for _ in range(60)]
    add_posts(db, 240, honest, random)
    liked = add_posts(db, 1, honest[:1])
    (vector,) = base_vectors(random, 1)
    store(db, liked, [vector])
    add_flood(db, spammer, flood, vector)
    engage(db, reader, liked, "like")
    if is_indexed:
        build_index(db)
    for limit, most in ((10, 1), (20, 1), (100, 5)):
        page = authors_of(db, reader, limit)
        assert (page.total(), page[spammer]) == (limit, most)
        assert max(page.values()) == most


def test_two_accounts_that_collude_get_their_share_of_new_readers_pages(db: Connection) -> None:
    author, friend, honest = add_user(db), add_user(db), [add_user(db) for _ in range(30)]
    add_posts(db, 300, honest, np.random.default_rng(3))
    posts = add_posts(db, 40, [author], np.random.default_rng(4))
    for kind in ("like", "repost", "reply"):
        engage(db, friend, posts, kind)
    db.execute("select two_tower.refresh_popular_candidates()")
    pages = [authors_of(db, add_user(db)) for _ in range(20)]
    assert all(page.total() == 20 for page in pages)
    assert max(page[author] + page[friend] for page in pages) == 1


def test_of_two_thousand_impressions_no_author_has_more_than_a_twentieth(db: Connection) -> None:
    random = np.random.default_rng(5)
    authors = [add_user(db) for _ in range(40)]
    posts = add_posts(db, 400, authors, random)
    loud = add_posts(db, 200, authors[:1], random)
    db.execute("update two_tower.settings set learned_events_per_minute = 100000")
    for fan in (add_user(db) for _ in range(5)):
        engage(db, fan, loud, "like")
    db.execute("select two_tower.refresh_popular_candidates()")
    shown: Counter[str | None] = Counter()
    for number in range(100):
        reader = add_user(db)
        if number % 2:
            engage(db, reader, [posts[number], loud[number]], "like")
        shown += authors_of(db, reader)
    assert shown.total() == 2000
    assert max(shown.values()) <= 100


@pytest.mark.parametrize("is_indexed", [False, True])
def test_the_only_author_fills_the_page(db: Connection, is_indexed: bool) -> None:
    author, reader = add_user(db), add_user(db)
    posts = add_posts(db, 300, [author], np.random.default_rng(6))
    engage(db, reader, posts[:1], "like")
    if is_indexed:
        build_index(db)
    assert authors_of(db, reader, 50) == {author: 50}
    assert authors_of(db, add_user(db), 50) == {author: 50}


@pytest.mark.parametrize("is_indexed", [False, True])
def test_authors_take_turns_where_they_are_few(db: Connection, is_indexed: bool) -> None:
    random = np.random.default_rng(7)
    spammer, reader, honest = add_user(db), add_user(db), [add_user(db) for _ in range(4)]
    add_posts(db, 4, honest, random)
    (vector,) = base_vectors(random, 1)
    flood = add_flood(db, spammer, 300, vector)
    engage(db, reader, flood[:1], "like")
    if is_indexed:
        build_index(db)
    # Whatever is eligible comes, and then the others fill the page.
    assert authors_of(db, reader) == {spammer: 16, **dict.fromkeys(honest, 1)}


@pytest.mark.parametrize("is_indexed", [False, True])
def test_what_is_left_of_the_others_comes_however_little_it_is(
    db: Connection, is_indexed: bool
) -> None:
    random = np.random.default_rng(16)
    spammer, reader, honest = add_user(db), add_user(db), [add_user(db) for _ in range(150)]
    posts = add_posts(db, 450, honest, random)
    (vector,) = base_vectors(random, 1)
    flood = add_flood(db, spammer, 700, vector)
    engage(db, reader, flood[:1], "like")
    left = [posts[10], posts[20], posts[30]]
    engage(db, reader, [post for post in posts if post not in left], "view")
    if is_indexed:
        build_index(db)
    page = rows(db, "select post_id from two_tower.recommend_for(%s, 20)", reader)
    assert len(page) == 20
    assert set(left) <= {row.post_id for row in page}


def test_a_reader_who_follows_an_author_gets_more_of_it(db: Connection) -> None:
    random = np.random.default_rng(8)
    author, reader, honest = add_user(db), add_user(db), [add_user(db) for _ in range(40)]
    add_posts(db, 120, honest, random)
    (vector,) = base_vectors(random, 1)
    flood = add_flood(db, author, 60, vector)
    engage(db, reader, flood[:1], "like")
    assert authors_of(db, reader)[author] == 1
    db.execute("insert into public.follows values (%s, %s)", [reader, author])
    assert authors_of(db, reader)[author] == 5
    db.execute("update two_tower.settings set followed_author_share = 0.5")
    assert authors_of(db, reader)[author] == 10


def test_posts_without_an_author_are_not_one_author(db: Connection) -> None:
    reader = add_user(db)
    query = (
        "insert into public.posts (author_id, content)"
        " select null, 'post ' || n from generate_series(1, 60) n returning id"
    )
    posts = [row.id for row in rows(db, query)]
    store(db, posts, base_vectors(np.random.default_rng(9), 60))
    add_posts(db, 60, [add_user(db)], np.random.default_rng(10))
    engage(db, reader, posts[:1], "like")
    page = authors_of(db, reader)
    assert page.total() == 20
    assert page[None] >= 19


def test_every_other_page_is_shared_out_too(db: Connection) -> None:
    random = np.random.default_rng(11)
    author, friend, reader = (add_user(db) for _ in range(3))
    honest = [add_user(db) for _ in range(30)]
    posts = add_posts(db, 150, honest, random)
    (vector,) = base_vectors(random, 1)
    flood = add_flood(db, author, 90, vector)
    engage(db, friend, flood, "like")
    engage(db, friend, posts, "click")
    db.execute("select two_tower.refresh_popular_candidates()")
    db.execute(
        "insert into public.follows select %s, unnest(%s::uuid[])", [reader, [author, *honest]]
    )
    pages = {
        "recent_from_followed(20)": 5,
        "popular_posts(20)": 1,
        "popular_posts(100)": 5,
        "most_popular_posts(20)": 1,
        "recommended_posts(20)": 1,
        f"similar_posts({flood[0]}, 20)": 1,
    }
    for page, most in pages.items():
        with as_user(db, reader):
            found = Counter(
                str(row.author_id) for row in rows(db, f"select author_id from public.{page}")
            )
        assert found.total() == (100 if "100" in page else 20), page
        assert found[author] <= most, page
        db.execute("delete from public.follows where follower_id = %s", [reader])


def test_what_fails_is_made_up_for_within_the_bound(db: Connection) -> None:
    random = np.random.default_rng(12)
    author, reader, honest = add_user(db), add_user(db), [add_user(db) for _ in range(30)]
    add_posts(db, 60, honest, random)
    (vector,) = base_vectors(random, 1)
    flood = add_flood(db, author, 200, vector)
    engage(db, reader, flood[:1], "like")
    db.execute(
        "alter function two_tower.make_page(two_tower.reader, integer, bigint[], bigint[])"
        " rename to broken"
    )
    page = authors_of(db, reader)
    assert (page.total(), page[author]) == (20, 1)


def test_a_thousand_popular_posts_of_one_author_are_not_the_list(db: Connection) -> None:
    author, honest = add_user(db), [add_user(db) for _ in range(30)]
    add_posts(db, 300, honest, np.random.default_rng(13))
    liked = add_posts(db, 1100, [author], np.random.default_rng(14))
    db.execute(
        "update two_tower.live_embeddings set popularity = 1000 where post_id = any (%s)", [liked]
    )
    db.execute("select two_tower.refresh_popular_candidates()")
    listed = Counter(
        str(row.author_id)
        for row in rows(
            db,
            "select p.author_id from two_tower.popular_candidates c"
            " join two_tower.posts p on p.id = c.post_id"
            " order by c.author_id is null, c.popularity desc",
        )
    )
    # All of the others are listed; his fill what is left.
    assert listed.total() == 1000
    assert sum(listed[other] for other in honest) == 300
    # Where others have enough, he has a twentieth.
    add_posts(db, 900, honest, np.random.default_rng(15))
    db.execute("select two_tower.refresh_popular_candidates()")
    theirs = value(
        db, "select count(*) from two_tower.popular_candidates where author_id = %s", author
    )
    assert theirs == 50


def fill_pool(db: Connection, authors: int, posts: int) -> str:
    """New posts with random vectors, of so many new authors in turn; returns one of these."""
    ids = [str(uuid.uuid4()) for _ in range(authors)]
    db.execute(
        "insert into auth.users (id, email)"
        " select u, u || '@example.com' from unnest(%s::uuid[]) u",
        [ids],
    )
    db.execute(
        "insert into public.posts (author_id, content)"
        " select (%s::uuid[])[1 + n %% %s], 'post ' || n from generate_series(1, %s) n",
        [ids, authors, posts],
    )
    db.execute(
        "insert into two_tower.live_embeddings"
        " (slot, post_id, source_id, embedding, author_id, created_at, model_version)"
        " select 0, p.id, p.source_id, extensions.l2_normalize((select array_agg(random() - .5)"
        "   from generate_series(1, 128) where p.id > 0)::extensions.vector), p.author_id,"
        "   p.created_at, two_tower.active_version('candidate_tower') from two_tower.posts p"
        " where p.encoded_hash is null order by p.id"
    )
    db.execute("update two_tower.posts set encoded_hash = content_hash where encoded_hash is null")
    return ids[0]


def explore(db: Connection, readers: int) -> list[tuple[int, str]]:
    """Each post that so many readers explore on a page of 20, with its author."""
    query = (
        "select post_id, v.author_id::text as author_id from unnest(%s::uuid[]) u (id)"
        " cross join unnest(two_tower.choose_explored_posts(two_tower.load_reader(u.id), 20, '{}'))"
        "   e (post_id) join two_tower.live_embeddings v using (post_id)"
    )
    found = rows(db, query, [uuid.uuid4() for _ in range(readers)])
    return [(row.post_id, row.author_id) for row in found]


def test_a_flood_of_new_posts_is_one_turn_of_the_exploration(db: Connection) -> None:
    loud = fill_pool(db, 1, 5000)
    alone = {post for post, _ in explore(db, 300)}
    assert len(alone) > 250
    fill_pool(db, 996, 996)
    explored = Counter(author for _, author in explore(db, 2000))
    # One turn in 997 on average. A gap before a hash is 20 times the mean once in 500 million.
    assert explored.total() >= 2000
    assert explored[loud] <= 0.03 * explored.total()
    assert len(explored) > 500


def test_more_of_an_author_is_explored_where_the_others_have_no_more(db: Connection) -> None:
    fill_pool(db, 2, 50)
    db.execute("update two_tower.settings set exploration_share = 0.5")
    explored = Counter(author for _, author in explore(db, 1))
    assert sorted(explored.values()) == [1, 1]
    db.execute("update two_tower.settings set author_share = 0.2")
    (reader,) = rows(db, "select two_tower.choose_explored_posts(two_tower.load_reader(%s), 20,"
                         " '{}') as posts", uuid.uuid4())  # fmt: skip
    assert len(set(reader.posts)) == 8


def test_places_and_arms_are_keyed_with_the_secret_of_the_database(db: Connection) -> None:
    fill_pool(db, 50, 50)
    seed = value(db, "select hash_seed from two_tower.state")
    keyed = (
        "select count(*) from two_tower.exploration_pool e join two_tower.posts p"
        " on p.id = e.post_id where e.shuffled = hashint8extended(p.id, %s)"
        " and e.author_shuffled = uuid_hash_extended(p.author_id, %s)"
    )
    assert value(db, keyed, seed, seed) == 50
    assert value(db, keyed, 0, 0) == 0
    db.execute("insert into two_tower.experiments (name) values ('one')")
    db.execute(
        "insert into two_tower.experiment_arms (experiment, arm, share)"
        " values ('one', 'a', 0.5), ('one', 'b', 0.5)"
    )
    users = [uuid.uuid4() for _ in range(100)]
    places = (
        "select array_agg(two_tower.choose_arm('one', u)) as arms,"
        " array_agg(two_tower.choose_place(u, '2026-01-01')) as places from unnest(%s::uuid[]) u"
    )
    (before,) = rows(db, places, users)
    (again,) = rows(db, places, users)
    assert before == again
    db.execute("update two_tower.state set hash_seed = hash_seed + 1 where id")
    (after,) = rows(db, places, users)
    assert before.arms != after.arms
    assert not set(before.places) & set(after.places)


def test_a_followed_authors_waiting_post_is_shown_however_many_others_wait(db: Connection) -> None:
    followed, loud, reader = add_user(db), add_user(db), add_user(db)
    db.execute("insert into public.follows values (%s, %s)", [reader, followed])
    (waiting,) = add_posts(db, 1, [followed])
    add_posts(db, 1500, [loud])
    with as_user(db, reader):
        found = rows(db, "select post_id from public.recent_from_followed(5)")
    assert [row.post_id for row in found] == [waiting]
