"""The drill: what an operator sees and types from the first alarm to pages as before."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.laboratory.drill import script

TITLES = (
    "A day as any",
    "A wave of spam, at night",
    "Who was it, and since when?",
    "The way back",
    "What still waits of the wave",
    "On, at half the rate",
)
TYPED = (
    "two-tower freeze 'spam wave' --since ",
    "two-tower rollback --dry-run",
    "two-tower rollback --yes",
    "two-tower resume --factor 0.5",
    "two-tower status",
)


def drill() -> tuple[int, str]:
    """Status and output of the command, 80 columns wide."""
    done = CliRunner().invoke(main, ["drill"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.stdout


def test_each_step_keeps_what_it_promises_and_shows_what_is_seen_and_typed() -> None:
    status, output = drill()
    assert status == 0, output
    assert all(len(line) <= 80 for line in output.splitlines())
    text = " ".join(output.split())
    places = [text.index(f"{number} {title}") for number, title in enumerate(TITLES, 1)]
    assert places == sorted(places)
    assert text.count("✔") == 16
    for command in TYPED:
        assert f"$ {command}" in text
    # What an operator sees is the alarm, and what to do about it.
    assert "✖ Alert metric_out_of_range embedding_drift embedding_drift is 0." in text
    assert "Freeze, look at two_tower.most_moved_posts, roll back or undo, resume slower." in text
    assert "engagements taught would be gone. They stay recorded." in text


def test_a_promise_that_is_not_kept_ends_the_drill_with_status_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "HOURS", 0)  # no wave comes
    status, output = drill()
    assert status == 1
    assert "✖ Drift is an alert" in output
    assert "✖ Learning has frozen by itself" in output
    assert TITLES[1] in output
    assert TITLES[2] not in output
