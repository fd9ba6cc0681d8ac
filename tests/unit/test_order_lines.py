"""models/orders.py: how a line of an order names its product."""

from uuid import UUID

import msgspec
import pytest

from darkpearl.models.orders import CreateOrderItem

PRODUCT = "aaaa1111-1111-1111-1111-111111111111"


@pytest.mark.parametrize(
    "line", [{"sku": "LAPTOP-14", "quantity": 1}, {"product_id": PRODUCT, "quantity": 1}]
)
def test_a_line_names_its_product_by_id_or_sku(line: dict[str, object]) -> None:
    """What goes on to the database is what was said, and no more."""
    item = msgspec.convert(line, CreateOrderItem)
    assert msgspec.json.decode(msgspec.json.encode(item)) == line


@pytest.mark.parametrize("line", [{}, {"sku": "LAPTOP-14", "product_id": UUID(PRODUCT)}])
def test_a_line_names_one_product(line: dict[str, object]) -> None:
    """Neither, or both, is refused."""
    with pytest.raises(msgspec.ValidationError, match="either product_id or sku"):
        msgspec.convert({"quantity": 1, **line}, CreateOrderItem)
