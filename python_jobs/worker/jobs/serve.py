"""The serving index: SQL does all of it; a worker lends the minutes that no tick should take."""

from __future__ import annotations

from typing import Any

from python_jobs.db import Connection, call


def build_serving_index(connection: Connection) -> dict[str, Any]:
    """Builds the side that nobody reads and lets it answer. Returns the id of the build."""
    return {"build": call(connection, "select two_tower.build_serving_index('job')")}


def check_serving_index(connection: Connection) -> dict[str, Any]:
    """Samples the recall of the index that answers; asks for a build when it is worn."""
    return {"recall": call(connection, "select two_tower.check_serving_index()")}
