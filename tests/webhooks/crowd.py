"""A quick endpoint beside a hundred slow ones with a backlog: `make crowd`, longer than a test.

The same orders are placed while the quick one is alone, and beside the others. The time from an
event to its arrival may grow then, but not much. SECONDS says how long the others take.
"""

import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from shop import APPROVED, Shop

Start = Callable[[], Awaitable[asyncio.subprocess.Process]]
SLOW = 100
SLOW_SECONDS = float(os.environ.get("DARKPEARL_TEST_SLOW_SECONDS", "2"))
BACKLOG_ORDERS = 334
"""Of three events each."""
ORDERS = 40
PAUSE_SECONDS = 0.1
WORST_RATIO = 2.0
GOOD_SECONDS = 1.0


@asynccontextmanager
async def slow_receiver() -> AsyncIterator[int]:
    """Takes whatever comes to its port, and takes its time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                await asyncio.sleep(SLOW_SECONDS)
                writer.write(b"HTTP/1.1 204 X\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def service(start: Start) -> AsyncIterator[None]:
    """`darkpearl webhooks`, for a block."""
    process = await start()
    yield
    process.kill()
    await process.wait()


async def delays(shop: Shop, receiver: Any, product: Any) -> list[float]:
    """Seconds from each event of some orders to its arrival."""
    came: dict[int, datetime] = {}

    async def note(event: dict[str, Any]) -> int:
        came[event["data"]["id"]] = datetime.now(UTC)
        return 204

    receiver.answer = note
    last = await shop.value("select max(id) from feed")
    for _ in range(ORDERS):
        await shop.fulfilled((product, 1))
        await asyncio.sleep(PAUSE_SECONDS)
    events = await shop.rows("select id, created_at from feed where id > %s", last)
    assert len(events) == 3 * ORDERS
    await receiver.until(lambda: all(each["id"] in came for each in events))
    return [(came[each["id"]] - each["created_at"]).total_seconds() for each in events]


async def test_a_quick_endpoint_beside_a_hundred_slow_ones(
    shop: Shop, receivers: Callable[..., Awaitable[Any]], start: Start
) -> None:
    """Its median delay stays within twice what it is alone, or below a second."""
    quick = await receivers()
    product = await shop.product(on_hand=10_000)
    async with slow_receiver() as port, asyncio.timeout(300):
        async with service(start):
            await shop.fulfilled((product, 1))
            await quick.until(lambda: len(quick.events) >= 3)
            alone = await delays(shop, quick, product)
        for number in range(SLOW):
            url = f"http://127.0.0.1:{port}/hook?{number}"
            await shop.run("select create_webhook_endpoint(%s)", url)
        for _ in range(BACKLOG_ORDERS):
            await shop.order((product, 1))
        while requests := await shop.advance(5000):
            await shop.settle(requests, APPROVED)
        last = await shop.value("select max(id) from feed")
        async with service(start):
            began = datetime.now(UTC)
            await quick.until(lambda: last in quick.taken)
            caught_up = (datetime.now(UTC) - began).total_seconds()
            beside = await delays(shop, quick, product)
            behind = await shop.value(
                "select count(*) from webhook_overview where position < %s", last
            )
    alone_median, beside_median = map(statistics.median, (alone, beside))
    print(  # noqa: T201
        f"alone {alone_median:.3f} s, at most {max(alone):.3f}; beside {SLOW} that take"
        f" {SLOW_SECONDS:g} s {beside_median:.3f}, at most {max(beside):.3f};"
        f" caught up in {caught_up:.1f} s; {behind} still behind"
    )
    assert behind == SLOW
    assert beside_median < max(WORST_RATIO * alone_median, GOOD_SECONDS)
