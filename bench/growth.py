"""The drain beside millions of orders that have ended long ago."""

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


async def load(target: Shop, orders: int) -> None:
    """So many finished orders, in transactions of a chunk each."""
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
    await target.settle_down()


def variants(running: embedded.Server, grown: Shop, finished: int) -> dict[str, Variant]:
    """The drain in empty tables and in grown ones, which grow on with every round."""

    async def in_grown() -> dict[str, Any]:
        return await drain(grown, 20_000, 1, 500, audit=False)

    async def in_empty() -> dict[str, Any]:
        async with shop(running, stock=STOCK) as target:
            return await drain(target, 20_000, 1, 500)

    return {"0 finished": in_empty, f"{finished:,} finished": in_grown}
