"""Pace: how many sagas a listener takes at once, and how long it waits after a failure.

A batch that fails for what may be one of its sagas is taken in halves; in the end that one is
claimed alone, and the engine puts it off. A pass that gets something done doubles what is taken.
"""

import logging
import random
import re

import psycopg

LONGEST_BACKOFF_SECONDS = 5.0
STANDSTILL_FAILURES = 5
"""Failures in a row, with nothing done between them, that are an error and no mere warning."""
_OF_THE_SESSION = re.compile("08|57P0[1-5]|58|F0|25006")
"""The SQLSTATEs that say something of the server or the connection, and nothing of a batch."""
_log = logging.getLogger(__name__)


class Pace:
    """The size of a listener's next pass, and what has failed since it last got something done."""

    def __init__(self, batch_size: int) -> None:
        self.size = batch_size
        self.tried = batch_size
        """What the latest pass to begin was about, at most."""
        self._batch_size = batch_size
        self.failures = 0
        """In a row, with nothing done between them."""

    def done(self, count: int) -> None:
        """A pass over so many sagas was committed."""
        self.failures = 0
        if count:
            self.size = min(2 * self.size, self._batch_size)

    def halve(self, error: psycopg.Error) -> bool:
        """Take half as many from now on.

        Returns:
            False when there is no less to take, or the error is not for what was in the batch.
        """
        if self.size == 1 or is_of_the_session(error):
            return False
        self.size = max(1, min(self.size, self.tried) // 2)
        _log.warning("database: %s; at most %d at once", first_line(error), self.size)
        return True

    def failed(self, reason: str, error: psycopg.Error | None = None) -> float:
        """Seconds to wait: the longer the more often in a row it failed.

        A session that somebody has ended says nothing against the next one. When the server is
        going down, that one is refused, and counts.
        """
        if not isinstance(error, psycopg.errors.AdminShutdown):
            self.failures += 1
        seconds = min(LONGEST_BACKOFF_SECONDS, 0.1 * 2.0 ** min(self.failures, 10))
        seconds *= 0.5 + random.random() / 2  # noqa: S311 - jitter
        level = logging.ERROR if self.failures >= STANDSTILL_FAILURES else logging.WARNING
        _log.log(level, "%s; %d in a row, trying again in %.1f s", reason, self.failures, seconds)
        return seconds


def is_of_the_session(error: psycopg.Error) -> bool:
    """The server or the connection failed, whatever it was asked."""
    return error.sqlstate is None or bool(_OF_THE_SESSION.match(error.sqlstate))


def first_line(error: Exception) -> str:
    """The error without what the server adds to it."""
    return str(error).partition("\n")[0]
