"""`two-tower demo` as a newcomer runs it: real servers, a real worker, real clients, small data."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from python_jobs.db import connect
from python_jobs.laboratory.movielens import EVENT_OF_RATING, GENRES, MovieLens, load
from python_jobs.local.node import NodeTools
from python_jobs.local.postgres import free_port
from tests.support.database import PROJECT, reachable_folder

FILMS = 120  # from 100 posts on, the first projection is fitted and centred
RATINGS = 1800
HTTP_EVENTS = 30
QUESTIONS = 200


@dataclass(frozen=True)
class Demo:
    """A project folder with its own stack, the data that its demo replayed, what was printed."""

    project: Path
    data: MovieLens
    url: str
    printed: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line, in the project's folder."""
        return run_command(self.project, *arguments)

    def rows(self, query: str) -> list[Any]:
        """All rows of a query, as the database's owner."""
        with connect(self.url) as connection:
            return connection.execute(query).fetchall()

    def value(self, query: str) -> Any:
        """The one value of a query."""
        return self.rows(query)[0][0]


def run_command(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `two-tower` in a folder; TWO_TOWER_DATABASE_URL points where nothing may be written."""
    return subprocess.run(
        [sys.executable, "-m", "python_jobs", *arguments],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "TWO_TOWER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def write_ratings(folder: Path) -> Path:
    """Two kinds of viewers who rate their own kind of film well, in the layout of GroupLens."""
    draw = random.Random(0)
    kinds = ("Action", "Drama")
    folder.mkdir()
    with (folder / "u.item").open("w", encoding="latin-1") as items:
        for film in range(FILMS):
            flags = "|".join(str(int(genre == kinds[film % 2])) for genre in GENRES)
            items.write(f"{film + 1}|Film {film + 1} ({1950 + film})|||url|{flags}\n")
    pairs = [(user, film) for user in range(25) for film in range(FILMS)]
    lines = []
    for number, (user, film) in enumerate(draw.sample(pairs, RATINGS)):
        stars = draw.choice((4, 5) if user % 2 == film % 2 else (1, 2, 3))
        lines.append(f"{user + 1}\t{film + 1}\t{stars}\t{880000000 + 100 * number}\n")
    (folder / "u.data").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def demo(node_tools: NodeTools) -> Iterator[Demo]:
    """A stack and a worker that the demo itself started, after its first run."""
    with reachable_folder() as folder:
        project = folder / "project"
        shutil.copytree(PROJECT / "supabase", project / "supabase")
        (project / ".two-tower").mkdir()
        (project / ".two-tower" / "node").symlink_to(node_tools.folder)
        path = write_ratings(folder / "ratings")
        ports = ["--db-port", str(free_port()), "--api-port", str(free_port())]
        try:
            up = run_command(project, "up", "--json", *ports)
            assert up.returncode == 0, up.stderr
            url = json.loads(up.stdout)["database_url"]
            done = run_command(
                project,
                *("demo", "--path", str(path)),
                *("--http-events", str(HTTP_EVENTS), "--questions", str(QUESTIONS)),
            )
            assert done.returncode == 0, done.stderr
            yield Demo(project, load(path, folder), url, done.stdout)
        finally:
            run_command(project, "down", "--delete")


def stored_report(demo: Demo) -> dict[str, Any]:
    """The report that the demo keeps for its second run."""
    (report,) = json.loads((demo.project / ".two-tower" / "demo.json").read_text()).values()
    return dict(report)


def test_every_rating_becomes_an_event_of_its_type_in_the_order_of_time(demo: Demo) -> None:
    stored = demo.rows("select event_type, created_at from public.engagement_events order by id")
    assert [row[0] for row in stored] == [rating.event_type for rating in demo.data.ratings]
    times = [row[1] for row in stored]
    assert times == sorted(times)
    assert set(EVENT_OF_RATING.values()) == {row[0] for row in stored}


def test_every_film_is_an_encoded_post_of_the_account_of_its_genre(demo: Demo) -> None:
    rows = demo.rows(
        "select p.content, a.handle from public.posts p"
        " join public.profiles a on a.user_id = p.author_id"
        " join two_tower.post_embeddings e on e.post_id = p.id and e.embedding is not null"
    )
    assert Counter(rows) == Counter((film.text, film.genre) for film in demo.data.films)


def test_everything_was_learned_once_also_what_came_over_http(demo: Demo) -> None:
    learned = sum(rating.event_type != "view" for rating in demo.data.ratings)
    count = "select sum(engagement_count) from two_tower.user_embeddings"
    assert demo.value(count) == learned
    assert demo.value("select count(*) from two_tower.deferred_events") == 0
    assert demo.value("select count(*) from two_tower.unlearned_events") == 0


def test_the_last_events_came_through_the_api_as_users_who_had_signed_up(demo: Demo) -> None:
    rows = demo.rows(
        "select e.client_event_id is not null as has_key,"
        " u.encrypted_password is not null as signed_up"
        " from public.engagement_events e join auth.users u on u.id = e.user_id order by e.id"
    )
    assert [row[0] for row in rows] == [False] * (RATINGS - HTTP_EVENTS) + [True] * HTTP_EVENTS
    assert all(row[1] for row in rows[-HTTP_EVENTS:])


def test_the_replay_waits_for_the_projection_before_its_second_event(demo: Demo) -> None:
    verdicts = "select verdict from two_tower.model_weights where metrics ? 'agreement' order by 1"
    assert [row[0].split(" on ")[0] for row in demo.rows(verdicts)] == [
        "accepted: centred",
        "accepted: fitted",
    ]
    lean = (
        "select extensions.vector_norm(extensions.avg(post_emb::extensions.vector)) from"
        " (select post_emb from two_tower.training_examples order by event_id offset {} limit {}) x"
    )
    assert demo.value(lean.format(0, 1)) > 0.99
    assert demo.value(lean.format(1, 40)) < 0.5


def test_the_demo_shows_three_users_the_hit_rates_the_towers_and_where_to_look(demo: Demo) -> None:
    report = stored_report(demo)
    assert demo.printed.count("is recommended") == len(report["shown"]) == 3
    assert report["asked"] == QUESTIONS
    assert set(report["hits"]) == {"two-tower", "popularity", "static content"}
    for name in report["hits"]:
        assert f"  {name}" in demo.printed
    for tower in ("candidate_tower", "user_tower"):
        assert tower in demo.printed
    assert demo.url in demo.printed


def test_the_demo_compares_online_learning_with_static_vectors(demo: Demo) -> None:
    running = "select a.arm, a.share from two_tower.experiment_arms a join two_tower.experiments e"
    running += " on e.name = a.experiment and e.started_at is not null order by 1"
    assert [tuple(row) for row in demo.rows(running)] == [("online", 0.9), ("static", 0.1)]
    assert "An experiment runs" in demo.printed


def test_shown_users_are_recommended_nothing_that_they_rated(demo: Demo) -> None:
    for user in stored_report(demo)["shown"]:
        rated = {
            row[0]
            for row in demo.rows(
                "select p.content from public.engagement_events e"
                f" join public.posts p on p.id = e.post_id where e.user_id = '{user['user_id']}'"
            )
        }
        assert rated >= set(user["liked"])
        assert user["recommended"]
        assert rated.isdisjoint(post["content"] for post in user["recommended"])


def test_the_question_before_a_positive_is_answered_better_by_learning_than_by_popularity(
    demo: Demo,
) -> None:
    # Here a film's text names what its viewers like, so content alone can not be beaten.
    hits = stored_report(demo)["hits"]
    assert hits["two-tower"] > hits["popularity"]


def test_a_second_run_replays_nothing_and_shows_the_same(demo: Demo) -> None:
    again = demo.run("demo")
    assert again.returncode == 0, again.stderr
    assert "Replayed already" in again.stderr
    assert again.stdout == demo.printed
    assert demo.value("select count(*) from public.engagement_events") == RATINGS


def test_a_replay_into_a_database_with_posts_of_others_is_refused(demo: Demo) -> None:
    reports = demo.project / ".two-tower" / "demo.json"
    content = reports.read_text()
    reports.unlink()
    try:
        again = demo.run("demo")
    finally:
        reports.write_text(content)
    assert again.returncode == 1
    assert "two-tower down --delete" in again.stderr.splitlines()[-1]
    assert demo.value("select count(*) from public.engagement_events") == RATINGS


def test_status_tells_programs_and_people_the_same_counts(demo: Demo) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TWO_TOWER_DATABASE_URL": demo.url}
    command = [sys.executable, "-m", "python_jobs", "status"]
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True}
    answer = json.loads(subprocess.run([*command, "--json"], check=True, **options).stdout)
    (overview,) = answer["Overview"]
    assert overview["posts"] == overview["encoded_posts"] == FILMS
    assert overview["events"] == RATINGS
    assert {job["kind"] for job in answer["Jobs"]} >= {"encode_posts", "train_user_tower"}
    assert "pgvector" in {row["name"] for row in answer["Health"]}

    printed = subprocess.run(command, check=True, **options).stdout
    for label in ("There is", "Workers", "Waiting", "Serving", "Schedules"):
        assert label in printed
    assert f"{RATINGS:,} events" in printed


def test_status_of_a_database_without_the_schema_is_one_line(create_database: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "python_jobs", "status"],
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "TWO_TOWER_DATABASE_URL": create_database(),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "Error: Two-Tower is not in this database: two-tower migrate.\n"
