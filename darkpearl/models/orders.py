"""Orders, and all that belongs to them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.models.catalogue import ProductSummary, Sku, WarehouseSummary
from darkpearl.models.common import (
    MAX_LINES,
    Amount,
    Currency,
    Notes,
    Request,
    check_amount,
    check_product,
)
from darkpearl.models.payments import Payment, PaymentToken, Refund
from darkpearl.models.sagas import Message, Saga
from darkpearl.models.stock import OrderReturn

OrderStatus = Literal[
    "pending", "reserved", "payment_processing", "payment_failed", "paid", "fulfilling",
    "fulfilled", "cancelled",
]  # fmt: skip


class OrderFailure(Struct):
    """Why an order came to nothing."""

    code: Annotated[str, Meta(description="SQLSTATE; /problems/{code} tells of it")]
    message: Message


class Order(Struct):
    """An order of a customer."""

    id: UUID
    order_number: Annotated[int, Meta(description="Short, for people")]
    status: OrderStatus
    customer_id: UUID | None
    warehouse_id: UUID
    currency: str
    total_amount: Annotated[Amount, Meta(description="The sum of the lines")]
    notes: str | None
    created_at: datetime
    updated_at: datetime
    warehouse: WarehouseSummary
    failure: Annotated[
        OrderFailure | None,
        Meta(description="Of one that was cancelled by what went wrong, or whose payment failed"),
    ]


class OrderItem(Struct):
    """A line of an order."""

    id: int
    product_id: UUID
    quantity: int
    unit_price: Amount
    line_total: Amount
    product: ProductSummary
    returned_quantity: Annotated[int, Meta(description="Units of it that have come back")]


class ListedOrder(Order, kw_only=True):
    """An order with what the list was asked to include."""

    items: list[OrderItem] | UnsetType = UNSET
    payment: Payment | UnsetType | None = UNSET


class OrderDetails(Order):
    """An order with all that belongs to it."""

    items: list[OrderItem]
    payment: Payment | None
    refunds: list[Refund]
    saga: Saga | None
    returns: list[OrderReturn]
    group_id: Annotated[
        UUID | None, Meta(description="Of the orders that were placed together with it")
    ]


class OrderGroup(Struct):
    """Orders placed as one, each by the warehouse that serves it; it has the id of the first."""

    id: UUID
    customer_id: UUID | None
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

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one, or a product that isn't one."""
        check_product(self.product_id, self.sku)
        if self.unit_price is not None:
            check_amount(self.unit_price)


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
    customer_id: UUID | None = None
    notes: Notes | None = None
    currency: Currency = "USD"
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is refused with 409")
    ] = None
    payment_token: PaymentToken | None = None


class CreatedOrder(Order, kw_only=True):
    """The order as it was placed."""

    items: list[OrderItem]
    message: str
    group: (
        Annotated[
            OrderGroup,
            Meta(description="When it took several warehouses: this order and the others"),
        ]
        | UnsetType
        | None
    ) = UNSET
