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
    check_product,
)
from darkpearl.models.payments import Payment, PaymentStatus, PaymentToken, Refund
from darkpearl.models.sagas import Message, Saga
from darkpearl.models.shipments import Shipment
from darkpearl.models.stock import OrderReturn

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


class OrderFailure(Struct):
    """Why an order came to nothing."""

    code: Annotated[str, Meta(description="SQLSTATE; /problems/{code} tells of it")]
    message: Message


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
    failure: Annotated[
        OrderFailure | None,
        Meta(description="Of one that was cancelled by what went wrong, or whose payment failed"),
    ]
    pay_by: Annotated[
        datetime | None,
        Meta(description="Until when its stock is held for a payment, or for another"),
    ]


class OrderItem(Struct):
    """A line of an order."""

    id: int
    product_id: UUID
    quantity: int
    unit_price: Amount
    line_total: Amount
    metadata: Metadata
    product: ProductSummary
    returned_quantity: Annotated[int, Meta(description="Units of it that have come back")]


class ListedOrder(Order, kw_only=True):
    """An order with what the list was asked to include."""

    items: list[OrderItem] | UnsetType = UNSET
    payment: Payment | UnsetType | None = UNSET


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
    returns: list[OrderReturn]
    group_id: Annotated[
        UUID | None, Meta(description="Of the orders that were placed together with it")
    ]
    shipments: Annotated[list[Shipment], Meta(description="Its parcels, oldest first")]


class OrderToShip(Struct):
    """An order that waits for somebody to pack it, or the rest of it."""

    id: UUID
    order_number: int
    status: OrderStatus
    warehouse_id: UUID
    warehouse: Annotated[str, Meta(description="Its code")]
    customer_id: str | None
    total_amount: Amount
    currency: str
    payment_status: PaymentStatus
    units_left: int
    parcels: Annotated[int, Meta(description="Made so far")]
    waits_since: Annotated[datetime, Meta(description="Or since its last parcel")]
    due_at: datetime
    is_overdue: bool
    is_disputed: Annotated[bool, Meta(description="The payer has asked their bank for the money")]


class OrderGroup(Struct):
    """Orders placed as one, each by the warehouse that serves it; it has the id of the first."""

    id: UUID
    customer_id: str | None
    currency: str
    total_amount: Amount
    orders: list[Order]
    created_at: datetime


class CreateOrderItem(Request, kw_only=True, omit_defaults=True):
    """A line to order; its product is named by `product_id` or by `sku`."""

    product_id: UUID | None = None
    sku: Sku | None = None
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]
    unit_price: Annotated[Amount | None, Meta(description="The catalogue's when left out")] = None
    metadata: Metadata | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one, or a product that isn't one."""
        check_product(self.product_id, self.sku)
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

    items: Annotated[list[CreateOrderItem], Meta(min_length=1, max_length=MAX_LINES)]
    warehouse_id: Annotated[
        UUID | None,
        Meta(
            description="Left out: the first by priority that can serve all, else as few as can,"
            " one order for each"
        ),
    ] = None
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
    pay_by: (
        Annotated[
            datetime,
            Meta(
                tz=True,
                description="The shop's to say: until then its stock is held while it isn't paid,"
                " and a payment that is declined may be followed by another",
            ),
        ]
        | None
    ) = None
    reference: Reference | None = None
    email: Email | None = None
    shipping_address: PostalAddress | None = None
    billing_address: PostalAddress | None = None
    metadata: Metadata | None = None


class QuotedItem(Struct):
    """A line of an order that isn't placed."""

    product_id: UUID
    quantity: int
    unit_price: Amount
    line_total: Amount
    quantity_sellable: Annotated[int, Meta(description="Units that can be sold now")]
    fits: Annotated[bool, Meta(description="All lines of its product together can be sold now")]
    product: ProductSummary


class QuotedAdjustment(Struct):
    """What an order that isn't placed would cost beside its lines."""

    kind: AdjustmentKind
    label: str
    amount: SignedAmount
    item: Annotated[int | None, Meta(description="The place in `items` of the line that it is of")]


class QuotedOrder(Struct):
    """One of the orders that would be placed, by the warehouse that serves it."""

    warehouse: WarehouseSummary
    items: list[QuotedItem]
    adjustments: list[QuotedAdjustment]
    subtotal: Annotated[Amount, Meta(description="The sum of the lines")]
    shipping_total: Amount
    discount_total: Annotated[SignedAmount, Meta(description="0 or less")]
    tax_total: Amount
    fee_total: Amount
    total_amount: Amount
    fits: Annotated[bool, Meta(description="All of it can be sold there now")]


class Quote(Struct):
    """What an order would cost, and whether it fits, at this moment. Nothing is promised."""

    currency: str
    subtotal: Amount
    shipping_total: Amount
    discount_total: SignedAmount
    tax_total: Amount
    fee_total: Amount
    total_amount: Amount
    fits: bool
    orders: Annotated[list[QuotedOrder], Meta(description="One for each warehouse that it takes")]


class UpdateOrder(Request):
    """Changes of what an order is for; customers' are email and addresses."""

    notes: Notes | UnsetType | None = UNSET
    reference: Reference | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET
    shipping_address: UpdatePostalAddress | UnsetType | None = UNSET
    billing_address: UpdatePostalAddress | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET


class CreatedOrder(OrderParticulars, kw_only=True):
    """The order as it was placed."""

    message: str
    group: (
        Annotated[
            OrderGroup,
            Meta(description="When it took several warehouses: this order and the others"),
        ]
        | UnsetType
        | None
    ) = UNSET
