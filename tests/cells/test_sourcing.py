"""Orders that name no warehouse, over two cells: placed in one of them, once."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from network import Road
from places import Place
from psycopg import AsyncConnection
from shop import APPROVED, Shop

from darkpearl.api import sourcing

Api = httpx.AsyncClient
Client = Callable[..., Api]
Json = dict[str, Any]
Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
Known = Callable[..., Awaitable[UUID]]


@pytest.fixture
async def stocked(pair: Pair, until: Until) -> Known:
    """Makes a product with so many units in Lisbon, at home, and in Rotterdam, in north."""
    here, there = pair

    async def make(lisbon: int, rotterdam: int) -> UUID:
        product = await here.product()

        async def is_known() -> bool:
            return bool(await there.values("select id from products where id = %s", product))

        await until(is_known)
        for shop, warehouse, units in (
            (here, here.lisbon, lisbon),
            (there, there.rotterdam, rotterdam),
        ):
            if units:
                await shop.receive(product, units, warehouse)
        return product

    return make


def body(*lines: tuple[UUID, int], **more: Any) -> Json:
    """An order without a warehouse."""
    return {
        "items": [{"product_id": str(each), "quantity": count} for each, count in lines],
        **more,
    }


async def sourced(api: Api, *lines: tuple[UUID, int], **more: Any) -> str:
    """The code of the warehouse that an order is placed in; a quote says the same before."""
    quote = await api.post("/orders/quote", json=body(*lines))
    assert quote.status_code == 200, quote.text
    placed = await api.post("/orders", json=body(*lines, **more))
    assert placed.status_code == 201, placed.text
    code: str = placed.json()["warehouse"]["code"]
    assert quote.json()["orders"][0]["warehouse"]["code"] == code
    assert UUID(placed.json()["id"]).bytes[-1] == {"LIS": 1, "RTM": 2}[code]
    assert (await api.get(placed.headers["location"])).json()["warehouse"]["code"] == code
    return code


async def count(pair: Pair, product: UUID) -> int:
    """How many orders of a product there are, in both cells."""
    query = "select count(*) from order_items where product_id = %s"
    return sum([await shop.value(query, product) for shop in pair])


async def done(pair: Pair) -> None:
    """All sagas of both are at their end."""
    for shop in pair:
        requests = await shop.advance()
        while requests:
            requests = await shop.settle(requests, APPROVED) + await shop.advance()


async def test_the_first_that_can_serve_all_of_it_has_it(
    pair: Pair, api: Api, client: Client, stocked: Known
) -> None:
    """By priority and code over all cells; who asks, and whether staff, makes no difference."""
    both, scarce = await stocked(5, 50), await stocked(1, 50)
    assert await sourced(api, (both, 2)) == "LIS"
    assert await sourced(api, (both, 2), (scarce, 2)) == "RTM"
    customer = client("authenticated", uuid4())
    assert await sourced(customer, (both, 10)) == "RTM"
    prefer = {"Prefer": "wait=10"}
    waiting = asyncio.create_task(api.post("/orders", json=body((scarce, 3)), headers=prefer))
    while not waiting.done():
        await done(pair)
    assert waiting.result().json()["warehouse"]["code"] == "RTM"
    here, there = pair
    await here.run("update warehouses set priority = 200 where code = 'LIS'")
    try:
        assert await sourced(api, (both, 1)) == "RTM"
    finally:
        await here.run("update warehouses set priority = default where code = 'LIS'")
    await done(pair)
    assert await there.audit() == []


async def test_what_only_both_together_have_is_refused_as_that(
    pair: Pair, api: Api, stocked: Known
) -> None:
    """No order is divided between cells; where all together have too little, that is told."""
    product, other = await stocked(3, 4), await stocked(9, 0)
    for path in ("/orders", "/orders/quote"):
        refused = await api.post(path, json=body((product, 6), (other, 1)))
        assert (refused.status_code, refused.json()["code"]) == (409, "DP056"), refused.text
        refused = await api.post(path, json=body((product, 8)))
        told = refused.json()
        assert (refused.status_code, told["code"]) == (409, "DP006")
        assert told["detail"] == f"Product {product}: 8 units asked for, 7 can be sold in all."
        unknown = await api.post(path, json=body((uuid4(), 1)))
        assert (unknown.status_code, unknown.json()["code"]) == (422, "DP003")
    assert await count(pair, product) == 0
    single = await api.post("/orders", json=body((product, 6)), headers={"Idempotency-Key": "none"})
    assert single.json()["code"] == "DP056"


async def test_a_catalogue_that_is_late_is_in_nobodys_way(pair: Pair, api: Api) -> None:
    """A product that one cell hasn't heard of yet is sold by the one that has it."""
    here, there = pair
    await there.run("alter subscription darkpearl_catalogue disable")
    try:
        product = await here.product(on_hand=5)
        assert await sourced(api, (product, 2)) == "LIS"
    finally:
        await there.run("alter subscription darkpearl_catalogue enable")
    await done(pair)


