"""What a replay measured, and where that is kept: a database is replayed into once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from python_jobs.db import connect, value
from python_jobs.errors import CommandError

PAGE = 10  # recommendations a user is asked for


@dataclass
class Report:
    """What a replay measured: hits among `asked` positives, by method; and who to look at."""

    events: int
    http_events: int
    posts: int
    users: int
    asked: int
    hits: dict[str, int]
    seconds: dict[str, float]
    shown: list[dict[str, Any]] = field(default_factory=list)


def read_report(state_dir: Path, url: str) -> Report | None:
    """The report of the replay into this very database; None before it.

    Each report is kept under the identity of its database: after `down --delete` there is another.
    """
    kept = _read(state_dir).get(_identity(url))
    return Report(**kept) if kept else None


def write_report(state_dir: Path, url: str, report: Report) -> None:
    """Keeps a report beside those of other databases."""
    state_dir.mkdir(parents=True, exist_ok=True)
    partial = _path(state_dir).with_suffix(".partial")
    partial.write_text(json.dumps({**_read(state_dir), _identity(url): asdict(report)}, indent=2))
    partial.replace(_path(state_dir))


def _path(state_dir: Path) -> Path:
    return state_dir / "demo.json"


def _read(state_dir: Path) -> dict[str, Any]:
    path = _path(state_dir)
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise CommandError(f"{path} is no file of reports: delete it. {error}") from error


def _identity(url: str) -> str:
    """What tells a database from any other one, also from a later one at the same address."""
    with connect(url) as connection:
        return str(
            value(
                connection,
                "select format('%%s-%%s', c.system_identifier, d.oid)"
                " from pg_catalog.pg_control_system() c, pg_catalog.pg_database d"
                " where d.datname = current_database()",
            )
        )


def hit_rates(report: Report) -> str:
    """The hit rates as lines of text, each with half the width of its 95 % interval."""
    lines = [f"Hit rate of {PAGE} recommendations, asked before {report.asked} positives:"]
    for name, hits in report.hits.items():
        rate = hits / max(1, report.asked)
        half = 1.96 * (rate * (1 - rate) / max(1, report.asked)) ** 0.5
        lines.append(f"  {name:15} {rate:.4f} ± {half:.4f}")
    return "\n".join(lines)
