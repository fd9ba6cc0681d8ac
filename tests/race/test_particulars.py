"""What an order is for, changed while others are at the order."""

import asyncio
from typing import Any

import psycopg
import pytest
from shop import APPROVED, Shop

CHANGE = 'select version from update_order(%s, \'{"email": "ann@example.com"}\', %s)'


async def test_what_is_ending_is_waited_for_and_not_changed(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """A change that meets an order on its way out waits for that, and is refused then."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    client = await connect("darkpearl_app")
    async with shop.connection.transaction():
        await shop.settle(requests, APPROVED)
        late = asyncio.create_task(client.execute(CHANGE, [order, None]))
        await waits(client.info.backend_pid)
    with pytest.raises(psycopg.Error) as raised:
        await late
    assert raised.value.sqlstate == "DP040"
    assert await shop.values("select order_id from order_particulars") == []


async def test_of_two_changes_of_one_version_one_is_told(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """The second waits for the first, and then it has changed."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    first = await connect("darkpearl_app", autocommit=False)
    second = await connect("darkpearl_app")
    await first.execute(CHANGE, [order, [1]])
    late = asyncio.create_task(second.execute(CHANGE, [order, [1]]))
    await waits(second.info.backend_pid)
    await first.commit()
    with pytest.raises(psycopg.Error) as raised:
        await late
    assert raised.value.sqlstate == "DP035"
    assert await shop.value("select version from order_particulars") == 1
