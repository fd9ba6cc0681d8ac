"""Parcels: an order leaves in one or several, and what has not left is taken out."""

from uuid import UUID

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.orders import page_of_order
from darkpearl.api.problems import refusals
from darkpearl.models.orders import OrderToShip
from darkpearl.models.shipments import (
    Cancellation,
    CreateCancellation,
    CreateShipment,
    Shipment,
)

_SHIPMENT = "select * from order_shipments where order_id = %(order_id)s and id = %(id)s"
_CANCELLATION = "select * from order_cancellations where order_id = %(order_id)s and id = %(id)s"


@get("/to-ship", summary="List orders that wait for parcels", responses=refusals(400))
async def list_orders_to_ship(
    listing: NamedDependency[Listing],
    warehouse_id: FromQuery[UUID | None] = None,
    is_overdue: FromQuery[bool | None] = None,
) -> JsonResponse[Page[OrderToShip]]:
    """Orders that somebody is to pack, those that have waited longest first."""
    filters = Filters()
    filters.add("warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    filters.add("is_overdue = %(is_overdue)s", is_overdue=is_overdue)
    return await listing.page(OrderToShip, "orders_to_ship", filters, sorts=("waits_since",))


@get("/shipments", summary="List an order's parcels", responses=refusals(400, 404))
async def list_shipments(
    listing: NamedDependency[Listing], order_id: FromPath[UUID]
) -> JsonResponse[Page[Shipment]]:
    """The parcels of an order, oldest first."""
    return await page_of_order(listing, Shipment, "order_shipments", order_id)


@get("/shipments/{shipment_id:uuid}", summary="Get a parcel", responses=refusals(400, 404))
async def get_shipment(
    caller: NamedDependency[Caller], order_id: FromPath[UUID], shipment_id: FromPath[UUID]
) -> Shipment:
    """A parcel: it may go once it is shipped."""
    return await caller.get(Shipment, (_SHIPMENT, {"order_id": order_id, "id": shipment_id}))


@post("/shipments", summary="Ship a parcel", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_shipment(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateShipment]
) -> JsonResponse[Shipment]:
    """A parcel was packed, of all that is left or a part: its units leave the shelves.

    Where the money is captured at fulfilment the first one asks for that, and is `waiting` until
    it is there.
    """
    shipment_id = data.id or await once.new_id()
    ship = access.call(
        "ship_items",
        order_id=order_id,
        items=access.sent(data.items),
        tracking=access.sent(data.tracking),
        shipment_id=shipment_id,
    )
    made = (_SHIPMENT, {"order_id": order_id, "id": shipment_id})
    shipment = await once.get(Shipment, ship, made)
    return once.created(shipment, f"/orders/{order_id}/shipments/{shipment.id}")


@post(
    "/cancellations",
    summary="Take goods out of an order",
    responses=refusals(400, 404, 409, 413, 415, 422),
)
async def create_cancellation(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateCancellation]
) -> JsonResponse[Cancellation]:
    """Goods of an order will not leave, though its first parcel has: all that is left or a part.

    They can be sold again, and what they cost goes back by a refund.
    """
    cancellation_id = data.id or await once.new_id()
    take_out = access.call(
        "cancel_items",
        order_id=order_id,
        items=access.sent(data.items),
        reason=data.reason,
        cancellation_id=cancellation_id,
    )
    made = (_CANCELLATION, {"order_id": order_id, "id": cancellation_id})
    cancellation = await once.get(Cancellation, take_out, made)
    return once.created(cancellation, f"/stock-movements?correlation_id={cancellation.id}")


_OF_ORDER = Router(
    "/{order_id:uuid}",
    route_handlers=[list_shipments, get_shipment, create_shipment, create_cancellation],
)
router = Router("/orders", route_handlers=[list_orders_to_ship, _OF_ORDER], tags=["orders"])
