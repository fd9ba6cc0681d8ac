"""Inventory and stock movements."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

Api = httpx.AsyncClient
Listed = Callable[..., Awaitable[list[dict[str, Any]]]]
Problem = Callable[..., dict[str, Any]]


@pytest.fixture
async def other_warehouse(api: Api) -> str:
    """An empty second warehouse."""
    made = await api.post("/warehouses", json={"code": "X", "name": "X"})
    return str(made.json()["id"])


@pytest.fixture
def move(api: Api, shop: Any) -> Callable[..., Awaitable[httpx.Response]]:
    """Posts a movement of the first product."""

    async def post(kind: str, quantity: int, **more: Any) -> httpx.Response:
        body = {
            "warehouse_id": str(shop.lisbon),
            "product_id": str(shop.products[0]),
            "movement_type": kind,
            "quantity": quantity,
        }
        return await api.post("/stock-movements", json={**body, **more})

    return post


async def shelf(api: Api, shop: Any, product: int = 0, warehouse: str = "") -> dict[str, Any]:
    """The inventory row of a product."""
    where = {"product_id": shop.products[product], "warehouse_id": warehouse or shop.lisbon}
    ((row),) = (await api.get("/inventory", params=where)).json()["data"]
    found: dict[str, Any] = row
    return found


async def test_inventory_tells_product_and_warehouse(api: Api, shop: Any) -> None:
    """One row has the quantities and says what lies where."""
    row = await shelf(api, shop)
    assert [row["quantity_available"], row["quantity_reserved"], row["quantity_sellable"]] == [
        100,
        0,
        100,
    ]
    assert row["product"] == {"id": str(shop.products[0]), "sku": "P0", "name": "Product 0"}
    assert row["warehouse"] == {"id": str(shop.lisbon), "code": "W", "name": "W"}
    assert (await api.get(f"/inventory/{row['id']}")).json() == row


async def test_inventory_filters(api: Api, shop: Any, listed: Listed, other_warehouse: str) -> None:
    """By product, by warehouse, and by whether the reorder point is reached."""
    assert len(await listed("/inventory")) == 2
    assert len(await listed("/inventory", product_id=shop.products[1])) == 1
    assert await listed("/inventory", warehouse_id=other_warehouse) == []
    low = await listed("/inventory", low_stock="true")
    assert [each["product_id"] for each in low] == [str(shop.products[1])]
    high = await listed("/inventory", low_stock="false")
    assert [each["product_id"] for each in high] == [str(shop.products[0])]
    path = f"/inventory/{high[0]['id']}"
    await api.patch(path, json={"reorder_point": 100})
    assert len(await listed("/inventory", low_stock="true")) == 2, "at the point is low"


async def test_stocking_a_product_receives_what_is_there(
    api: Api, shop: Any, listed: Listed, other_warehouse: str
) -> None:
    """POST makes the row and writes its units into the ledger."""
    body = {
        "product_id": str(shop.products[0]),
        "warehouse_id": other_warehouse,
        "quantity_available": 7,
        "reorder_point": 3,
    }
    made = await api.post("/inventory", json=body)
    assert made.status_code == 201, made.text
    assert made.json() | body == made.json()
    assert made.json()["reorder_quantity"] == 50
    assert (await api.get(made.headers["location"])).json() == made.json()
    ledger = await listed("/stock-movements", warehouse_id=other_warehouse)
    assert [(each["movement_type"], each["quantity"]) for each in ledger] == [("receive", 7)]
    assert await shop.audit() == []


async def test_stocking_without_units_moves_nothing(
    api: Api, shop: Any, listed: Listed, other_warehouse: str
) -> None:
    """The row alone is made."""
    body = {"product_id": str(shop.products[0]), "warehouse_id": other_warehouse}
    assert (await api.post("/inventory", json=body)).json()["quantity_available"] == 0
    assert await listed("/stock-movements", warehouse_id=other_warehouse) == []


async def test_stocking_twice_or_nowhere_is_refused_whole(
    api: Api, shop: Any, problem: Problem
) -> None:
    """409 for a second row, 404 for an unknown product or warehouse; nothing is received."""
    body = {"product_id": str(shop.products[0]), "warehouse_id": str(shop.lisbon)}
    problem(await api.post("/inventory", json={**body, "quantity_available": 5}), 409, "23505")
    assert (await shelf(api, shop))["quantity_available"] == 100
    nowhere = {**body, "warehouse_id": str(uuid4())}
    problem(await api.post("/inventory", json=nowhere), 404)
    problem(await api.post("/inventory", json={**nowhere, "quantity_available": 5}), 404)


async def test_a_count_becomes_an_adjustment(api: Api, shop: Any, listed: Listed) -> None:
    """PATCH of quantity_available writes the difference; the same count again writes nothing."""
    path = f"/inventory/{(await shelf(api, shop))['id']}"
    body = {"quantity_available": 93, "reorder_quantity": 20}
    for _ in range(2):
        row = (await api.patch(path, json=body)).json()
        assert row | body == row
    written = await listed("/stock-movements", movement_type="adjust")
    assert [each["quantity"] for each in written] == [-7]
    assert await shop.audit() == []


async def test_a_put_of_inventory_leaves_what_was_not_counted(
    api: Api, shop: Any, problem: Problem
) -> None:
    """It writes both reorder settings, and wants both; the units stay unless they are sent."""
    path = f"/inventory/{(await shelf(api, shop))['id']}"
    row = (await api.put(path, json={"reorder_point": 3, "reorder_quantity": 4})).json()
    assert [row["reorder_point"], row["reorder_quantity"], row["quantity_available"]] == [3, 4, 100]
    told = problem(await api.put(path, json={"quantity_available": 1}), 400)
    assert {each["field"] for each in told["errors"]} == {"reorder_point", "reorder_quantity"}


async def test_a_movement_is_found_where_it_says(
    api: Api, move: Callable[..., Awaitable[httpx.Response]], problem: Problem
) -> None:
    """Its Location leads to it; a number that is none's is 404."""
    made = await move("receive", 5)
    found = (await api.get(made.headers["location"])).json()
    assert made.json() == {**found, "counterpart": None}
    problem(await api.get(f"/stock-movements/{10**30}"), 404)


