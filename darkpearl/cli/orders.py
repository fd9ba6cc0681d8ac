"""`darkpearl orders`: placed, looked at, cancelled, packed."""

import asyncio
from datetime import datetime
from typing import Any, get_args
from uuid import UUID

import msgspec
import rich_click as click

from darkpearl.cli import asking, bulk, sagas, showing, sourcing
from darkpearl.cli.asking import Session
from darkpearl.cli.console import out
from darkpearl.cli.showing import OrderName
from darkpearl.cli.statements import Filters, Row
from darkpearl.config import Settings
from darkpearl.models.orders import OrderStatus

_LISTED = (
    "select id, order_number, status, total_amount, currency, customer_id, warehouse,"
    " payment_status, saga_status, saga_step, saga_ready_at, created_at, updated_at, warehouse_id"
    " from order_overview"
)
COLUMNS = (
    *("order_number", "id", "status", "total_amount", "currency", "customer_id", "warehouse"),
    *("payment_status", "saga_step", "created_at"),
)
_TO_SHIP = (
    "select id, order_number, status, warehouse, customer_id, total_amount, currency,"
    " payment_status, units_left, parcels, waits_since, due_at, is_overdue, is_disputed"
    " from orders_to_ship"
)
TO_SHIP_COLUMNS = (
    *("order_number", "id", "warehouse", "units_left", "parcels", "waits_since", "is_overdue"),
    "is_disputed",
)
_ONE = "select * from order_details where id = %s"
ONE = (
    *("order_number", "id", "status", "reference", "customer_id", "email", "notes"),
    *("total_amount", "currency", "created_at", "updated_at", "failure", "group_id"),
)
LINE_COLUMNS = ("sku", "quantity", "unit_price", "line_total", "returned_quantity")
PAYMENT_COLUMNS = (
    *("status", "captured_amount", "refunded_amount", "gateway", "gateway_reference"),
    "decline_code",
)
_TIMELINE = "select happened_at, kind, actor, what, detail from saga_timeline(%s)"
TIMELINE_COLUMNS = ("happened_at", "kind", "what", "actor", "detail")
_PLACE = (
    "select o.id, o.order_number, o.status, o.total_amount, o.currency, o.warehouse_id"
    " from place_order(p_warehouse_id => %s, p_items => %s, p_customer_id => %s, p_notes => %s,"
    " p_currency => %s, p_payment_token => %s, p_particulars => %s,"
    " p_order_id => coalesce(%s, new_id())) as o"
)
_FORK = (
    "select o.id, o.order_number, o.status, o.total_amount, o.currency, o.warehouse_id"
    " from fork_order(%s, %s, %s) as o"
)
PLACED_COLUMNS = ("order_number", "id", "status", "total_amount", "currency")
_CANCEL = "select o.id, o.order_number, o.status from cancel_order(%s, %s) as o"
_SHIP = (
    "select h.id, h.order_id, h.carrier, h.tracking_number, h.tracking_url, h.created_at,"
    " h.shipped_at from ship_items(%s, %s, %s, coalesce(%s, new_id())) as h"
)

name = click.argument("order", type=OrderName())


