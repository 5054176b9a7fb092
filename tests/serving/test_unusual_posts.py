"""Posts whose texts the encoder cannot read, and posts whose time is to come."""

from __future__ import annotations

import pytest

from python_jobs.db import Connection, rows, value
from python_jobs.worker.jobs.encode import encode_posts
from tests.support.articles import create_articles
from tests.support.database import add_user, as_user

RECOMMENDED = "select post_id, source from two_tower.recommend_for(%s, %s)"
UNREADABLE = {
    "blank": " \n\t",
    "zero width": "\u200b\u200d\ufeff \u2060",
    "control characters": "\x01\x02\x07",
    "Thai": "วันนี้อากาศดีเราไปเดินเล่นในสวนสาธารณะ",
    "Burmese": "ကြောင်က ဆိုဖာပေါ်မှာ အိပ်နေတယ်",
    "Khmer": "ថ្ងៃនេះអាកាសធាតុល្អ យើងដើរលេងក្នុងសួន",
    "emoji": "😀🎉🚢🌊",
    "marks": "!!! ... ???",
}
READABLE = {
    "an emoji behind a word": "boats 🚢",
    "French": "Où est la bibliothèque près de l'église ?",
    "Russian": "Сегодня хорошая погода, мы гуляем в парке",
    "Greek": "γάτα στο πάρκο",
    "digits": "12345 678",
}


def add_post(db: Connection, content: str, created_at: str = "2026-01-01") -> int:
    """A post of nobody; returns its id."""
    return int(
        value(
            db,
            "insert into public.posts (author_id, content, created_at)"
            " values (null, %s, %s) returning id",
            content,
            created_at,
        )
    )


def page(db: Connection, reader: str, limit: int = 20) -> dict[int, str]:
    """What the reader gets, in order, and what brought it there."""
    return {row.post_id: row.source for row in rows(db, RECOMMENDED, reader, limit)}


def test_texts_that_the_encoder_cannot_read_have_no_vector_and_others_do(db: Connection) -> None:
    unreadable = {add_post(db, text): name for name, text in UNREADABLE.items()}
    readable = {add_post(db, text): name for name, text in READABLE.items()}
    assert encode_posts(db) == {"posts": len(unreadable) + len(readable)}
    found = {
        row.post_id: row.is_known
        for row in rows(
            db,
            "select post_id, embedding is not null and base_embedding is not null as is_known"
            " from two_tower.post_embeddings",
        )
    }
    assert {unreadable[p] for p in unreadable if found[p]} == set()
    assert {readable[p] for p in readable if not found[p]} == set()
    assert encode_posts(db) == {"posts": 0}
    share = value(
        db, "select value from two_tower.measure_metrics() where name = 'unreadable_posts'"
    )
    assert share == pytest.approx(len(unreadable) / len(found))
    db.execute("select two_tower.record_metrics()")
    health = "select state from two_tower.health where name = 'unreadable_posts'"
    assert value(db, health) == "alert"


def test_what_cannot_be_read_is_shown_by_recency_and_explained(db: Connection) -> None:
    known = [add_post(db, f"a boat of the number {number}") for number in range(3)]
    silent = add_post(db, UNREADABLE["Thai"])
    encode_posts(db)
    reader = add_user(db)
    assert set(page(db, reader)) == {*known, silent}
    assert page(db, reader)[silent] == "recent"
    with as_user(db, reader):
        db.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, 'like')",
            [silent],
        )
    assert value(db, "select reason from two_tower.unlearned_events") == "post_unreadable"
    assert silent not in page(db, reader)
    other = add_user(db)
    with as_user(db, other):
        assert "cannot read" in value(db, "select reason from explain_recommendation(%s)", silent)
    assert silent in page(db, other)


def test_an_edit_to_a_text_that_can_be_read_makes_a_post_like_any_other(db: Connection) -> None:
    post_id = add_post(db, UNREADABLE["emoji"])
    encode_posts(db)
    db.execute("update public.posts set content = 'a boat on the sea' where id = %s", [post_id])
    reader = add_user(db)
    like = "insert into public.engagement_events (user_id, post_id, event_type)"
    db.execute(f"{like} values (%s, %s, 'like')".encode(), [reader, post_id])
    assert value(db, "select count(*) from two_tower.deferred_events") == 1
    assert encode_posts(db) == {"posts": 1}
    assert value(db, "select count(*) from two_tower.training_examples") == 1
    assert value(db, "select count(*) from two_tower.unlearned_events") == 0


@pytest.mark.parametrize("ahead", ["now() + interval '2 years'", "'infinity'"])
def test_a_post_of_the_future_is_on_no_page_before_its_time(db: Connection, ahead: str) -> None:
    """Neither one that comes so, nor one that is dated on after it was encoded and liked."""
    articles = create_articles(db)
    articles.attach()
    ids = articles.write(6)
    (moved,) = ids[:1]
    (born,) = articles.write(1, is_encoded=False)
    reader, fan = add_user(db), add_user(db)
    like = "insert into public.engagement_events (user_id, post_id, event_type)"
    db.execute(f"{like} values (%s, %s, 'like')".encode(), [fan, moved])
    db.execute(
        f"update public.articles set published_at = {ahead} where id::text in"
        " (select key from two_tower.posts where id = any (%s))".encode(),
        [[born, moved]],
    )
    db.execute("select two_tower.apply_post_changes()")
    assert encode_posts(db) == {"posts": 0}
    db.execute("select two_tower.refresh_popular_candidates()")
    keys = {row.id: row.key for row in rows(db, "select id, key from two_tower.posts")}
    seen: set[str] = set()
    with as_user(db, reader):
        for call in ("recommended_articles(20)", "most_popular_articles(20)"):
            seen |= {row.key for row in rows(db, f"select id::text as key from public.{call}")}
        for call in ("recommend(20)", "popular_posts(20)"):
            seen |= {row.post_key for row in rows(db, f"select post_key from public.{call}")}
    assert seen == {keys[post_id] for post_id in ids[1:]}
