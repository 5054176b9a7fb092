"""Muted words: whole words of texts, read as the caller, on every page of who muted them."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, rows, value
from tests.support.articles import Articles, create_articles
from tests.support.database import add_user, as_user

MOST = 200


@pytest.fixture
def articles(db: Connection) -> Articles:
    """Articles with uuids as keys, the only attached posts."""
    db.execute("select two_tower.detach('public.posts')")
    return create_articles(db)


def mute(db: Connection, reader: str, *words: str) -> None:
    """The reader mutes words."""
    with as_user(db, reader):
        db.execute(
            "insert into public.muted_terms (kind, term)"
            " select 'word', w from unnest(%s::text[]) w",
            [list(words)],
        )


def shown(db: Connection, reader: str, limit: int = 20, call: str = "recommend") -> set[int]:
    """The posts of a page."""
    with as_user(db, reader):
        page = rows(db, f"select * from public.{call}(%s)", limit)
    assert len(page) == len({row.post_id for row in page})
    return {row.post_id for row in page}


@pytest.mark.parametrize(
    ("word", "text", "is_muted"),
    [
        ("rain", "Rain in May", True),
        ("RAIN", "more rain.", True),
        ("rain", "a train to Spain", False),
        ("rain", "rain-soaked", True),
        ("cafe", "Ein Café in Graz", True),
        ("Café", "the cafe", True),
        ("élan", "ELAN vital", True),
        ("new york", "to New York!", True),
        ("new york", "york is new", False),
        (".*", "anything", None),
        ("a.c", "abc", False),
        ("%", "100 %", None),
        ("' or true --", "or true", True),
        ("rain & !sun", "rain sun", True),
        ("rain | sun", "sun", False),
        ("дождь", "Идёт Дождь", True),
    ],
)
def test_a_word_is_muted_as_a_whole_and_is_no_pattern(
    db: Connection, articles: Articles, word: str, text: str, is_muted: bool | None
) -> None:
    reader = add_user(db)
    post, other = articles.write(2)
    db.execute(
        "update public.articles set title = %s where id::text = %s", [text, articles.key_of(post)]
    )
    if is_muted is None:  # it holds no word at all
        with pytest.raises(psycopg.Error) as refused, db.transaction():
            mute(db, reader, word)
        assert refused.value.sqlstate == "22023"
        assert refused.value.diag.message_hint
        return
    mute(db, reader, word)
    assert shown(db, reader) == ({other} if is_muted else {post, other})
    assert shown(db, add_user(db)) == {post, other}


@pytest.mark.parametrize(
    "call", ["recommend", "popular_posts", "recent_from_followed", "similar_posts"]
)
def test_the_page_is_filled_with_others(db: Connection, articles: Articles, call: str) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute("insert into public.follows values (%s, %s)", [reader, author])
    ids = articles.write(90, author)
    articles.change("title = 'all about rain'", ids[::2])
    db.execute("select two_tower.refresh_popular_candidates()")
    mute(db, reader, "snow", "rain")
    first = ids[0]
    with as_user(db, reader):
        named = {"similar_posts": f"{first}, 20"}.get(call, "20")
        page = rows(db, f"select post_id from public.{call}({named})")
    found = {row.post_id for row in page}
    assert len(page) == len(found) == 20
    assert found <= set(ids[1::2])


def test_rows_of_a_page_and_its_cursor_go_round_muted_words(
    db: Connection, articles: Articles
) -> None:
    reader = add_user(db)
    ids = articles.write(60)
    articles.change("title = 'all about rain'", ids[:25])
    mute(db, reader, "rain")
    cursor, found = None, []
    while True:
        with as_user(db, reader):
            page = rows(
                db,
                "select * from public.recommended_articles(10, p_cursor => %s, p_filter => %s)",
                *(cursor, Jsonb({})),
            )
        if not page:
            break
        found += [articles.id_of(str(row.id)) for row in page]
        cursor = page[-1].cursor
    assert sorted(found) == sorted(ids[25:])


def test_a_back_end_s_page_keeps_to_what_its_user_muted(db: Connection, articles: Articles) -> None:
    reader = add_user(db)
    ids = articles.write(30)
    articles.change("title = 'all about rain'", ids[:20])
    mute(db, reader, "rain")
    with as_user(db, None, "service_role"):
        page = rows(db, "select post_id from public.recommend_for(%s, 20)", reader)
    assert {row.post_id for row in page} == set(ids[20:])


def test_texts_that_the_reader_may_not_read_are_not_asked(
    db: Connection, articles: Articles
) -> None:
    """Nobody learns by muting words what stands in them."""
    reader = add_user(db)
    (hidden,) = articles.write(1, add_user(db), is_private=True)
    articles.change("title = 'all about rain'", [hidden])
    ask = "select m from two_tower.find_muted(%s::bigint[], 'rain') m"
    with as_user(db, reader):
        assert rows(db, ask, [hidden]) == []
    articles.change("is_private = false", [hidden])
    with as_user(db, reader):
        assert rows(db, ask, [hidden]) == [(hidden,)]
    # The same of a column: what clients may not read, they do not see either.
    db.execute("revoke select on public.articles from authenticated")
    db.execute("grant select (id, author_id, is_private) on public.articles to authenticated")
    mute(db, reader, "rain")
    assert shown(db, reader) == {hidden}


def test_terms_are_bounded_and_one_s_own(db: Connection) -> None:
    reader, other = add_user(db), add_user(db)
    mute(db, reader, *(f"word{number}" for number in range(MOST)))
    for words in (["one more"], ["é" * 101]):
        with pytest.raises(psycopg.Error) as refused, db.transaction():
            mute(db, reader if len(words[0]) < 100 else other, *words)
        assert refused.value.sqlstate == "TT002"
        assert refused.value.diag.message_hint
    with as_user(db, other):
        assert rows(db, "select * from public.muted_terms") == []
        db.execute("delete from public.muted_terms")
    assert value(db, "select count(*) from public.muted_terms") == MOST
    with as_user(db, reader):
        db.execute("delete from public.muted_terms where term = 'word7'")
    mute(db, reader, "é" * 100)
    assert value(db, "select count(*) from public.muted_terms") == MOST


def test_a_very_long_text_is_looked_through(db: Connection, articles: Articles) -> None:
    reader = add_user(db)
    ids = articles.write(3)
    words = " ".join(f"w{number}" for number in range(400_000))
    articles.change(f"title = 'rain {words}'", ids[:1])
    mute(db, reader, "rain")
    assert shown(db, reader) == set(ids[1:])
