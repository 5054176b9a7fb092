"""A scroll by cursors: no post twice, none left out, and nothing but a cursor is taken for one."""

from __future__ import annotations

import base64

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, rows, value
from tests.security.fuzzing import SHORT_AND_LONG, run_each
from tests.support.articles import create_articles, without_starter
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts

LONGEST = 4096
# Keys that apps have, and the ends of what an id can be.
ids = st.one_of(
    st.integers(1, 5000),
    st.integers(-5000, -1),
    st.integers(1 << 60, 1 << 61),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -1, 1, 2**63 - 1, -(2**63)]),
)
pages = st.lists(st.lists(ids, min_size=1, max_size=120, unique=True), min_size=1, max_size=5)


def scroll(
    db: Connection, reader: str, cursor: str | None, call: str = "recommend", limit: int = 20
) -> tuple[list[int], str | None]:
    """The posts of the next page, and its cursor."""
    with as_user(db, reader):
        page = rows(
            db, f"select * from public.{call}(p_limit => %s, p_cursor => %s)", limit, cursor
        )
    assert [row.cursor for row in page[:-1]] == [None] * (len(page) - 1)
    return [row.post_id for row in page], page[-1].cursor if page else None


def refusal(db: Connection, reader: str, cursor: str, call: str = "recommend") -> psycopg.Error:
    """What a call with the cursor is refused with."""
    with pytest.raises(psycopg.Error) as refused, db.transaction(), as_user(db, reader):
        db.execute(f"select * from public.{call}(p_cursor => %s)".encode(), [cursor])
    assert refused.value.diag.message_hint
    return refused.value


@pytest.mark.parametrize("examples", SHORT_AND_LONG)
def test_a_cursor_holds_the_last_posts_of_a_scroll(db: Connection, examples: int) -> None:
    reader = add_user(db)

    @given(shown=pages)
    def each(shown: list[list[int]]) -> None:
        cursor = None
        for page in shown:
            cursor = value(db, "select two_tower.write_cursor(%s, %s, %s)", reader, cursor, page)
            assert len(cursor) <= LONGEST
        held = value(
            db, "select two_tower.read_blocks(two_tower.open_cursor(%s, %s))", reader, cursor
        )
        everything = [post for page in shown for post in page]
        # What is held is the end of the scroll, in blocks of at most 100 of a page.
        assert sorted(held) == sorted(everything[len(everything) - len(held) :])
        assert len(held) >= min(len(everything), 200)

    run_each(each, examples)


def test_a_cursor_of_common_keys_holds_over_a_thousand_posts(db: Connection) -> None:
    chance = np.random.default_rng(1)
    for sign in (1, -1):
        everything = [int(sign * post) for post in chance.permutation(100_000)[:4000] + 1]
        cursor = None
        for first in range(0, len(everything), 20):
            page = everything[first : first + 20]
            cursor = value(db, "select two_tower.write_cursor(null, %s, %s)", cursor, page)
        held = value(db, "select two_tower.read_blocks(two_tower.open_cursor(null, %s))", cursor)
        assert len(held) > 1000
        assert set(held) == set(everything[-len(held) :])


@pytest.mark.parametrize("examples", SHORT_AND_LONG)
def test_what_is_no_cursor_is_refused(db: Connection, examples: int) -> None:
    reader = add_user(db)
    add_posts(db, 30, [add_user(db)], np.random.default_rng(1))
    _, cursor = scroll(db, reader, None)
    assert cursor is not None
    letters = "ABCXYZabcxyz0189-_"

    @given(
        hostile=st.one_of(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
            st.text(letters, max_size=200),
            # One letter is another one, one is missing, some follow.
            st.builds(
                lambda at, letter: cursor[:at] + letter + cursor[at + 1 :],
                st.integers(0, len(cursor) - 2),
                st.sampled_from(letters),
            ),
            st.integers(0, len(cursor) - 1).map(lambda end: cursor[:end]),
            st.text(letters, min_size=1, max_size=9).map(lambda more: cursor + more),
        ).filter(lambda made: made != cursor)
    )
    def each(hostile: str) -> None:
        assert refusal(db, reader, hostile).sqlstate == "22023"

    run_each(each, examples)


