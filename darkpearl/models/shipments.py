"""Parcels: what has left of an order, and what was taken out of it."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from darkpearl.models.catalogue import ProductSummary
from darkpearl.models.common import MAX_LINES, Notes, Request
from darkpearl.models.payments import Refund
from darkpearl.models.stock import Goods, StockMovement

ShipmentStatus = Annotated[
    Literal["shipped", "waiting", "refused"],
    Meta(
        description="Shipped: it may go. Waiting: the money of the order is just being captured."
        " Refused: that was declined, or the order cancelled; nothing has left"
    ),
]
Carrier = Annotated[str, Meta(min_length=1, max_length=100)]
TrackingNumber = Annotated[str, Meta(min_length=1, max_length=100)]
TrackingUrl = Annotated[str, Meta(max_length=2000, pattern=r"^https?://\S+$")]


class Tracking(Request):
    """Who carries a parcel, and where it is followed."""

    carrier: Carrier | None = None
    number: TrackingNumber | None = None
    url: TrackingUrl | None = None


class ShipmentItem(Struct):
    """Units in a parcel."""

    product_id: UUID
    quantity: int
    product: ProductSummary


class Shipment(Struct):
    """A parcel of an order."""

    id: UUID
    order_id: UUID
    status: ShipmentStatus
    tracking: Tracking
    items: list[ShipmentItem]
    created_at: datetime
    shipped_at: Annotated[datetime | None, Meta(description="When it left the shelves")]


class Cancellation(Struct):
    """Goods that were taken out of an order, as the movements that released them."""

    id: UUID
    order_id: UUID
    movements: list[StockMovement]
    refund: Annotated[
        Refund | None, Meta(description="Of what they cost; null when that was nothing")
    ]


class ParcelItem(Goods):
    """Units of an order; the product is named by `product_id` or by `sku`."""


ParcelItems = (
    Annotated[
        list[ParcelItem],
        Meta(
            min_length=1,
            max_length=MAX_LINES,
            description="All that is left to ship when left out",
        ),
    ]
    | None
)


class CreateShipment(Request):
    """A parcel that was packed."""

    items: ParcelItems = None
    tracking: Tracking | None = None
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is one parcel")
    ] = None


class CreateCancellation(Request):
    """Goods to take out of an order."""

    items: ParcelItems = None
    reason: Notes | None = None
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is done once")
    ] = None
