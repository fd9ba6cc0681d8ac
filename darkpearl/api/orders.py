"""Orders: placed, read, followed, cancelled. Their sagas do the rest."""

import secrets
import time
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, FromQuery, QueryParameter
from litestar.status_codes import HTTP_202_ACCEPTED

from darkpearl.api import sagas
from darkpearl.api.access import WAREHOUSE_SUMMARY, Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.events import follow_order
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Period
from darkpearl.api.problems import refusals
from darkpearl.models.orders import CreatedOrder, CreateOrder, Order, OrderDetails, OrderStatus
from darkpearl.models.payments import Payment, Refund

Reason = Annotated[str | None, QueryParameter(max_length=500, description="Why, for the history")]

_COLUMNS = f"""
    o.id, o.order_number, o.status, o.customer_id, o.warehouse_id, o.currency, o.total_amount,
    o.notes, o.created_at, o.updated_at, {WAREHOUSE_SUMMARY.format("o")}
"""
_ITEMS = """(
    select json_agg(
        json_build_object(
            'id', i.id, 'product_id', i.product_id, 'quantity', i.quantity,
            'unit_price', i.unit_price, 'line_total', i.line_total,
            'product', json_build_object('id', p.id, 'sku', p.sku, 'name', p.name)
        )
        order by i.id
    )
    from order_items as i
    inner join products as p on p.id = i.product_id
    where i.order_id = o.id and i.warehouse_id = o.warehouse_id
) as items"""
_PAYMENT = f"""(
    select to_json(v) from (
        select {", ".join(f"p.{name}" for name in Payment.__struct_fields__)} from payments as p
        where p.order_id = o.id and p.warehouse_id = o.warehouse_id
    ) as v
) as payment"""  # noqa: S608 - literals
_REFUNDS = f"""(
    select coalesce(json_agg(v order by v.id), '[]') from (
        select {", ".join(f"r.{name}" for name in Refund.__struct_fields__)} from refunds as r
        where r.order_id = o.id and r.warehouse_id = o.warehouse_id
    ) as v
) as refunds"""  # noqa: S608 - literals
_SAGA = f"""(
    select to_json(v) from (
        select {sagas.COLUMNS} from saga_overview as s
        where s.id = o.id and s.warehouse_id = o.warehouse_id
    ) as v
) as saga"""  # noqa: S608 - literals
_DETAILS = f"""
    select {_COLUMNS}, {_ITEMS}, {_PAYMENT}, {_REFUNDS}, {_SAGA}
    from orders as o where o.id = %(id)s
"""  # noqa: S608 - literals
_PLACE = """
    select from place_order(
        %(warehouse_id)s, %(items)s::jsonb, %(customer_id)s, %(notes)s, %(currency)s, %(id)s,
        %(payment_token)s
    )
"""
_PLACED = f"""
    select {_COLUMNS}, {_ITEMS}, %(message)s as message
    from orders as o where o.id = %(id)s and o.warehouse_id = %(warehouse_id)s
"""  # noqa: S608 - literals

_encode = msgspec.json.Encoder().encode

NewOrder = Annotated[
    CreateOrder,
    Body(
        examples=[
            Example(
                summary="Two laptops of the demo data",
                value={
                    "warehouse_id": "11111111-1111-1111-1111-111111111111",
                    "items": [
                        {
                            "product_id": "aaaa1111-1111-1111-1111-111111111111",
                            "quantity": 2,
                            "unit_price": 999.99,
                        }
                    ],
                },
            )
        ]
    ),
]


@get("/", summary="List orders", responses=refusals(400))
async def list_orders(
    listing: NamedDependency[Listing],
    created: NamedDependency[Period],
    status: FromQuery[OrderStatus | None] = None,
    customer_id: FromQuery[UUID | None] = None,
    warehouse_id: FromQuery[UUID | None] = None,
    order_number: FromQuery[int | None] = None,
) -> JsonResponse[Page[Order]]:
    """Orders, newest first."""
    filters = Filters()
    filters.add("o.status = %(status)s", status=status)
    filters.add("o.customer_id = %(customer_id)s", customer_id=customer_id)
    filters.add("o.warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    filters.add("o.order_number = %(order_number)s", order_number=order_number)
    filters.within("o.created_at", created)
    return await listing.page(
        Order,
        f"select {_COLUMNS} from orders as o",  # noqa: S608 - literals
        filters,
        sorts=("-order_number",),
        unique="order_number",
    )


@get("/{order_id:uuid}", summary="Get an order", responses=refusals(400, 404))
async def get_order(caller: NamedDependency[Caller], order_id: FromPath[UUID]) -> OrderDetails:
    """An order with its lines, its payment, its refunds and where its saga stands."""
    return await caller.get(OrderDetails, (_DETAILS, {"id": order_id}))


@post("/", summary="Place an order", responses=refusals(400, 403, 409, 413, 415, 422))
async def create_order(once: NamedDependency[Once], data: NewOrder) -> JsonResponse[CreatedOrder]:
    """Place an order. Once this is answered it is committed, and its saga is under way."""
    order_id = data.id or _new_id()
    parameters = {
        "id": order_id,
        "warehouse_id": data.warehouse_id,
        "items": _encode(data.items).decode(),
        "customer_id": data.customer_id,
        "notes": data.notes,
        "currency": data.currency,
        "payment_token": data.payment_token,
        "message": f"Placed; its saga has started. Follow it at /orders/{order_id}/events.",
    }
    order = await once.get(CreatedOrder, (_PLACE, parameters), (_PLACED, parameters))
    return once.created(order, f"/orders/{order.id}")


@delete(
    "/{order_id:uuid}",
    summary="Cancel an order",
    status_code=HTTP_202_ACCEPTED,
    responses=refusals(400, 404, 409, 422),
)
async def cancel_order(
    caller: NamedDependency[Caller], order_id: FromPath[UUID], reason: Reason = None
) -> Order:
    """Ask for an order to be stopped. Its saga gives back what it took; then it is cancelled."""
    query = f"select {_COLUMNS} from cancel_order(%(id)s, %(reason)s) as o"  # noqa: S608
    return await caller.get(Order, (query, {"id": order_id, "reason": reason}))


def _new_id() -> UUID:
    """A UUIDv7, as new_id() in SQL makes it.

    Made here so that the statements after the insert can name the order without waiting for it.
    """
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    version, variant = 7 << 76, 2 << 62
    return UUID(int=value & ~(0xF << 76) & ~(3 << 62) | version | variant)


router = Router(
    "/orders",
    route_handlers=[list_orders, get_order, create_order, cancel_order, follow_order],
    tags=["orders"],
)
