"""Numbers and times as an operator says them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_LONG = 2  # a span is told in a unit of which it has at least so many


def number(value: float | int | None) -> str:
    """A figure of four digits at most, or a count with its thousands."""
    if value is None:
        return "not measured"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def count(value: int, thing: str) -> str:
    """How many of a thing, such as "1 post" and "2,000 posts"."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def span(length: timedelta | float | None) -> str:
    """How long, such as "40 s" or "3 h". length: in seconds, if it is a number."""
    if length is None:
        return "an unknown time"
    seconds = length.total_seconds() if isinstance(length, timedelta) else float(length)
    for size, unit in _SPANS:
        if seconds >= _LONG * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def clock(at: datetime, now: datetime) -> str:
    """A time on the clock of this machine, with its day where that is not today."""
    local, today = at.astimezone(), now.astimezone().date()
    return local.strftime("%H:%M" if local.date() == today else "%b %d %H:%M")


def quantity(value: float | None, unit: str) -> str:
    """A figure of health with its unit: a share in percent, seconds as how long."""
    if value is None:
        return "not measured"
    if unit == "share":
        return f"{number(100 * value)} %"
    if unit == "seconds":
        return span(value)
    return f"{number(value)} {unit}"


def wanted(figure: Any) -> str:
    """The target range of a row of health; empty where it has none."""
    low, high = figure.target_low, figure.target_high
    if low is None and high is None:
        return ""
    if low is None:
        return f"at most {quantity(high, figure.unit)}"
    if high is None:
        return f"at least {quantity(low, figure.unit)}"
    return f"{number(low)} to {quantity(high, figure.unit)}"
