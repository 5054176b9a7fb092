"""explain_recommendation(): which of the reader's own engagements speak for a post."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from python_jobs.db import Connection, rows
from tests.database.test_settings import settings
from tests.serving.test_told_interests import EACH, Subjects
from tests.support.articles import create_articles
from tests.support.database import add_user, as_user


@pytest.fixture
def world(db: Connection) -> Subjects:
    return Subjects(db)


def why(db: Connection, user: str, post_id: int) -> Any:
    with as_user(db, user):
        return rows(db, "select * from public.explain_recommendation(%s)", post_id)[0]


def send(db: Connection, user: str, post_id: int, kind: str) -> None:
    with as_user(db, user):
        db.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, %s)",
            [post_id, kind],
        )


def test_the_readers_nearest_engagements_speak_for_a_post(world: Subjects) -> None:
    db, reader = world.db, world.reader
    boats, radio = world.posts[:EACH], world.posts[EACH : 2 * EACH]
    for post, kind in zip(boats[:5], ["like", "reply", "click", "hide", "repost"], strict=True):
        send(db, reader, post, kind)
    send(db, reader, radio[0], "like")
    send(db, world.authors[0], boats[6], "like")
    explained = why(db, reader, boats[5])
    assert len(explained.because) == 3
    liked = {str(boats[0]): "like", str(boats[1]): "reply", str(boats[2]): "click"}
    liked[str(boats[4])] = "repost"
    for each in explained.because:
        assert each["event_type"] == liked[each["post_key"]]
        assert each["post_source"] == "posts"
        assert each["at"]
    live = (
        "select post_id, embedding::real[] from two_tower.post_embeddings where post_id = any (%s)"
    )
    vector = {row.post_id: np.array(row.embedding) for row in rows(db, live, boats)}
    wanted = sorted(map(int, liked), key=lambda post: -(vector[post] @ vector[boats[5]]))[:3]
    assert [int(each["post_key"]) for each in explained.because] == wanted
    said = {"like": "liked", "reply": "replied to", "click": "opened", "repost": "reposted"}
    assert explained.reason == (f"eligible: because you {said[liked[str(wanted[0])]]} {wanted[0]}")
    assert [each["post_key"] for each in why(db, reader, radio[1]).because] == [str(radio[0])]
    # Of what is on the screen already, too.
    send(db, reader, radio[2], "view")
    seen = why(db, reader, radio[2])
    assert (seen.reason, len(seen.because)) == ("you have seen it", 1)


def test_nothing_speaks_for_what_is_like_nothing_that_the_reader_did(world: Subjects) -> None:
    send(world.db, world.reader, world.posts[0], "like")
    far = why(world.db, world.reader, world.posts[-1])
    assert (far.reason, far.because) == ("eligible", [])
    assert why(world.db, add_user(world.db), world.posts[1]).because == []
    with settings(world.db, about_similarity=-1):
        assert len(why(world.db, world.reader, world.posts[-1]).because) == 1


def test_what_was_told_speaks_for_a_post(world: Subjects) -> None:
    world.tell("boats", posts=[world.posts[EACH]])
    world.encode()
    explained = why(world.db, world.reader, world.posts[0])
    assert (explained.reason, explained.because) == (
        "eligible: because you told: boats",
        [{"told": "boats"}],
    )
    (picked,) = why(world.db, world.reader, world.posts[EACH + 1]).because
    assert picked == {"told_post_key": str(world.posts[EACH]), "post_source": "posts"}


def test_what_a_reader_muted_is_named_as_what_keeps_a_post_out(db: Connection) -> None:
    articles = create_articles(db)
    articles.attach(tags="string_to_array(title, ' ')")
    post, *_ = articles.write(3, add_user(db))
    articles.change("title = 'a tax of boats'", [post])
    reader = add_user(db)
    for kind, reason in (
        ("word", "it has a word that you muted"),
        ("tag", "it has a tag that you muted"),
    ):
        with as_user(db, reader):
            db.execute("delete from public.muted_terms")
            db.execute("insert into public.muted_terms (kind, term) values (%s, 'tax')", [kind])
        explained = why(db, reader, post)
        assert (explained.is_eligible, explained.reason) == (False, reason)
    with as_user(db, reader):
        db.execute("delete from public.muted_terms")
    assert why(db, reader, post).is_eligible
