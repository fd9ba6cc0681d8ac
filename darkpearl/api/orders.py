"""Orders: placed, read, followed, cancelled. Their sagas do the rest."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, LiteralString
from uuid import UUID

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_202_ACCEPTED

from darkpearl.api import access
from darkpearl.api.access import Caller, Statement
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.events import follow_order
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Ids, Period, UpdatedAfter, moments_of, several
from darkpearl.api.preferences import Prefer, preferred_wait, wait_for_order
from darkpearl.api.problems import refusals
from darkpearl.api.routing import Routed
from darkpearl.api.sourcing import Sourcing
from darkpearl.api.versions import IfMatch, etag, expected_versions
from darkpearl.cells.reach import AwayError
from darkpearl.errors import NotFoundError
from darkpearl.models.orders import (
    CreatedOrder,
    CreateOrder,
    CustomerId,
    ListedOrder,
    Order,
    OrderDetails,
    OrderGroup,
    OrderStatus,
    Reference,
    UpdateOrder,
)
from darkpearl.models.payments import PaymentStatus

Include = Literal["items", "payment"]
Included = Annotated[list[str] | None, several(Include, "What each order has with it")]
Statuses = Annotated[list[str] | None, several(OrderStatus)]
PaymentStatuses = Annotated[list[str] | None, several(PaymentStatus)]
Customers = Annotated[list[str] | None, several(CustomerId)]
Numbers = Annotated[list[str] | None, several(int)]
OrderSearch = Annotated[
    str | None,
    QueryParameter(
        min_length=1,
        max_length=255,
        description="An order's number, id, reference or email address, a customer's id, or the"
        " SKU of what was reserved; all of it, to the letter",
    ),
]
Reason = Annotated[str | None, QueryParameter(max_length=500, description="Why, for the history")]

ENDED = {"fulfilled", "cancelled"}
"""The statuses of an order whose saga has ended. All others are found by the sagas that haven't."""
UNDER_WAY = (
    "id in (select s.id from sagas as s where s.ready_at is not null"
    " or (s.status = 'stuck' and (s.status = 'stuck') is true))"
)
UNDECIDED = {"requested", "pending", "authorized", "capture_requested", "void_requested"}
"""The statuses of payments whose orders are under way."""
_PAYMENT_IS = (
    "exists (select from payments as p where p.order_id = orders.id"
    " and p.status = any(%(payment_status)s::payment_status[]))"
)
LATELY = timedelta(days=1)
"""What has changed since is found by what has happened; for longer ago all orders are read."""
_CHANGED_LATELY = (
    "id = any(array(select e.saga_id from saga_events as e"
    " where e.created_at >= %(updated)s::timestamptz - interval '10 minutes'))"
)
"""An order changes with an event of its saga, in the same transaction, a moment earlier. Events
have an index by time; one of orders would end their cheap updates."""
_INCLUDED: dict[Include, LiteralString] = {
    "items": "(select i.items from order_lines as i"
    " where i.order_id = o.id and i.warehouse_id = o.warehouse_id) as items",
    "payment": "(select p.payment from order_payments as p"
    " where p.order_id = o.id and p.warehouse_id = o.warehouse_id) as payment",
}
"""What a list of orders has besides, read with the rows of its page."""
DETAILS = "select * from order_details where id = %(id)s"
_SUMMARY = "select * from order_summaries where id = %(id)s"
_PARTICULARS = ("reference", "email", "shipping_address", "billing_address", "metadata")
_PLACED = "select *, %(message)s as message from order_confirmations where id = %(id)s"
_SOURCED = (
    "select o.*, %(message)s as message, (select to_json(g) from order_groups as g"
    ' where g.id = o.id) as "group" from order_confirmations as o where o.id = %(id)s'
)
_GROUP = "select * from order_groups where id = %(id)s"

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
    status: Statuses = None,
    payment_status: PaymentStatuses = None,
    customer_id: Customers = None,
    warehouse_id: Ids = None,
    order_number: Numbers = None,
    reference: FromQuery[Reference | None] = None,
    search: OrderSearch = None,
    updated_after: UpdatedAfter = None,
    include: Included = None,
) -> JsonResponse[Page[ListedOrder]]:
    """Orders, newest first. What several filters ask for all holds.

    Over several cells their numbers are in the order of the cells: `sort=-id` is by time in all.
    """
    filters = Filters()
    statuses: list[OrderStatus] | None = filters.any_of(
        "status", OrderStatus, status, "order_status"
    )
    payments: list[PaymentStatus] | None = filters.values(
        "payment_status", PaymentStatus, payment_status
    )
    filters.add(_PAYMENT_IS, payment_status=payments)
    unended = statuses is not None and not ENDED.intersection(statuses)
    undecided = payments is not None and UNDECIDED.issuperset(payments)
    if caller.is_staff and (unended or undecided):  # customers' orders are few
        filters.add(UNDER_WAY)
    filters.any_of("customer_id", CustomerId, customer_id, "text")
    filters.any_of("warehouse_id", UUID, warehouse_id, "uuid")
    filters.any_of("order_number", int, order_number, "numeric")
    filters.add(
        "id in (select p.order_id from order_particulars as p where p.reference = %(reference)s)",
        reference=reference,
    )
    filters.add("id in (select find_orders(%(search)s))", search=search)
    (updated,) = moments_of(updated_after=updated_after)
    filters.add("updated_at >= %(updated)s", updated=updated)
    if caller.is_staff and updated and datetime.now(UTC) - updated < LATELY:
        filters.add(_CHANGED_LATELY)
    filters.within("created_at", created)
    included: list[Include] = filters.values("include", Include, include) or []
    shown = ", ".join(["o.*", *(_INCLUDED[each] for each in dict.fromkeys(included))])
    return await listing.page(
        ListedOrder,
        f"(select {shown} from order_summaries as o)",  # noqa: S608
        filters,
        sorts=("-order_number", "id"),
        unique="order_number",
        table="orders",
    )


