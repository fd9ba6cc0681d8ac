"""The floor: order by order, three transactions each, driven by pgbench."""

from functools import partial
from pathlib import Path
from typing import Any

from bench.drain import drain
from bench.harness import BATCH_SIZE, Meter, Shop, shop
from bench.pgbench import pgbench
from bench.rounds import Variant
from darkpearl import embedded

SQL = Path(__file__).with_suffix(".sql")
CLIENTS = (1, 4, 8, 16)
DRAINED = 40_000
"""Orders of a drain, so that it takes about as long as the floor: sessions plan at their start."""
SCRIPT = """
select floor.reserve() as id \\gset
select floor.pay(:id::uuid);
select floor.fulfil(:id::uuid);
"""


async def floor(target: Shop, orders: int, clients: int) -> dict[str, Any]:
    """Ready orders, worked off one by one by so many clients."""
    await target.fill(orders)
    await target.connection.execute(SQL.read_bytes())
    await target.connection.execute("set search_path = darkpearl")
    await target.settle_down()
    meter = Meter(target)
    await meter.begin()
    run = await pgbench(target, SCRIPT, clients=clients, transactions=orders)
    await meter.end()
    figures = await meter.per_order(orders)
    if not await target.drained():
        raise SystemExit("the floor left orders undone")
    await target.check()
    # As pgbench counts: without the time that connecting took. pgbench's own CPU is not known.
    del figures["client_cpu_us_per_order"]
    return {**figures, "orders_per_second": round(run.per_second)}


def variants(running: embedded.Server) -> tuple[dict[str, Variant], list[str]]:
    """The floor at each number of clients, the drain with one and two listeners.

    The drain with the batches that a listener has when nothing else is said, and with smaller and
    larger ones.
    """

    async def one_floor(clients: int) -> dict[str, Any]:
        async with shop(running) as target:
            return await floor(target, 1600 if clients == 1 else 4800, clients)

    async def one_drain(listeners: int, batch_size: int) -> dict[str, Any]:
        async with shop(running) as target:
            return await drain(target, DRAINED, listeners, batch_size=batch_size)

    floors = {f"floor, {c} client{'s' * (c > 1)}": partial(one_floor, c) for c in CLIENTS}
    drains = {
        f"drain, {n} listener{'s' * (n > 1)}{batches}": partial(one_drain, n, size)
        for n in (1, 2)
        for batches, size in (
            ("", BATCH_SIZE),
            (", batches of 500", 500),
            (", batches of 2,000", 2000),
        )
    }
    return {**floors, **drains}, list(floors)
