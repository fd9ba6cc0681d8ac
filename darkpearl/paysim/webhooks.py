"""Webhooks: each decision is told until it is heard. The ledger remembers which are."""

import asyncio
import time
from sqlite3 import Connection

import httpx

from darkpearl.gateways.http import SIGNATURE_HEADER, sign
from darkpearl.outside import NOT_COMPRESSED, reading
from darkpearl.paysim.faults import Behaviour
from darkpearl.paysim.ledger import Ledger

AT_ONCE = 64
TIMEOUT_SECONDS = 5.0
LONGEST_ANSWER_BYTES = 65_536
LONGEST_BACKOFF_SECONDS = 10.0

_Due = list[tuple[str, bytes, int]]


class Webhooks:
    """Sends to one address."""

    def __init__(
        self,
        ledger: Ledger,
        behaviour: Behaviour,
        url: str,
        secret: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Send nothing yet.

        Args:
            ledger: what is to be told, and what was.
            behaviour: how often each is sent.
            url: where to.
            secret: what to sign with; without one they go unsigned.
            transport: instead of the network.
        """
        self._ledger = ledger
        self._behaviour = behaviour
        self._url = url
        self._secret = secret
        self._client = httpx.AsyncClient(
            headers=NOT_COMPRESSED,
            timeout=TIMEOUT_SECONDS,
            transport=transport,
            event_hooks=reading(LONGEST_ANSWER_BYTES),
        )

    async def deliver_due(self) -> bool:
        """Try what is due, once. False when nothing was."""
        return await self._deliver(await self._ledger.do(_due))

    async def deliver(self, idempotency_key: str) -> None:
        """Try to tell of this call now, unless it was told."""
        await self._deliver(await self._ledger.do(lambda db: _of(db, idempotency_key)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _deliver(self, due: _Due) -> bool:
        heard = await asyncio.gather(*(self._send(key, body) for key, body, _ in due))

        def record(db: Connection) -> None:
            now = time.time()
            for (key, _, attempts), well in zip(due, heard, strict=True):
                wait = min(LONGEST_BACKOFF_SECONDS, 0.1 * 2 ** min(attempts, 10))
                db.execute(
                    "update webhooks set attempts = attempts + 1, send_at = ? where name = ?",
                    [None if well else now + wait, key],
                )

        if due:
            await self._ledger.do(record)
        return bool(due)

    async def _send(self, key: str, body: bytes) -> bool:
        headers = {"Content-Type": "application/json"}
        if self._secret:
            headers[SIGNATURE_HEADER] = sign(self._secret, body, time.time())
        copies = self._behaviour.webhook_copies(key)
        posts = [self._post(headers, body) for _ in range(copies)]
        return all(await asyncio.gather(*posts))

    async def _post(self, headers: dict[str, str], body: bytes) -> bool:
        try:
            response = await self._client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError:
            return False
        return response.is_success


def _due(db: Connection) -> _Due:
    return db.execute(
        "select name, body, attempts from webhooks where send_at <= ? order by send_at limit ?",
        [time.time(), AT_ONCE],
    ).fetchall()


def _of(db: Connection, idempotency_key: str) -> _Due:
    return db.execute(
        "select name, body, attempts from webhooks where name = ? and send_at is not null",
        [idempotency_key],
    ).fetchall()
