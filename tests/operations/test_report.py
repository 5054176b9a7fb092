"""The report: short on a terminal, and a page that needs nothing beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, connect, rows, value
from python_jobs.operations.report.story import read_map, read_measurements
from tests.support.database import add_user
from tests.support.engagements import Stream, add_posts, insert_events
from tests.support.patience import PATIENCE_S

MEASURED = ("update_latency", "cold_start_ctr", "embedding_drift", "waiting_posts", "waiting_jobs")


@pytest.fixture(scope="module")
def url(clone_database: Callable[[], str]) -> str:
    """A database that learned, with a day of measurements, judged versions and an experiment."""
    url = clone_database()
    rng = np.random.default_rng(7)
    with connect(url, autocommit=True) as connection:
        users = [add_user(connection) for _ in range(10)]
        posts = add_posts(connection, 60, users[:3], rng)
        insert_events(connection, Stream(rng, users, posts[:30]).next(150))
        connection.execute("select set_config('two_tower.now', '', false)")
        value(connection, "select two_tower.compare_with_static(0.5)")
        for user in users:
            connection.execute(
                "insert into public.engagement_events (user_id, post_id, event_type)"
                " select %s, p, 'view' from unnest(%s::bigint[]) p",
                [user, posts[40:44]],
            )
        value(connection, "select two_tower.checkpoint('operator')")
        connection.execute(
            "insert into two_tower.metrics (name, measured_at, value)"
            " select n, now() - m * interval '10 minutes', m / 1000.0"
            " from unnest(%s::text[]) n, generate_series(1, 144) m",
            [list(MEASURED)],
        )
        connection.execute(
            "insert into two_tower.model_weights (tower, state, verdict, decided_at, metrics)"
            " select 'user_tower', case when n = 1 then 'archived' else 'rejected' end, 'a <b>&',"
            " now() - n * interval '1 hour', jsonb_build_object('gate', jsonb_build_object("
            " 'events', 100, 'mean_difference', 0.01 * n, 'lower_bound', -0.01))"
            " from generate_series(1, 3) n"
        )
        value(connection, "select two_tower.open_alert('post_held', '<script>', 'a & b <i>')")
    return url


def command(url: str, *arguments: str) -> Any:
    """What the command answers."""
    runner = CliRunner(env={URL_VARIABLE: url, "COLUMNS": "80"})
    return runner.invoke(main, ["report", *arguments])


@pytest.fixture(scope="module")
def page(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of this database."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    ran = command(url, "--html", str(path))
    assert ran.exit_code == 0, ran.output
    return path


def test_the_terminal_gets_an_audit_a_line_and_no_word_is_cut_off(url: str) -> None:
    with connect(url) as connection:
        (audit,) = rows(connection, "select is_good from two_tower.audits")
    text = command(url).output
    assert len(re.findall(r"of checkpoint 1: found ", text)) == 1
    assert re.search(r"1, .*, operator: \d+ posts, 10 readers", text)
    assert ("✔ 1," in text) == audit.is_good
    assert "not enough yet" in " ".join(text.split())
    assert "post_held <script>" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text


def test_how_impressions_are_spread_is_one_line_on_both(url: str, page: Path) -> None:
    with connect(url) as connection:
        (spread,) = rows(connection, "select * from two_tower.measure_concentration()")
        never = value(connection, "select count(*) from two_tower.posts_never_shown")
    assert 0 < never < spread.listed_posts == 60
    told = f"60 posts listed, {spread.shown_posts} shown in 7 days, {never} never;"
    assert told in " ".join(command(url).output.split())
    assert told in page.read_text()
    assert f"(Gini {spread.gini:.2f})" in page.read_text()
    (row,) = json.loads(command(url, "--json").output)["Impressions"]
    assert (row["never_shown_posts"], row["readers_reached"]) == (never, spread.readers_reached)


def test_what_takes_too_long_to_read_is_left_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("python_jobs.operations.report.command.IMPRESSIONS_TIMEOUT", "100ms")
    monkeypatch.setattr("python_jobs.operations.report.command.IMPRESSIONS", "select pg_sleep(600)")
    ran = command(url)
    assert ran.exit_code == 0, ran.output
    assert "not measured: there is too much to read" in ran.output


def test_storage_is_the_largest_tables_on_the_terminal_and_all_on_the_page(
    url: str, page: Path
) -> None:
    with connect(url) as connection:
        kept = rows(connection, "select table_name from two_tower.retention")
    text, html = command(url).output, page.read_text()
    assert [row.table_name in text for row in kept] == [True] * 5 + [False] * (len(kept) - 5)
    assert all(f"<td>{row.table_name}</td>" in html for row in kept)
    assert "until the user is deleted" in html


def test_programs_get_the_same_as_json(url: str) -> None:
    told = json.loads(command(url, "--json").output)
    assert [row["reason"] for row in told["Checkpoints"]] == ["operator"]
    assert {row["arm"] for row in told["Experiments"]} == {"online", "static"}
    judged = [row["mean_difference"] for row in told["Versions"] if row["events"]]
    assert judged == [0.03, 0.02, 0.01]


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, told in attrs:
            if name == "id":
                self.ids[told or ""] += 1
            if name in ("src", "href", "xlink:href"):
                self.links.append(told or "")


def test_the_page_loads_nothing_runs_nothing_and_every_reference_in_it_is_met(page: Path) -> None:
    text = page.read_text()
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert {each[0] for each in found.links} == {"#"}
    assert {each[1:] for each in found.links} <= set(found.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(found.ids)
    assert {name for name, count in found.ids.items() if count > 1} == set()
    assert "<script>" not in text
    assert "a &amp; b &lt;i&gt;" in text
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", text), "colours are the page's"


def test_there_is_a_plot_for_all_that_was_measured_and_the_rest_is_named(page: Path) -> None:
    text = page.read_text()
    titles = re.findall(r'<figure class="card [^"]*"><h3>([^<]*)</h3><svg', text)
    assert len(titles) == Page(text).tags["svg"]
    assert {
        "Latency of an update",
        "Click-through of new posts",
        "Drift",
        "What waits",
        "Each trained version against the one that served",
        "Difference of each arm, with its 95 % interval",
        "60 posts and a reader",
    } <= set(titles)
    assert re.search(r"Not measured in this time: .*recall of the serving index", text)
    assert len(re.findall(r"<title>[^<]*: \d+ engagements?</title>", text)) == 60


@pytest.mark.parametrize(("days", "hours"), [("14", 24), ("0.5", 12)])
def test_plots_begin_with_what_is_known(url: str, tmp_path: Path, days: str, hours: int) -> None:
    path = tmp_path / "report.html"
    assert command(url, "--html", str(path), "--days", days).exit_code == 0
    about = datetime.now() - timedelta(hours=hours)
    near = [about + timedelta(minutes=minutes) for minutes in range(-120, 121)]
    wanted = {f"Plots begin {at:%B %d at %H:%M}." for at in near}
    assert re.findall(r"Plots begin [^.]*\.", path.read_text())[0] in wanted


@pytest.mark.parametrize("days", [1.0, 14.0])
def test_a_line_has_about_240_points_with_mean_lowest_and_highest(url: str, days: float) -> None:
    """Of what is known, however far back is asked."""
    with connect(url) as connection:
        connection.execute(
            "insert into two_tower.metrics (name, measured_at, value)"
            " select 'dead_jobs', now() - n * interval '1 minute', n"
            " from generate_series(1, 1440) n"
        )
        found = read_measurements(connection, days)["dead_jobs"]
        connection.rollback()
    assert 230 <= len(found) <= 242
    assert max(row.high for row in found) == (1439 if days == 1 else 1440)
    whole = [row for row in found if row.high - row.low == 5]
    assert len(whole) > 200
    assert all(row.mean == pytest.approx((row.low + row.high) / 2) for row in whole)


def test_the_map_places_like_posts_near_each_other_and_shows_the_reader_asked_for(
    url: str,
) -> None:
    with connect(url) as connection:
        readers = rows(
            connection,
            "select user_id, recent_post_ids from two_tower.user_embeddings"
            " where engagement_count > 0 order by engagement_count desc, user_id",
        )
        first, other = read_map(connection, None), read_map(connection, readers[1].user_id)
        assert first is not None
        assert other is not None
        assert len(first.path) == len(readers[0].recent_post_ids)
        assert len(other.path) == len(readers[1].recent_post_ids)
        assert first.reader is not None
        assert np.abs(first.posts).max() <= 1
        assert first.weights.sum() == pytest.approx(1, abs=1e-3)
        vectors = np.array(
            value(connection, "select array_agg(v.embedding::real[] order by v.post_id)"
                  " from two_tower.state s join two_tower.live_embeddings v"
                  " on v.slot = s.active_slot")
        )  # fmt: skip
    centred = vectors - vectors.mean(0)
    far = np.linalg.norm(centred[:, None] - centred[None], axis=-1)
    shown = np.linalg.norm(first.posts[:, None] - first.posts[None], axis=-1)
    assert np.corrcoef(far.ravel(), shown.ravel())[0, 1] > 0.3
    assert "Nothing was learned" in command(
        url, "--html", "/dev/null", "--reader", "00000000-0000-0000-0000-000000000001"
    ).output  # fmt: skip


def test_a_database_of_which_nothing_is_known_has_a_page_too(
    fresh_database: Callable[[], str], tmp_path: Path
) -> None:
    path = tmp_path / "empty.html"
    ran = command(fresh_database(), "--html", str(path))
    assert ran.exit_code == 0, ran.output
    assert "<svg" not in path.read_text()
    assert "No version was judged" in path.read_text()
    refused = command(fresh_database(), "--html", str(tmp_path / "none" / "page.html"))
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)


@pytest.fixture(params=["light", "dark"])
def seen(request: pytest.FixtureRequest, browser: Any, page: Path) -> Iterator[Any]:
    """The page in a browser that prefers light or dark; it may not reach for anything."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme=request.param
    )
    context.set_default_timeout(1000 * PATIENCE_S)
    shown = context.new_page()
    trouble: list[str] = []
    shown.on("console", lambda message: trouble.append(message.text))
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.on("requestfailed", lambda sent: trouble.append(sent.url))
    shown.goto(page.as_uri())
    yield shown, request.param
    context.close()
    assert trouble == []


CONTRAST = """
() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const c = part / 255
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const card = light(getComputedStyle(document.querySelector('.card')).backgroundColor)
  const ratio = (text) => (Math.max(text, card) + 0.05) / (Math.min(text, card) + 0.05)
  const texts = [...document.querySelectorAll('.card svg text, .card figcaption, .card td, dd')]
  return texts.map((each) => {
    const style = getComputedStyle(each)
    return ratio(light(each.matches('text') ? style.fill : style.color))
  })
}
"""


def test_light_and_dark_are_readable_and_nothing_is_wider_than_the_screen(seen: Any) -> None:
    shown, scheme = seen
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (brightness > 200) if scheme == "light" else (brightness < 50)
    ratios = shown.evaluate(CONTRAST)
    assert len(ratios) > 50
    assert min(ratios) >= 4.5
    for width in (1280, 390):
        shown.set_viewport_size({"width": width, "height": 900})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
    lines = shown.evaluate("[...document.querySelectorAll('td')].map((e) => e.offsetHeight)")
    assert max(lines) < 50, "a cell is one line on a telephone too"
    sizes = shown.evaluate(
        "[...document.querySelectorAll('svg')].map((e) => e.getBoundingClientRect().height)"
    )
    assert min(sizes) > 60
