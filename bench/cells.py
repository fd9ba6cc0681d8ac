"""The same orders in one database, and divided between two cells that share the machine."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from statistics import mean
from typing import Any

import psycopg

from bench.harness import HOME, OPTIONS, Meter, Shop, listeners, shop, until_drained
from bench.rounds import Variant
from darkpearl import cells, database, embedded, schema

ORDERS = 20_000
STOCK = 1_000_000
MEANS = ("wal_bytes_per_order", "server_cpu_us_per_order", "client_cpu_us_per_order")
NORTH = "north"


@contextmanager
def servers() -> Iterator[tuple[embedded.Server, embedded.Server]]:
    """Two servers more, the first of which replicates."""
    with (
        embedded.serve(HOME / "home", {**OPTIONS, "wal_level": "logical"}, exclusive=True) as home,
        embedded.serve(HOME / NORTH, OPTIONS, exclusive=True) as north,
    ):
        yield home, north


def variants(
    running: embedded.Server, home: embedded.Server, north: embedded.Server
) -> tuple[dict[str, Variant], list[str]]:
    """One cell with one listener and with two, the base; two cells with one listener each."""

    async def one(count: int) -> dict[str, Any]:
        async with shop(running) as target:
            return await drained([target], count)

    async def two() -> dict[str, Any]:
        async with pair(home, north) as targets:
            return await drained(targets, 1)

    alone = {f"one cell, {count} x 1000": partial(one, count) for count in (1, 2)}
    return {**alone, "two cells, 1 x 1000 each": two}, list(alone)


@asynccontextmanager
async def pair(home: embedded.Server, north: embedded.Server) -> AsyncIterator[list[Shop]]:
    """Two cells, each with a warehouse and stock of every product."""
    async with (
        shop(home) as here,
        schema.scratch_database(north.url) as url,
    ):
        async for _ in cells.add(here.url, url, NORTH):
            pass
        await here.connection.execute(
            "insert into warehouses (code, name, cell) values ('N', 'N', 2)"
        )
        async with await psycopg.AsyncConnection.connect(
            database.with_options(url, "-c search_path=darkpearl"), autocommit=True
        ) as connection:
            there = Shop(url, connection, north.pid)
            known = "select count(*) from warehouses, products"
            while await there.value(known) != await here.value(known):
                await asyncio.sleep(0.05)
            await connection.execute(
                "select count(receive_stock(w.id, p.id, %s)) from warehouses as w, products as p"
                " where w.cell = 2",
                [STOCK],
            )
            yield [here, there]
        await here.connection.execute("update warehouses set is_active = false where cell = 2")
        await cells.remove(here.url, NORTH, url=url)


async def drained(targets: list[Shop], count: int) -> dict[str, Any]:
    """The orders, in equal parts, from the moment that they can be claimed to the last end."""
    meters, holders = [], []
    async with AsyncExitStack() as stack:
        for target in targets:
            await target.fill(ORDERS // len(targets))
            await target.settle_down()
        for target in targets:
            holder = await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(target.url)
            )
            await holder.execute("select from darkpearl.sagas for update")
            holders.append(holder)
            meters.append(Meter(target, await stack.enter_async_context(listeners(target, count))))
        for meter in meters:
            await meter.begin()
        began = time.monotonic()
        for holder in holders:
            await holder.execute("select darkpearl.ring_bell()")
            await holder.commit()
        await asyncio.gather(*map(until_drained, targets))
        seconds = time.monotonic() - began
        for meter in meters:
            await meter.end()
    figures = [await meter.per_order(ORDERS // len(targets)) for meter in meters]
    for target in targets:
        await target.check()
    means = {name: round(mean(each[name] for each in figures), 1) for name in MEANS}
    return {
        "orders": ORDERS,
        "seconds": round(seconds, 3),
        "orders_per_second": round(ORDERS / seconds),
        **means,
    }
