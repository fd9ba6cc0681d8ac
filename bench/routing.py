"""What it costs an API that there is a second cell: the same requests, with one cell and with two.

The second cell is a database that nothing is asked of: every request is for the first. Of one
client the figures say how long an answer takes, of several how much of the API it takes. Both APIs
are up all the time, and are asked in short turns: many rounds say more than long ones.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import psutil

from bench import http_clients
from bench.harness import Shop, shop
from bench.rounds import Variant
from darkpearl import database, embedded, schema
from darkpearl.cells.joining import without_secrets

SECONDS = 1
READ = 1000
"""Orders that are read."""
CLIENTS = (1, 8)
Measured = tuple[dict[str, Variant], list[str]]


@contextlib.asynccontextmanager
async def variants(running: embedded.Server) -> AsyncIterator[list[Measured]]:
    """Pairs of variants, with one cell and with two, each with the one that is the base."""
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(schema.scratch_database(running.url))
        await schema.migrate(other)
        async with database.connect(other, "bench") as there:
            await there.execute("set role darkpearl_owner")
            await there.execute("select darkpearl.become_cell(2)")
        served = {}
        for cells in (1, 2):
            target = await stack.enter_async_context(shop(running))
            if cells > 1:
                await target.connection.execute(
                    "insert into cells (number, name, url) values (2, 'north', %s)",
                    [without_secrets(other)],
                )
            await target.fill(READ)
            await target.settle_down()
            port, process = await stack.enter_async_context(http_clients.api(target.url))
            served[cells] = partial(_one, target, port, psutil.Process(process.pid))
        yield [
            (
                {
                    f"{what} by {clients}, {n}": partial(one, what, clients)
                    for n, one in served.items()
                },
                [f"{what} by {clients}, 1"],
            )
            for what in ("POST", "GET")
            for clients in CLIENTS
        ]


async def _one(
    target: Shop, port: int, process: psutil.Process, what: str, clients: int
) -> dict[str, Any]:
    """The rate, the time of an answer, and the processor time of the API for one."""
    before = sum(process.cpu_times()[:2])
    if what == "POST":
        rate = (await http_clients.drive(target, port, clients, SECONDS)).per_second
    else:
        rate = await http_clients.read_orders(target, port, clients, SECONDS, READ)
    used = sum(process.cpu_times()[:2]) - before
    return {
        "orders_per_second": round(rate, 1),
        "ms": round(clients * 1000 / rate, 3),
        "api_ms": round(used * 1000 / (rate * SECONDS), 3),
    }
