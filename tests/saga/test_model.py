"""The set-based engine against a model that serves orders one by one."""

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shop import APPROVED, DECLINED, Shop

PRODUCTS = 4
Lines = list[tuple[int, int]]


@dataclass
class Model:
    """Shelves, and orders that take from them in turn."""

    available: list[int]
    reserved: list[int] = field(default_factory=lambda: [0] * PRODUCTS)
    statuses: list[str] = field(default_factory=list)
    held: list[dict[int, int]] = field(default_factory=list)

    def reserve(self, lines: Lines) -> None:
        """All lines or none."""
        wanted: dict[int, int] = {}
        for product, quantity in lines:
            wanted[product] = wanted.get(product, 0) + quantity
        fits = all(self.available[p] - self.reserved[p] >= q for p, q in wanted.items())
        self.statuses.append("payment_processing" if fits else "cancelled")
        self.held.append(wanted if fits else {})
        for product, quantity in self.held[-1].items():
            self.reserved[product] += quantity

    def settle(self, number: int, *, approved: bool) -> None:
        """Ship or release what the order holds."""
        if self.statuses[number] != "payment_processing":
            return
        self.statuses[number] = "fulfilled" if approved else "cancelled"
        for product, quantity in self.held[number].items():
            self.reserved[product] -= quantity
            self.available[product] -= quantity if approved else 0


line = st.tuples(st.integers(0, PRODUCTS - 1), st.integers(1, 4))
order = st.tuples(st.lists(line, min_size=1, max_size=4), st.booleans())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stock=st.lists(st.integers(0, 9), min_size=PRODUCTS, max_size=PRODUCTS),
    waves=st.lists(st.lists(order, min_size=1, max_size=10), min_size=1, max_size=3),
    limit=st.integers(1, 12),
)
async def test_batches_do_what_one_by_one_would(
    stock: list[int], waves: list[list[tuple[Lines, bool]]], limit: int, shop: Shop
) -> None:
    """A batch of any size ends exactly as serving its orders one by one in id order would."""
    products = [await shop.product(on_hand=quantity) for quantity in stock]
    model = Model(list(stock))
    orders: list[UUID] = []
    for wave in waves:
        first = len(orders)
        for lines, _ in wave:
            orders.append(await shop.order(*((products[p], q) for p, q in lines)))
            model.reserve(lines)
        requests = await _reserve(shop, limit)
        await _agree(shop, model, products, orders)

        decided = dict(zip(orders[first:], (approved for _, approved in wave), strict=True))
        answers = [
            {
                "saga_id": each["saga_id"],
                "lease_token": each["lease_token"],
                "answer": APPROVED if decided[UUID(each["saga_id"])] else DECLINED,
            }
            for each in requests
        ]
        await shop.run("select settle_pass(all_warehouses(), %s::jsonb, true)", json.dumps(answers))
        for number, (_, approved) in enumerate(wave, first):
            model.settle(number, approved=approved)
        await _agree(shop, model, products, orders)
    assert await shop.audit() == []


async def _reserve(shop: Shop, limit: int) -> list[Any]:
    """What advance() does, without its second tries: no batch that raises is mended by halves."""
    requests: list[Any] = []
    while await shop.value("select exists (select from sagas where ready_at <= clock())"):
        for each in await shop.values(
            "select run_pass(all_warehouses(), work)"
            " from claim_sagas(all_warehouses(), %s) as work",
            limit,
        ):
            requests += each
    return requests


async def _agree(shop: Shop, model: Model, products: list[UUID], orders: list[UUID]) -> None:
    rows = await shop.rows("select id, status::text from orders")
    statuses = {row["id"]: row["status"] for row in rows}
    assert [statuses[order] for order in orders] == model.statuses
    shelves = {
        row["product_id"]: (row["quantity_available"], row["quantity_reserved"])
        for row in await shop.rows("select * from inventory")
    }
    for number, product in enumerate(products):
        expected = (model.available[number], model.reserved[number])
        assert shelves.get(product, (0, 0)) == expected
