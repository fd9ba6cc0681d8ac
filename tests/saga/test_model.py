"""The set-based engine against a model that serves orders one by one."""

import json
from dataclasses import dataclass, field
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shop import APPROVED, DECLINED, PENDING, Row, Shop

PRODUCTS = 4
FATES = ["approved", "declined", "told yes", "told no", "returned", "cancelled"]
"""The ends of an order that has stock. Told: pending first, then by webhook."""
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

    def settle(self, number: int, fate: str) -> None:
        """Ship or release what the order holds; what is returned is there again."""
        if self.statuses[number] != "payment_processing":
            return
        shipped = fate in {"approved", "told yes", "returned"}
        self.statuses[number] = "fulfilled" if shipped else "cancelled"
        for product, quantity in self.held[number].items():
            self.reserved[product] -= quantity
            self.available[product] -= quantity if shipped and fate != "returned" else 0


line = st.tuples(st.integers(0, PRODUCTS - 1), st.integers(1, 4))
order = st.tuples(st.lists(line, min_size=1, max_size=4), st.sampled_from(FATES))
wave = st.tuples(
    st.sampled_from(["at_payment", "at_fulfilment"]), st.lists(order, min_size=1, max_size=10)
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stock=st.lists(st.integers(0, 9), min_size=PRODUCTS, max_size=PRODUCTS),
    waves=st.lists(wave, min_size=1, max_size=3),
    limit=st.integers(1, 12),
)
async def test_batches_do_what_one_by_one_would(
    stock: list[int], waves: list[tuple[str, list[tuple[Lines, str]]]], limit: int, shop: Shop
) -> None:
    """A batch of any size ends exactly as serving its orders one by one in id order would.

    Whenever the money is taken, however the gateway answers, and whatever comes back.
    """
    products = [await shop.product(on_hand=quantity) for quantity in stock]
    model = Model(list(stock))
    orders: list[UUID] = []
    for capture_method, wave in waves:
        await shop.run("update warehouses set capture_method = %s::capture_method", capture_method)
        first = len(orders)
        for lines, _ in wave:
            orders.append(await shop.order(*((products[p], q) for p, q in lines)))
            model.reserve(lines)
        requests = await _advance(shop, limit)
        await _agree(shop, model, products, orders)

        fates = dict(zip(orders[first:], (fate for _, fate in wave), strict=True))
        for request in requests:
            if fates[UUID(request["saga_id"])] == "cancelled":
                await shop.cancel(UUID(request["saga_id"]))
        await _settle(shop, limit, await _first_answers(shop, requests, fates))
        for request in requests:
            fate = fates[UUID(request["saga_id"])]
            if fate.startswith("told"):
                key = request["request"]["idempotency_key"]
                told = await shop.told(key, APPROVED if fate == "told yes" else DECLINED)
                assert told == "applied"
        await _settle(shop, limit, await _advance(shop, limit))
        for number, (_, fate) in enumerate(wave, first):
            if fate == "returned" and model.statuses[number] == "payment_processing":
                await shop.take_back(orders[number])
                await shop.refund(orders[number])
            model.settle(number, fate)
        await _settle(shop, limit, await _advance(shop, limit))
        await _agree(shop, model, products, orders)
    assert await shop.audit() == []
    assert not await shop.values("select id from sagas where ready_at is not null")


async def _advance(shop: Shop, limit: int) -> list[Row]:
    """The work of advance(), without its second tries: no batch that raises is mended by halves."""
    requests: list[Row] = []
    while await shop.value("select exists (select from sagas where ready_at <= clock())"):
        (documents,) = await shop.values(
            "select run_groups(array(select id from warehouses), work)"
            " from claim_sagas(null, %s) as work",
            limit,
        )
        for each in documents:
            requests += each
    return requests


async def _first_answers(shop: Shop, requests: list[Row], fates: dict[UUID, str]) -> list[Row]:
    """The gateway answers as is each order's fate; the requests that follow."""
    first = {"declined": DECLINED, "told yes": PENDING, "told no": PENDING}
    return await _answer(
        shop, [(each, first.get(fates[UUID(each["saga_id"])], APPROVED)) for each in requests]
    )


async def _settle(shop: Shop, limit: int, requests: list[Row]) -> None:
    """The gateway approves whatever it is asked, until nobody asks."""
    while requests:
        requests = await _answer(shop, [(each, APPROVED) for each in requests])
        requests += await _advance(shop, limit)


async def _answer(shop: Shop, answers: list[tuple[Row, Row]]) -> list[Row]:
    """The work of settle(), without its second tries; the requests that follow."""
    given = [
        {"saga_id": each["saga_id"], "lease_token": each["lease_token"], "answer": answer}
        for each, answer in answers
    ]
    documents = await shop.value(
        "select requests from settle_pass(null, %s::jsonb)", json.dumps(given)
    )
    return [request for each in documents for request in each]


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