@get("/groups/{group_id:uuid}", summary="Get a group of orders", responses=refusals(400, 404))
async def get_order_group(caller: NamedDependency[Caller], group_id: FromPath[UUID]) -> OrderGroup:
    """The orders that were placed as one, since no warehouse could serve all of it alone."""
    part = (_GROUP, {"id": group_id})
    if not isinstance(caller, Routed):
        return await caller.get(OrderGroup, part)
    parts, away = await caller.ask_all(lambda here: here.find(OrderGroup, part))
    whole = [
        (order, each)
        for number, each in parts.items()
        if each is not None
        for order in each.orders
        if caller.has(number, order.warehouse_id)
    ]
    if away:  # what is there may be a part
        raise AwayError(*away)
    if not whole:
        raise NotFoundError("There is no such row, or it is not yours to see.")
    orders = sorted((order for order, _ in whole), key=lambda order: order.order_number)
    return msgspec.structs.replace(
        whole[0][1],
        orders=orders,
        total_amount=sum(order.total_amount for order in orders),
        created_at=min(each.created_at for _, each in whole),
    )


@get("/{order_id:uuid}", summary="Get an order", responses=refusals(400, 404))
async def get_order(
    caller: NamedDependency[Caller], order_id: FromPath[UUID]
) -> JsonResponse[OrderDetails]:
    """An order with all that belongs to it: what it costs, its money, its goods, its saga."""
    return tagged(await caller.get(OrderDetails, (DETAILS, {"id": order_id})))


async def page_of_order(
    listing: Listing, kind: type[Any], view: LiteralString, order_id: UUID
) -> JsonResponse[Page[Any]]:
    """What belongs to an order, oldest first.

    Args:
        listing: the page that is asked for.
        kind: what a row is.
        view: where the rows are, with their order_id and created_at.
        order_id: whose.

    Raises:
        NotFoundError: there is no such order for the caller.
    """
    filters = Filters().add("order_id = %(order_id)s", order_id=order_id)
    return await listing.page_of(
        (DETAILS, {"id": order_id}), kind, view, filters, sorts=("created_at",)
    )


@post("/", summary="Place an order", responses=refusals(400, 403, 409, 413, 415, 422))
async def create_order(
    caller: NamedDependency[Caller],
    once: NamedDependency[Once],
    state: State,
    data: NewOrder,
    prefer: Prefer = None,
) -> JsonResponse[CreatedOrder]:
    """Place an order. Once this is answered it is committed, and its saga is under way.

    With `pay_by` it may be placed without a payment: its stock is held until then, and
    `POST /orders/{id}/payment` pays it.

    Without a warehouse it is placed where all of it can be served, else as one order for each of
    the warehouses that it takes, all at once: then this is the first, and `group` has all. What
    all warehouses together can't serve is refused. Of several the first has the reference, and
    the adjustments but for those of lines that only others have.
    """
    if data.warehouse_id is None and isinstance(caller, Routed):
        placing = Sourcing(caller, data)
        order = await placing.place(once, lambda order_id: _placing(order_id, data))
    else:
        order = await once.get(CreatedOrder, *_placing(data.id or await once.new_id(), data))
    seconds = 0 if once.replayed else preferred_wait(prefer)
    if not seconds or not await wait_for_order(caller, state, order.id, seconds):
        return once.created(order, f"/orders/{order.id}")
    now = await caller.find(CreatedOrder, _placing(order.id, data)[-1])
    response = once.created(now or order, f"/orders/{order.id}")
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


def _placing(order_id: UUID, data: CreateOrder) -> list[Statement]:
    """What places an order, and reads it."""
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
        pay_by=data.pay_by,
        particulars=access.sent(particulars or None),
        adjustments=access.sent(data.adjustments or None),
    )
    message = f"Placed; its saga has started. Follow it at /orders/{order_id}/events."
    placed = _SOURCED if data.warehouse_id is None else _PLACED
    return [place, (placed, {"id": order_id, "message": message})]


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
    return tagged(await caller.get(OrderDetails, change, (DETAILS, {"id": order_id})))


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


def tagged(order: OrderDetails) -> JsonResponse[OrderDetails]:
    """An order with its ETag."""
    return JsonResponse(order, headers={"ETag": etag(order)})


router = Router(
    "/orders",
    route_handlers=[
        list_orders,
        get_order,
        get_order_group,
        create_order,
        update_order,
        cancel_order,
        follow_order,
    ],
    tags=["orders"],
)
