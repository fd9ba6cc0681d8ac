"""A gateway that takes no money: for demos, development and tests."""

import asyncio
from hashlib import blake2b

from darkpearl.gateways import Answer, Call

_APPROVED = Answer("approved", gateway="mock")


class MockGateway:
    """Approves a share of all charges and every void.

    Whether a charge is approved follows from its idempotency key and the seed alone. So asking
    again gives the same answer in any process, which is what a real gateway promises too.
    """

    name = "mock"

    def __init__(
        self, approval_rate: float = 0.9, latency_seconds: float = 0.0, seed: int | None = None
    ) -> None:
        self._latency_seconds = latency_seconds
        self._threshold = round(approval_rate * 2**64)
        self._key = str(seed or 0).encode()

    async def authorize(self, call: Call) -> Answer:
        """Approve or decline after the latency."""
        await self._wait()
        digest = blake2b(call.idempotency_key.encode(), digest_size=8, key=self._key).digest()
        if int.from_bytes(digest) < self._threshold:
            return Answer("approved", gateway="mock", reference=f"mock-{digest.hex()}")
        return Answer("declined", gateway="mock", code="card_declined")

    async def capture(self, call: Call) -> Answer:  # noqa: ARG002 - nothing was taken
        """Approve after the latency."""
        await self._wait()
        return _APPROVED

    void = refund = capture

    async def lookup(self, call: Call) -> Answer | None:
        """None: it keeps no books, and asking again gives the same answer."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _wait(self) -> None:
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
