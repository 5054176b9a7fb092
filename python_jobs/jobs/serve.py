"""The serving index: SQL does all of it; a worker lends the minutes that no tick should take."""

from __future__ import annotations

from typing import Any

import psycopg


def build_serving_index(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Builds the side that nobody reads and lets it answer. Returns what the build reports."""
    connection.execute("select two_tower.build_serving_index('job')")
    row = connection.execute(
        "select posts, index_bytes from two_tower.serving_builds order by id desc limit 1"
    ).fetchone()
    assert row is not None
    return dict(row)


def check_serving_index(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Samples the recall of the index that answers; asks for a build when it is worn."""
    connection.execute("select two_tower.check_serving_index()")
    row = connection.execute("select recall, short_share from two_tower.serving_index").fetchone()
    return dict(row) if row else {}
