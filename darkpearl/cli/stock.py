"""`darkpearl stock`: what lies where, and what people do to it."""

from collections import Counter
from datetime import datetime
from typing import get_args
from uuid import UUID

import rich_click as click

from darkpearl.cli import asking, showing
from darkpearl.cli.asking import Session
from darkpearl.cli.statements import Filters, Row, Statement
from darkpearl.config import Settings
from darkpearl.models.stock import MovementType

_LEVELS = (
    "select product ->> 'sku' as sku, product ->> 'name' as name, warehouse ->> 'code' as"
    " warehouse,"
    " quantity_available, quantity_reserved, quantity_sellable, reorder_point, reorder_quantity,"
    " updated_at, id, product_id, warehouse_id, created_at from inventory_levels"
)
_NEWEST = Statement(_LEVELS, "created_at desc, id")
LEVEL_COLUMNS = (
    *("sku", "name", "warehouse", "quantity_available", "quantity_reserved", "quantity_sellable"),
    *("reorder_point", "updated_at"),
)
_HISTORY = (
    "select id, created_at, product ->> 'sku' as sku, warehouse ->> 'code' as warehouse,"
    " movement_type, quantity, available_after, reserved_after, reason_code, reference_type,"
    " reference_id, notes, actor, correlation_id, product_id, warehouse_id from stock_ledger"
)
_LATEST = Statement(_HISTORY, "created_at desc")
"""Between cells; within one the ledger's ids say what came after what."""
MOVEMENT_COLUMNS = (
    *("created_at", "sku", "warehouse", "movement_type", "quantity", "available_after"),
    *("reserved_after", "reference_type", "reference_id", "notes", "actor"),
)
_LOW = "select * from reorder_suggestions"
LOW_COLUMNS = (
    *("sku", "product_name", "warehouse_code", "quantity_sellable", "reorder_point", "shortage"),
    "suggested_quantity",
)
_MOVED = (
    "select m.id, m.movement_type, m.quantity, m.available_after, m.reserved_after,"
    " m.correlation_id, m.warehouse_id, m.product_id, m.created_at from "
)
_RECEIVE = (
    _MOVED + "receive_stock(%s, %s, %s, p_notes => %s, p_correlation_id => coalesce(%s, new_id()))"
    " as m"
)
_TRANSFER = (
    _MOVED + "transfer_stock(%s, %s, %s, %s, p_notes => %s,"
    " p_correlation_id => coalesce(%s, new_id())) as m"
)
_COUNT = (
    "select c.id, c.quantity_available, c.quantity_reserved, c.quantity_sellable, c.warehouse_id,"
    " c.product_id from count_stock(%s, %s, %s, coalesce(%s, 'stock-take'), %s) as c"
)
MOVED = ("movement_type", "quantity", "available_after", "reserved_after", "correlation_id")
COUNTED = ("quantity_available", "quantity_reserved", "quantity_sellable")

_TRANSIT = "select * from stock_in_transit"
_CALL_BACK = "select * from call_back_transfer(%s, %s)"
TRANSIT_COLUMNS = (
    *("since", "sku", "product_name", "from_warehouse_code", "to_warehouse_code", "quantity"),
    *("saga_status", "saga_ready_at", "id"),
)
CALLED_BACK = ("status", "quantity", "refusal", "id")

product = click.argument("product")
warehouse = click.argument("warehouse")
quantity = click.argument("quantity", type=click.IntRange(1, 2**31 - 1))
notes = click.option("--notes", help="Why, or from whom.")
operation = click.option(
    "--id", "operation_id", type=click.UUID, help="Of the operation: the same again is done once."
)


@click.group(no_args_is_help=False)
def stock() -> None:
    """See what lies where, and receive, count and move it.

    PRODUCT is a SKU or an id, WAREHOUSE a code or an id.
    """


@stock.command(name="show")
@click.argument("product", required=False)
@click.option("--warehouse", help="By its code.")
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def show_stock(
    settings: Settings,
    product: str | None,
    warehouse: str | None,
    limit: int,
    *,
    as_json: bool,
    watch: float | None,
) -> None:
    """Show shelves: of a product, of a warehouse, or all.

    With several cells, `in_transit` says how much is on its way there from another.
    """

    async def one(session: Session) -> list[Row]:
        filters = await _of(session, product, warehouse)
        shelves = filters.statement(_LEVELS, _NEWEST.order, limit)
        return await session.rows(shelves.query, shelves.values)

    async def look() -> list[Row]:
        found = await asking.in_each(asking.looking(settings), one)
        return await _with_transit(settings, _NEWEST.merged(found)[:limit])

    showing.show(look, LEVEL_COLUMNS, as_json=as_json, watch=watch)


