"""What goes over the wire: one Struct per shape, rows of the database and bodies of requests.

A response has the columns of its row under the same names. A request refuses fields that it
doesn't know; in an update, a field that is left out stays as it is.

Amounts of money are numbers in JSON, in their exact decimal text (`999.99`), because that is what
clients of a catalogue send and show; a client whose numbers are floating point may send a string
instead. They are never floats in here. Times carry their offset from UTC.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.models.common import (
    MAX_LINES,
    MAX_UNITS,
    Amount,
    Notes,
    Request,
    Units,
    check_amount,
)
from darkpearl.models.payments import CaptureMethod, Payment, PaymentToken, Refund

OrderStatus = Literal[
    "pending", "reserved", "payment_processing", "payment_failed", "paid", "fulfilling",
    "fulfilled", "cancelled",
]  # fmt: skip
MovementType = Literal[
    "receive", "transfer_out", "transfer_in", "adjust", "reserve", "release", "fulfill",
]  # fmt: skip
SagaStatus = Literal["running", "waiting", "compensating", "completed", "compensated", "stuck"]
SagaEventType = Literal[
    "saga_started", "step_completed", "step_waiting", "step_failed", "compensation_started",
    "step_compensated", "saga_completed", "saga_compensated", "saga_stuck", "retried",
    "cancelled", "skipped",
]  # fmt: skip

Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217", examples=["USD"])]
Sku = Annotated[
    str, Meta(min_length=1, max_length=100, description="Unique code", examples=["LAPTOP-14"])
]
Code = Annotated[
    str, Meta(min_length=1, max_length=50, description="Unique code", examples=["LIS-1"])
]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Description = Annotated[str, Meta(max_length=10_000)]
Address = Annotated[str, Meta(max_length=1000)]
Version = Annotated[int, Meta(description="Grows with every change; in quotes, it is the ETag")]


# The catalogue.


class Product(Struct):
    """Something that can be sold."""

    id: UUID
    sku: str
    name: str
    description: str | None
    unit_price: Amount
    currency: str
    is_active: bool
    created_at: datetime
    updated_at: datetime
    version: Version


class CreateProduct(Request):
    """A new product."""

    sku: Sku
    name: Name
    unit_price: Amount
    description: Description | None = None
    currency: Currency = "USD"
    is_active: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        check_amount(self.unit_price)


class UpdateProduct(Request):
    """Changes of a product."""

    sku: Sku | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    unit_price: Amount | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        if self.unit_price is not UNSET:
            check_amount(self.unit_price)


class ProductSummary(Struct):
    """Which product."""

    id: UUID
    sku: str
    name: str


class Warehouse(Struct):
    """Where stock lies."""

    id: UUID
    code: str
    name: str
    address: str | None
    is_active: bool
    created_at: datetime
    updated_at: datetime
    capture_method: CaptureMethod
    version: Version


class CreateWarehouse(Request):
    """A new warehouse."""

    code: Code
    name: Name
    address: Address | None = None
    is_active: bool = True
    capture_method: CaptureMethod = "at_payment"


class UpdateWarehouse(Request):
    """Changes of a warehouse."""

    code: Code | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    address: Address | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET
    capture_method: CaptureMethod | UnsetType = UNSET


class WarehouseSummary(Struct):
    """Which warehouse."""

    id: UUID
    code: str
    name: str


# Stock.

OnHand = Annotated[int, Meta(description="On the shelf, reserved units included")]
Counted = Annotated[Units, Meta(description="A count; the difference becomes an adjust movement")]
Reserved = Annotated[int, Meta(description="Refused: only orders reserve")]


class Inventory(Struct, kw_only=True):
    """How much of a product a warehouse has; fields that may be missing are for staff alone."""

    id: UUID
    product_id: UUID
    warehouse_id: UUID
    quantity_available: OnHand | UnsetType = UNSET
    quantity_reserved: Annotated[int, Meta(description="Promised to orders")] | UnsetType = UNSET
    quantity_sellable: Annotated[int, Meta(description="Available less reserved")]
    reorder_point: int | UnsetType = UNSET
    reorder_quantity: int | UnsetType = UNSET
    created_at: datetime
    updated_at: datetime | UnsetType = UNSET
    version: Version
    product: ProductSummary
    warehouse: WarehouseSummary


class CreateInventory(Request):
    """A product is to be stocked in a warehouse."""

    product_id: UUID
    warehouse_id: UUID
    quantity_available: Annotated[
        Units, Meta(description="Received at once, as a movement of the ledger")
    ] = 0
    reorder_point: Units = 10
    reorder_quantity: Units = 50


class ReplaceInventory(Request):
    """All of an inventory row that people set; what it holds stays, unless it was counted."""

    reorder_point: Units
    reorder_quantity: Units
    quantity_available: Counted | UnsetType = UNSET
    quantity_reserved: Reserved | UnsetType = UNSET


class UpdateInventory(Request):
    """Changes of an inventory row."""

    quantity_available: Counted | UnsetType = UNSET
    quantity_reserved: Reserved | UnsetType = UNSET
    reorder_point: Units | UnsetType = UNSET
    reorder_quantity: Units | UnsetType = UNSET


class StockMovement(Struct):
    """One line of the ledger."""

    id: int
    correlation_id: UUID
    product_id: UUID
    warehouse_id: UUID
    movement_type: MovementType
    quantity: int
    available_after: int
    reserved_after: int
    reference_type: str | None
    reference_id: UUID | None
    notes: str | None
    actor: str | None
    created_at: datetime
    product: ProductSummary | None
    warehouse: WarehouseSummary | None


class CreateStockMovement(Request):
    """Stock that arrives, is corrected or goes to another warehouse."""

    product_id: UUID
    warehouse_id: UUID
    movement_type: Annotated[
        MovementType, Meta(description="reserve, release and fulfill are the orders' own: refused")
    ]
    quantity: Annotated[
        int,
        Meta(
            ge=-MAX_UNITS,
            le=MAX_UNITS,
            description="Units: more than 0, except for adjust, which is signed",
        ),
    ]
    correlation_id: Annotated[
        UUID | None,
        Meta(description="Names the operation: the same again is done once. Made when left out"),
    ] = None
    to_warehouse_id: Annotated[
        UUID | None, Meta(description="For transfer_out: where the units go")
    ] = None
    from_warehouse_id: Annotated[
        UUID | None, Meta(description="For transfer_in: where the units come from")
    ] = None
    reference_type: Annotated[str, Meta(max_length=50)] | None = None
    reference_id: UUID | None = None
    notes: Notes | None = None


class CreatedStockMovement(StockMovement, kw_only=True):
    """The movement that was asked for; for a transfer, with the one of the other warehouse."""

    counterpart: StockMovement | None


class Return(Struct):
    """Goods that came back, as the movements that made them stock again."""

    id: UUID
    order_id: UUID
    movements: list[StockMovement]


# Orders.


class Order(Struct):
    """What a customer asked for."""

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


class OrderItem(Struct):
    """A line of an order."""

    id: int
    product_id: UUID
    quantity: int
    unit_price: Amount
    line_total: Amount
    product: ProductSummary


class Saga(Struct):
    """Where a saga stands. Its id is the order's."""

    id: UUID
    saga_type: str
    status: SagaStatus
    current_step: Annotated[str | None, Meta(description="Null once the saga has ended")]
    attempts: int
    max_attempts: int | None
    cancel_requested: bool
    error_code: Annotated[str | None, Meta(description="SQLSTATE of the last failure")]
    error_message: str | None
    ready_at: Annotated[datetime | None, Meta(description="When it is looked at next")]
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    warehouse_id: UUID


class OrderDetails(Order):
    """An order with all that belongs to it."""

    items: list[OrderItem]
    payment: Payment | None
    refunds: list[Refund]
    saga: Saga | None


class CreateOrderItem(Request):
    """A line to order."""

    product_id: UUID
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]
    unit_price: Annotated[Amount | None, Meta(description="The catalogue's when left out")] = None

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        if self.unit_price is not None:
            check_amount(self.unit_price)


class CreateOrder(Request):
    """A new order. Its saga starts when it is committed."""

    warehouse_id: UUID
    items: Annotated[list[CreateOrderItem], Meta(max_length=MAX_LINES)]
    customer_id: UUID | None = None
    notes: Notes | None = None
    currency: Currency = "USD"
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is refused with 409")
    ] = None
    payment_token: PaymentToken | None = None


class CreatedOrder(Order):
    """The order as it was placed."""

    items: list[OrderItem]
    message: str


# Sagas.


class SagaEvent(Struct):
    """One transition of a saga."""

    id: int
    saga_id: UUID
    event_type: SagaEventType
    step_name: str | None
    attempt: int | None
    error_code: str | None
    message: str | None
    next_attempt_at: datetime | None
    actor: str | None
    started_at: datetime | None
    created_at: datetime
