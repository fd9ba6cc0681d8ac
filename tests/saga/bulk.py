"""A batch over all that is stuck, beside a shop that sells: `make bulk`, too long for `make test`.

A listener works it off at a pace and is killed in the middle, and another goes on; meanwhile orders
are placed one by one. In turns with quiet ones, so that both meet the same machine: how long an
order takes from its insert to its end, beside the batch and alone. STUCK=100000 says how many.
"""

import asyncio
import os
import sys
import time
from statistics import quantiles
from typing import Any

from psycopg import AsyncConnection
from server import Process
from shop import PLACE_MANY, Shop

STUCK = int(os.environ.get("DARKPEARL_TEST_STUCK", "2000"))
PACE = int(os.environ.get("DARKPEARL_TEST_PACE", "100"))
TURNS = min(max(2, STUCK // (10 * PACE)), 12)
TURN_SECONDS = 10.0
WORST_RATIO = 1.5

GET_STUCK = """
    with s as (
        update sagas set status = 'stuck', ready_at = null where ready_at is not null
        returning id, warehouse_id
    )
    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, error_code, message
    )
    select
        s.id, s.warehouse_id, e.event_type::saga_event_type, 'reserve_stock', 1, '42703', 'defect'
    from s cross join (values (1, 'step_failed'), (2, 'saga_stuck')) as e (n, event_type)
    order by s.id, e.n
"""


RATE = """
    select count(*) / extract(epoch from max(ended_at) - min(ended_at))::float8 from batch_items
    where batch_id = %s and result = 'done'
"""
"""From the first item to the last: a listener takes up to its next heartbeat to notice a batch."""


async def over(shop: Shop, query: str, pause: float) -> None:
    """Return once it is so."""
    while True:
        if await shop.value(query):
            return
        await asyncio.sleep(pause)


async def sell(shop: Shop, seconds: float) -> list[float]:
    """Place orders, one after the other; how long each took to its end."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        order = await shop.order((shop.products[1], 1))
        await over(shop, f"select ready_at is null from sagas where id = '{order}'", 0.002)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)
    return took


async def test_a_batch_beside_a_shop_that_sells(
    database_url: str, shop: Shop, connect: Any
) -> None:
    """Orders take at most 1.5 times as long beside it, and a kill loses no item of it."""
    await shop.product(on_hand=STUCK)
    await shop.product(on_hand=1_000_000)
    for placed in range(0, STUCK, 1000):
        count = min(1000, STUCK - placed)
        await shop.run(PLACE_MANY, shop.lisbon, count, shop.products[0])
    await shop.run(GET_STUCK)
    await shop.run("vacuum analyze")
    settings = {"DARKPEARL_DATABASE_URL": database_url, "DARKPEARL_LOG_LEVEL": "error"}
    quiet: list[float] = []
    beside: list[float] = []
    rates = []
    other: AsyncConnection[Any] = await connect()
    killed = Process("listener", **settings)
    with killed, Process("listener", **settings) as listener:
        await sell(shop, 3)
        for turn in range(TURNS):
            quiet += await sell(shop, TURN_SECONDS)
            batch = await started(shop)
            if turn == TURNS // 2:
                asyncio.get_running_loop().call_later(TURN_SECONDS / 2, killed.kill)
            beside += await sell(shop, TURN_SECONDS)
            async with other.transaction():
                await other.execute("select stop_batch(%s, 'a turn is over')", [batch])
            rates.append(await shop.value(RATE, batch))
        assert listener.runs()
        await started(shop, 1000)
        await over(shop, "select not exists (select from batches where finished_at is null)", 0.2)
        await over(shop, "select not exists (select from sagas where ready_at is not null)", 0.2)
        assert "Traceback" not in listener.printed()
    assert await shop.value("select count(*) from batch_items where result = 'failed'") == 0
    assert (
        await shop.value("select count(*) from saga_events where event_type = 'retried'") == STUCK
    )
    assert set(await shop.statuses()) <= {"fulfilled", "cancelled"}
    alone = [p(quiet, 50), p(quiet, 99)]
    besides = [p(beside, 50), p(beside, 99)]
    ratios = [b / q for q, b in zip(alone, besides, strict=True)]
    sys.stderr.write(
        f"quiet  p50 {alone[0]:.1f} p99 {alone[1]:.1f} ms of {len(quiet)}\n"
        f"beside p50 {besides[0]:.1f} p99 {besides[1]:.1f} ms of {len(beside)}\n"
        f"{ratios[0]:.2f} x and {ratios[1]:.2f} x; load {os.getloadavg()[0]:.1f};"
        f" {min(rates):.0f} to {max(rates):.0f} a second of {PACE} asked for\n"
    )
    assert max(ratios) <= WORST_RATIO


def p(times: list[float], percent: int) -> float:
    """Milliseconds that so many of a hundred took at most."""
    return 1000 * quantiles(times, n=100)[percent - 1]


async def started(shop: Shop, pace: int = PACE) -> Any:
    """All that is stuck is to be tried again; the batch."""
    async with shop.acting_as("service_role"):
        return await shop.value(
            "select batch_id from retry_sagas('{\"error_code\": \"42703\"}', 'mended', false, %s)",
            pace,
        )
