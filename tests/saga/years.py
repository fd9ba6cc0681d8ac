"""`make years`: three years of a shop, day by day, with retention on.

DARKPEARL_TEST_YEARS_ORDERS says how many orders a day has, DARKPEARL_TEST_YEARS_MONTHS for how
long.
"""

import os

from shop import Shop
from years import Years

ORDERS = int(os.environ.get("DARKPEARL_TEST_YEARS_ORDERS", "100"))
MONTHS = int(os.environ.get("DARKPEARL_TEST_YEARS_MONTHS", "36"))
YEAR = 12


async def test_the_size_is_flat_from_the_second_year(shop: Shop) -> None:
    """After each month the audit is empty and kept days read as ever; nothing grows for ever."""
    years = Years(shop, orders=ORDERS)
    await years.open(products=200)
    sizes = []
    for number in range(MONTHS):
        month = await years.month()
        assert month.findings == []
        days = await years.compare_stock()
        sizes.append(month.bytes)
        print(  # noqa: T201
            f"month {number + 1:2}: {month.bytes / 1e6:7.1f} MB, {month.orders} orders,"
            f" {days} earlier days as they were",
            flush=True,
        )
    assert max(sizes[YEAR:]) <= 1.05 * sizes[YEAR - 1]
