"""A snapshot that is held from the beginning, and orders that go on: the first and the last.

What is measured at the end is compared with the same at the beginning, in the same database, so
`ratio` says what the versions cost that no vacuum may take away.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import psycopg

from bench import versus
from bench.harness import REPORT, Meter, Shop, listeners, shop
from bench.latency import latency
from bench.rounds import Variant
from darkpearl import embedded

ROUND = 20_000
"""Orders that are placed, then drained, at a time."""
ALONE = 100
"""Orders that come alone at the beginning, and again at the end."""
PEER_SHARE = 10
"""Other engines get a tenth of the orders: they are that much slower, or more."""
PEERS = {
    "awa": versus.Peer("awa", ("awa-pg>=0.6,<0.7", "asyncpg>=0.30", "uvloop>=0.21"), ((1, 64),)),
    "PgQueuer": versus.PEERS["PgQueuer"],
}
ASLEEP = """
select exists (
    select from pg_locks
    where locktype = 'advisory' and mode = 'ExclusiveLock' and granted
        and database = (select oid from pg_database where datname = current_database())
        and (classid::bigint << 32) | objid::bigint = idle_lock_key()
)
"""
UNFINISHED = "select exists (select from orders where order_number > %s and status <> 'fulfilled')"
NEWEST = "select coalesce(max(order_number), 0) from orders"
FULFILLED_AT = """
select extract(epoch from max(at) - min(at))::float8
from (
    select pg_xact_commit_timestamp(xmin) as at from orders order by 1 offset %s limit %s
) as fulfilled
"""


@contextlib.asynccontextmanager
async def held_snapshot(target: Shop) -> AsyncIterator[None]:
    """A report that has read something and stays in its transaction."""
    async with await psycopg.AsyncConnection.connect(target.url, application_name=REPORT) as report:
        await report.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await report.execute("select count(*) from darkpearl.orders")
        yield


async def _drain(target: Shop, orders: int, **filling: Any) -> dict[str, Any]:
    """Orders that are there when a listener starts, from the first commit of an end to the last.

    Its idle lock says when it has done: to ask for sagas would read again and again what they left
    behind.
    """
    before = await target.value(NEWEST)
    await target.fill(orders, **filling)
    await target.connection.execute("analyze")
    await target.connection.execute("checkpoint")
    meter = Meter(target)
    await meter.begin()
    async with listeners(target, 1):
        while not await target.value(ASLEEP) or await target.value(UNFINISHED, before):
            await asyncio.sleep(0.02)
        await meter.end()
    seconds = await target.value(FULFILLED_AT, before, orders)
    return {**await meter.per_order(orders), "orders_per_second": round(orders / seconds)}


async def _ours(running: embedded.Server, orders: int, **filling: Any) -> dict[str, Any]:
    async with shop(running, stock=100_000_000) as target, held_snapshot(target):
        alone = [await latency(target, ALONE, audit=False)]
        rounds = [
            await _drain(target, min(ROUND, orders), **filling)
            for _ in range(max(2, orders // ROUND))
        ]
        alone.append(await latency(target, ALONE, audit=False))
        await target.check()
    first, last = rounds[0], rounds[-1]
    return {
        "orders": orders,
        "first": first["orders_per_second"],
        "last": last["orders_per_second"],
        "held_ratio": round(last["orders_per_second"] / first["orders_per_second"], 3),
        "first_cpu": first["server_cpu_us_per_order"],
        "last_cpu": last["server_cpu_us_per_order"],
        "first_p50_ms": alone[0]["p50_ms"],
        "last_p50_ms": alone[1]["p50_ms"],
    }


async def _theirs(running: embedded.Server, peer: versus.Peer, orders: int) -> dict[str, Any]:
    """All orders and their jobs are there at the beginning; the first tenth and the last."""
    processes, concurrency = peer.shapes[0]
    async with shop(running, stock=100_000_000) as target:
        await versus.prepare(target, peer, None, orders)
        async with held_snapshot(target):
            with versus.workers_of(peer, versus.url_of(target), processes, concurrency) as workers:
                hellos = [await asyncio.to_thread(worker.stdout.readline) for worker in workers]
                for worker in workers:
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                deadline = time.monotonic() + versus.LONGEST_SECONDS
                while await target.value(UNFINISHED, 0) and time.monotonic() < deadline:
                    if any(worker.poll() is not None for worker in workers):
                        raise SystemExit("a worker ended before all orders were fulfilled")
                    await asyncio.sleep(1)
        tenth = orders // 10
        first = tenth / await target.value(FULFILLED_AT, 0, tenth)
        last = tenth / await target.value(FULFILLED_AT, orders - tenth, tenth)
        await versus.audit(target)
    return {
        "orders": orders,
        "first": round(first),
        "last": round(last),
        "held_ratio": round(last / first, 3),
        **versus.told(hellos[0]),
    }


def variants(running: embedded.Server, orders: int) -> dict[str, Variant]:
    """DarkPearl over 1,000 products and over one, and the peers."""
    for peer in PEERS.values():
        peer.install()  # before anything is measured
    return {
        "DarkPearl, 1,000 products": partial(_ours, running, orders),
        "DarkPearl, hot": partial(_ours, running, orders, products=1, lines=1),
        **{
            f"{name}, {peer.shapes[0][0]} x {peer.shapes[0][1]}": partial(
                _theirs, running, peer, orders // PEER_SHARE
            )
            for name, peer in PEERS.items()
        },
    }
