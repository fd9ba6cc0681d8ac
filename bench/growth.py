"""The drain beside millions of orders that have ended long ago."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from bench.drain import drain
from bench.harness import Shop, shop
from bench.rounds import Variant
from darkpearl import database, embedded

SQL = Path(__file__).with_suffix(".sql").read_text()
CHUNK = 50_000
STOCK = 500_000_000


async def load(target: Shop, orders: int) -> dict[str, Any]:
    """So many finished orders, in transactions of a chunk each; how long it took."""
    began = time.monotonic()
    async with await psycopg.AsyncConnection.connect(
        database.with_options(
            target.url, "-c search_path=darkpearl,pg_temp -c session_replication_role=replica"
        ),
        # The chunk is one text of many statements: its parameter goes in on this side.
        cursor_factory=psycopg.AsyncClientCursor,
    ) as connection:
        for start in range(0, orders, CHUNK):
            await connection.execute(SQL.encode(), {"orders": min(CHUNK, orders - start)})
            await connection.commit()
    loaded = time.monotonic()
    await target.settle_down()
    await target.check()
    return {
        "orders": orders,
        "load_seconds": round(loaded - began),
        "vacuum_and_audit_seconds": round(time.monotonic() - loaded),
        "database_mb": await target.value(
            "select pg_database_size(current_database()) / (1024 * 1024)"
        ),
    }


def variants(running: embedded.Server, grown: dict[int, Shop]) -> dict[str, Variant]:
    """The drain in empty tables and in grown ones, which grow on with every round."""

    async def in_grown(target: Shop) -> dict[str, Any]:
        return await drain(target, 20_000, 1, audit=False)

    async def in_empty() -> dict[str, Any]:
        async with shop(running, stock=STOCK) as target:
            return await drain(target, 20_000, 1)

    return {
        "0 finished": in_empty,
        **{f"{orders:,} finished": partial(in_grown, target) for orders, target in grown.items()},
    }
