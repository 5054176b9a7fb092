"""Waiting for a switch: what ticks and workers do, done now."""

from __future__ import annotations

import time

import psycopg

from python_jobs.db import Connection, call, value
from python_jobs.errors import CommandError
from python_jobs.worker.jobs.serve import build_serving_index


def finish_switch(connection: Connection) -> None:
    """Takes steps, and builds the index where one is needed, until the slot that is filled serves.

    connection: in autocommit. What workers do meanwhile is not done twice. Raises CommandError
    when the slot can not be filled.
    """
    lacks_an_index = "select two_tower.is_slot_full() and two_tower.is_serving_build_due()"
    while value(connection, "select filling_version is not null from two_tower.state"):
        if value(connection, lacks_an_index):
            try:
                build_serving_index(connection)
            except psycopg.errors.LockNotAvailable:
                time.sleep(0.5)  # a worker is building it
        else:
            did = call(connection, "select two_tower.take_step()")
            if did == {"failed": "fill_slot"}:
                raise CommandError(
                    "The slot can not be filled: two_tower.alerts says why. Ticks try it again."
                )
            if did in ({}, {"flip_slots": 0}):
                time.sleep(0.2)  # statements were learning: nobody waits for us
