"""Orders, and all that belongs to them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType, field

from darkpearl.models.catalogue import ProductSummary, Sku, WarehouseSummary
from darkpearl.models.common import (
    AMOUNT_BOUND,
    MAX_LINES,
    Amount,
    Currency,
    Email,
    Metadata,
    Notes,
    PostalAddress,
    Request,
    SignedAmount,
    UpdatePostalAddress,
    Version,
    check_amount,
)
from darkpearl.models.payments import Payment, PaymentToken, Refund
from darkpearl.models.sagas import Saga

OrderStatus = Literal[
    "pending", "reserved", "payment_processing", "payment_failed", "paid", "fulfilling",
    "fulfilled", "cancelled",
]  # fmt: skip

CustomerId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        description="The `sub` of the customer's tokens, to the letter",
    ),
]

Reference = Annotated[
    str,
    Meta(min_length=1, max_length=100, description="The shop's own name for the order, unique"),
]


class Order(Struct):
    """An order of a customer."""

    id: UUID
    order_number: Annotated[int, Meta(description="Short, for people")]
    status: OrderStatus
    customer_id: str | None
    warehouse_id: UUID
    currency: str
    total_amount: Annotated[Amount, Meta(description="The sum of lines and adjustments")]
    notes: str | None
    created_at: datetime
    updated_at: datetime
    warehouse: WarehouseSummary
    reference: str | None
    email: str | None


class OrderItem(Struct):
    """A line of an order."""

    id: int
    product_id: UUID
    quantity: int
    unit_price: Amount
    line_total: Amount
    metadata: Metadata
    product: ProductSummary


AdjustmentKind = Literal["shipping", "discount", "tax", "fee"]


class Adjustment(Struct):
    """What an order costs beside its lines."""

    id: int
    kind: AdjustmentKind
    label: str
    amount: SignedAmount
    item_id: Annotated[int | None, Meta(description="The line that it is of")]


class OrderParticulars(Order):
    """An order with its lines, what it costs beside them, and what it is for."""

    items: list[OrderItem]
    adjustments: list[Adjustment]
    subtotal: Annotated[Amount, Meta(description="The sum of the lines")]
    shipping_total: Amount
    discount_total: Annotated[SignedAmount, Meta(description="0 or less")]
    tax_total: Amount
    fee_total: Amount
    shipping_address: PostalAddress | None
    billing_address: PostalAddress | None
    metadata: Metadata
    version: Version


class OrderDetails(OrderParticulars):
    """An order with all that belongs to it."""

    payment: Payment | None
    refunds: list[Refund]
    saga: Saga | None


class CreateOrderItem(Request, kw_only=True, omit_defaults=True):
    """A line to order; its product is named by `product_id` or by `sku`."""

    product_id: UUID | None = None
    sku: Sku | None = None
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]
    unit_price: Annotated[Amount | None, Meta(description="The catalogue's when left out")] = None
    metadata: Metadata | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one, or a product that isn't one."""
        if (self.product_id is None) == (self.sku is None):
            raise ValueError("Expected either product_id or sku")
        if self.unit_price is not None:
            check_amount(self.unit_price)


class CreateAdjustment(Request, kw_only=True, omit_defaults=True):
    """What an order costs beside its lines; staff's to say."""

    kind: AdjustmentKind
    label: Annotated[str, Meta(min_length=1, max_length=255, examples=["Express"])]
    amount: Annotated[SignedAmount, Meta(description="Of a discount 0 or less, else 0 or more")]
    item: (
        Annotated[int, Meta(ge=0, description="The place in `items` of the line that it is of")]
        | None
    ) = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        check_amount(self.amount, "an amount", least=1 - AMOUNT_BOUND)


class CreateOrder(Request):
    """A new order. Its saga starts when it is committed."""

    warehouse_id: UUID
    items: Annotated[list[CreateOrderItem], Meta(max_length=MAX_LINES)]
    adjustments: Annotated[list[CreateAdjustment], Meta(max_length=MAX_LINES)] = field(
        default_factory=list
    )
    customer_id: CustomerId | None = None
    notes: Notes | None = None
    currency: Currency = "USD"
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is refused with 409")
    ] = None
    payment_token: PaymentToken | None = None
    reference: Reference | None = None
    email: Email | None = None
    shipping_address: PostalAddress | None = None
    billing_address: PostalAddress | None = None
    metadata: Metadata | None = None


class UpdateOrder(Request):
    """Changes of what an order is for; customers' are email and addresses."""

    reference: Reference | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET
    shipping_address: UpdatePostalAddress | UnsetType | None = UNSET
    billing_address: UpdatePostalAddress | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET


class CreatedOrder(OrderParticulars):
    """The order as it was placed."""

    message: str