async def test_reserved_units_are_not_set(api: Api, shop: Any, problem: Problem) -> None:
    """quantity_reserved is refused with a hint, and nothing else of the request is done."""
    path = f"/inventory/{(await shelf(api, shop))['id']}"
    told = problem(await api.patch(path, json={"quantity_reserved": 0, "reorder_point": 1}), 422)
    assert "order" in told["hint"]
    assert (await api.get(path)).json()["reorder_point"] == 10


async def test_a_count_below_what_is_reserved_is_refused_whole(
    api: Api, shop: Any, problem: Problem, run_sagas: Callable[..., Awaitable[None]]
) -> None:
    """409, and the reorder settings of the same request stay as they were."""
    await shop.order((shop.products[0], 10))
    await run_sagas(None)
    path = f"/inventory/{(await shelf(api, shop))['id']}"
    body = {"quantity_available": 9, "reorder_point": 1}
    problem(await api.patch(path, json=body), 409, "DP006")
    row = (await api.get(path)).json()
    assert [row["quantity_available"], row["quantity_reserved"], row["reorder_point"]] == [
        100,
        10,
        10,
    ]


async def test_inventory_goes_only_when_empty(api: Api, shop: Any, problem: Problem) -> None:
    """409 while units lie there, 204 after."""
    path = f"/inventory/{(await shelf(api, shop))['id']}"
    problem(await api.delete(path), 409, "DP016")
    await api.patch(path, json={"quantity_available": 0})
    assert (await api.delete(path)).status_code == 204


