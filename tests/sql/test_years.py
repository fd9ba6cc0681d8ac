"""Months of a small shop with retention on; tests/saga/years.py has years of a larger one."""

from shop import Shop
from years import Years


async def test_what_is_over_makes_room(shop: Shop) -> None:
    """Month after month the books agree, kept days read as ever, and the size stays as it is."""
    years = Years(shop, orders=4, step_days=10)
    await years.open(products=5)
    months = [await years.month() for _ in range(10)]
    assert [month.findings for month in months] == [[]] * 10
    assert await years.compare_stock() == 2
    assert {month.orders for month in months[2:]} == {240}
    assert max(month.bytes for month in months[8:]) <= 1.05 * months[7].bytes
