"""Money: payments, and refunds."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from darkpearl.models.common import Amount, Metadata, Notes, Request, check_amount

PaymentStatus = Literal[
    "requested", "pending", "authorized", "capture_requested", "captured", "declined",
    "void_requested", "voided", "refunded",
]  # fmt: skip
RefundStatus = Literal["requested", "refunded", "declined", "failed"]
DisputeStatus = Literal["open", "won", "lost"]
CaptureMethod = Annotated[
    Literal["at_payment", "at_fulfilment"],
    Meta(
        description="When money is taken: at once, or held first and taken before the goods leave."
        " Counts for new orders"
    ),
]
PaymentToken = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=500,
        description="The payer's means of payment, in the gateway's terms. Never sent back",
    ),
]

DeclineCode = Annotated[
    str | None, Meta(description="The gateway's for staff, one of a few for customers")
]


class Dispute(Struct):
    """A payer's bank that wants a payment back; `lost`, it has it."""

    reference: str
    status: DisputeStatus
    amount: Amount
    currency: str
    reason: str | None
    opened_at: datetime
    updated_at: datetime


class Payment(Struct):
    """Money that was asked for, taken and given back."""

    status: PaymentStatus
    currency: str
    requested_amount: Amount
    authorized_amount: Amount
    captured_amount: Amount
    refunded_amount: Amount
    voided_amount: Amount
    gateway: str | None
    gateway_reference: str | None
    decline_code: DeclineCode
    created_at: datetime
    updated_at: datetime
    disputes: list[Dispute]


class Refund(Struct):
    """Money on its way back, by a saga that has the refund's id; `failed`: it never arrived."""

    id: UUID
    order_id: UUID
    status: RefundStatus
    amount: Amount
    currency: str
    reason: str | None
    despite_dispute: bool
    gateway: Annotated[
        str | None, Meta(description="`other means` when a person paid it elsewhere")
    ]
    gateway_reference: str | None
    decline_code: DeclineCode
    created_at: datetime
    updated_at: datetime
    metadata: Metadata


class CreateRefund(Request):
    """Money to give back."""

    amount: Annotated[Amount | None, Meta(description="All that is left when left out")] = None
    reason: Notes | None = None
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is done once")
    ] = None
    despite_dispute: Annotated[
        bool, Meta(description="Pay although the payer's bank may have paid already")
    ] = False
    metadata: Metadata | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        if self.amount is not None:
            check_amount(self.amount, "an amount")
