"""Demo orders, and a saga's history as a timeline for people."""

import asyncio
import time
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from rich.table import Table
from rich.text import Text

from darkpearl import database, schema

FINISH_SECONDS = 30.0
LOOK_SECONDS = 0.02
PLENTY = 1_000_000
"""More units than any shelf holds."""
STYLES = {"completed": "green", "compensated": "yellow", "stuck": "red"}

Rows = list[tuple[Any, ...]]


class Story(msgspec.Struct, frozen=True):
    """How an order ended, and the way there."""

    order_status: str
    timeline: Table


async def place_order(url: str, quantity: int = 2) -> UUID:
    """Place an order as an application does, with plain inserts in one transaction.

    Args:
        url: the database.
        quantity: units of the product that is best in stock; one unit of a second one is added.

    Returns:
        The id of the order, which is that of its saga too.

    Raises:
        schema.SchemaError: there is nothing in stock, or the database refused.
    """
    async with schema.connect(database.as_role(url, "darkpearl_app")) as connection:
        products = await _rows(
            connection,
            """
            select i.warehouse_id, i.product_id
            from darkpearl.inventory i join darkpearl.products p on p.id = i.product_id
            where p.is_active and p.currency = 'USD' and i.warehouse_id = (
                select warehouse_id from darkpearl.inventory group by warehouse_id
                order by sum(quantity_available - quantity_reserved) desc limit 1
            )
            order by i.quantity_available - i.quantity_reserved desc limit 2
            """,
        )
        if not products:
            raise schema.SchemaError("there is nothing to order: seed the database first")
        warehouse = products[0][0]
        async with connection.transaction():
            ((order,),) = await _rows(
                connection,
                "insert into darkpearl.orders (warehouse_id) values (%s) returning id",
                [warehouse],
            )
            for (_, product), units in zip(products, (quantity, 1), strict=False):
                await connection.execute(
                    "insert into darkpearl.order_items"
                    " (order_id, warehouse_id, product_id, quantity) values (%s, %s, %s, %s)",
                    [order, warehouse, product, units],
                )
    return UUID(str(order))


async def follow(url: str, order: UUID) -> Story:
    """Wait until an order's saga has ended, and draw its history.

    Raises:
        schema.SchemaError: it hasn't ended after FINISH_SECONDS, or the database can't be read.
    """
    deadline = time.monotonic() + FINISH_SECONDS
    async with schema.connect(database.as_role(url, "darkpearl_reader")) as connection:
        while True:
            found = await _rows(
                connection,
                """
                select o.order_number, o.status, s.status
                from darkpearl.orders o join darkpearl.sagas s on s.id = o.id where o.id = %s
                """,
                [order],
            )
            if found and found[0][2] in STYLES:
                break
            if time.monotonic() > deadline:
                raise schema.SchemaError(f"order {order} hasn't ended after {FINISH_SECONDS:g} s")
            await asyncio.sleep(LOOK_SECONDS)
        events = await _rows(
            connection,
            """
            select created_at, started_at, event_type, step_name, message
            from darkpearl.saga_events where saga_id = %s order by id
            """,
            [order],
        )
    ((number, order_status, saga_status),) = found
    title = f"order {number}: {order_status}"
    return Story(order_status, _timeline(title, STYLES[saga_status], events))


def _timeline(title: str, style: str, events: Rows) -> Table:
    table = Table(title=title, title_style=style, title_justify="left", box=None, pad_edge=False)
    for name in ("at", "took"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("event", "step", ""):
        table.add_column(name, overflow="fold")
    began = min((at for each in events for at in each[:2] if at), default=None)
    for ended, started, event, step, message in events:
        took = _milliseconds(started, ended) if started else ""
        words = (_milliseconds(began, ended), took, event, step or "", message or "")
        table.add_row(*map(Text, words))
    return table


def _milliseconds(since: datetime | None, until: datetime) -> str:
    return f"{(until - since).total_seconds() * 1000:.1f} ms" if since else ""


async def _rows(connection: Any, query: str, parameters: list[Any] | None = None) -> Rows:
    rows: Rows = await (await connection.execute(query, parameters)).fetchall()
    return rows
