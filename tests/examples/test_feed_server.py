"""The little server of the feed: what it tells, and to whom."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from python_jobs.db import connect, rows
from python_jobs.operations.report.axes import Axes
from tests.examples.conftest import AUTHORS, FeedApp


def test_the_page_gets_the_publishable_key_and_no_other(feed_app: FeedApp) -> None:
    texts = [httpx.get(f"{feed_app.url}/{name}").text for name in ("", "config.js", "app.js")]
    keys = feed_app.api.keys
    assert keys.publishable_key in texts[1]
    for secret in (keys.secret_key, keys.jwt_secret, feed_app.api.database_url):
        assert not any(secret in text for text in texts)


@pytest.mark.parametrize("token", ["none", "forged", "expired", "anon", "nobody"])
def test_figures_are_refused_to_all_but_a_signed_in_user(feed_app: FeedApp, token: str) -> None:
    api = feed_app.api
    _, user_id = api.sign_up()
    headers = {
        "none": {},
        "forged": {"Authorization": f"Bearer {api.token(user_id)[:-4]}AAAA"},
        "expired": {"Authorization": f"Bearer {api.token(user_id, lifetime_s=-60)}"},
        "anon": {"Authorization": f"Bearer {api.token(user_id, role='anon')}"},
        "nobody": {"Authorization": f"Bearer {api.token(None)}"},
    }[token]
    assert httpx.get(f"{feed_app.url}/figures", headers=headers).status_code == 401


def test_figures_are_those_of_the_one_who_asks(feed_app: FeedApp) -> None:
    client, user_id = feed_app.api.sign_up()
    headers = {"Authorization": f"Bearer {feed_app.api.token(user_id)}"}
    before = httpx.get(f"{feed_app.url}/figures", headers=headers).raise_for_status().json()
    assert before["reader"]["engagement_count"] == 0
    assert before["map"]["you"] is None
    assert {post["author"] for post in before["map"]["posts"]} == set(AUTHORS)
    with connect(feed_app.api.database_url) as connection:
        states = rows(connection, "select name, state from two_tower.health")
    assert {(row["name"], row["state"]) for row in before["health"]} == {tuple(s) for s in states}
    client.table("engagement_events").insert({"post_key": "1", "event_type": "like"}).execute()
    after = httpx.get(f"{feed_app.url}/figures", headers=headers).raise_for_status().json()
    assert after["reader"]["engagement_count"] == 1
    (lesson,) = after["reader"]["lessons"]
    assert (lesson["title"], lesson["event_type"]) == ("Post 1", "like")
    assert after["map"]["you"]
    assert after["map"]["axes"] == before["map"]["axes"]
    assert after["map"]["nearest"][0] == "Post 1"


def test_a_page_that_gives_this_machine_a_name_of_its_own_is_refused(feed_app: FeedApp) -> None:
    answer = httpx.get(f"{feed_app.url}/config.js", headers={"Host": "evil.example.com"})
    assert answer.status_code == 403
    assert "sb_publishable" not in answer.text


def test_files_outside_the_example_are_not_served(feed_app: FeedApp) -> None:
    for path in ("/../../pyproject.toml", "/%2e%2e/%2e%2e/pyproject.toml", "/..%2f..%2fREADME.md"):
        assert httpx.get(f"{feed_app.url}{path}").status_code == 404


def test_axes_are_the_directions_of_the_largest_variance() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, 128)) * np.linspace(3, 1, 128) + 5
    axes = Axes.fit(1, vectors)
    _, directions = np.linalg.eigh(np.cov(vectors.T))
    for found, wanted in zip(axes.directions, directions.T[::-1], strict=False):
        assert abs(abs(float(found @ wanted)) - 1) < 1e-6
    assert np.abs(axes.place(vectors)).max() <= 1
    assert Axes.fit(1, vectors).name == axes.name
