"""Checkpoints and audits: SQL does it all; a worker lends the minutes that no tick should take."""

from __future__ import annotations

from typing import Any

from python_jobs.db import Connection, call


def checkpoint(connection: Connection) -> dict[str, Any]:
    """Takes a snapshot to roll back to, and audits it. Returns its id."""
    return {"checkpoint": call(connection, "select two_tower.checkpoint()")}


def run_audit(connection: Connection) -> dict[str, Any]:
    """Audits the quality of the embeddings. Returns the id of the audit."""
    return {"audit": call(connection, "select two_tower.run_audit()")}