def test_cursors_of_another_version_user_or_length_are_refused(db: Connection) -> None:
    reader, other = add_user(db), add_user(db)
    add_posts(db, 30, [add_user(db)], np.random.default_rng(1))
    _, cursor = scroll(db, reader, None)
    assert cursor is not None
    assert refusal(db, other, cursor).sqlstate == "22023"
    whole = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for head in (b"\x02\x00", b"\x01\x01", b"\x00\x00"):
        made = base64.urlsafe_b64encode(head + whole[2:]).decode().rstrip("=")
        assert refusal(db, reader, made).sqlstate == "22023"
    for call in ("recommend", "recommended_posts", "most_popular_posts"):
        for long in ("A" * 5000, "A" * 1_000_000, cursor + "\n", cursor + "=", " " + cursor):
            assert refusal(db, reader, long, call).sqlstate == "22023"
    # What it was made from still is one.
    assert scroll(db, reader, cursor)[0]


@pytest.mark.parametrize("call", ["recommend", "most_popular_articles", "recommended_articles"])
def test_a_scroll_meets_every_post_once(db: Connection, call: str) -> None:
    without_starter(db)
    articles = create_articles(db, "lent" if call == "recommend" else "uuid")
    ids = articles.write(130, add_user(db))
    db.execute("select two_tower.refresh_popular_candidates()")
    reader = add_user(db)
    cursor, seen, sizes = None, [], []
    while True:
        with as_user(db, reader):
            page = rows(db, f"select * from public.{call}(p_limit => 20, p_cursor => %s)", cursor)
        if not page:
            break
        sizes.append(len(page))
        seen += [articles.id_of(str(row.id)) if "articles" in call else row.post_id for row in page]
        cursor = page[-1].cursor
    assert sizes == [20] * 6 + [10]
    assert sorted(seen) == sorted(ids)


@pytest.mark.parametrize("is_indexed", [False, True])
def test_thirty_pages_neither_repeat_nor_leave_out_while_posts_and_views_come(
    db: Connection, is_indexed: bool
) -> None:
    """Views come three pages late, new posts all the time, and others like what is old."""
    random = np.random.default_rng(3)
    authors = [add_user(db) for _ in range(12)]
    reader, other = add_user(db), add_user(db)
    old = add_posts(db, 500, authors, random)
    if is_indexed:
        db.execute("update two_tower.settings set ef_search = 40, over_fetch = 40")
        db.execute("select two_tower.build_serving_index('test')")
    for post in old[:3]:
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'like')",
            [reader, post],
        )
    new: list[int] = []
    cursor: str | None = None
    shown: list[list[int]] = []
    for number in range(30):
        page, cursor = scroll(db, reader, cursor)
        shown.append(page)
        if number % 2:
            new += add_posts(db, 4, authors, random)
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " values (%s, %s, 'like')",
            [other, int(random.choice(old))],
        )
        if number >= 3:
            db.execute(
                "insert into public.engagement_events (user_id, post_id, event_type)"
                " select %s, p, 'view' from unnest(%s::bigint[]) p",
                [reader, shown[number - 3]],
            )
    everything = [post for page in shown for post in page]
    assert len(everything) == len(set(everything))
    eligible = set(old[3:]) | set(new)
    assert set(everything) <= eligible
    # All that was there is met: the last pages are as long as what is left.
    assert set(everything) | set(new[-4:]) == eligible


def test_a_cursor_a_filter_and_excluded_keys_go_together(db: Connection) -> None:
    author = add_user(db)
    posts = add_posts(db, 60, [author, add_user(db)], np.random.default_rng(5))
    reader = add_user(db)
    with as_user(db, reader):
        first = rows(
            db, "select * from public.recommend(10, '{}', %s)", Jsonb({"authors": [author]})
        )
        out = [str(post) for post in posts[:10]]
        second = rows(
            db,
            "select * from public.recommend(50, %s, %s, %s)",
            *(out, Jsonb({"authors": [author]}), first[-1].cursor),
        )
    shown = {row.post_id for row in first}
    assert len(first) == 10
    assert {row.post_id for row in second} == {
        row.id for row in rows(db, "select id from two_tower.posts where author_id = %s", author)
    } - shown - set(posts[:10])


def test_a_back_end_pages_for_a_user(db: Connection) -> None:
    add_posts(db, 30, [add_user(db)], np.random.default_rng(5))
    reader = add_user(db)
    ask = "select * from public.recommend_for(%s, 10, p_cursor => %s)"
    with as_user(db, None, "service_role"):
        first = rows(db, ask, reader, None)
        second = rows(db, ask, reader, first[-1].cursor)
    assert len({row.post_id for row in first + second}) == 20
    # The user goes on where the back end stopped.
    third, _ = scroll(db, reader, second[-1].cursor, limit=10)
    assert len({row.post_id for row in first + second} | set(third)) == 30
