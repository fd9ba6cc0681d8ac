"""Orders: placed, read, followed, cancelled. Their sagas do the rest."""

from typing import Annotated
from uuid import UUID

from litestar import Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_202_ACCEPTED

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.events import follow_order
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Period
from darkpearl.api.problems import refusals
from darkpearl.api.versions import IfMatch, etag, expected_versions
from darkpearl.models.orders import (
    CreatedOrder,
    CreateOrder,
    CustomerId,
    Order,
    OrderDetails,
    OrderStatus,
    Reference,
    UpdateOrder,
)

Reason = Annotated[str | None, QueryParameter(max_length=500, description="Why, for the history")]

ENDED = {"fulfilled", "cancelled"}
"""The statuses of an order whose saga has ended. All others are found by the sagas that haven't."""
UNDER_WAY = (
    "id in (select s.id from sagas as s where s.ready_at is not null"
    " or (s.status = 'stuck' and (s.status = 'stuck') is true))"
)
_DETAILS = "select * from order_details where id = %(id)s"
_SUMMARY = "select * from order_summaries where id = %(id)s"
_PARTICULARS = ("reference", "email", "shipping_address", "billing_address", "metadata")
_PLACED = "select *, %(message)s as message from order_confirmations where id = %(id)s"

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
    caller: NamedDependency[Caller],
    listing: NamedDependency[Listing],
    created: NamedDependency[Period],
    status: FromQuery[OrderStatus | None] = None,
    customer_id: FromQuery[CustomerId | None] = None,
    warehouse_id: FromQuery[UUID | None] = None,
    order_number: FromQuery[int | None] = None,
    reference: FromQuery[Reference | None] = None,
) -> JsonResponse[Page[Order]]:
    """Orders, newest first."""
    filters = Filters()
    filters.add("status = %(status)s", status=status)
    if caller.is_staff and status not in {None, *ENDED}:  # customers' orders are few
        filters.add(UNDER_WAY)
    filters.add("customer_id = %(customer_id)s", customer_id=customer_id)
    filters.add("warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    filters.add("order_number = %(order_number)s", order_number=order_number)
    filters.add(
        "id in (select p.order_id from order_particulars as p where p.reference = %(reference)s)",
        reference=reference,
    )
    filters.within("created_at", created)
    return await listing.page(
        Order,
        "order_summaries",
        filters,
        sorts=("-order_number",),
        unique="order_number",
        table="orders",
    )


@get("/{order_id:uuid}", summary="Get an order", responses=refusals(400, 404))
async def get_order(
    caller: NamedDependency[Caller], order_id: FromPath[UUID]
) -> JsonResponse[OrderDetails]:
    """An order with its lines, its payment, its refunds and where its saga stands."""
    return _tagged(await caller.get(OrderDetails, (_DETAILS, {"id": order_id})))


@post("/", summary="Place an order", responses=refusals(400, 403, 409, 413, 415, 422))
async def create_order(once: NamedDependency[Once], data: NewOrder) -> JsonResponse[CreatedOrder]:
    """Place an order. Once this is answered it is committed, and its saga is under way."""
    order_id = data.id or access.new_id()
    said = {name: getattr(data, name) for name in _PARTICULARS}
    particulars = {name: value for name, value in said.items() if value is not None}
    place = access.call(
        "place_order",
        order_id=order_id,
        warehouse_id=data.warehouse_id,
        items=access.sent(data.items),
        customer_id=data.customer_id,
        notes=data.notes,
        currency=data.currency,
        payment_token=data.payment_token,
        particulars=access.sent(particulars or None),
        adjustments=access.sent(data.adjustments or None),
    )
    message = f"Placed; its saga has started. Follow it at /orders/{order_id}/events."
    placed = (_PLACED, {"id": order_id, "message": message})
    order = await once.get(CreatedOrder, place, placed)
    return once.created(order, f"/orders/{order.id}")


@patch(
    "/{order_id:uuid}",
    summary="Change an order",
    responses=refusals(400, 403, 404, 409, 412, 413, 415, 422),
)
async def update_order(
    caller: NamedDependency[Caller],
    order_id: FromPath[UUID],
    data: JSONBody[UpdateOrder],
    if_match: IfMatch = None,
) -> JsonResponse[OrderDetails]:
    """Change what is sent of what an order is for, until it is fulfilled or cancelled.

    Its version, and so its ETag, is of these fields alone: what the order goes through changes
    neither.
    """
    change = access.call(
        "update_order",
        order_id=order_id,
        changes=access.sent(data),
        expected=expected_versions(if_match),
    )
    return _tagged(await caller.get(OrderDetails, change, (_DETAILS, {"id": order_id})))


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
    cancel = access.call("cancel_order", order_id=order_id, reason=reason)
    return await caller.get(Order, cancel, (_SUMMARY, {"id": order_id}))


def _tagged(order: OrderDetails) -> JsonResponse[OrderDetails]:
    return JsonResponse(order, headers={"ETag": etag(order)})


router = Router(
    "/orders",
    route_handlers=[list_orders, get_order, create_order, update_order, cancel_order, follow_order],
    tags=["orders"],
)
