"""The parts that shapes share: amounts, units, and what a body is."""

from decimal import Decimal
from typing import Annotated

from msgspec import Meta, Struct

MAX_UNITS = 1_000_000_000
MAX_LINES = 1000
_AMOUNT_BOUND = 10**12
_AMOUNT_DECIMALS = 4

Amount = Annotated[
    Decimal,
    Meta(description="In major units of the currency, at most four decimals", examples=[999.99]),
]
Notes = Annotated[str, Meta(max_length=2000)]
Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217", examples=["USD"])]
Version = Annotated[int, Meta(description="Grows with every change; in quotes, it is the ETag")]


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body that a client sends."""


def check_product(product_id: object, sku: object) -> None:
    """Refuse a line that names no product, or two.

    Raises:
        ValueError: so it is.
    """
    if (product_id is None) == (sku is None):
        raise ValueError("Expected either product_id or sku")


def check_amount(amount: Decimal, name: str = "a unit_price") -> None:
    """Refuse what the domain `amount` refuses, before a huge exponent is written out in digits.

    Raises:
        ValueError: not a finite number from 0 to below 10^12 with four decimals at most.
    """
    if (
        not amount.is_finite()
        or not 0 <= amount < _AMOUNT_BOUND
        or int(amount.as_tuple().exponent) < -_AMOUNT_DECIMALS
    ):
        raise ValueError(f"Expected {name} from 0 to 999999999999.9999")
