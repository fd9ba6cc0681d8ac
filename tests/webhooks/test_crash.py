"""The service as a process of its own, and killed: at any moment, it loses nothing.

DARKPEARL_TEST_WEBHOOK_ORDERS says how many orders there are, of three events each.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from shop import APPROVED, Shop

ORDERS = int(os.environ.get("DARKPEARL_TEST_WEBHOOK_ORDERS", "150"))
KILLS = 3
PATIENCE_SECONDS = 30 + ORDERS / 20


async def test_kills_lose_nothing(
    shop: Shop, receivers: Callable[..., Awaitable[Any]], start: Callable[..., Awaitable[Any]]
) -> None:
    """Killed three times amid its work, every event comes at least once, in order per order.

    What comes twice is what was sent and not written down: a batch for each kill at most.
    """
    receiver = await receivers()
    product = await shop.product(on_hand=10_000_000)
    for _ in range(ORDERS):
        await shop.order((product, 1))
    while requests := await shop.advance(5000):
        await shop.settle(requests, APPROVED)
    events = await shop.values("select id from feed order by id")
    assert len(events) >= 3 * ORDERS

    async with asyncio.timeout(PATIENCE_SECONDS):
        for kill in range(1, KILLS + 1):
            process = await start()
            come = kill * len(events) // (KILLS + 1) + 7
            await receiver.until(lambda come=come: len(receiver.events) >= come)
            process.kill()
            await process.wait()
        process = await start()
        await receiver.until(
            lambda: events[-1] in receiver.ids and set(receiver.ids) == set(events)
        )
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert sorted(set(receiver.ids)) == events
    assert len(receiver.ids) <= len(events) + KILLS * 100
    first: dict[int, int] = {}
    for at, number in enumerate(receiver.ids):
        first.setdefault(number, at)
    subjects: dict[str, list[int]] = {}
    for row in await shop.rows("select id, subject from feed order by id"):
        subjects.setdefault(str(row["subject"]), []).append(first[row["id"]])
    assert all(each == sorted(each) for each in subjects.values())
