"""set_interests(): what a new reader tells stands on page one, beside what is popular."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, connect, rows, value
from tests.database.test_settings import settings
from tests.support.articles import create_articles
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts, store
from tests.support.patience import wait_until

SUBJECTS = ["boats", "radio", "bread", "chess", "maps", "tea", "opera", "moss", "clocks", "snow"]
EACH = 12
TOLD = """
  select place, post_id, content, encoder is not null as is_encoded
  from two_tower.told_interests where user_id = %s order by place
"""


class Subjects:
    """Posts about ten subjects; the first four are told, the last four are popular."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        rng = np.random.default_rng(4)
        self.centres = np.linalg.qr(rng.normal(size=(384, len(SUBJECTS))))[0].T
        self.authors = [add_user(db) for _ in range(30)]
        self.posts = add_posts(db, EACH * len(SUBJECTS), self.authors)
        vectors = [self.near(place // EACH, rng) for place in range(len(self.posts))]
        store(db, self.posts, vectors)
        self.subject_of = {post: SUBJECTS[n // EACH] for n, post in enumerate(self.posts)}
        for user in [add_user(db) for _ in range(8)]:
            with as_user(db, user):
                db.execute(
                    "insert into public.engagement_events (post_id, event_type)"
                    " select p, 'like' from unnest(%s::bigint[]) p",
                    [self.posts[6 * EACH :]],
                )
        value(db, "select two_tower.refresh_popular_candidates()")
        self.reader = add_user(db)

    def near(self, subject: int, rng: np.random.Generator) -> list[float]:
        """A text about a subject: its cosine to the subject is about .7."""
        noise = rng.normal(size=384)
        vector = self.centres[subject] + noise / np.linalg.norm(noise)
        return [float(x) for x in vector / np.linalg.norm(vector)]

    def tell(self, *texts: str, posts: list[int] | None = None, user: str | None = None) -> None:
        with as_user(self.db, user or self.reader):
            value(
                self.db,
                "select public.set_interests(%s, %s)",
                list(texts),
                [str(post) for post in posts or []],
            )

    def encode(self) -> list[str]:
        """What a worker does with the texts that wait."""
        waiting = rows(self.db, "select * from two_tower.texts_to_encode()")
        vectors = [np.array(self.centres[SUBJECTS.index(each.content)]) for each in waiting]
        value(
            self.db,
            "select two_tower.store_text_embeddings(%s::bigint[], %s)",
            [each.text_id for each in waiting],
            vectors,
        )
        return [each.content for each in waiting]

    def page(self, limit: int = 10, user: str | None = None) -> list[Any]:
        with as_user(self.db, user or self.reader):
            return rows(self.db, "select * from public.recommend(%s)", limit)

    def about(self, page: list[Any]) -> Counter[str]:
        return Counter(self.subject_of[each.post_id] for each in page)


@pytest.fixture
def world(db: Connection) -> Subjects:
    return Subjects(db)


def test_of_ten_posts_six_are_about_what_was_told_and_one_is_popular(world: Subjects) -> None:
    before = world.about(world.page())
    assert sum(before[subject] for subject in SUBJECTS[:3]) <= 2
    world.tell("boats", "radio", "bread")
    assert world.about(world.page()) == before
    assert sorted(world.encode()) == ["boats", "bread", "radio"]
    page = world.page()
    about = world.about(page)
    assert sum(about[subject] for subject in SUBJECTS[:3]) >= 6
    assert all(about[subject] >= 2 for subject in SUBJECTS[:3])
    assert sum(about[subject] for subject in SUBJECTS[6:]) >= 1
    assert Counter(each.source for each in page)["told"] == 7
    assert Counter(each.source for each in page)["popular"] >= 1


def test_picked_posts_count_as_told_and_the_profile_does(world: Subjects) -> None:
    world.tell(posts=world.posts[:1])
    assert world.about(world.page())["boats"] >= 6
    lover = add_user(world.db)
    world.db.execute("update public.profiles set bio = 'radio' where user_id = %s", [lover])
    world.db.execute(
        "insert into public.profiles (user_id, bio) values (%s, 'radio')"
        " on conflict (user_id) do update set bio = excluded.bio",
        [lover],
    )
    due = rows(world.db, "select * from two_tower.profiles_to_encode()")
    (mine,) = (each for each in due if str(each.user_id) == lover)
    world.db.execute(
        "select two_tower.store_profile_embeddings(%s::uuid[], %s, %s::bigint[])",
        [[lover], [np.array(world.centres[1])], [mine.content_hash]],
    )
    assert world.about(world.page(user=lover))["radio"] >= 6


def test_what_was_told_fades_as_engagements_come(world: Subjects) -> None:
    world.tell("boats")
    world.encode()
    told = []
    for _ in range(3):
        told.append(Counter(each.source for each in world.page())["told"])
        with as_user(world.db, world.reader):
            world.db.execute(
                "insert into public.engagement_events (post_id, event_type)"
                " select p, 'like' from unnest(%s::bigint[]) p",
                [world.posts[(9 - len(told)) * EACH : (10 - len(told)) * EACH][:10]],
            )
    told.append(Counter(each.source for each in world.page())["told"])
    assert told[0] == 7
    assert told == sorted(told, reverse=True)
    assert told[-1] == 0
    with settings(world.db, told_until=1000):
        assert Counter(each.source for each in world.page())["told"] == 7
        with settings(world.db, told_share=0.2):
            assert Counter(each.source for each in world.page())["told"] == 2


def test_a_subject_without_posts_takes_no_place(world: Subjects) -> None:
    world.db.execute("delete from public.posts where id = any (%s)", [world.posts[:EACH]])
    value(world.db, "select two_tower.apply_post_changes()")
    world.tell("boats")
    world.encode()
    page = world.page()
    assert len(page) == 10
    assert "told" not in {each.source for each in page}
    with settings(world.db, about_similarity=-1):
        assert "told" in {each.source for each in world.page()}


def test_told_places_keep_to_what_a_reader_may_get(world: Subjects) -> None:
    world.tell("boats")
    world.encode()
    seen, *others = world.posts[: EACH - 1]
    with as_user(world.db, world.reader):
        for post, kind in ((seen, "view"), (others[0], "hide"), (others[1], "mute_author")):
            world.db.execute(
                "insert into public.engagement_events (post_id, event_type) values (%s, %s)",
                [post, kind],
            )
    page = {each.post_id for each in world.page()}
    assert not page & {seen, others[0], others[1]}
    assert len(page & set(others)) >= 6
    exclude = "select post_id from public.recommend(10, %s)"
    with as_user(world.db, world.reader):
        left = rows(world.db, exclude, [str(post) for post in others[2:]])
    assert not {each.post_id for each in left} & set(others)


def test_what_is_told_replaces_what_was_told_and_keeps_what_is_encoded(world: Subjects) -> None:
    world.tell("boats", " radio ", "boats", posts=world.posts[-1:] * 2)
    assert [row[:3] for row in rows(world.db, TOLD, world.reader)] == [
        (1, None, "boats"),
        (2, None, "radio"),
        (3, world.posts[-1], None),
    ]
    assert sorted(world.encode()) == ["boats", "radio"]
    world.tell("tea", "radio")
    assert [row[2:] for row in rows(world.db, TOLD, world.reader)] == [
        ("tea", False),
        ("radio", True),
    ]
    assert world.encode() == ["tea"]
    # What the encoder answered a moment ago, for a search or before, is taken over.
    world.tell("boats")
    assert rows(world.db, TOLD, world.reader)[0].is_encoded
    world.tell()
    assert rows(world.db, TOLD, world.reader) == []


def test_texts_that_were_lost_on_the_way_are_asked_for_again(world: Subjects) -> None:
    db = world.db
    world.tell("boats")
    db.execute("delete from two_tower.requested_texts")
    assert value(db, "select two_tower.refresh_told_interests()") == 1
    assert value(db, "select two_tower.refresh_told_interests()") == 0
    assert world.encode() == ["boats"]
    listed = "select vector::real[] from two_tower.list_told(%s)"
    vector = value(db, listed, world.reader)
    # Another tower serves: read at once, and stored by the next step.
    db.execute("update two_tower.told_interests set model_version = null, embedding = null")
    assert value(db, listed, world.reader) == vector
    assert value(db, "select two_tower.refresh_told_interests()") == 1
    assert value(db, "select two_tower.refresh_told_interests()") == 0
    assert value(db, listed, world.reader) == vector


def test_an_unreadable_text_waits_for_nothing(world: Subjects) -> None:
    world.tell("🙂")
    (text,) = rows(world.db, "select * from two_tower.texts_to_encode()")
    store_it = (
        "select two_tower.store_text_embeddings(%s::bigint[], array[null]::extensions.vector[])"
    )
    assert value(world.db, store_it, [text.text_id]) == 1
    assert value(world.db, "select two_tower.refresh_told_interests()") == 0
    assert rows(world.db, "select * from two_tower.list_told(%s)", world.reader) == []
    assert len(world.page()) == 10


@pytest.mark.parametrize(
    ("texts", "keys", "sqlstate"),
    [
        (["a"] * 21, [], "TT002"),
        (["a"] * 15, ["1"] * 6, "TT002"),
        (["x" * 201], [], "TT002"),
        ([" \n"], [], "22023"),
        ([None], [], "22023"),
        ([], ["no such key"], "23503"),
    ],
)
def test_what_is_too_much_blank_or_unknown_is_refused_and_nothing_is_stored(
    world: Subjects, texts: list[Any], keys: list[str], sqlstate: str
) -> None:
    keys = [str(world.posts[0]) if key == "1" else key for key in keys]
    with (
        pytest.raises(psycopg.Error) as caught,
        world.db.transaction(),
        as_user(world.db, world.reader),
    ):
        value(world.db, "select public.set_interests(%s, %s)", texts, keys)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_hint
    assert rows(world.db, TOLD, world.reader) == []


def test_a_post_that_the_user_may_not_read_is_refused_like_an_unknown_one(
    world: Subjects,
) -> None:
    articles = create_articles(world.db)
    (private,) = articles.write(1, world.authors[0], is_private=True)
    (public,) = articles.write(1, world.authors[0])
    tell = "select public.set_interests('{}', %s, 'articles')"
    keys = [articles.key_of(public), articles.key_of(private)]
    with as_user(world.db, world.reader):
        value(world.db, tell, keys[:1])
    with pytest.raises(psycopg.errors.ForeignKeyViolation), as_user(world.db, world.reader):
        value(world.db, tell, keys)


def test_what_is_told_goes_with_the_user(world: Subjects) -> None:
    world.tell("boats", posts=world.posts[:1])
    world.db.execute("delete from auth.users where id = %s", [world.reader])
    assert rows(world.db, TOLD, world.reader) == []


def test_two_calls_at_once_leave_what_one_of_them_told(
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    one, two, watcher = (connect(url, autocommit=True) for _ in range(3))
    user = add_user(one)
    tell = "select public.set_interests(%s)"

    def second() -> None:
        with two.transaction(), as_user(two, user):
            value(two, tell, ["tea", "maps"])

    with ThreadPoolExecutor(1) as pool:
        with one.transaction(), as_user(one, user):
            value(one, tell, ["boats", "radio", "bread"])
            waiting = pool.submit(second)
            blocked = "select cardinality(pg_catalog.pg_blocking_pids(%s)) > 0"
            wait_until(lambda: value(watcher, blocked, two.info.backend_pid))
        waiting.result()
    assert [row.content for row in rows(watcher, TOLD, user)] == ["tea", "maps"]
    for connection in (one, two, watcher):
        connection.close()
