"""The feed of examples/feed in a real browser, against a real API, as a reader uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.examples.conftest import AUTHORS, POSTS, WIDTHS, Reader
from tests.support.patience import wait_until

SignUp = Callable[..., Reader]


def press(reader: Reader, title: str, button: str) -> None:
    """Presses a button of the post of a title."""
    post = reader.page.locator(
        "article", has=reader.page.get_by_role("heading", name=title, exact=True)
    )
    post.get_by_role("button", name=button).click()


def author_of(reader: Reader, title: str) -> str:
    """Who wrote the post."""
    return AUTHORS[int(title.removeprefix("Post ")) % len(AUTHORS)]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_feed_scrolls_to_its_end_without_a_repeat_and_fits_the_screen(
    sign_up: SignUp, width: str
) -> None:
    reader = sign_up(width)
    while "That is all" not in reader.page.locator("#end").inner_text():
        reader.page.mouse.wheel(0, 1500)
        reader.page.wait_for_timeout(30)
    titles = reader.titles()
    assert len(set(titles)) == len(titles) == POSTS
    overhang = "document.documentElement.scrollWidth - innerWidth"
    assert reader.page.evaluate(overhang) <= 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_like_changes_what_comes_below_the_screen_and_nothing_on_it(
    sign_up: SignUp, width: str
) -> None:
    reader = sign_up(width)
    first = reader.titles()[0]
    author = author_of(reader, first)
    place = "document.querySelector('article').getBoundingClientRect().top"
    before = reader.page.evaluate(place)
    press(reader, first, "Like")
    reader.page.locator("article.new").wait_for()
    assert reader.page.evaluate(place) == before
    assert reader.titles()[0] == first
    new = reader.page.locator("article.new, article.new ~ article").locator("h3").all_inner_texts()
    by_author = Counter(author_of(reader, title) for title in new[:4])
    assert by_author[author] == max(by_author.values())
    assert len(set(reader.titles())) == len(reader.titles())
    press(reader, first, "Liked")
    reader.wait_for(first, "unlike")
    assert [event[1] for event in reader.events() if event[1] != "view"] == ["like", "unlike"]


@pytest.mark.parametrize("width", WIDTHS)
def test_views_and_dwells_are_stored_once_in_whole_milliseconds(
    sign_up: SignUp, width: str
) -> None:
    reader = sign_up(width)
    first = reader.titles()[0]
    reader.wait_for(first, "view")
    reader.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    reader.wait_for(first, "dwell")
    reader.page.evaluate("scrollTo(0, 0)")
    reader.page.wait_for_timeout(1500)
    reader.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_until(lambda: reader.page.wait_for_timeout(100) or waiting(reader) == 0)
    counted = Counter(event[:2] for event in reader.events())
    assert set(counted.values()) == {1}
    (dwell_ms,) = [event[2] for event in reader.events() if event[:2] == (first, "dwell")]
    assert dwell_ms is not None
    assert dwell_ms >= 1000


def waiting(reader: Reader) -> int:
    """How many events wait in the browser."""
    names = "Object.keys(localStorage).filter((name) => name.includes(':event:')).length"
    return int(reader.page.evaluate(names))


@pytest.mark.parametrize("width", WIDTHS)
def test_hiding_can_be_undone_and_is_stored_when_it_is_not(sign_up: SignUp, width: str) -> None:
    reader = sign_up(width)
    kept, hidden = reader.titles()[:2]
    press(reader, kept, "Hide")
    reader.page.get_by_text(kept, exact=True).wait_for(state="hidden")
    reader.page.get_by_role("button", name="Undo").click()
    reader.page.get_by_text(kept, exact=True).wait_for()
    press(reader, hidden, "Hide")
    reader.wait_for(hidden, "hide")
    assert not reader.has(kept, "hide")
    assert hidden not in reader.titles()


def test_a_muted_author_is_gone_from_the_page_and_from_the_next(sign_up: SignUp) -> None:
    reader = sign_up()
    first = reader.titles()[0]
    author = author_of(reader, first)
    press(reader, first, "Mute")
    assert author not in {author_of(reader, title) for title in reader.titles()}
    reader.wait_for(first, "mute_author")
    reader.page.reload()
    reader.posts.first.wait_for()
    assert author not in {author_of(reader, title) for title in reader.titles()}


def test_following_is_stored_and_shown_at_all_posts_of_the_author(sign_up: SignUp) -> None:
    reader = sign_up()
    author = author_of(reader, reader.titles()[0])
    reader.posts.first.get_by_role("button", name=f"Follow {author}").click()
    followed = (
        "select a.handle from public.follows f join auth.users u on u.id = f.follower_id"
        " join public.profiles a on a.user_id = f.followed_id where u.email = %s"
    )
    wait_until(
        lambda: (
            reader.page.wait_for_timeout(50)
            or [row.handle for row in reader.app.rows(followed, reader.email)] == [author]
        )
    )
    pressed = reader.page.get_by_role("button", name=f"Follow {author}", pressed=True)
    assert pressed.count() == sum(author_of(reader, title) == author for title in reader.titles())
    pressed.first.click()
    wait_until(
        lambda: reader.page.wait_for_timeout(50) or not reader.app.rows(followed, reader.email)
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_why_is_told_in_words_also_of_what_was_seen(sign_up: SignUp, width: str) -> None:
    reader = sign_up(width)
    first = reader.titles()[0]
    reader.wait_for(first, "view")
    press(reader, first, "Why")
    why = reader.posts.first.locator(".reasons")
    why.get_by_text("You have seen it").wait_for()
    assert "It is here" in why.inner_text()
    assert "%" in why.inner_text()


def test_offline_nothing_is_lost_and_nothing_doubled(sign_up: SignUp) -> None:
    reader = sign_up()
    first, second = reader.titles()[:2]
    reader.wait_for(first, "view")
    reader.page.context.set_offline(True)
    press(reader, first, "Like")
    press(reader, second, "Like")
    reader.page.wait_for_timeout(1500)
    assert waiting(reader) >= 2
    assert not reader.has(first, "like")
    reader.page.context.set_offline(False)
    reader.wait_for(second, "like")
    wait_until(lambda: reader.page.wait_for_timeout(50) or waiting(reader) == 0)
    counted = Counter(event[:2] for event in reader.events())
    assert set(counted.values()) == {1}
    assert counted[(first, "like")] == 1


def test_what_was_done_offline_is_stored_with_the_time_at_which_it_happened(
    sign_up: SignUp,
) -> None:
    reader = sign_up()
    first = reader.titles()[0]
    reader.wait_for(first, "view")
    reader.page.context.set_offline(True)
    press(reader, first, "Like")
    reader.page.evaluate(
        "for (const name of Object.keys(localStorage).filter((n) => n.includes(':event:'))) {"
        "  const entry = JSON.parse(localStorage.getItem(name));"
        "  localStorage.setItem(name, JSON.stringify({ ...entry, at: entry.at - 7_200_000 }));"
        "}"
    )
    reader.page.context.set_offline(False)
    reader.wait_for(first, "like")
    hours = {
        row.event_type: row.hours
        for row in reader.app.rows(
            "select e.event_type, round(extract(epoch from e.created_at - e.happened_at) / 3600)"
            " as hours from public.engagement_events e join auth.users u on u.id = e.user_id"
            " where u.email = %s",
            reader.email,
        )
        if row.event_type in ("view", "like")
    }
    assert hours["like"] == 2


def test_an_answer_that_is_lost_on_its_way_stores_nothing_twice(sign_up: SignUp) -> None:
    reader = sign_up()
    first = reader.titles()[0]
    calls: list[Any] = []

    def lose(route: Any) -> None:
        calls.append(route.fetch())  # the server has it, the browser does not hear of it
        route.abort()

    reader.page.route("**/rpc/record_engagements", lose, times=1)
    press(reader, first, "Like")
    wait_until(lambda: reader.page.wait_for_timeout(50) or (calls and waiting(reader) == 0))
    assert Counter(event[:2] for event in reader.events())[(first, "like")] == 1


def test_a_refused_event_leaves_the_queue_and_the_others_are_stored(sign_up: SignUp) -> None:
    reader = sign_up()
    first = reader.titles()[0]
    user = reader.app.rows("select id from auth.users where email = %s", reader.email)[0].id
    reader.page.evaluate(
        """([name, event]) => localStorage.setItem(name, JSON.stringify(event))""",
        [
            f"two-tower:{user}:event:00000000-0000-4000-8000-000000000009",
            {
                "at": 1e15,
                "due": 0,
                "event": {
                    "post_key": "999999",
                    "event_type": "like",
                    "client_event_id": "00000000-0000-4000-8000-000000000009",
                },
            },
        ],
    )
    reader.page.evaluate("dispatchEvent(new Event('online'))")
    press(reader, first, "Like")
    reader.page.get_by_text("Not stored").wait_for()
    reader.wait_for(first, "like")
    wait_until(lambda: reader.page.wait_for_timeout(50) or waiting(reader) == 0)


def test_a_like_is_stored_though_its_tab_is_closed_at_once(sign_up: SignUp) -> None:
    reader = sign_up()
    first = reader.titles()[0]
    keeper = reader.page.context.new_page()  # the browser itself stays
    press(reader, first, "Like")
    reader.page.close(run_before_unload=False)
    wait_until(lambda: keeper.wait_for_timeout(50) or reader.has(first, "like"))
    assert Counter(event[:2] for event in reader.events())[(first, "like")] == 1


def test_without_a_server_the_last_page_is_shown_and_marked(sign_up: SignUp) -> None:
    reader = sign_up()
    first = reader.titles()[0]
    reader.page.context.route(f"{reader.app.api.url}/rest/**", lambda route: route.abort())
    reader.page.reload()
    reader.page.get_by_text("This is your page of").wait_for()
    assert reader.titles()[0] == first
    reader.page.context.unroute_all()
    reader.page.get_by_role("button", name="Try again").click()
    reader.page.get_by_text("This is your page of").wait_for(state="hidden")
    reader.posts.first.wait_for()


def test_all_can_be_done_with_the_keyboard(sign_up: SignUp) -> None:
    reader = sign_up()
    first, second = reader.titles()[:2]
    keyboard = reader.page.keyboard
    keyboard.press("j")
    keyboard.press("j")
    keyboard.press("k")
    keyboard.press("l")
    reader.wait_for(first, "like")
    reader.page.locator("article.new").wait_for()
    keyboard.press("j")
    keyboard.press("h")
    reader.page.get_by_text(second, exact=True).wait_for(state="hidden")
    keyboard.press("u")
    reader.page.get_by_text(second, exact=True).wait_for()
    keyboard.press("w")
    reader.page.locator(".reasons .brought").wait_for()
    keyboard.press("?")
    reader.page.get_by_role("dialog").wait_for()
    keyboard.press("Escape")
    reader.page.get_by_role("dialog").wait_for(state="hidden")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_panel_tells_what_was_learned_and_the_point_moves(sign_up: SignUp, width: str) -> None:
    reader = sign_up(width)
    if width == "phone":
        reader.page.get_by_role("button", name="About you").click()
    reader.page.get_by_text("It knows nothing of you yet").wait_for()
    if width == "phone":
        reader.page.get_by_role("button", name="Close the panel").click()
    titles = reader.titles()[:2]
    for title in titles:
        press(reader, title, "Like")
        reader.wait_for(title, "like")
        reader.page.wait_for_function("Number(document.getElementById('map').dataset.steps) > 0")
    if width == "phone":
        reader.page.get_by_role("button", name="About you").click()
    reader.page.get_by_text("It learned from 2 engagements of yours").wait_for()
    reader.page.get_by_text(f"You liked {titles[1]}").wait_for()
    reader.page.get_by_text("You are closest to").wait_for()
    reader.page.wait_for_function("Number(document.getElementById('map').dataset.steps) > 1")
