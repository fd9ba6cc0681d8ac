"""The catalogue: products, and the warehouses that stock them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.models.common import Amount, Currency, Metadata, Request, Version, check_amount
from darkpearl.models.payments import CaptureMethod

Sku = Annotated[
    str, Meta(min_length=1, max_length=100, description="Unique code", examples=["LAPTOP-14"])
]
Code = Annotated[
    str, Meta(min_length=1, max_length=50, description="Unique code", examples=["LIS-1"])
]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Description = Annotated[str, Meta(max_length=10_000)]
Address = Annotated[str, Meta(max_length=1000)]
FulfilmentMethod = Annotated[
    Literal["automatic", "on_shipment"],
    Meta(
        description="When goods leave: once they are paid, or parcel by parcel as somebody packs"
        " them. Counts for new orders"
    ),
]

Priority = Annotated[
    int,
    Meta(
        ge=0,
        le=1_000_000,
        description="An order that names no warehouse goes to the lowest that can serve it",
    ),
]

Cell = Annotated[
    int,
    Meta(
        ge=1,
        le=255,
        description="The cell that takes its orders and moves its stock: 1, unless there are"
        " several. It stays once there is stock or an order",
    ),
]


class Product(Struct):
    """Something that can be sold."""

    id: UUID
    sku: str
    name: str
    description: str | None
    unit_price: Amount
    currency: str
    is_active: bool
    metadata: Metadata
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
    metadata: Metadata = msgspec.field(default_factory=dict)

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
    metadata: Metadata | UnsetType | None = UNSET

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
    fulfilment_method: FulfilmentMethod
    priority: Priority
    version: Version
    cell: Cell


class CreateWarehouse(Request):
    """A new warehouse."""

    code: Code
    name: Name
    address: Address | None = None
    is_active: bool = True
    capture_method: CaptureMethod = "at_payment"
    fulfilment_method: FulfilmentMethod = "automatic"
    priority: Priority = 100
    cell: Cell | UnsetType = UNSET


class UpdateWarehouse(Request):
    """Changes of a warehouse."""

    code: Code | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    address: Address | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET
    capture_method: CaptureMethod | UnsetType = UNSET
    fulfilment_method: FulfilmentMethod | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET


class WarehouseSummary(Struct):
    """Which warehouse."""

    id: UUID
    code: str
    name: str
