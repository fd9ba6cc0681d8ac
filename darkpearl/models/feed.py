"""What happened, as others are told, and whom webhooks are sent to."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.models.common import Request, Version

Topic = Literal[
    "order.placed", "order.paid", "order.shipped", "order.fulfilled", "order.returned",
    "order.cancelled", "payment.failed", "payment.disputed", "refund.settled", "saga.stuck",
    "stock.low",
]  # fmt: skip
Url = Annotated[
    str,
    Meta(
        min_length=1, max_length=2000, pattern="^https?://", examples=["https://shop.example/hook"]
    ),
]
Topics = Annotated[list[Topic], Meta(min_length=1, max_length=50)] | None
Secret = Annotated[
    str,
    Meta(
        description="Signs what is sent (Standard Webhooks). Told only here", examples=["whsec_…"]
    ),
]


class Event(Struct):
    """Something that happened, and to what. How that is now is read where it stands."""

    id: Annotated[int, Meta(description="Grows; the cursor to go on from")]
    topic: Topic
    created_at: datetime
    warehouse_id: UUID
    subject: Annotated[UUID, Meta(description="The order, else the saga or product it is about")]
    order_id: UUID | None
    order_number: int | None
    refund_id: UUID | None
    shipment_id: Annotated[UUID | None, Meta(description="The parcel, of order.shipped")]
    return_id: Annotated[UUID | None, Meta(description="The return, of order.returned")]
    saga_id: UUID | None
    saga_type: str | None
    product_id: UUID | None
    quantity_sellable: Annotated[int | None, Meta(description="Of stock.low, as are the next two")]
    reorder_point: int | None
    error_code: Annotated[str | None, Meta(description="SQLSTATE of what went wrong")]
    message: str | None
    cell: Annotated[
        int | UnsetType,
        Meta(description="There where it is another cell than home: whose event of this id it is"),
    ] = UNSET


class Events(Struct):
    """A part of the feed."""

    data: list[Event]
    next: Annotated[
        int | str,
        Meta(
            description="`after` of the next request; also when data is empty. A number, or with"
            " several cells text that holds a place in each"
        ),
    ]
    missing_cells: Annotated[
        list[str] | UnsetType,
        Meta(
            description="There where cells don't answer: their names. What happened there comes"
            " later, by the same cursor"
        ),
    ] = UNSET


class WebhooksOfCell(Struct):
    """How it goes to send an endpoint what happens in a cell other than home."""

    cell: Annotated[str, Meta(description="Its name")]
    is_enabled: bool
    off_because: str | None
    failing_since: datetime | None
    last_error: str | None
    waiting: int
    given_up: int
    position: int


class WebhookEndpoint(Struct):
    """Whom webhooks are sent to, and how that goes."""

    id: UUID
    url: str
    topics: Annotated[list[Topic] | None, Meta(description="Null: everything")]
    is_enabled: bool
    off_because: Annotated[str | None, Meta(description="Why it was switched off by itself")]
    failing_since: Annotated[datetime | None, Meta(description="Nothing came through since")]
    last_error: str | None
    waiting: Annotated[int, Meta(description="Webhooks that failed and are tried again")]
    given_up: Annotated[int, Meta(description="Webhooks that were tried for a day")]
    position: Annotated[int, Meta(description="The last event that was sent or has failed")]
    created_at: datetime
    updated_at: datetime
    version: Version
    other_cells: Annotated[
        list[WebhooksOfCell] | UnsetType,
        Meta(
            description="There where there are other cells than home, of which all else tells: how"
            " it goes in those that have heard of the endpoint"
        ),
    ] = UNSET
    missing_cells: Annotated[
        list[str] | UnsetType, Meta(description="There where cells don't answer: their names")
    ] = UNSET


class NewWebhookEndpoint(Struct):
    """A new endpoint with its secret."""

    id: UUID
    secret: Secret


class WebhookSecret(Struct):
    """The new secret of an endpoint."""

    secret: Secret


class CreateWebhookEndpoint(Request):
    """Somebody who wants to be told."""

    url: Url
    topics: Topics = None
    id: UUID | None = None


class UpdateWebhookEndpoint(Request):
    """Changes of an endpoint. Any of them has what failed tried anew."""

    url: Url | UnsetType = UNSET
    topics: Topics | UnsetType = UNSET
    is_enabled: bool | UnsetType = UNSET


class Replay(Request):
    """From when on an endpoint is told again."""

    since: Annotated[datetime, Meta(tz=True)]


def written(topics: list[Topic] | None) -> str | None:
    """Topics as PostgreSQL reads an array."""
    return None if topics is None else f"{{{','.join(topics)}}}"
