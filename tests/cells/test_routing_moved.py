"""An API over two cells, of which the other has got a warehouse that was home's.

All tests of this file have the same warehouse, which has moved from home to north.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest
from moving import new_warehouse
from network import Road
from places import Place, stocked
from shop import APPROVED, Shop

from darkpearl import cells

Api = httpx.AsyncClient
Client = Callable[..., Api]
Json = dict[str, Any]
Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
ORDERS = 5


class Moved(NamedTuple):
    """A warehouse that has moved, and what the API did of it before."""

    warehouse: UUID
    product: UUID
    customer: str
    asked: Json
    """The body of the first order."""
    key: dict[str, str]
    """The header under which that was sent."""
    order: Json
    """The first order, as it was answered."""
    page: Json
    """The first two of a list of all."""
    shelf: Json
    group: Json
    """The first of an order in two warehouses, the other of which is Lisbon."""


@pytest.fixture(scope="module")
async def moved(pair: Pair, places: tuple[Place, Place], api: Api) -> Moved:
    """The warehouse, once it is north's."""
    here, there = pair
    customer, key = str(uuid4()), {"Idempotency-Key": str(uuid4())}

    async def until(condition: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(20):
            while not await condition():  # noqa: ASYNC110 - a replica says nothing by itself
                await asyncio.sleep(0.005)

    code, warehouse, product = await new_warehouse(pair, until)
    asked = {
        "warehouse_id": str(warehouse),
        "customer_id": customer,
        "items": [{"product_id": str(product), "quantity": 1}],
    }
    placed = [await api.post("/orders", json=asked, headers=key) for _ in range(2)]
    placed += [await api.post("/orders", json=asked) for _ in range(ORDERS - 1)]
    assert {each.status_code for each in placed} == {201}
    listed = await api.get("/orders", params={"customer_id": customer, "limit": 2, "cursor": ""})
    of = {"warehouse_id": str(warehouse), "product_id": str(product)}
    (shelf,) = (await api.get("/inventory", params=of)).json()["data"]
    scarce = await here.product()
    for each in (warehouse, here.lisbon):
        await here.receive(scarce, 1, each)
    two = {"items": [{"product_id": str(scarce), "quantity": 2}]}
    group = (await api.post("/orders", json=two)).json()
    assert len(group["group"]["orders"]) == 2
    for _ in range(20):  # which have numbers that are its own, too
        await there.receive(await stocked(pair, until, 1, 1), 1, there.rotterdam)
    async for _ in cells.move(places[0].url, code, "north"):
        pass
    return Moved(
        warehouse, product, customer, asked, key, placed[0].json(), listed.json(), shelf, group
    )


async def test_its_orders_are_read_and_changed_where_it_is_now(
    pair: Pair, api: Api, moved: Moved
) -> None:
    """By ids that say another cell; the old rows stay as they were."""
    here, there = pair
    path = f"/orders/{moved.order['id']}"
    assert UUID(moved.order["id"]).bytes[-1] == 1
    changed = await api.patch(path, json={"email": "anna@example.com"})
    assert changed.status_code == 200, changed.text
    assert (await api.get(path)).json()["email"] == "anna@example.com"
    query = "select email from order_particulars where order_id = %s"
    assert await there.values(query, moved.order["id"]) == ["anna@example.com"]
    assert await here.values(query, moved.order["id"]) == []
    count = await api.patch(f"/inventory/{moved.shelf['id']}", json={"quantity_available": 500})
    assert count.status_code == 200, count.text
    assert (await there.stock(moved.product, moved.warehouse))[0] == 500


async def test_it_is_listed_once(pair: Pair, api: Api, moved: Moved) -> None:
    """Also by a cursor of before it moved; counts are of what is shown."""
    here, there = pair
    of = {"customer_id": moved.customer}
    left = (await api.get("/orders", params={**of, "cursor": moved.page["next"]})).json()
    ids = [each["id"] for each in moved.page["data"] + left["data"]]
    assert (len(ids), len(set(ids))) == (ORDERS, ORDERS)
    made = await api.post("/orders", json=moved.asked)
    query = "select count(*) from orders where id = %s"
    assert await there.value(query, made.json()["id"]) == 1
    page = (await api.get("/orders", params=of)).json()
    assert page["count"] == len({each["id"] for each in page["data"]}) == ORDERS + 1
    sagas = {"warehouse_id": str(moved.warehouse)}
    assert (await api.get("/sagas", params=sagas)).json()["count"] == ORDERS + 2
    shelves = (await api.get("/inventory", params={"product_id": str(moved.product)})).json()
    assert {each["warehouse_id"] for each in shelves["data"]} == {
        str(moved.warehouse),
        str(here.lisbon),
    }
    assert shelves["count"] == 2


async def test_its_movements_are_listed_beside_others_of_their_numbers(
    pair: Pair, api: Api, moved: Moved
) -> None:
    """The ledger of each shelf is its own, though two warehouses of a cell have one number."""
    _, there = pair
    ours = "select count(*) from stock_movements where warehouse_id = %s"
    alike = await there.value(
        "select count(*) from stock_movements as m inner join stock_movements as o using (id)"
        " where m.warehouse_id = %s and o.warehouse_id <> m.warehouse_id",
        moved.warehouse,
    )
    assert alike > 0
    for warehouse in (moved.warehouse, there.rotterdam):
        count = await there.value(ours, warehouse)
        of = {"warehouse_id": str(warehouse), "limit": 1000}
        page = (await api.get("/stock-movements", params=of)).json()
        assert {each["warehouse_id"] for each in page["data"]} == {str(warehouse)}
        assert page["count"] == len(page["data"]) == count


async def test_a_key_of_before_is_answered_from_there(api: Api, moved: Moved) -> None:
    """The same request again does nothing, and gets the answer that it had."""
    again = await api.post("/orders", json=moved.asked, headers=moved.key)
    assert (again.status_code, again.json()) == (201, moved.order)
    assert again.headers["idempotency-replayed"] == "true"


async def test_orders_that_were_placed_as_one_are_seen_as_one(
    pair: Pair, api: Api, moved: Moved
) -> None:
    """Each from the cell that has it now."""
    here, _ = pair
    group = await api.get(f"/orders/groups/{moved.group['id']}")
    assert group.status_code == 200, group.text
    found = {each["warehouse_id"] for each in group.json()["orders"]}
    assert found == {str(moved.warehouse), str(here.lisbon)}
    assert len(group.json()["orders"]) == 2
    assert group.json()["total_amount"] == moved.group["group"]["total_amount"]
    assert (await api.get(f"/orders/groups/{uuid4()}")).status_code == 404


@asynccontextmanager
async def unheard(there: Shop, warehouse: UUID) -> AsyncIterator[None]:
    """North hasn't heard yet that it has the warehouse."""
    says = "update warehouses set cell = %s where id = %s"
    await there.run("set session_replication_role = replica")
    try:
        await there.run(says, 1, warehouse)
        yield
        await there.run(says, 2, warehouse)
    finally:
        await there.run("reset session_replication_role")


async def test_nothing_is_missing_while_cells_hear_of_a_move(
    pair: Pair, api: Api, moved: Moved
) -> None:
    """For as long as neither says that it has the warehouse, its orders are 503 and not unknown."""
    _, there = pair
    path = f"/orders/{moved.order['id']}"
    asked = (
        lambda: api.get(path),
        lambda: api.post("/orders", json=moved.asked),
        lambda: api.patch(path, json={"email": "bert@example.com"}),
        lambda: api.get("/orders", params={"customer_id": moved.customer}),
        lambda: api.get("/sagas", params={"warehouse_id": str(moved.warehouse)}),
    )
    async with unheard(there, moved.warehouse):
        for refused in await asyncio.gather(*(each() for each in asked)):
            assert (refused.status_code, refused.json()["code"]) == (503, "DP053")
            assert "retry-after" in refused.headers
        waiting = [asyncio.create_task(each()) for each in asked]
    for answered in await asyncio.gather(*waiting):
        assert answered.status_code in {200, 201}, answered.text


async def test_the_others_go_on_without_home(
    pair: Pair, api: Api, moved: Moved, home_road: Road, until: Until
) -> None:
    """What home's API was asked of north's warehouses, and the catalogue, it answers from there."""
    here, _ = pair
    path = f"/orders/{moved.order['id']}"
    assert (await api.get(path)).status_code == 200
    lisbon = {**moved.asked, "warehouse_id": str(here.lisbon)}
    await home_road.close()
    try:
        assert (await api.get(path)).status_code == 200
        assert (await api.post("/orders", json=moved.asked)).status_code == 201
        page = (await api.get("/orders", params={"customer_id": moved.customer})).json()
        assert page["missing_cells"] == ["home"]
        assert {each["warehouse_id"] for each in page["data"]} == {str(moved.warehouse)}
        product = await api.get(f"/products/{moved.product}")
        assert product.json()["id"] == str(moved.product)
        row = {"movement_type": "receive", "product_id": str(moved.product), "quantity": 1}
        row |= {"warehouse_id": str(moved.warehouse)}
        imported = await api.post("/imports/movements", json={"rows": [row]})
        assert imported.status_code == 200, imported.text
        new = {"sku": str(uuid4()), "name": "Lamp", "unit_price": 5}
        for asked in (api.post("/orders", json=lisbon), api.post("/products", json=new)):
            refused = await asked
            assert refused.status_code == 503, refused.text
            assert "home" in refused.json()["detail"]
        assert (await api.get("/health/ready")).status_code == 503
    finally:
        await home_road.restore()

    async def is_back() -> bool:
        return (await api.post("/orders", json=lisbon)).status_code == 201

    await until(is_back)
    for shop in pair:
        await shop.settle(await shop.advance(), APPROVED)
