"""From an order's commit to its fulfilment, one order at a time."""

import asyncio
import os
from collections.abc import Collection
from typing import Any

import psycopg

from bench.harness import Shop, listeners, until_drained
from darkpearl import database

WARM_UP = 100
PAUSE_SECONDS = 0.02


async def latency(
    target: Shop,
    orders: int,
    *,
    pause_seconds: float = PAUSE_SECONDS,
    processors: Collection[int] = (),
) -> dict[str, Any]:
    """Place orders one by one, each long after the one before has ended and the listener sleeps.

    Both moments are commit timestamps of the server (track_commit_timestamp): of the transaction
    that placed the order, and of the one that last wrote it, which fulfilled it.

    Args:
        target: where.
        orders: how many.
        pause_seconds: from one order's commit to the next order. The longer, the colder the caches.
        processors: what the listener keeps to; any when not given.
    """
    product = await target.value("select id from products order by sku limit 1")
    warehouse = await target.value("select id from warehouses limit 1")
    async with (
        await psycopg.AsyncConnection.connect(
            database.as_role(target.url, "darkpearl_app"), autocommit=True
        ) as app,
        listeners(target, 1) as (listener,),
    ):
        if processors:
            os.sched_setaffinity(listener.pid, processors)
        for _ in range(orders + WARM_UP):
            async with app.transaction():
                cursor = await app.execute(
                    "insert into darkpearl.orders (warehouse_id) values (%s) returning id",
                    [warehouse],
                )
                ((order,),) = await cursor.fetchall()
                await app.execute(
                    "insert into darkpearl.order_items"
                    " (order_id, warehouse_id, product_id, quantity) values (%s, %s, %s, 1)",
                    [order, warehouse, product],
                )
            await asyncio.sleep(pause_seconds)
        await until_drained(target)
    await target.check()
    return {"bench": "latency at idle", "orders": orders, **await commit_latency(target)}


async def commit_latency(target: Shop) -> dict[str, float]:
    """Percentiles in milliseconds, of all orders but those to warm up."""
    figures = await target.value(
        """
        select percentile_cont(array[0.5, 0.95, 0.99]) within group (order by took)
        from (
            select extract(epoch from pg_xact_commit_timestamp(xmin)
                - pg_xact_commit_timestamp(placed_in::xid)) * 1000 as took
            from orders order by order_number offset %s
        ) as o
        """,
        WARM_UP,
    )
    return {
        f"{name}_ms": round(ms, 2) for name, ms in zip(("p50", "p95", "p99"), figures, strict=True)
    }