async def test_goods_are_received_and_adjusted(
    api: Api, shop: Any, move: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """POST answers 201 with the ledger's row: the quantities after it, reference and notes."""
    reference = str(uuid4())
    more = {"reference_type": "delivery", "reference_id": reference, "notes": "n"}
    made = await move("receive", 5, **more)
    assert made.status_code == 201, made.text
    assert made.json() | more == made.json()
    assert made.json()["available_after"] == 105
    assert made.json()["product"]["sku"] == "P0"
    assert made.json()["counterpart"] is None
    assert (await move("adjust", -6)).json()["available_after"] == 99
    assert (await shelf(api, shop))["quantity_available"] == 99


async def test_a_transfer_moves_both_ends(
    api: Api,
    shop: Any,
    move: Callable[..., Awaitable[httpx.Response]],
    other_warehouse: str,
) -> None:
    """Either direction writes both movements under one correlation id."""
    out = (await move("transfer_out", 30, to_warehouse_id=other_warehouse)).json()
    assert [out["movement_type"], out["available_after"]] == ["transfer_out", 70]
    there = out["counterpart"]
    assert [there["movement_type"], there["available_after"]] == ["transfer_in", 30]
    assert there["warehouse_id"] == other_warehouse
    assert there["correlation_id"] == out["correlation_id"]
    back = (await move("transfer_in", 10, from_warehouse_id=other_warehouse)).json()
    assert [back["movement_type"], back["available_after"]] == ["transfer_in", 80]
    assert (await shelf(api, shop, warehouse=other_warehouse))["quantity_available"] == 20
    assert await shop.audit() == []


@pytest.mark.parametrize("kind", ["reserve", "release", "fulfill"])
async def test_what_orders_do_is_refused(
    move: Callable[..., Awaitable[httpx.Response]], problem: Problem, kind: str
) -> None:
    """The saga's own movements are not a client's to write; the text says who does."""
    told = problem(await move(kind, 1), 422)
    assert kind in told["detail"]
    assert "Place an order" in told["hint"]


async def test_movements_that_make_no_sense_are_refused(
    shop: Any,
    move: Callable[..., Awaitable[httpx.Response]],
    problem: Problem,
    other_warehouse: str,
) -> None:
    """Wrong sign, too many, unknown product, a transfer with one end or a reference."""
    problem(await move("receive", 0), 422, "DP015")
    problem(await move("receive", -1), 422, "DP015")
    problem(await move("adjust", -101), 409, "DP006")
    problem(await move("adjust", 2_000_000_000), 400)
    problem(await move("receive", 1_000_000_000), 422, "23514")
    problem(await move("receive", 1, product_id=str(uuid4())), 404, "DP010")
    problem(await move("transfer_out", 1), 422)
    problem(await move("transfer_out", 1, from_warehouse_id=other_warehouse), 422)
    problem(await move("transfer_out", 1, to_warehouse_id=str(shop.lisbon)), 422, "DP015")
    problem(await move("transfer_out", 101, to_warehouse_id=other_warehouse), 409, "DP006")
    problem(await move("transfer_out", 1, to_warehouse_id=other_warehouse, reference_type="x"), 422)
    problem(await move("receive", 1, to_warehouse_id=other_warehouse), 422)
    assert await shop.audit() == []


async def test_the_same_movement_is_done_once(
    api: Api, shop: Any, move: Callable[..., Awaitable[httpx.Response]], problem: Problem
) -> None:
    """Twenty clients at once with one correlation id: one movement, twenty equal answers."""
    correlation = str(uuid4())
    answers = await asyncio.gather(
        *(move("receive", 5, correlation_id=correlation) for _ in range(20))
    )
    assert {each.status_code for each in answers} == {201}
    assert len({each.text for each in answers}) == 1
    assert (await shelf(api, shop))["quantity_available"] == 105
    problem(await move("receive", 6, correlation_id=correlation), 409, "DP011")


async def test_movements_filter(
    shop: Any,
    listed: Listed,
    move: Callable[..., Awaitable[httpx.Response]],
    run_sagas: Callable[..., Awaitable[None]],
    other_warehouse: str,
) -> None:
    """By product, warehouse, type, correlation id, and reference: an order's id is one too."""
    reference = uuid4()
    made = (await move("receive", 5, reference_id=str(reference))).json()
    out = (await move("transfer_out", 1, to_warehouse_id=other_warehouse)).json()
    order: UUID = await shop.order((shop.products[1], 2))
    await run_sagas()

    async def kinds(**filters: Any) -> list[str]:
        return [each["movement_type"] for each in await listed("/stock-movements", **filters)]

    everything = ["fulfill", "reserve", "transfer_in", "transfer_out", "receive"]
    assert await kinds(limit=5) == everything
    assert await kinds(product_id=shop.products[1]) == ["fulfill", "reserve", "receive"]
    assert await kinds(warehouse_id=other_warehouse) == ["transfer_in"]
    assert await kinds(movement_type="fulfill") == ["fulfill"]
    assert await kinds(reference_id=reference) == ["receive"]
    assert await kinds(reference_id=order) == ["fulfill", "reserve"]
    assert await kinds(correlation_id=made["correlation_id"]) == ["receive"]
    assert await kinds(correlation_id=out["correlation_id"], warehouse_id=shop.lisbon) == [
        "transfer_out"
    ]


async def test_an_unknown_movement_type_is_a_bad_request(api: Api, problem: Problem) -> None:
    """In a filter the allowed ones are named."""
    told = problem(await api.get("/stock-movements?movement_type=steal&product_id=1"), 400)
    assert {each["field"] for each in told["errors"]} == {"movement_type", "product_id"}


async def test_a_count_is_refused_once_goods_have_moved(
    api: Api, shop: Any, problem: Problem
) -> None:
    """409 with the numbers of now, when the books no longer say what was expected."""
    path = f"/inventory/{(await shelf(api, shop))['id']}"
    body = {"quantity_available": 93, "quantity_expected": 100}
    await shop.receive(shop.products[0], 1)
    told = problem(await api.patch(path, json=body), 409, "DP032")
    assert "101 are on the shelf" in told["detail"]
    body["quantity_expected"] = 101
    assert (await api.patch(path, json=body)).json()["quantity_available"] == 93
    problem(await api.patch(path, json={"quantity_expected": 93}), 422)


async def test_an_adjustment_says_why(
    api: Api, move: Callable[..., Awaitable[httpx.Response]], listed: Listed, problem: Problem
) -> None:
    """Its reason is one of a list that staff extend; movements are found by it."""
    made = await move("adjust", -1, reason_code="damaged")
    assert made.json()["reason_code"] == "damaged"
    problem(await move("adjust", -1, reason_code="mice"), 422, "DP015")
    problem(await move("receive", 1, reason_code="found"), 422)
    added = await api.post("/adjustment-reasons", json={"code": "mice", "description": "Eaten"})
    assert added.status_code == 201, added.text
    assert (await api.get(added.headers["location"])).json() == added.json()
    problem(await api.post("/adjustment-reasons", json={"code": "mice"}), 409, "23505")
    problem(await api.post("/adjustment-reasons", json={"code": "Mice"}), 400)
    await move("adjust", -2, reason_code="mice")
    (found,) = await listed("/stock-movements", reason_code="mice")
    assert found["quantity"] == -2
    codes = [each["code"] for each in await listed("/adjustment-reasons")]
    assert codes == sorted(codes)
    assert {"mice", "lost"} <= set(codes)
    problem(await api.delete("/adjustment-reasons/mice"), 409, "23503")
    assert (await api.delete("/adjustment-reasons/lost")).status_code == 204
    problem(await api.delete("/adjustment-reasons/lost"), 404)


async def test_what_runs_out_is_listed(
    api: Api, client: Callable[..., Api], shop: Any, listed: Listed, problem: Problem
) -> None:
    """By what can be sold, with how much to order, for staff alone; pages lead through it."""
    await shop.run("update inventory set reorder_point = 100, reorder_quantity = 60")
    (first, second) = await listed("/inventory/reorder-suggestions")
    assert [first["sku"], first["shortage"], first["suggested_quantity"]] == ["P1", 95, 120]
    assert [second["sku"], second["shortage"], second["suggested_quantity"]] == ["P0", 0, 60]
    page = (await api.get("/inventory/reorder-suggestions?limit=1&cursor=")).json()
    assert page["data"] == [first]
    page = (await api.get(f"/inventory/reorder-suggestions?cursor={page['next']}")).json()
    assert page["data"] == [second]
    assert len(await listed("/inventory", low_stock=True)) == 2
    assert await listed("/inventory/reorder-suggestions", warehouse_id=uuid4()) == []
    problem(await client().get("/inventory/reorder-suggestions"), 401, "DP030")
