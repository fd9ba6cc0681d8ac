"""Housekeeping: what a listener does hourly, beside its work and never in the way of it."""

import logging
import time

import psycopg

from darkpearl.listener.engine import Engine
from darkpearl.listener.pace import first_line, is_of_the_session

HOUSEKEEPING_SECONDS = 3600.0
RETRY_SECONDS = 60.0
"""After housekeeping that failed."""
FORGET_BATCH = 10_000
"""Rows that one statement removes at most."""
_log = logging.getLogger(__name__)


class Housekeeping:
    """Partitions that history needs next, and keys and tokens whose time is over.

    Args:
        idempotency_key_hours: how long keys are kept.
    """

    def __init__(self, idempotency_key_hours: int) -> None:
        self._hours = idempotency_key_hours
        self._due_at = float("-inf")

    async def keep(self, engine: Engine) -> None:
        """Do what is due. What fails is logged and tried again later, and keeps nobody from work.

        A session that is lost says so again at its next use, where outages are seen to.
        """
        if time.monotonic() < self._due_at:
            return
        pauses = []
        for work in (self._make_partitions, self._forget_keys, self._forget_tokens):
            try:
                pauses.append(await work(engine))
            except psycopg.Error as error:
                pauses.append(RETRY_SECONDS)
                _log.error(
                    "housekeeping: %s; trying again in %.0f s", first_line(error), RETRY_SECONDS
                )
                if is_of_the_session(error):  # the others would only say so again
                    break
        self._due_at = time.monotonic() + min(pauses)

    async def _make_partitions(self, engine: Engine) -> float:
        """Make what is missing; seconds until the next time."""
        for name in await engine.ensure_event_partitions() + await engine.place_events():
            _log.info("made partition %s", name)
        return HOUSEKEEPING_SECONDS

    async def _forget_keys(self, engine: Engine) -> float:
        """Remove a batch of old keys; seconds until the next, none while there are more."""
        forgotten = await engine.forget_idempotency_keys(self._hours, FORGET_BATCH)
        return HOUSEKEEPING_SECONDS if forgotten < FORGET_BATCH else 0.0

    async def _forget_tokens(self, engine: Engine) -> float:
        """Remove a batch of tokens of ended orders; seconds until the next."""
        forgotten = await engine.forget_payment_tokens(FORGET_BATCH)
        return HOUSEKEEPING_SECONDS if forgotten < FORGET_BATCH else 0.0
