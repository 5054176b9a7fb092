"""Several tables of posts in one feed: mixed, each by itself, and named in events."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.articles import Articles, create_articles
from tests.support.database import add_user, as_user

NOTES = 25


@pytest.fixture
def articles(db: Connection) -> Articles:
    """The larger table, with uuids as keys."""
    db.execute("select two_tower.detach('public.posts')")
    return create_articles(db)


@pytest.fixture
def notes(db: Connection, articles: Articles) -> Articles:
    """The smaller table, with numbers as keys that are not ids."""
    return create_articles(db, "bigint", "notes")


def sources(db: Connection, reader: str, call: str) -> list[tuple[str, str]]:
    """Source and key of each post on a page."""
    with as_user(db, reader):
        found = rows(db, f"select post_source, post_key from public.{call}")
    return [(row.post_source, row.post_key) for row in found]


def test_one_page_holds_posts_of_all_tables_and_each_table_has_its_own(
    db: Connection, articles: Articles, notes: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute(
        "insert into public.follows (follower_id, followed_id) values (%s, %s)", [reader, author]
    )
    first, second = articles.write(15, author), notes.write(15, author)
    db.execute("select two_tower.refresh_popular_candidates()")
    both = {("articles", articles.key_of(post)) for post in first}
    both |= {("notes", notes.key_of(post)) for post in second}
    for call in ("recommend(50)", "popular_posts(50)", "recent_from_followed(50)"):
        assert set(sources(db, reader, call)) == both
    near = sources(db, reader, "similar_posts(50, p_post_key => '3', p_post_source => 'notes')")
    assert near == []  # 50 is a p_post_id that nobody has
    named = f"similar_posts(p_post_key => {notes.key_of(second[0])!r}, p_post_source => 'notes'"
    near = sources(db, reader, named + ", p_limit => 50)")
    assert set(near) == both - {("notes", notes.key_of(second[0]))}
    for table, kept in ((articles, first), (notes, second)):
        keys = {table.key_of(post) for post in kept}
        with as_user(db, reader):
            own = db.execute(
                f"select id::text from public.recommended_{table.name}(50)".encode()
            ).fetchall()
        assert {row[0] for row in own} == keys
        assert len(own) == 15


@pytest.mark.parametrize("is_indexed", [False, True])
def test_of_a_table_with_few_of_the_posts_the_exact_best_come(
    db: Connection, articles: Articles, notes: Articles, is_indexed: bool
) -> None:
    author, reader = add_user(db), add_user(db)
    written = articles.write(40 * NOTES, author)
    few = notes.write(NOTES, author)
    if is_indexed:
        db.execute("update two_tower.settings set ef_search = 40, over_fetch = 40")
        db.execute("select two_tower.build_serving_index('test')")
    db.execute(
        "update two_tower.settings set cold_until = 0, popularity_weight = 0,"
        " exploration_share = 0, author_share = 1, interest_share = 0"
    )
    db.execute(
        "insert into public.engagement_events (user_id, post_id, event_type)"
        " select %s, p, 'like' from unnest(%s::bigint[]) p",
        [reader, written[-3:]],
    )
    db.execute("analyze two_tower.posts")
    db.execute("update two_tower.settings set exact_scan_limit = %s", [len(few)])
    for table, is_few in ((articles, False), (notes, True)):
        found = value(db, "select two_tower.list_few(null, %s::smallint)", table.source_id)
        assert (found is not None) is is_few
    with as_user(db, reader):
        mixed = rows(db, "select source from public.recommend(20)")
        own = rows(db, "select source from public.recommended_articles(20)")
    assert {row.source for row in mixed + own} == {"personal"}
    user = np.array(value(db, "select two_tower.encode_user(%s)::real[]", reader), float)
    live = {
        row[0]: np.array(row[1], float)
        for row in rows(
            db,
            "select post_id, embedding::real[] from two_tower.live_embeddings"
            " where slot = 0 and post_id = any (%s)",
            few,
        )
    }
    best = sorted(few, key=lambda post: -float(live[post] @ user))
    for limit in (5, NOTES):
        with as_user(db, reader):
            own = db.execute(
                "select id::text, place from public.recommended_notes(%s) order by place", [limit]
            ).fetchall()
        assert [row[0] for row in own] == [notes.key_of(post) for post in best[:limit]]
        assert [row[1] for row in own] == list(range(1, limit + 1))


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize("is_warm", [False, True])
def test_the_page_of_a_table_is_full_whatever_its_share(
    db: Connection, articles: Articles, notes: Articles, share: float, is_indexed: bool,
    is_warm: bool,
) -> None:  # fmt: skip
    author, reader = add_user(db), add_user(db)
    written = articles.write(500, author)
    own = notes.write(int(500 * share), author)
    if is_indexed:
        db.execute("update two_tower.settings set ef_search = 40, over_fetch = 40")
        db.execute("select two_tower.build_serving_index('test')")
    if is_warm:
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, p, 'like' from unnest(%s::bigint[]) p",
            [reader, written[:12]],
        )
    db.execute("select two_tower.refresh_popular_candidates()")
    db.execute("analyze two_tower.posts")
    for table, count in ((notes, len(own)), (articles, 488 if is_warm else 500)):
        for limit in (5, 500):
            with as_user(db, reader):
                found = db.execute(
                    f"select id from public.recommended_{table.name}(%s)".encode(), [limit]
                ).fetchall()
            assert len(set(found)) == len(found) == min(limit, count)


def test_an_event_names_the_table_of_its_key_where_there_are_several(
    db: Connection, articles: Articles, notes: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    (article,), (note,) = articles.write(1, author), notes.write(1, author)
    keys = {"articles": articles.key_of(article), "notes": notes.key_of(note)}
    insert = (
        "insert into public.engagement_events (post_key, post_source, event_type)"
        " values (%s, %s, 'view')"
    )
    for source, key in keys.items():
        with as_user(db, reader):
            db.execute(insert, [key, source])
            batch = f'[{{"post_key": "{key}", "post_source": "{source}", "event_type": "click"}}]'
            db.execute("select * from public.record_engagements(%s)", [batch])
    stored = db.execute("select post_id from public.engagement_events order by id").fetchall()
    assert [row[0] for row in stored] == [article, article, note, note]
    for source, refused in ((None, "2 tables of posts"), ("posts", "attached as posts")):
        with (
            pytest.raises(psycopg.errors.InvalidParameterValue, match=refused) as caught,
            db.transaction(),
            as_user(db, reader),
        ):
            db.execute(insert, [keys["notes"], source])
        assert caught.value.diag.message_hint
    for call in ("explain_recommendation(p_post_key => %s)", "similar_posts(p_post_key => %s)"):
        with (
            pytest.raises(psycopg.errors.InvalidParameterValue, match="2 tables") as caught,
            db.transaction(),
            as_user(db, reader),
        ):
            db.execute(f"select * from public.{call}".encode(), [keys["notes"]])
        assert "post_source" in str(caught.value.diag.message_hint)
    # One table is left: its name may be left out.
    db.execute("select two_tower.detach('public.articles')")
    with as_user(db, reader):
        db.execute(insert, [keys["notes"], None])
        explained = rows(
            db, "select * from public.explain_recommendation(p_post_key => %s)", keys["notes"]
        )
    assert explained[0].reason == "you engaged with it"


def test_keys_of_all_tables_leave_posts_out(
    db: Connection, articles: Articles, notes: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    first, second = articles.write(6, author), notes.write(6, author)
    out = [articles.key_of(first[0]).upper(), notes.key_of(second[0]), "no key", "99999999999999"]
    with as_user(db, reader):
        page = {row[0] for row in db.execute("select post_id from public.recommend(50, %s)", [out])}
        own = db.execute("select id from public.recommended_notes(50, %s)", [out]).fetchall()
    assert page == {*first[1:], *second[1:]}
    assert len(own) == 5


def test_a_key_that_two_tables_have_leaves_out_both_and_of_one_table_its_own(
    db: Connection, articles: Articles, notes: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    pages = create_articles(db, "bigint", "pages")
    first, second = notes.write(3, author), pages.write(3, author)
    assert notes.key_of(first[0]) == pages.key_of(second[0]) == "1"
    with as_user(db, reader):
        mixed = {row[0] for row in db.execute("select post_id from public.recommend(9, '{1}')")}
        own = db.execute("select id from public.recommended_pages(9, '{1}')").fetchall()
    assert mixed == {*first[1:], *second[1:]}
    assert {row[0] for row in own} == {2, 3}
