"""Clients place single orders while listeners work; the same clients with the saga switched off."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from bench import http_clients, pgbench
from bench.harness import Meter, Shop, listeners, shop, until_drained
from bench.latency import commit_latency
from bench.pgbench import Run
from bench.rounds import Variant
from darkpearl import embedded

PRODUCERS = 16
SECONDS = 10
BACKLOG = "select count(*) from sagas where ready_at is not null"


Place = Callable[..., Awaitable[Run]]


async def _end_to_end(running: embedded.Server, place: Place, count: int) -> dict[str, Any]:
    async with shop(running) as target:
        if not count:
            return await _bare(target, place)
        async with listeners(target, count) as processes:
            meter = Meter(target, processes)
            await meter.begin()
            producing = asyncio.create_task(place(target, clients=PRODUCERS, seconds=SECONDS))
            await asyncio.sleep(SECONDS / 2)
            halfway = await target.value(BACKLOG)
            run = await producing
            backlog = await target.value(BACKLOG)
            await meter.end()
            await until_drained(target)
        figures = await meter.per_order(run.transactions - backlog, counted=run.transactions)
        await target.check()
        waited = await commit_latency(target)
    return {
        "produced_per_second": round(run.per_second),
        **figures,
        **waited,
        "backlog_halfway": halfway,
        "backlog_at_the_end": backlog,
    }


async def _bare(target: Shop, place: Place) -> dict[str, Any]:
    """The producers alone: orders start no sagas."""
    await target.connection.execute("alter table orders disable trigger orders_start_sagas")
    meter = Meter(target)
    await meter.begin()
    run = await place(target, clients=PRODUCERS, seconds=SECONDS)
    await meter.end()
    figures = await meter.per_order(run.transactions)
    await target.check("order has no saga")
    return {
        "produced_per_second": round(run.per_second),
        **figures,
        "backlog_halfway": 0,
        "backlog_at_the_end": 0,
    }


def variants(running: embedded.Server) -> tuple[dict[str, Variant], list[str]]:
    """Inserts alone, then with one and two listeners at work."""
    names = {0: "saga switched off", 1: "1 listener", 2: "2 listeners"}
    sql = partial(_end_to_end, running, pgbench.place_orders)
    return {name: partial(sql, count) for count, name in names.items()}, [names[0]]


def http_variants(running: embedded.Server) -> tuple[dict[str, Variant], list[str]]:
    """The same by HTTP."""
    names = {0: "HTTP, saga switched off", 1: "HTTP, 1 listener"}
    http = partial(_end_to_end, running, http_clients.place_orders)
    return {name: partial(http, count) for count, name in names.items()}, [names[0]]
