"""A worker's way to its database, which may go away and come back."""

from __future__ import annotations

import logging
import threading
import time
import weakref

import psycopg

from python_jobs.db import Connection, connect, require_engine
from python_jobs.errors import CommandError, UnreachableError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0

log = logging.getLogger("two_tower.worker")


class Database:
    """Opens connections, in autocommit, and logs one line for a loss and one for the return.

    url: of the database. waits: whether a database that does not answer is waited for, for as long
    as it takes. Safe to use from several threads: one outage that all of them meet is told once.
    """

    def __init__(self, url: str, waits: bool) -> None:
        self.url = url
        self.waits = waits
        self._lock = threading.Lock()
        self._was_reached = False
        self._is_away = False
        self._refusal = ""  # what was told of it in this outage
        self._back_at = 0.0
        self._opened_at: weakref.WeakKeyDictionary[Connection, float] = weakref.WeakKeyDictionary()

    def connect(self, until: threading.Event) -> Connection | None:
        """A connection to a database that has the engine; None when `until` came before.

        Raises CommandError when the database lacks the engine, refuses the very first login, or
        does not answer and is not waited for.
        """
        pause = FIRST_PAUSE_S
        while not until.is_set():
            try:
                return self._open()
            except UnreachableError as error:
                if not self.waits:
                    raise
                self._tell_outage(error.message)
            until.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return None

    def tell_loss(self, connection: Connection, error: BaseException) -> None:
        """Logs that a connection was lost, unless that is known."""
        if self._opened_at[connection] >= self._back_at:
            self._tell_outage(first_line(error))

    def _open(self) -> Connection:
        try:
            # A standby, or a full disk's read-only database, is as good as none.
            connection = connect(self.url, autocommit=True, target_session_attrs="read-write")
        except UnreachableError:
            raise
        except CommandError as error:
            if not self._was_reached:
                raise
            # A pooler whose server is away may refuse what was good; a person may have to look.
            self._tell_refusal(error.message)
            raise UnreachableError(error.message) from error
        try:
            require_engine(connection)
        except psycopg.Error as error:
            connection.close()
            raise UnreachableError(first_line(error)) from error
        except CommandError:
            connection.close()
            raise
        self._tell_return(connection)
        return connection

    def _tell_outage(self, message: str) -> None:
        with self._lock:
            if not self._is_away:
                log.warning("no database, waiting for it: %s", message)
                self._is_away = True

    def _tell_refusal(self, message: str) -> None:
        with self._lock:
            if message != self._refusal:
                log.error("%s", message)
                self._refusal = message

    def _tell_return(self, connection: Connection) -> None:
        with self._lock:
            self._was_reached = True
            self._opened_at[connection] = time.monotonic()
            if self._is_away:
                log.info("the database is back")
                self._is_away, self._refusal = False, ""
                self._back_at = self._opened_at[connection]


def first_line(error: BaseException) -> str:
    """What an error says, without what may have caused it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
