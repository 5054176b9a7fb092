"""The encoder's queue, which authors are served from by turns."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from python_jobs.db import Connection, rows, value
from tests.support.database import add_user
from tests.support.engagements import base_vectors, store
from tests.support.learning import rng

DUE = "select content from two_tower.posts_to_encode(%s)"


def write(db: Connection, author: str | None, texts: list[str]) -> list[int]:
    """Posts of an author, in order."""
    return [
        row.id
        for row in rows(
            db,
            "insert into public.posts (author_id, content) select %s, t.content"
            " from unnest(%s::text[]) with ordinality as t (content, place) order by t.place"
            " returning id",
            author,
            texts,
        )
    ]


def due(db: Connection, limit: int = 256) -> list[str]:
    """The texts of the next batch."""
    return [row.content for row in rows(db, DUE, limit)]


def encode(db: Connection, post_ids: list[int]) -> None:
    store(db, post_ids, base_vectors(rng(), len(post_ids)))


def test_a_post_waits_for_one_turn_however_many_long_ones_another_has_written(
    db: Connection,
) -> None:
    flooder, honest = add_user(db), add_user(db)
    write(db, flooder, ["a long text " * 200 + str(n) for n in range(1500)])
    write(db, honest, ["an honest post"])
    batch = due(db)
    assert "an honest post" in batch[:2]
    # The encoder reads a thousand characters of each: the next batch is not far.
    assert sum(min(len(text), 1000) for text in batch) <= 9000
    assert sum(len(text) > 1000 for text in batch) in (7, 8)


def test_each_author_is_served_one_post_before_any_is_served_two(db: Connection) -> None:
    users = [add_user(db) for _ in range(4)]
    for number, user in enumerate(users):
        write(db, user, [f"{number} {place}" for place in range(1 + 3 * number)])
    write(db, None, [f"nobody {place}" for place in range(9)])
    batch = [text.split() for text in due(db)]
    assert len(batch) == 22 + 9
    places = [int(place) for _, place in batch]
    assert places == sorted(places)
    assert Counter(author for author, _ in batch[:5]) == {a: 1 for a in (*"0123", "nobody")}


def test_new_posts_of_an_author_come_before_edited_ones_and_the_oldest_request_first(
    db: Connection,
) -> None:
    author = add_user(db)
    edited = write(db, author, ["one", "two"])
    encode(db, edited)
    for post, text, seconds in ((edited[1], "two again", 1), (edited[0], "one again", 2)):
        db.execute(
            "select set_config('two_tower.now', (now() + %s)::text, true)",
            [timedelta(seconds=seconds)],
        )
        db.execute("update public.posts set content = %s where id = %s", [text, post])
    write(db, author, ["new"])
    assert due(db) == ["new", "two again", "one again"]
    assert due(db, 1) == ["new"]


def test_who_edits_over_and_over_holds_up_no_other_and_equal_text_asks_for_nothing(
    db: Connection,
) -> None:
    restless, honest = add_user(db), add_user(db)
    posts = write(db, restless, ["a", "b"])
    encode(db, posts)
    db.execute("update public.posts set content = content where author_id = %s", [restless])
    assert due(db) == []
    for n in range(5):
        db.execute(
            "update public.posts set content = %s where author_id = %s", [f"edit {n}", restless]
        )
    write(db, honest, ["an honest post"])
    assert "an honest post" in due(db, 2)
    db.execute("update public.posts set content = 'a' where id = %s", [posts[0]])
    db.execute("update public.posts set content = 'b' where id = %s", [posts[1]])
    assert due(db) == ["an honest post"]


def test_more_authors_than_a_batch_holds_have_their_turn_in_the_next_ones(db: Connection) -> None:
    users = [add_user(db) for _ in range(150)]
    written = {user: write(db, user, [f"{user} 1", f"{user} 2"]) for user in users}
    by_text = {f"{user} {n}": ids[n - 1] for user, ids in written.items() for n in (1, 2)}
    while batch := due(db, 64):
        authors = Counter(text.split()[0] for text in batch)
        left = value(db, "select count(distinct turn) from two_tower.due_posts")
        assert len(authors) == min(64, left)
        encode(db, [by_text[text] for text in batch])
    assert value(db, "select count(*) from two_tower.due_posts") == 0


def test_the_turn_of_an_author_whose_posts_are_to_come_is_passed_over(db: Connection) -> None:
    patient, honest = add_user(db), add_user(db)
    db.execute(
        "insert into public.posts (author_id, content, created_at)"
        " select %s, 'to come', now() + interval '1 day' from generate_series(1, 300)",
        [patient],
    )
    write(db, honest, ["now"])
    for _ in range(10):
        assert due(db, 1) == ["now"]
