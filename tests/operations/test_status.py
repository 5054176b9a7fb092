"""What an operator reads: the verdict, what it rests on, and nothing cut off."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from python_jobs.db import Connection, connect, rows, value
from python_jobs.local.postgres import SUPERUSER, Cluster
from python_jobs.operations.status import QUERIES, page
from python_jobs.operations.words import clock, number, quantity, span
from tests.support.database import PROJECT, add_user
from tests.support.patience import PATIENCE_S

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
ASPECTS = ("There is", "Workers", "Waiting", "Serving", "Schedules")


def shown(db: Connection, width: int = 80) -> str:
    """What status prints on a console of so many columns."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(page({title: rows(db, query) for title, query in QUERIES.items()}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    return "\n".join(line.rstrip() for line in text.splitlines())


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


@pytest.fixture
def well(db: Connection) -> Connection:
    """A database with a worker, whose figures are all on target, or not measured yet."""
    value(db, "select two_tower.note_worker('worker-0001', '1.2')")
    db.execute("update two_tower.metric_targets set target_low = null, alert_low = null")
    value(db, "select two_tower.record_metrics()")
    if value(db, "select state from two_tower.health where name = 'pgvector'") != "ok":
        pytest.skip("this pgvector is old, which needs somebody by itself")
    return db


def test_a_database_that_is_well_says_so_first_and_nothing_else_above_the_facts(
    well: Connection,
) -> None:
    lines = shown(well).splitlines()
    assert lines[0] == "✔ All is well."
    assert [line.split("  ")[0] for line in lines[2:] if not line.startswith(" ")] == [*ASPECTS]
    assert "worker-0001 waits for work (up 0 s, 1.2)" in shown(well)


def test_how_soon_a_reader_is_warm_is_said_with_its_evidence(well: Connection) -> None:
    assert "a reader is warm after 3 engagements Schedules" in words(shown(well))
    well.execute(
        "update two_tower.warmth_evidence set trials = 400, wins = array(select w"
        " from generate_series(200, 300, 10) w) where engagements in (1, 2)"
    )
    value(well, "select two_tower.learn_warmth()")
    assert (
        "a reader is warm after 1 engagement; after 1, vectors rank 75 of 100 right, popularity 50"
    ) in words(shown(well))
    well.execute("update two_tower.settings set cold_until = 100")
    assert "a reader is warm after 20 or more; after 1" in words(shown(well))


def test_what_is_wrong_stands_first_with_why_and_what_is_wanted(well: Connection) -> None:
    add_user(well)
    well.execute("insert into public.posts (author_id, content) values (null, 'a boat')")
    well.execute("update two_tower.posts set requested_at = two_tower.now() - interval '2 hours'")
    well.execute("select two_tower.freeze('a wave of spam')")
    well.execute("update two_tower.workers set seen_at = two_tower.now() - interval '6 minutes'")
    well.execute("select two_tower.open_alert('post_held', 'posts:1', 'Look who moved it.')")
    text = words(shown(well))
    assert text.startswith("✖ 4 things need you. ✖ Learning is frozen: a wave of spam since ")
    assert "✖ unattended_work is 2 h, wanted at most 2 min For how long" in text
    assert "Start a worker: two-tower worker." in text
    assert "Workers none for 6 min" in text
    assert "✖ oldest_waiting_post is 2 h, wanted at most 60 s How long the oldest" in text
    assert "✖ post_held posts:1 since" in text
    assert "Look who moved it." in text
    assert "1 post (the oldest for 2 h)" in text


def test_a_figure_and_its_alert_are_told_once(well: Connection) -> None:
    well.execute("update two_tower.metric_targets set alert_low = 1 where name = 'deferred_steps'")
    for _ in range(2):
        well.execute("select two_tower.record_metrics()")
    text = shown(well)
    assert text.startswith("✖ 1 thing needs you.\n")
    assert text.count("deferred_steps") == 1
    assert re.search(
        r"deferred_steps is 0 rows, wanted at most 5,000 rows  since \d\d:\d\d\n", text
    )