class Goods(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A product and how many units of it: SKU=2, or the SKU alone for one."""

    name = "sku=units"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:  # noqa: D102 - click's
        if isinstance(value, dict):
            return value
        sku, equals, units = value.rpartition("=")
        if not equals:
            return {"sku": value, "quantity": 1}
        if not sku or not units.isdecimal() or len(units) > 10:  # noqa: PLR2004 - an integer
            self.fail(f"{value!r} is no SKU=UNITS", param, ctx)
        return {"sku": sku, "quantity": int(units)}


@click.group(no_args_is_help=False)
def orders() -> None:
    """Place orders, look at them, cancel them, pack them."""


@orders.command(name="list")
@click.option(
    "--status", "statuses", type=click.Choice(get_args(OrderStatus)), multiple=True,
    help="May be given again.",
)  # fmt: skip
@click.option("--warehouse", help="By its code.")
@click.option("--customer", help="The customer's id.")
@click.option(
    "--search", help="A number, an id, a reference, an email address, a customer or a SKU."
)
@click.option("--to-ship", is_flag=True, help="Those that wait to be packed, the longest first.")
@showing.since
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def list_orders(
    settings: Settings,
    statuses: tuple[str, ...],
    warehouse: str | None,
    customer: str | None,
    search: str | None,
    since: datetime | None,
    limit: int,
    *,
    to_ship: bool,
    as_json: bool,
    watch: float | None,
) -> None:
    """List orders, the newest first."""
    filters = (
        Filters()
        .add("status = any(%s::order_status[])", statuses)
        .add("warehouse_id = (select w.id from warehouses as w where w.code = %s)", warehouse)
        .add("customer_id = %s", customer)
        .add("id in (select * from find_orders(%s))", search)
        .add("waits_since >= %s" if to_ship else "created_at >= %s", since)
    )
    look = asking.finding(
        settings,
        filters.statement(_TO_SHIP, "waits_since", limit)
        if to_ship
        else filters.statement(_LISTED, "created_at desc, id desc", limit),
    )
    showing.show(look, TO_SHIP_COLUMNS if to_ship else COLUMNS, as_json=as_json, watch=watch)


@orders.command(name="show")
@name
@showing.as_json
@click.pass_obj
def show_order(settings: Settings, order: UUID | int, *, as_json: bool) -> None:
    """Show an order with its lines, its payment, its parcels, and all that happened to it."""

    async def look() -> tuple[Row, list[Row]]:
        async with asking.looking(settings) as session:
            order_id = await asking.order_id(session, order)
            found = await session.one(f"there is no order {order}", _ONE, order_id)
            return found, await session.rows(_TIMELINE, [found["id"]])

    found, timeline = asyncio.run(look())
    if as_json:
        showing.print_rows([found | {"timeline": timeline}], (), as_json=True)
        return
    showing.print_page(showing.details(found, ONE))
    lines = [line | {"sku": line["product"]["sku"]} for line in found["items"] or []]
    out.print()
    showing.print_page(showing.table(lines, LINE_COLUMNS, "lines"))
    for title, rows, columns in (
        ("payment", [found["payment"]], PAYMENT_COLUMNS),
        ("refunds", found["refunds"], ("id", "status", "amount", "reason", "decline_code")),
        ("parcels", found["shipments"], ("id", "status", "tracking", "shipped_at")),
    ):
        if any(rows):
            out.print()
            showing.print_page(showing.table(rows, columns, title))
    out.print()
    showing.print_page(showing.table(timeline, TIMELINE_COLUMNS, "timeline"))


@orders.command()
@click.argument("items", nargs=-1, required=True, type=Goods())
@click.option("--warehouse", help="By its code  [default: the first that can serve it]")
@click.option("--customer", help="The customer's id.")
@click.option("--currency", default="USD", show_default=True)
@click.option("--notes", help="For staff.")
@click.option("--reference", help="The shop's own name for it, unique.")
@click.option("--payment-token", help="The payer's means of payment, as the gateway calls it.")
@click.option("--id", "order_id", type=click.UUID, help="So that the same again is refused.")
@showing.as_json
@click.pass_obj
def place(
    settings: Settings,
    items: tuple[dict[str, Any], ...],
    warehouse: str | None,
    customer: str | None,
    currency: str,
    notes: str | None,
    reference: str | None,
    payment_token: str | None,
    order_id: UUID | None,
    *,
    as_json: bool,
) -> None:
    """Place an order of ITEMS, each SKU=UNITS."""
    wanted = msgspec.json.encode(items).decode()

    async def put(session: Session, place: UUID | None = None) -> list[Row]:
        return await session.rows(
            _PLACE,
            [
                *(place, wanted, customer, notes, currency, payment_token),
                msgspec.json.encode({"reference": reference}).decode() if reference else None,
                order_id,
            ],
        )

    async def call(session: Session) -> list[Row]:
        if warehouse:
            return await put(session, await asking.warehouse_id(session, warehouse))
        return await sourcing.placed(session, wanted, (order_id, reference), put)

    showing.print_rows(asking.act(settings, call), PLACED_COLUMNS, as_json=as_json)


@orders.command()
@click.argument("orders", nargs=-1, type=OrderName())
@click.option(
    "--status", "order_status", type=click.Choice(get_args(OrderStatus)), help="Of the order."
)
@click.option("--customer", help="The customer's id.")
@bulk.saga_filters
@showing.reason
@bulk.options
@click.pass_obj
def cancel(
    settings: Settings,
    orders: tuple[UUID | int, ...],
    order_status: str | None,
    customer: str | None,
    filters: dict[str, Any],
    reason: str,
    choice: bulk.Choice,
) -> int:
    """Cancel orders: what their sagas have done is undone, money included."""
    filters |= {"order_status": order_status, "customer": customer}
    if not orders:
        return bulk.run(settings, "cancel_orders", filters, reason, choice)
    if choice.everything or any(filters.values()):
        raise click.UsageError("name orders or give a filter, not both")
    done = sagas.do_to_each(settings, _CANCEL, orders, reason)
    return sagas.tell(done, ("order_number", "id", "status"), as_json=choice.as_json)


@orders.command()
@name
@click.option("--payment-token", help="Another means of payment.")
@showing.reason
@showing.as_json
@click.pass_obj
def fork(
    settings: Settings, order: UUID | int, payment_token: str | None, reason: str, *, as_json: bool
) -> None:
    """Place a cancelled order again, as a new one."""

    async def call(session: Session) -> list[Row]:
        found = await asking.order_id(session, order)
        return await session.rows(_FORK, [found, reason, payment_token])

    showing.print_rows(asking.act(settings, call), PLACED_COLUMNS, as_json=as_json)


@orders.command(name="watch")
@name
@showing.as_json
@click.pass_obj
def watch_order(settings: Settings, order: UUID | int, *, as_json: bool) -> int:
    """Print what happens to an order until its saga has ended; exit 1 if it got stuck."""
    return asyncio.run(sagas.follow(settings, order, as_json=as_json))


@orders.command()
@name
@click.argument("items", nargs=-1, type=Goods())
@click.option("--carrier", help="Who takes the parcel.")
@click.option("--number", help="Its tracking number.")
@click.option("--url", help="Where it can be tracked.")
@click.option("--id", "shipment_id", type=click.UUID, help="So that the same again is done once.")
@showing.as_json
@click.pass_obj
def ship(
    settings: Settings,
    order: UUID | int,
    items: tuple[dict[str, Any], ...],
    carrier: str | None,
    number: str | None,
    url: str | None,
    shipment_id: UUID | None,
    *,
    as_json: bool,
) -> None:
    """Send a parcel of an order: of ITEMS, each SKU=UNITS, or of all that is left."""
    given = {"carrier": carrier, "number": number, "url": url}
    tracking = {key: each for key, each in given.items() if each}

    async def call(session: Session) -> list[Row]:
        return await session.rows(
            _SHIP,
            [
                await asking.order_id(session, order),
                msgspec.json.encode(items).decode() if items else None,
                msgspec.json.encode(tracking).decode() if tracking else None,
                shipment_id,
            ],
        )

    columns = ("id", "order_id", "carrier", "tracking_number", "shipped_at")
    showing.print_rows(asking.act(settings, call), columns, as_json=as_json)
