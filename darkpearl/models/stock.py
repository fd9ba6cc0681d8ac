"""Stock: inventory, the ledger that explains it, and goods that come back."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.models.catalogue import ProductSummary, Sku, WarehouseSummary
from darkpearl.models.common import (
    MAX_LINES,
    MAX_UNITS,
    Amount,
    Metadata,
    Notes,
    Request,
    Units,
    check_amount,
    check_product,
)
from darkpearl.models.payments import Refund

NewMovementType = Literal[
    "receive", "transfer_out", "transfer_in", "adjust", "reserve", "release", "fulfill",
]  # fmt: skip
MovementType = Literal[
    "receive", "transfer_out", "transfer_in", "adjust", "reserve", "release", "fulfill", "balance",
]  # fmt: skip
"""A balance stands where retention has removed older movements."""
OnHand = Annotated[int, Meta(description="On the shelf, reserved units included")]
Counted = Annotated[Units, Meta(description="A count; the difference becomes an adjust movement")]
Expected = Annotated[
    Units,
    Meta(description="What quantity_available was when it was counted; another by now is refused"),
]
_CODE = "^[a-z][a-z0-9_]{0,49}$"
ReasonCode = Annotated[str, Meta(pattern=_CODE, description="For programs, such as `damaged`")]
AdjustedFor = Annotated[
    str, Meta(pattern=_CODE, description="For adjust: why, one of /adjustment-reasons")
]
WrittenOffFor = Annotated[
    str, Meta(pattern=_CODE, description="Why they are written off: `damaged` when left out")
]
Reserved = Annotated[int, Meta(description="Refused: only orders reserve")]
InTransit = Annotated[
    int | UnsetType,
    Meta(
        description="Units on their way there from another cell; where there are several, all of"
        " which answer"
    ),
]


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
    version: Annotated[
        int,
        Meta(
            description="Another with every change: grows for staff, in no order for others."
            " In quotes, it is the ETag"
        ),
    ]
    product: ProductSummary
    warehouse: WarehouseSummary


class OverallInventory(Inventory, kw_only=True):
    """The same with what all cells know of it, for staff."""

    quantity_in_transit: InTransit = UNSET


class ReorderSuggestion(Struct):
    """What runs out somewhere, and how much of it to order."""

    id: Annotated[UUID, Meta(description="Of the inventory row")]
    product_id: UUID
    warehouse_id: UUID
    sku: str
    product_name: str
    warehouse_code: str
    quantity_sellable: int
    reorder_point: int
    reorder_quantity: int
    shortage: Annotated[int, Meta(description="Units below the reorder point")]
    suggested_quantity: Annotated[
        int, Meta(description="As many reorder quantities as lead above the reorder point")
    ]


class OverallSuggestion(ReorderSuggestion, kw_only=True):
    """The same with what all cells know of it."""

    quantity_in_transit: InTransit = UNSET


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
    quantity_expected: Expected | UnsetType = UNSET
    quantity_reserved: Reserved | UnsetType = UNSET


class UpdateInventory(Request):
    """Changes of an inventory row."""

    quantity_available: Counted | UnsetType = UNSET
    quantity_expected: Expected | UnsetType = UNSET
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
    reference_type: Annotated[
        str | None, Meta(description="`order` of what its saga moved, `return` of what came back")
    ]
    reference_id: UUID | None
    notes: str | None
    actor: str | None
    created_at: datetime
    product: ProductSummary | None
    warehouse: WarehouseSummary | None
    reason_code: str | None


class CreateStockMovement(Request):
    """Stock that arrives, is corrected or goes to another warehouse."""

    product_id: UUID
    warehouse_id: UUID
    movement_type: Annotated[
        NewMovementType,
        Meta(description="reserve, release and fulfill are the orders' own: refused"),
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
    reason_code: AdjustedFor | None = None


TransferStatus = Literal["in_transit", "arrived", "undone"]


class Transfer(Struct):
    """Goods that went to a warehouse of another cell."""

    id: Annotated[UUID, Meta(description="The correlation id of its movements, and its saga's")]
    product_id: UUID
    warehouse_id: Annotated[UUID, Meta(description="Where they left; undone, they are back there")]
    to_warehouse_id: UUID
    quantity: int
    status: Annotated[
        TransferStatus,
        Meta(description="`in_transit`: on the shelf of neither. The others are final"),
    ]
    refusal: Annotated[
        str | None, Meta(description="Why they were not let in, or that they were called back")
    ]
    notes: str | None
    created_at: datetime
    updated_at: datetime
    product: ProductSummary
    warehouse: WarehouseSummary
    to_warehouse: WarehouseSummary


class CreatedStockMovement(StockMovement, kw_only=True):
    """The movement that was asked for; for a transfer, with the one of the other warehouse."""

    counterpart: StockMovement | None
    transfer: Annotated[
        Transfer | UnsetType | None,
        Meta(description="There of goods that go to another cell: what becomes of them"),
    ] = UNSET


class AdjustmentReason(Struct):
    """A reason that an adjustment may have."""

    code: str
    description: str | None
    created_at: datetime


class CreateAdjustmentReason(Request):
    """A reason of one's own."""

    code: ReasonCode
    description: Notes | None = None


class ReturnedGoods(Struct):
    """Units of a product that came back."""

    product_id: UUID
    quantity: int
    product: ProductSummary


class OrderReturn(Struct, kw_only=True):
    """Goods of an order that came back."""

    id: UUID
    created_at: datetime
    restocked: Annotated[bool, Meta(description="False: they were written off")]
    items: list[ReturnedGoods]


class Return(OrderReturn, kw_only=True):
    """The same with the movements of it, and the refund that was made with it."""

    order_id: UUID
    movements: list[StockMovement]
    metadata: Metadata
    refund: Refund | None


class Goods(Request, kw_only=True, omit_defaults=True):
    """Units of a product, which is named by `product_id` or by `sku`."""

    product_id: UUID | None = None
    sku: Sku | None = None
    quantity: Annotated[int, Meta(ge=1, le=MAX_UNITS)]

    def __post_init__(self) -> None:
        """Raise ValueError for a product that isn't one."""
        check_product(self.product_id, self.sku)


class ReturnedItem(Goods):
    """Units that have come back; the product is named by `product_id` or by `sku`."""


class RefundOfReturn(Request):
    """Money to give back with the goods."""

    amount: Annotated[Amount | None, Meta(description="What they cost when left out")] = None
    despite_dispute: Annotated[
        bool, Meta(description="Pay although the payer's bank may have paid already")
    ] = False

    def __post_init__(self) -> None:
        """Raise ValueError for an amount that can't be one."""
        if self.amount is not None:
            check_amount(self.amount, "an amount")


class CreateReturn(Request):
    """Goods that have come back."""

    items: (
        Annotated[
            list[ReturnedItem],
            Meta(
                min_length=1,
                max_length=MAX_LINES,
                description="All that is still out when left out",
            ),
        ]
        | None
    ) = None
    reason: Notes | None = None
    metadata: Metadata | None = None
    id: Annotated[
        UUID | None, Meta(description="Yours to choose: then the same again is booked once")
    ] = None
    restock: Annotated[bool, Meta(description="False: they can't be sold, and are written off")] = (
        True
    )
    reason_code: WrittenOffFor | None = None
    refund: Annotated[
        RefundOfReturn | None,
        Meta(description="Give money back too, both or neither; by itself not"),
    ] = None
