"""One sentence about the whole, and what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from python_jobs.operations.words import count, quantity, wanted

OK, WARNING, ALERT = "ok", "warning", "alert"
MANY = 3  # alerts of a kind that are told one by one
OF_FIGURES = "metric_out_of_range"  # such an alert repeats what a figure says
TOLD_ELSEWHERE = ("open_alerts", "is_frozen")


@dataclass(frozen=True)
class Finding:
    """What is not as it should be. state: warning or alert. since: null where that is not known.

    advice: what to do about it; null where there is nothing to say.
    """

    state: str
    what: str
    why: str
    advice: str | None
    since: datetime | None = None
    occurrences: int = 1

    @property
    def text(self) -> str:
        """Why it matters, and what to do."""
        return " ".join(filter(None, (self.why, self.advice)))


@dataclass(frozen=True)
class Verdict:
    """state: ok, warning or alert."""

    state: str
    sentence: str
    findings: list[Finding]


def judge(overview: Any, health: list[Any], alerts: list[Any]) -> Verdict:
    """overview: its row. health, alerts: rows, of read_health() and of open alerts."""
    findings = [*_of_the_whole(overview), *_of_figures(health, alerts), *_of_alerts(health, alerts)]
    findings.sort(key=lambda each: each.state != ALERT)
    grave = sum(each.state == ALERT for each in findings)
    if grave:
        return Verdict(ALERT, f"{count(grave, 'thing')} need{'s' * (grave == 1)} you.", findings)
    if findings:
        return Verdict(WARNING, f"It works; {count(len(findings), 'thing')} to look at.", findings)
    return Verdict(OK, "All is well.", [])


def _of_the_whole(overview: Any) -> Iterator[Finding]:
    if overview.frozen_at is not None:
        yield Finding(
            ALERT,
            f"Learning is frozen: {overview.frozen_reason}",
            "Events are recorded and wait.",
            "Go on with: two-tower resume",
            overview.frozen_at,
        )


def _of_figures(health: list[Any], alerts: list[Any]) -> Iterator[Finding]:
    opened = {each.subject: each for each in alerts if each.kind == OF_FIGURES}
    for row in health:
        if row.state not in (WARNING, ALERT) or row.name in TOLD_ELSEWHERE:
            continue
        value = "" if row.value is None else f" is {quantity(row.value, row.unit)}"
        target = f", wanted {wanted(row)}" if wanted(row) else ""
        alert = opened.get(row.name)
        since = alert.opened_at if alert else None
        what = f"{row.name}{value}{target}"
        yield Finding(row.state, what, row.description, row.advice, since)


def _of_alerts(health: list[Any], alerts: list[Any]) -> Iterator[Finding]:
    """Those about a figure that is out of its range now are told by the figure.

    Many of one kind are one incident: a crowd moves many posts.
    """
    told = {row.name for row in health if row.state in (WARNING, ALERT)}
    untold = [row for row in alerts if row.kind != OF_FIGURES or row.subject not in told]
    left = Counter(row.kind for row in untold)
    many = {kind for kind, alike in left.items() if alike > MANY}
    for alert in untold:
        what = " ".join(filter(None, (alert.kind, alert.subject)))
        if alert.kind in many:
            if not left[alert.kind]:
                continue
            what += f" and {left.pop(alert.kind) - 1:,} like it"
        yield Finding(ALERT, what, alert.message, alert.advice, alert.opened_at, alert.occurrences)
