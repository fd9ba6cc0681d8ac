"""The drain behind a gateway that takes its time: what is done at once is what limits it."""

from functools import partial
from typing import Any

from bench.drain import drain
from bench.harness import shop
from bench.rounds import Variant
from darkpearl import embedded

LATENCY_SECONDS = 0.05
SECONDS = 5
CONCURRENCY = (16, 64, 256, 1000)


async def _drain(running: embedded.Server, concurrency: int) -> dict[str, Any]:
    """About five seconds' worth of orders; `of_possible` is the share of calls / latency."""
    possible = concurrency / LATENCY_SECONDS
    async with shop(running) as target:
        orders = round(min(possible, 4000) * SECONDS)
        figures = await drain(
            target,
            orders,
            1,
            settings={
                "mock_latency_seconds": LATENCY_SECONDS,
                "payment_concurrency": concurrency,
            },
        )
    of_possible = figures["orders_per_second"] / possible
    return {**figures, "possible": round(possible), "of_possible": round(of_possible, 2)}


def variants(running: embedded.Server) -> dict[str, Variant]:
    """So many calls of 50 ms at once, in one listener."""
    return {f"{calls} calls at once": partial(_drain, running, calls) for calls in CONCURRENCY}