def test_posts_that_a_crowd_moved_are_one_thing_to_look_at(well: Connection) -> None:
    for post in range(1, 6):
        well.execute("select two_tower.open_alert('post_held', %s, 'a test')", [str(post)])
    for name in ("a", "b"):
        well.execute("select two_tower.open_alert('call_failed', %s, 'a test')", [name])
    text = words(shown(well))
    assert text.startswith("✖ 3 things need you.")
    assert "post_held 1 and 4 like it" in text
    assert "call_failed a" in text
    assert "call_failed b" in text


def test_a_worker_is_shown_with_its_job_and_only_three_rejected_versions_are(
    well: Connection,
) -> None:
    value(well, "select two_tower.enqueue_job('encode_posts')")
    rows(well, "select * from two_tower.claim_job('worker-0001', null, '1 hour')")
    well.execute("update two_tower.jobs set claimed_at = claimed_at - interval '3 minutes'")
    well.execute(
        "insert into two_tower.model_weights (tower, state, verdict)"
        " select 'user_tower', 'rejected', 'rejected: reason ' || n from generate_series(1, 9) n"
    )
    text = words(shown(well))
    assert "worker-0001 does encode_posts for 3 min (up 0 s, 1.2)" in text
    assert re.findall(r"reason \d", text) == ["reason 9", "reason 8", "reason 7"]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_word_is_cut_off_however_narrow_the_terminal(well: Connection, width: int) -> None:
    for n in range(12):
        message = "A long message about something that has happened and must be read. " * 3
        well.execute("select two_tower.open_alert(%s, '', %s)", [f"kind_{n}", message])
    text = shown(well, width)
    assert "…" not in text
    assert "..." not in text
    assert words(text).count(words(message)) == 8
    assert "and 4 more: two-tower report" in text


def test_numbers_and_times_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        now = datetime(2026, 3, 1, 20, 0, tzinfo=UTC)
        assert clock(now - timedelta(minutes=5), now) == "01:25"
        assert clock(now - timedelta(hours=9), now) == "Mar 01 16:30"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [span(s) for s in (0, 119, 120, 7199, 7200, 3 * 86400)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
        "3 d",
    ]
    assert (number(1234.5), number(0.123456), number(3.0)) == ("1,234", "0.123", "3")
    assert quantity(0.5, "share") == "50 %"


def read_until(terminal: int, wanted: Callable[[str], bool]) -> str:
    """What a terminal was told, without colours and line breaks, until that is enough."""
    told, deadline = "", time.monotonic() + PATIENCE_S
    while not wanted(words(CONTROLS.sub("", told))):
        assert time.monotonic() < deadline, told
        if select.select([terminal], [], [], 1)[0]:
            told += os.read(terminal, 65536).decode(errors="replace")
    return told


# What a shell starts in the background has Ctrl-C ignored, and so has all that it starts.
WITH_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from python_jobs.cli import main
main()
"""


def test_watching_goes_on_while_the_database_changes_goes_and_comes_and_ends_by_ctrl_c(
    cluster: Cluster,
    fresh_database: Callable[[], str],
) -> None:
    url = fresh_database()
    mine, theirs = pty.openpty()
    environment: dict[str, Any] = {
        **os.environ, "PYTHONPATH": str(PROJECT), "TWO_TOWER_DATABASE_URL": url,
        "COLUMNS": "80", "LINES": "60", "TERM": "xterm",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, "status", "--watch"],
        env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    try:
        read_until(mine, lambda told: "none has run yet" in told)
        with connect(url, autocommit=True) as connection:
            connection.execute("select two_tower.freeze('seen at once')")
        read_until(mine, lambda told: "seen at once" in told)
        name = url.rsplit("/", 1)[1]
        with connect(cluster.url(user=SUPERUSER), autocommit=True) as server:
            server.execute(f'alter database "{name}" allow_connections false'.encode())
            read_until(mine, lambda told: "not currently accepting" in told)
            server.execute(f'alter database "{name}" allow_connections true'.encode())
        read_until(mine, lambda told: "seen at once" in told)
        process.send_signal(2)
        # Read on: who writes to a terminal that nobody reads waits for ever.
        read_until(mine, lambda _: process.poll() is not None)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(mine)
        os.close(theirs)
