"""Filters are part of the search: against brute force, by every way that a page is made."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, rows, value
from tests.support.articles import Articles, create_articles
from tests.support.database import add_user, as_user

POSTS = 240
LANGUAGES = ("en", "de", None)
TAGS = ("boats", "chess", "Boats", "ra re")
# Some filters that few posts pass, and some that many pass.
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"tags": ["ra re"]},
    {"tags": ["boats"]},
    {"tags": ["chess", "ra re", "unknown"]},
    {"languages": ["de"]},
    {"languages": ["en", "fr"], "tags": ["boats"]},
    {"max_age": "5 days"},
    {"max_age": "20 days", "languages": ["en"]},
    {"authors": [0]},
    {"authors": [0, 1, 2, 3], "tags": ["chess"]},
    {"followed": True},
    {"followed": True, "max_age": "12 days"},
    {"followed": False, "tags": None},
    {"keys": [3, 5, 8, 13]},
    {"keys": list(range(100)), "tags": ["boats"]},
    {"authors": []},
    {"tags": ["unknown"]},
)


@dataclass
class World:
    """Articles with tags and languages, and what each says, by its id in the registry."""

    db: Connection
    articles: Articles
    reader: str
    authors: list[str]
    posts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def ask(self, filter_: dict[str, Any]) -> dict[str, Any]:
        """The filter with keys of the app in the place of numbers."""
        asked = dict(filter_)
        if "authors" in asked:
            asked["authors"] = [self.authors[each] for each in asked["authors"]]
        if "keys" in asked:
            ids = list(self.posts)
            asked["keys"] = [self.posts[ids[each]]["key"] for each in asked["keys"]]
        return asked

    def matches(self, asked: dict[str, Any]) -> set[int]:
        """The rules once more, in Python."""
        return {
            post
            for post, said in self.posts.items()
            if ("authors" not in asked or said["author"] in asked["authors"])
            and (not asked.get("followed") or said["author"] in self.authors[:3])
            and ("languages" not in asked or said["language"] in asked["languages"])
            and (asked.get("tags") is None or set(said["tags"] or ()) & set(asked["tags"]))
            and ("keys" not in asked or said["key"] in asked["keys"])
            and ("max_age" not in asked or said["age"] <= int(asked["max_age"].split()[0]))
        }

    def page(self, asked: dict[str, Any] | None, limit: int = 500, call: str = "recommend") -> Any:
        """The rows of a page for the reader."""
        with as_user(self.db, self.reader):
            return rows(
                self.db,
                f"select * from public.{call}(p_limit => %s, p_filter => %s)",
                limit,
                None if asked is None else Jsonb(asked),
            )


@pytest.fixture
def world(db: Connection) -> World:
    """Of eight authors the reader follows three."""
    db.execute("select two_tower.detach('public.posts')")
    articles = create_articles(db)
    db.execute("alter table public.articles add language text, add tags text[]")
    articles.attach(language="language", tags="tags")
    found = World(db, articles, add_user(db), [add_user(db) for _ in range(8)])
    chance = random.Random(4)
    now = value(db, "select two_tower.now()")
    ids = articles.write(POSTS)
    for post in ids:
        tags = [tag for tag in TAGS if chance.random() < (0.05 if tag == "ra re" else 0.4)]
        said = {
            "key": articles.key_of(post),
            "author": chance.choice(found.authors),
            "language": chance.choice(LANGUAGES),
            "tags": chance.choice([tags, tags, None]),
            "age": chance.randrange(1, 30),
        }
        found.posts[post] = said
        db.execute(
            "update public.articles set author_id = %s, language = %s, tags = %s,"
            " published_at = %s where id::text = %s",
            [
                *(said["author"], said["language"], said["tags"]),
                *(now - timedelta(days=said["age"]) + timedelta(hours=1), said["key"]),
            ],
        )
    db.execute("select two_tower.apply_post_changes()")
    db.execute("select two_tower.refresh_popular_candidates()")
    db.execute(
        "insert into public.follows select %s, a from unnest(%s::uuid[]) a",
        [found.reader, found.authors[:3]],
    )
    db.execute("analyze two_tower.posts")
    return found


@pytest.fixture(params=["few", "many"])
def way(request: pytest.FixtureRequest, world: World) -> str:
    """few: what matches is ranked whole. many: nothing counts as few, and an index is searched."""
    if request.param == "many":
        world.db.execute(
            "update two_tower.settings set exact_scan_limit = 0, ef_search = 40, over_fetch = 40"
        )
        world.db.execute("select two_tower.build_serving_index('test')")
    return str(request.param)


@pytest.mark.parametrize("is_warm", [False, True])
def test_all_that_match_come_back_and_nothing_else(world: World, way: str, is_warm: bool) -> None:
    seen: set[int] = set()
    if is_warm:
        seen = set(list(world.posts)[:12])
        world.db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, p, 'like' from unnest(%s::bigint[]) p",
            [world.reader, sorted(seen)],
        )
    for filter_ in FILTERS:
        asked = world.ask(filter_)
        expected = world.matches(asked) - seen
        page = [row.post_id for row in world.page(asked)]
        assert len(page) == len(set(page))
        assert set(page) == expected, (filter_, way)
        short = [row.post_id for row in world.page(asked, 7)]
        assert set(short) <= expected
        assert len(short) == min(7, len(expected)), (filter_, way)


def test_posts_that_wait_for_the_encoder_match_too(world: World, way: str) -> None:
    (new,) = world.articles.write(1, world.authors[5], is_encoded=False)
    world.articles.change("tags = '{fresh}'", [new])
    assert [row.post_id for row in world.page({"tags": ["fresh"]})] == [new]
    assert world.page({"tags": ["fresh"], "languages": ["de"]}) == []


@pytest.mark.parametrize("call", ["popular_posts", "most_popular_articles", "recommended_articles"])
def test_other_pages_keep_to_a_filter(world: World, way: str, call: str) -> None:
    for filter_ in ({"tags": ["boats"]}, {"tags": ["ra re"]}, {"followed": True}):
        keys = {world.posts[post]["key"] for post in world.matches(filter_)}
        found = world.page(filter_, 100, call)
        shown = [str(row.id) if "articles" in call else row.post_key for row in found]
        assert set(shown) <= keys
        assert len(shown) == len(set(shown)) == min(100, len(keys))


def test_similar_posts_keep_to_a_filter(world: World, way: str) -> None:
    post = next(iter(world.posts))
    with as_user(world.db, world.reader):
        found = rows(
            world.db,
            "select post_id from public.similar_posts(%s, 100, p_filter => %s)",
            post,
            Jsonb({"tags": ["ra re"]}),
        )
    assert {row.post_id for row in found} == world.matches({"tags": ["ra re"]}) - {post}


def test_the_policies_of_the_table_count_beside_a_filter(world: World, way: str) -> None:
    private = sorted(world.matches({"tags": ["boats"]}))[::2]
    world.articles.change("is_private = true", private)
    page = {row.post_id for row in world.page({"tags": ["boats"]})}
    assert page == world.matches({"tags": ["boats"]}) - set(private)


def test_who_follows_nobody_gets_an_empty_page(world: World, way: str) -> None:
    world.reader = add_user(world.db)
    assert world.page({"followed": True}) == []
    assert len(world.page({"followed": False}, 20)) == 20


def test_whose_followed_authors_are_asked_for_is_the_caller(world: World) -> None:
    """Also where the core is called by hand, with a filter that names another reader."""
    curious = add_user(world.db)
    with as_user(world.db, curious):
        found = rows(
            world.db,
            "select * from two_tower.rank_for(%s, 10, '{}', p_filter =>"
            " row(null, %s, null, null, null, null, null)::two_tower.page_filter)",
            *(curious, world.reader),
        )
    assert found == []


def test_muted_tags_are_left_out_of_every_page(world: World, way: str) -> None:
    with as_user(world.db, world.reader):
        world.db.execute("insert into public.muted_terms (kind, term) values ('tag', 'boats')")
    boats = world.matches({"tags": ["boats"]})
    assert {row.post_id for row in world.page(None)} == set(world.posts) - boats
    chess = world.matches({"tags": ["chess"]})
    assert {row.post_id for row in world.page({"tags": ["chess"]})} == chess - boats
    assert not {row.post_id for row in world.page(None, 100, "popular_posts")} & boats
    with as_user(world.db, world.reader):
        world.db.execute("delete from public.muted_terms")
    assert {row.post_id for row in world.page(None)} == set(world.posts)


def test_a_filtered_page_is_read_in_a_read_only_transaction(world: World, way: str) -> None:
    world.db.execute("set local transaction_read_only = on")
    assert world.page({"tags": ["boats"]}, 5)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ([], "22023"),
        ("tags", "22023"),
        (7, "22023"),
        ({"tag": ["a"]}, "22023"),
        ({"tags": "a"}, "22023"),
        ({"tags": [None]}, "22023"),
        ({"tags": [["a"]]}, "22023"),
        ({"tags": [True]}, "22023"),
        ({"tags": {"a": 1}}, "22023"),
        ({"tags": ["a"] * 101}, "TT002"),
        ({"tags": ["a" * 201]}, "TT002"),
        ({"languages": ["a"] * 101}, "TT002"),
        ({"authors": ["a"] * 101}, "TT002"),
        ({"authors": ["é" * 101]}, "TT002"),
        ({"keys": ["1"] * 1001}, "TT002"),
        ({"keys": ["1" * 2001]}, "TT002"),
        ({"followed": "true"}, "22023"),
        ({"followed": 1}, "22023"),
        ({"max_age": "a while"}, "22023"),
        ({"max_age": "-1 day"}, "22023"),
        ({"max_age": "0 days"}, "22023"),
        ({"max_age": 7}, "22023"),
        ({"max_age": "infinity"}, "22023"),
        ({"max_age": "99999999 years"}, "22023"),
        ({"max_age": "9999999999999999999 years"}, "22023"),
    ],
    ids=lambda given: json.dumps(given)[:40],
)
@pytest.mark.parametrize("call", ["recommend", "recommended_articles", "popular_posts"])
def test_what_is_no_filter_is_refused_with_a_hint(
    db: Connection, call: str, asked: Any, code: str
) -> None:
    db.execute("select two_tower.detach('public.posts')")
    create_articles(db).write(1)
    reader = add_user(db)
    with pytest.raises(psycopg.Error) as refused, db.transaction(), as_user(db, reader):
        db.execute(f"select * from public.{call}(p_filter => %s)".encode(), [Jsonb(asked)])
    assert refused.value.sqlstate == code
    assert refused.value.diag.message_hint


def test_the_longest_lists_are_taken(db: Connection) -> None:
    asked = {
        "tags": ["a" * 200] * 100,
        "authors": [1] * 100,
        "languages": ["é" * 100] * 100,
        "keys": ["1" * 2000] * 1000,
    }
    with as_user(db, add_user(db)):
        found = db.execute("select * from public.recommend(p_filter => %s)", [Jsonb(asked)])
        assert found.fetchall() == []


@pytest.mark.parametrize("call", ["recent_from_followed(100)", "more_from_author(%s, 100)"])
def test_pages_of_authors_go_round_muted_tags(world: World, way: str, call: str) -> None:
    author = world.authors[0]
    (new,) = world.articles.write(1, author, is_encoded=False)
    with as_user(world.db, world.reader):
        world.db.execute("insert into public.muted_terms (kind, term) values ('tag', 'boats')")
        given = [author] if "%s" in call else []
        found = rows(world.db, f"select post_id from public.{call}", *given)
    wanted = {"authors": [author]} if given else {"followed": True}
    expected = world.matches(wanted) - world.matches({"tags": ["boats"]})
    assert {row.post_id for row in found} == expected | {new}
