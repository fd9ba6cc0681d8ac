"""Limits: how much one listener takes on."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a listener takes on at once, and how long it waits.

    Attributes:
        batch_size: sagas in one pass at most.
        concurrency: calls of the gateway in flight at once at most.
        call_seconds: how long the gateway may take for one call.
        call_failures: payments in a row without an answer after which calls pause.
        poll_seconds: longest sleep when no bell rings.
        shutdown_seconds: time to finish what is in hand after a stop.
        idempotency_key_hours: how long the answer under an idempotency key is kept.
    """

    batch_size: int
    concurrency: int
    call_seconds: float
    call_failures: int
    poll_seconds: float
    shutdown_seconds: float
    idempotency_key_hours: int
