"""Ten thousand orders from plain SQL clients, while a listener is killed again and again."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict
from shop import Shop

from darkpearl import database
from darkpearl.embedded import wheel

CLIENTS, ORDERS_EACH, KILLS = 8, 1250, 5
SCRIPT = """
\\set first random(1, 20)
\\set second random(1, 20)
begin;
insert into orders (warehouse_id)
select id from warehouses where code = 'LIS' returning id, warehouse_id \\gset
insert into order_items (order_id, warehouse_id, product_id, quantity)
select ':id', ':warehouse_id', id, 1 + :first % 3
from products where sku in ('S' || :first, 'S' || :second);
commit;
"""


@asynccontextmanager
async def listener(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A listener process; killed at the end if it hasn't been."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "darkpearl", "listener"),
        env={**os.environ, "DARKPEARL_DATABASE_URL": url, "DARKPEARL_LOG_LEVEL": "error"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_every_order_of_a_storm_ends_once(
    shop: Shop, database_url: str, until: Any, tmp_path: Path
) -> None:
    """10,000 orders, two listeners, five kill -9: each saga ends, the ledger replays exactly."""
    await shop.run("update step_settings set timeout_seconds = 2, backoff_seconds = 0.1")
    await shop.run(
        "insert into products (sku, name, unit_price)"
        " select 'S' || n, 'P', 10 from generate_series(1, 20) as n"
    )
    # Enough for most: the last orders find some shelves empty.
    await shop.run(
        "select receive_stock(%s, id, 1500) from products where sku like 'S%%'", shop.lisbon
    )
    script = tmp_path / "order.sql"
    script.write_text(SCRIPT)
    parts = conninfo_to_dict(database.as_role(database_url, "darkpearl_app"))
    pgbench = await asyncio.create_subprocess_exec(
        *(wheel.binaries() / "pgbench", "--no-vacuum", "--file", script),
        *("--client", str(CLIENTS), "--jobs", "2", "--transactions", str(ORDERS_EACH)),
        *("--protocol", "simple"),
        env={
            "PGHOST": str(parts["host"]),
            "PGPORT": str(parts["port"]),
            "PGUSER": str(parts["user"]),
            "PGPASSWORD": str(parts.get("password") or ""),
            "PGDATABASE": str(parts["dbname"]),
            "PGOPTIONS": "-c role=darkpearl_app -c search_path=darkpearl",
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )

    async def some_have_ended(more_than: int) -> bool:
        return (
            await shop.value("select count(*) > %s from sagas where ready_at is null", more_than)
            or pgbench.returncode is not None
        )

    async with listener(database_url):
        for _ in range(KILLS):
            ended = await shop.value("select count(*) from sagas where ready_at is null")
            async with listener(database_url) as doomed:
                await until(lambda ended=ended: some_have_ended(ended))
                doomed.kill()
        async with listener(database_url):
            assert await pgbench.wait() == 0, (await pgbench.stderr.read())[-500:]

            async def all_ended() -> bool:
                return await shop.value(
                    "select not exists (select from sagas where ready_at is not null)"
                )

            await until(all_ended)

    statuses = await shop.statuses()
    assert statuses.keys() == {"fulfilled", "cancelled"}
    assert sum(statuses.values()) == CLIENTS * ORDERS_EACH
    assert not await shop.value("select exists (select from sagas where status = 'stuck')")