async def test_a_key_is_found_wherever_it_was_used(pair: Pair, api: Api, stocked: Known) -> None:
    """A repeat is the first answer, whatever the stock and the catalogue have become since."""
    here, there = pair
    for lisbon, rotterdam, code in ((4, 9, "LIS"), (1, 9, "RTM")):
        product = await stocked(lisbon, rotterdam)
        headers = {"Idempotency-Key": str(uuid4())}
        first = await api.post("/orders", json=body((product, 3)), headers=headers)
        assert (first.status_code, first.json()["warehouse"]["code"]) == (201, code), first.text
        await here.receive(product, 100, here.lisbon)
        await done(pair)
        await here.run("update products set is_active = false where id = %s", product)
        again = await api.post("/orders", json=body((product, 3)), headers=headers)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotency-replayed"] == "true"
        other = await api.post("/orders", json=body((product, 2)), headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "DP036")
        assert await count(pair, product) == 1
        kept = "select count(*) from idempotency_keys where idempotency_key = %s"
        counts = [await shop.value(kept, headers["Idempotency-Key"]) for shop in (here, there)]
        assert sorted(counts) == [0, 1]


@pytest.mark.parametrize("name", ["key", "id", "reference"])
async def test_who_asks_twice_at_once_is_served_once(
    pair: Pair, api: Api, stocked: Known, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Under one key, id or reference there is one order over both cells, wherever it fits best."""
    cells = cycle((1, 2))

    async def either(self: Any, tried: Any) -> int:  # noqa: ARG001 - of the method
        return next(cells)

    monkeypatch.setattr(sourcing.Sourcing, "_best", either)
    for _ in range(3):
        product = await stocked(9, 9)
        named = str(uuid4())
        headers = {"Idempotency-Key": named} if name == "key" else {}
        asked = body((product, 2), **({} if name == "key" else {name: named}))
        answers = await asyncio.gather(
            *(api.post("/orders", json=asked, headers=headers) for _ in range(6))
        )
        assert await count(pair, product) == 1
        codes = sorted(each.status_code for each in answers)
        if name == "key":
            assert codes == [201] * 6
            assert len({each.json()["id"] for each in answers}) == 1
        else:
            assert codes == [201] + [409] * 5
            assert {each.json()["code"] for each in answers if each.status_code == 409} == {"23505"}
        await done(pair)


async def test_what_is_gone_is_served_by_the_next(
    pair: Pair,
    places: tuple[Place, Place],
    api: Api,
    stocked: Known,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cell whose offer somebody else took meanwhile is passed over, with a key and without."""
    here, _ = pair
    best = sourcing.Sourcing._best

    for headers in ({}, {"Idempotency-Key": str(uuid4())}):
        product = await stocked(3, 9)

        async def and_then_gone(self: Any, tried: Any, product: UUID = product) -> int:
            found: int = await best(self, tried)
            if found == 1:
                async with await AsyncConnection.connect(places[0].url) as another:
                    take = "select darkpearl.adjust_stock(%s, %s, -2)"
                    await another.execute(take, [here.lisbon, product])
            return found

        monkeypatch.setattr(sourcing.Sourcing, "_best", and_then_gone)
        placed = await api.post("/orders", json=body((product, 2)), headers=headers)
        assert (placed.status_code, placed.json()["warehouse"]["code"]) == (201, "RTM"), placed.text
        assert await count(pair, product) == 1
        again = await api.post("/orders", json=body((product, 2)), headers=headers)
        assert (again.json()["id"] == placed.json()["id"]) is bool(headers)
    await done(pair)


async def test_a_cell_that_is_away_is_left_out_unless_it_may_have_done_it(
    pair: Pair, api: Api, stocked: Known, road: Road, until: Until
) -> None:
    """Without a key the others serve it; with one that nobody has it is 503, and placed nowhere."""
    product, far = await stocked(50, 50), await stocked(0, 5)
    keys = [{"Idempotency-Key": str(uuid4())} for _ in range(2)]
    first = await api.post("/orders", json=body((product, 1)), headers=keys[0])
    assert first.json()["warehouse"]["code"] == "LIS"
    await road.close()
    try:
        placed = await api.post("/orders", json=body((product, 1)))
        assert placed.json()["warehouse"]["code"] == "LIS"
        short = await api.post("/orders", json=body((far, 1)))
        assert (short.status_code, short.json()["code"]) == (409, "DP006")
        assert "north" in short.json()["detail"]
        again = await api.post("/orders", json=body((product, 1)), headers=keys[0])
        assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
        for headers, more in (
            (keys[1], {}),
            ({}, {"id": str(uuid4())}),
            ({}, {"reference": "R-1"}),
        ):
            refused = await api.post("/orders", json=body((product, 1), **more), headers=headers)
            assert refused.status_code == 503, refused.text
            assert "north" in refused.json()["detail"]
        assert await count(pair, product) == 2
    finally:
        await road.restore()

    async def is_back() -> bool:
        return (await api.post("/orders", json=body((product, 1)), headers=keys[1])).is_success

    await until(is_back)
    assert await count(pair, product) == 3
    await done(pair)
