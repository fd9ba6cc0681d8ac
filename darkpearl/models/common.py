"""The parts that shapes share: amounts, units, and what a body is."""

from decimal import Decimal
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_UNITS = 1_000_000_000
MAX_LINES = 1000
AMOUNT_BOUND = 10**12
_AMOUNT_DECIMALS = 4

Amount = Annotated[
    Decimal,
    Meta(description="In major units of the currency, at most four decimals", examples=[999.99]),
]
SignedAmount = Annotated[
    Decimal,
    Meta(
        description="In major units of the currency, at most four decimals; what is taken off is"
        " below 0",
        examples=[-5.0],
        extra={"least": 1 - AMOUNT_BOUND},
    ),
]
Notes = Annotated[str, Meta(max_length=2000)]
Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217", examples=["USD"])]
Metadata = Annotated[
    dict[str, Any],
    Meta(description="The shop's own object, of 16384 bytes at most; customers don't write it"),
]
# What is a space differs between regular expressions: control characters are named.
Email = Annotated[
    str,
    Meta(
        max_length=254,
        pattern=r"^[^@\s\u0000-\u001f\u007f-\u009f]+@[^@\s\u0000-\u001f\u007f-\u009f]+$",
        examples=["ann@example.com"],
    ),
]
Version = Annotated[int, Meta(description="Grows with every change; in quotes, it is the ETag")]


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body that a client sends."""


_Line = Annotated[str, Meta(min_length=1, max_length=255)]
_Country = Annotated[str, Meta(pattern="^[A-Z]{2}$", description="ISO 3166-1", examples=["PT"])]


class PostalAddress(Request, omit_defaults=True):
    """Where to send goods, or a bill."""

    name: _Line | None = None
    company: _Line | None = None
    line1: _Line | None = None
    line2: _Line | None = None
    city: _Line | None = None
    region: _Line | None = None
    postal_code: _Line | None = None
    country: _Country | None = None
    phone: _Line | None = None


class UpdatePostalAddress(Request):
    """Changes of an address; null takes a field away."""

    name: _Line | UnsetType | None = UNSET
    company: _Line | UnsetType | None = UNSET
    line1: _Line | UnsetType | None = UNSET
    line2: _Line | UnsetType | None = UNSET
    city: _Line | UnsetType | None = UNSET
    region: _Line | UnsetType | None = UNSET
    postal_code: _Line | UnsetType | None = UNSET
    country: _Country | UnsetType | None = UNSET
    phone: _Line | UnsetType | None = UNSET


def check_product(product_id: object, sku: object) -> None:
    """Refuse a line that names no product, or two.

    Raises:
        ValueError: so it is.
    """
    if (product_id is None) == (sku is None):
        raise ValueError("Expected either product_id or sku")


def check_amount(amount: Decimal, name: str = "a unit_price", *, least: int = 0) -> None:
    """Refuse what the domain `amount` refuses, before a huge exponent is written out in digits.

    Raises:
        ValueError: not a finite number from 0, or `least`, to below 10^12 with four decimals at
            most.
    """
    if (
        not amount.is_finite()
        or not least <= amount < AMOUNT_BOUND
        or int(amount.as_tuple().exponent) < -_AMOUNT_DECIMALS
    ):
        raise ValueError(f"Expected {name} from {least} to 999999999999.9999")
