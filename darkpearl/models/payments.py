"""Money: payments, and refunds."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta, Struct

from darkpearl.models.common import (
    AMOUNT_BOUND,
    Amount,
    Metadata,
    Notes,
    Request,
    SignedAmount,
    check_amount,
)

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
    client_action: Annotated[
        dict[str, Any] | None,
        Meta(
            description="While it is pending: what the payer has to do, in the gateway's terms,"
            " such as a page of their bank to go to"
        ),
    ]
    disputes: list[Dispute]


class PayOrder(Request):
    """A means of payment for an order that waits for one."""

    payment_token: PaymentToken


class CreateManualPayment(Request):
    """Money of an order that came by other means than the gateway: a transfer, cash."""

    amount: Annotated[Amount, Meta(description="Exactly what the order costs")]
    reference: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            description="By what the money is found, such as the number of the transfer",
        ),
    ]
    reason: Notes | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        check_amount(self.amount, "an amount")


class RefundPart(Request, omit_defaults=True, kw_only=True):
    """Money that goes back of a line or of an adjustment of the order."""

    item_id: int | None = None
    quantity: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    adjustment_id: int | None = None
    amount: SignedAmount

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one, or a part of nothing."""
        if (self.item_id is None) == (self.adjustment_id is None):
            raise ValueError("Expected either item_id or adjustment_id")
        check_amount(self.amount, "an amount", least=1 - AMOUNT_BOUND)


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
    breakdown: list[RefundPart] | None


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
    breakdown: Annotated[
        list[RefundPart] | None,
        Meta(description="Of what it is, for who reads it; adds up to the refund"),
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        if self.amount is not None:
            check_amount(self.amount, "an amount")