@stock.command()
@click.argument("product", required=False)
@click.option("--warehouse", help="By its code.")
@click.option(
    "--type", "types", type=click.Choice(get_args(MovementType)), multiple=True,
    help="May be given again.",
)  # fmt: skip
@click.option("--order", type=showing.OrderName(), help="What an order's saga moved.")
@showing.since
@showing.limit
@showing.as_json
@click.pass_obj
def history(
    settings: Settings,
    product: str | None,
    warehouse: str | None,
    types: tuple[str, ...],
    order: UUID | int | None,
    since: datetime | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Print the ledger: what moved, the newest first, with what was there after it."""

    async def one(session: Session) -> list[Row]:
        filters = await _of(session, product, warehouse)
        filters.add("movement_type = any(%s::movement_type[])", types)
        filters.add("created_at >= %s", since)
        if order is not None:
            filters.add("correlation_id = %s", await asking.order_id(session, order))
        moved = filters.statement(_HISTORY, "id desc", limit)
        return await session.rows(moved.query, moved.values)

    async def look() -> list[Row]:
        opened = asking.looking(settings)
        if order is None:
            return _LATEST.merged(await asking.in_each(opened, one))[:limit]
        async with opened as session:
            return await one(session)

    showing.show(look, MOVEMENT_COLUMNS, as_json=as_json)


@stock.command()
@click.option("--warehouse", help="By its code.")
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def low(
    settings: Settings, warehouse: str | None, limit: int, *, as_json: bool, watch: float | None
) -> None:
    """List what runs out and is to be ordered anew, and how much of it.

    With several cells, `in_transit` says how much is on its way there from another.
    """
    filters = Filters().add("warehouse_code = %s", warehouse)

    low_shelves = asking.finding(settings, filters.statement(_LOW, "shortage desc, id", limit))

    async def look() -> list[Row]:
        return await _with_transit(settings, await low_shelves())

    showing.show(look, LOW_COLUMNS, as_json=as_json, watch=watch)


@stock.command()
@click.argument("product", required=False)
@click.option("--from", "origin", help="The warehouse that the goods left, by its code.")
@click.option("--to", "destination", help="The one that they go to, by its code.")
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def transit(
    settings: Settings,
    product: str | None,
    origin: str | None,
    destination: str | None,
    limit: int,
    *,
    as_json: bool,
    watch: float | None,
) -> None:
    """List goods in transit to another cell, the longest under way first."""
    filters = Filters().add("(sku = %s or product_id::text = %s)", product)
    filters.add("from_warehouse_code = %s", origin).add("to_warehouse_code = %s", destination)

    look = asking.finding(settings, filters.statement(_TRANSIT, "since, id", limit))
    showing.show(look, TRANSIT_COLUMNS, as_json=as_json, watch=watch)


@stock.command(name="call-back")
@click.argument("transfer_id", metavar="TRANSFER", type=click.UUID)
@click.option("--reason", help="For its history.")
@showing.as_json
@click.pass_obj
def call_back(settings: Settings, transfer_id: UUID, reason: str | None, *, as_json: bool) -> None:
    """Ask for goods back that are in transit; they are put back, unless they are in already."""

    async def call(session: Session) -> list[Row]:
        saga = await asking.order_id(session, transfer_id)
        return await session.rows(_CALL_BACK, [saga, reason])

    showing.print_rows(asking.act(settings, call), CALLED_BACK, as_json=as_json)


@stock.command()
@warehouse
@product
@quantity
@notes
@operation
@showing.as_json
@click.pass_obj
def receive(
    settings: Settings,
    warehouse: str,
    product: str,
    quantity: int,
    notes: str | None,
    operation_id: UUID | None,
    *,
    as_json: bool,
) -> None:
    """Receive units of a product in a warehouse."""

    async def call(session: Session) -> list[Row]:
        place = await asking.warehouse_id(session, warehouse)
        goods = await asking.product_id(session, product)
        return await session.rows(_RECEIVE, [place, goods, quantity, notes, operation_id])

    showing.print_rows(asking.act(settings, call), MOVED, as_json=as_json)


@stock.command()
@warehouse
@product
@click.argument("counted", type=click.IntRange(0, 2**31 - 1))
@click.option("--expected", type=int, help="What the shelf had when the count began.")
@notes
@showing.as_json
@click.pass_obj
def count(
    settings: Settings,
    warehouse: str,
    product: str,
    counted: int,
    expected: int | None,
    notes: str | None,
    *,
    as_json: bool,
) -> None:
    """Enter what was counted on a shelf; the difference is an adjustment."""

    async def call(session: Session) -> list[Row]:
        place = await asking.warehouse_id(session, warehouse)
        goods = await asking.product_id(session, product)
        return await session.rows(_COUNT, [place, goods, counted, notes, expected])

    showing.print_rows(asking.act(settings, call), COUNTED, as_json=as_json)


@stock.command()
@click.argument("origin", metavar="FROM")
@click.argument("destination", metavar="TO")
@product
@quantity
@notes
@operation
@showing.as_json
@click.pass_obj
def transfer(
    settings: Settings,
    origin: str,
    destination: str,
    product: str,
    quantity: int,
    notes: str | None,
    operation_id: UUID | None,
    *,
    as_json: bool,
) -> None:
    """Move units of a product from one warehouse to another.

    To another cell they go by a saga: `stock transit` lists them until they have arrived.
    """

    async def call(session: Session) -> list[Row]:
        there = await asking.warehouse_id(session, destination, stays=True)
        here = await asking.warehouse_id(session, origin)  # which does it
        goods = await asking.product_id(session, product)
        return await session.rows(_TRANSFER, [here, there, goods, quantity, notes, operation_id])

    showing.print_rows(asking.act(settings, call), MOVED, as_json=as_json)


async def _with_transit(settings: Settings, shelves: list[Row]) -> list[Row]:
    """Shelves of several cells with what is on its way to each; of one cell as they are.

    While a cell doesn't answer nothing is said of that: it would be too little.
    """
    if not shelves or "cell" not in shelves[0]:
        return shelves
    coming: Counter[tuple[UUID, UUID]] = Counter()
    for each in await asking.finding(settings, Statement(_TRANSIT, "since"))():
        coming[each["to_warehouse_id"], each["product_id"]] += each["quantity"]
    if asking.ended(0):
        return shelves
    for shelf in shelves:
        shelf[showing.IN_TRANSIT] = coming[shelf["warehouse_id"], shelf["product_id"]]
    return shelves


async def _of(session: Session, product: str | None, warehouse: str | None) -> Filters:
    filters = Filters()
    if product is not None:
        filters.add("product_id = %s", await asking.product_id(session, product))
    if warehouse is not None:
        filters.add("warehouse_id = %s", await asking.warehouse_id(session, warehouse))
    return filters
