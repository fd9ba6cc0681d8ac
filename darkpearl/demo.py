"""Demo orders, and a saga's history as a timeline for people."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
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
_OPTIONS = "-c search_path=darkpearl"
_FULLEST = (
    "select warehouse_id from inventory"
    " group by warehouse_id order by sum(quantity_sellable) desc limit 1"
)
_SOLD = "select id from products where is_active and currency = 'USD'"
_BEST_STOCKED = (
    "select product_id from inventory where warehouse_id = %s and product_id = any(%s)"
    " order by quantity_sellable desc limit 2"
)
_ORDER = "insert into orders (warehouse_id) values (%s) returning id"
_ITEM = (
    "insert into order_items (order_id, warehouse_id, product_id, quantity) values (%s, %s, %s, %s)"
)
_STATUSES = "select order_number, status, saga_status from order_overview where id = %s"
_EVENTS = (
    "select created_at, started_at, event_type, step_name, message"
    " from saga_events where saga_id = %s order by id"
)

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
    async with _connect(url, "darkpearl_app") as connection:
        warehouse = next((each for (each,) in await _rows(connection, _FULLEST)), None)
        sold = [each for (each,) in await _rows(connection, _SOLD)]
        products = await _rows(connection, _BEST_STOCKED, [warehouse, sold])
        if not products:
            raise schema.SchemaError("there is nothing to order: seed the database first")
        async with connection.transaction():
            ((order,),) = await _rows(connection, _ORDER, [warehouse])
            for (product,), units in zip(products, (quantity, 1), strict=False):
                await connection.execute(_ITEM, [order, warehouse, product, units])
    return UUID(str(order))


async def follow(url: str, order: UUID) -> Story:
    """Wait until an order's saga has ended, and draw its history.

    Raises:
        schema.SchemaError: it hasn't ended after FINISH_SECONDS, or the database can't be read.
    """
    deadline = time.monotonic() + FINISH_SECONDS
    async with _connect(url, "darkpearl_reader") as connection:
        while True:
            found = await _rows(connection, _STATUSES, [order])
            if found and found[0][2] in STYLES:
                break
            if time.monotonic() > deadline:
                raise schema.SchemaError(f"order {order} hasn't ended after {FINISH_SECONDS:g} s")
            await asyncio.sleep(LOOK_SECONDS)
        events = await _rows(connection, _EVENTS, [order])
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


def _connect(url: str, role: str) -> AbstractAsyncContextManager[Any]:
    """A connection as a role, which sees schema darkpearl."""
    return schema.connect(database.with_options(database.as_role(url, role), _OPTIONS))


async def _rows(connection: Any, query: str, parameters: Sequence[Any] | None = None) -> Rows:
    rows: Rows = await (await connection.execute(query, parameters)).fetchall()
    return rows
