"""The same orders in one database, and divided between two cells that share the machine."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from statistics import mean
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench.harness import HOME, OPTIONS, Meter, Shop, listeners, shop, until_drained
from bench.rounds import Variant
from darkpearl import cells, database, embedded, schema

ORDERS = 20_000
STOCK = 1_000_000
MEANS = ("wal_bytes_per_order", "server_cpu_us_per_order", "client_cpu_us_per_order")
OTHERS = ("north", "south")


@contextmanager
def servers() -> Iterator[list[embedded.Server]]:
    """Three servers more, the first of which replicates; libpq knows their passwords."""
    with ExitStack() as stack:
        found = [
            stack.enter_context(embedded.serve(HOME / name, options, exclusive=True))
            for name, options in (
                ("home", {**OPTIONS, "wal_level": "logical"}),
                *((name, OPTIONS) for name in OTHERS),
            )
        ]
        passwords = (HOME / "passwords").absolute()
        passwords.touch(0o600)
        passwords.write_text("".join(map(_password, found)))
        os.environ["PGPASSFILE"] = str(passwords)
        yield found


def _password(server: embedded.Server) -> str:
    """A server's line of a password file."""
    parts = conninfo_to_dict(server.url)
    return "{host}:{port}:*:{user}:{password}\n".format(**parts)


def variants(
    running: embedded.Server, home: embedded.Server, *others: embedded.Server
) -> tuple[dict[str, Variant], list[str]]:
    """One cell with one listener and with two, the base; two cells with one listener each.

    Of two cells one is home, which decodes its own WAL for the other, or neither is.
    """

    async def one(count: int) -> dict[str, Any]:
        async with shop(running) as target:
            return await drained([target], count)

    async def two(*, with_home: bool) -> dict[str, Any]:
        names = OTHERS[:1] if with_home else OTHERS
        async with shop(home) as here, AsyncExitStack() as stack:
            joined = [
                await stack.enter_async_context(cell(here, server, number, name))
                for number, (server, name) in enumerate(zip(others, names, strict=False), 2)
            ]
            return await drained([here, *joined] if with_home else joined, 1)

    alone = {f"one cell, {count} x 1000": partial(one, count) for count in (1, 2)}
    return {
        **alone,
        "home and a cell, 1 x 1000 each": partial(two, with_home=True),
        "two cells beside home, 1 x 1000 each": partial(two, with_home=False),
    }, list(alone)


@asynccontextmanager
async def cell(here: Shop, server: embedded.Server, number: int, name: str) -> AsyncIterator[Shop]:
    """A cell more, with a warehouse and stock of every product."""
    async with schema.scratch_database(server.url) as url:
        async for _ in cells.add(here.url, url, name):
            pass
        await here.connection.execute(
            "insert into warehouses (code, name, cell) values (%s, %s, %s)", [name, name, number]
        )
        async with await psycopg.AsyncConnection.connect(
            database.with_options(url, "-c search_path=darkpearl"), autocommit=True
        ) as connection:
            there = Shop(url, connection, server.pid)
            known = "select count(*) from warehouses, products"
            while await there.value(known) != await here.value(known):
                await asyncio.sleep(0.05)
            await connection.execute(
                "select count(receive_stock(w.id, p.id, %s)) from warehouses as w, products as p"
                " where w.cell = %s",
                [STOCK, number],
            )
            yield there
        await here.connection.execute(
            "update warehouses set is_active = false where cell = %s", [number]
        )
        await cells.remove(here.url, name, url=url)


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
