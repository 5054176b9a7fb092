"""How impressions are spread, and what takes which place on the disk, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.filesize import decimal

from python_jobs.operations.words import count, number


def describe_impressions(found: list[Any]) -> Iterator[str]:
    """A line of measure_concentration() and posts_never_shown. found: one row, or none."""
    if not found:
        yield "not measured: there is too much to read for a report"
    for row in found:
        listed = f"{count(row.listed_posts, 'post')} listed, {row.shown_posts:,} shown in 7 days"
        never = f"{row.never_shown_posts:,} never"
        if row.gini is None:
            yield f"{listed}, {never}"
        else:
            share = number(100 * row.share_of_top_percent)
            yield f"{listed}, {never}; a hundredth of them got {share} % (Gini {row.gini:.2f})"


def describe_table(row: Any) -> tuple[str, str, str, str]:
    """Of a row of retention: size, size a day, for how long, and size in the end; or blank."""
    return (
        decimal(row.bytes),
        "" if row.bytes_a_day is None else f"{decimal(row.bytes_a_day)} a day",
        _describe_end(row),
        "" if row.bytes_when_full is None else f"{decimal(row.bytes_when_full)} when full",
    )


def _describe_end(row: Any) -> str:
    if row.kept is None:
        return f"until {row.until[0].lower()}{row.until[1:].rstrip('.')}"
    return f"kept: {row.kept}" + (f" ({row.setting})" if row.setting else "")
