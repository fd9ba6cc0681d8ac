"""A warehouse gets its first stock while somebody gives it to another cell."""

import asyncio
from typing import Any
from uuid import UUID

import psycopg
import pytest
from shop import Shop

RECEIVE = "select receive_stock(%s, %s, 5)"
GIVE = "update warehouses set cell = 2 where id = %s"


@pytest.fixture
async def warehouse(shop: Shop) -> UUID:
    """A warehouse of which nothing is known, and another cell that it could be of."""
    await shop.run("insert into cells (number, name, url) values (2, 'north', 'host=north')")
    return await shop.value("insert into warehouses (code, name) values ('N', 'N') returning id")


@pytest.mark.parametrize("code", ["DP016", "DP050"])
async def test_stock_and_its_warehouse_stay_in_one_cell(
    shop: Shop, warehouse: UUID, connect: Any, waits: Any, code: str
) -> None:
    """Who comes second waits, and is refused: no stock is left behind by its warehouse."""
    product = await shop.product()
    two = [(RECEIVE, [warehouse, product]), (GIVE, [warehouse])]
    first, second = two if code == "DP016" else reversed(two)
    client = await connect("service_role")
    async with shop.connection.transaction():
        await shop.run(first[0], *first[1])
        late = asyncio.create_task(client.execute(*second))
        await waits(client.info.backend_pid)
    with pytest.raises(psycopg.Error) as raised:
        await late
    assert raised.value.sqlstate == code
