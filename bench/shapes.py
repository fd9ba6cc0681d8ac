"""The drain under orders of another shape: one product, too little stock, many warehouses."""

from functools import partial
from typing import Any

from bench.drain import drain
from bench.harness import shop
from bench.rounds import Variant
from darkpearl import embedded

ORDERS = 20_000
UNITS_PER_LINE = 2
"""On average; `Shop.fill` draws one to three."""


async def _drain(
    running: embedded.Server,
    *,
    lines: int,
    products: int = 1000,
    warehouses: int = 1,
    stock: int = 1_000_000,
    hot: bool = False,
) -> dict[str, Any]:
    async with shop(running, warehouses=warehouses, products=products, stock=stock) as target:
        wanted = 1 if hot else None
        figures = await drain(target, ORDERS, 1, lines=lines, products=wanted)
        served = await target.value("select avg((status = 'fulfilled')::int)::float8 from orders")
        return {**figures, "served": round(served, 3)}


def hot(running: embedded.Server) -> tuple[dict[str, Variant], list[str]]:
    """One-line orders, so that each variant writes as many rows for an order that is served."""
    demand = ORDERS * UNITS_PER_LINE
    one = partial(_drain, running, lines=1)
    return {
        "1,000 products": one,
        "hot": partial(one, hot=True),
        "shortage": partial(one, stock=demand * 7 // 10 // 1000),
        "hot, shortage": partial(one, hot=True, stock=demand * 7 // 10),
    }, ["1,000 products"]


def warehouses(running: embedded.Server) -> tuple[dict[str, Variant], list[str]]:
    """As many inventory rows each time, in more and more warehouses."""
    names = {1: "1 warehouse", 10: "10 warehouses", 1000: "1,000 warehouses"}
    return {
        name: partial(_drain, running, lines=2, warehouses=count, products=20_000 // count)
        for count, name in names.items()
    }, [names[1]]
