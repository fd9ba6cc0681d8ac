"""From an order's commit to its fulfilment, one order at a time."""

import asyncio
import sys
from typing import Any

import psycopg

from bench.harness import Shop, listeners, until_drained
from darkpearl import database

WARM_UP = 100
PAUSE_SECONDS = 0.02
LEAST = """
create table least (
    order_number bigint generated always as identity primary key,
    placed_in xid8 not null default pg_current_xact_id(),
    written integer not null default 0
);
create function ring() returns trigger language plpgsql as $$
begin
    perform pg_notify('least', new.order_number::text);
    return null;
end
$$;
create trigger bell after insert on least for each row execute function ring();
"""


async def latency(
    target: Shop, orders: int, *, pause_seconds: float = PAUSE_SECONDS, audit: bool = True
) -> dict[str, Any]:
    """Place orders one by one, each long after the one before has ended and the listener sleeps.

    Both moments are commit timestamps of the server (track_commit_timestamp): of the transaction
    that placed the order, and of the one that last wrote it, which fulfilled it.

    Args:
        target: where.
        orders: how many.
        pause_seconds: from one order's commit to the next order. The longer, the colder the caches.
        audit: whether to check at the end; who passes False checks himself.
    """
    product = await target.value("select id from products order by sku limit 1")
    warehouse = await target.value("select id from warehouses limit 1")
    there = await target.value("select count(*) from orders")
    async with (
        await psycopg.AsyncConnection.connect(
            database.as_role(target.url, "darkpearl_app"), autocommit=True
        ) as app,
        listeners(target, 1),
    ):
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
    if audit:
        await target.check()
    return {"orders": orders, **await commit_latency(target, skip=there + WARM_UP)}


async def least(target: Shop, orders: int) -> dict[str, Any]:
    """The machine's own time: a row is inserted, and written twice by a session that is told.

    Each time is a transaction, as an order's are: placed, claimed, settled. Nothing is checked, no
    other row is touched, and who is told does nothing but that.
    """
    await target.connection.execute(LEAST)
    rows = orders + WARM_UP
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.latency", target.url, str(rows)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert writer.stdout
    if not await writer.stdout.readline():
        raise SystemExit("who writes ended before it began")
    async with await psycopg.AsyncConnection.connect(target.url, autocommit=True) as app:
        for _ in range(rows):
            await app.execute("insert into least default values")
            await asyncio.sleep(PAUSE_SECONDS)
    if code := await writer.wait():
        raise SystemExit(f"who writes failed (exit {code})")
    return {"orders": orders, **await commit_latency(target, "least")}


async def write(url: str, rows: int) -> None:
    """Say a line when listening, write every row twice that the bell tells of, and end."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("listen least")
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while rows:
            # As a list: while it is asked for more, the connection does nothing else.
            told = [each async for each in connection.notifies(stop_after=1)]
            for each in told + told:
                await connection.execute(
                    "update least set written = written + 1 where order_number = %s",
                    [each.payload],
                )
            rows -= len(told)


async def commit_latency(
    target: Shop, table: str = "orders", skip: int = WARM_UP
) -> dict[str, float]:
    """Percentiles in milliseconds, of all rows of a table but the first ones."""
    figures = await target.value(
        f"""
        select percentile_cont(array[0.5, 0.95, 0.99]) within group (order by took)
        from (
            select extract(epoch from pg_xact_commit_timestamp(xmin)
                - pg_xact_commit_timestamp(placed_in::xid)) * 1000 as took
            from {table} order by order_number offset %s
        ) as o
        """,
        skip,
    )
    return {
        f"{name}_ms": round(ms, 2) for name, ms in zip(("p50", "p95", "p99"), figures, strict=True)
    }


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2])))
