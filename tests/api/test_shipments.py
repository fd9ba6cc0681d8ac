"""Parcels over HTTP: an order leaves in parts, and what doesn't is taken out of it."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

Api = httpx.AsyncClient
Body = Callable[..., dict[str, Any]]
Listed = Callable[..., Awaitable[list[dict[str, Any]]]]
Problem = Callable[..., dict[str, Any]]
RunSagas = Callable[..., Awaitable[None]]


@pytest.fixture
async def warehouse(api: Api, shop: Any) -> str:
    """The path of the warehouse, which packs its orders."""
    path = f"/warehouses/{shop.lisbon}"
    assert (await api.get(path)).json()["fulfilment_method"] == "automatic"
    changed = await api.patch(path, json={"fulfilment_method": "on_shipment"})
    assert changed.json()["fulfilment_method"] == "on_shipment"
    return path


@pytest.fixture
async def order(api: Api, warehouse: str, order_body: Body, run_sagas: RunSagas) -> str:
    """The path of a paid order of 30.00: two units of P0, one of P1."""
    assert warehouse
    made = await api.post("/orders", json=order_body((0, 2), (1, 1)))
    await run_sagas()
    path = f"/orders/{made.json()['id']}"
    assert (await api.get(path)).json()["status"] == "paid"
    return path


async def test_an_order_leaves_in_parcels(
    api: Api, shop: Any, order: str, listed: Listed, problem: Problem
) -> None:
    """201 with each parcel and where it is; the last one fulfils the order."""
    assert await listed(f"{order}/shipments") == []
    tracking = {"carrier": "CTT", "number": "RR1", "url": "https://ctt.example/RR1"}
    body = {"items": [{"sku": "P0", "quantity": 1}], "tracking": tracking, "id": str(uuid4())}
    made = await api.post(f"{order}/shipments", json=body)
    assert made.status_code == 201, made.text
    parcel = made.json()
    assert (parcel["id"], parcel["status"], parcel["tracking"]) == (body["id"], "shipped", tracking)
    (item,) = parcel["items"]
    assert (item["product"]["sku"], item["quantity"]) == ("P0", 1)
    assert order == f"/orders/{parcel['order_id']}"
    assert made.headers["location"] == f"{order}/shipments/{parcel['id']}"
    assert (await api.get(made.headers["location"])).json() == parcel
    assert (await api.get(order)).json()["status"] == "fulfilling"
    assert await shop.stock(shop.products[0]) == (99, 1)

    assert (await api.post(f"{order}/shipments", json=body)).json() == parcel
    other = {**body, "tracking": None}
    problem(await api.post(f"{order}/shipments", json=other), 409, "DP011")
    too_much = {"items": [{"product_id": str(shop.products[0]), "quantity": 2}]}
    problem(await api.post(f"{order}/shipments", json=too_much), 409, "DP029")

    rest = (await api.post(f"{order}/shipments", json={})).json()
    assert [each["quantity"] for each in rest["items"]] == [1, 1]
    assert rest["tracking"] == {"carrier": None, "number": None, "url": None}
    assert (await api.get(order)).json()["status"] == "fulfilled"
    assert await listed(f"{order}/shipments") == [parcel, rest]
    problem(await api.post(f"{order}/shipments", json={}), 409, "DP024")


async def test_the_packer_is_told_whether_a_parcel_may_go(
    api: Api, warehouse: str, order_body: Body, run_sagas: RunSagas
) -> None:
    """Captured at fulfilment, the first parcel waits until its money is there."""
    await api.patch(warehouse, json={"capture_method": "at_fulfilment"})
    made = await api.post("/orders", json=order_body((0, 1)))
    await run_sagas()
    path = f"/orders/{made.json()['id']}/shipments"
    parcel = (await api.post(path, json={})).json()
    assert (parcel["status"], parcel["shipped_at"]) == ("waiting", None)
    await run_sagas()
    parcel = (await api.get(f"{path}/{parcel['id']}")).json()
    assert parcel["status"] == "shipped"
    assert parcel["shipped_at"]


async def test_orders_that_wait_are_listed(
    api: Api, shop: Any, order: str, listed: Listed, client: Callable[..., Api], problem: Problem
) -> None:
    """Staff see what is to be packed, and what nobody has packed for too long."""
    (waits,) = await listed("/orders/to-ship")
    assert order == f"/orders/{waits['id']}"
    assert (waits["status"], waits["units_left"], waits["is_overdue"]) == ("paid", 3, False)
    assert await listed("/orders/to-ship", is_overdue="true") == []
    await shop.turn_clock(200_000)
    assert [each["id"] for each in await listed("/orders/to-ship", is_overdue="true")] == [
        waits["id"]
    ]
    assert await listed("/orders/to-ship", warehouse_id=str(uuid4())) == []
    problem(await client("authenticated", uuid4()).get("/orders/to-ship"), 403, "42501")
    await api.post(f"{order}/shipments", json={})
    assert await listed("/orders/to-ship") == []


async def test_what_has_not_left_is_taken_out(
    api: Api, order: str, run_sagas: RunSagas, problem: Problem
) -> None:
    """201 with the movements that released it and the refund of its money, under one id."""
    problem(await api.post(f"{order}/cancellations", json={}), 409, "DP024")
    await api.post(f"{order}/shipments", json={"items": [{"sku": "P0", "quantity": 1}]})
    problem(await api.delete(order), 409, "DP007")
    body = {"items": [{"sku": "P1", "quantity": 1}], "reason": "broken", "id": str(uuid4())}
    made = await api.post(f"{order}/cancellations", json=body)
    assert made.status_code == 201, made.text
    taken = made.json()
    (movement,) = taken["movements"]
    assert (movement["movement_type"], movement["quantity"]) == ("release", 1)
    assert (taken["refund"]["id"], taken["refund"]["amount"]) == (body["id"], 10)
    found = await api.get(made.headers["location"])
    assert found.json()["data"] == [movement]
    assert (await api.post(f"{order}/cancellations", json=body)).json() == taken
    await api.post(f"{order}/cancellations", json={})
    assert (await api.get(order)).json()["status"] == "fulfilled"
    await run_sagas()
    assert (await api.get(order)).json()["payment"]["refunded_amount"] == 20


async def test_under_a_key_a_parcel_is_made_once(api: Api, shop: Any, order: str) -> None:
    """A repeat under its Idempotency-Key is answered as the first time, and says so."""
    key = {"Idempotency-Key": "k1"}
    first = await api.post(f"{order}/shipments", json={}, headers=key)
    again = await api.post(f"{order}/shipments", json={}, headers=key)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert await shop.value("select count(*) from shipments") == 1


@pytest.mark.parametrize(
    "body",
    [
        {"items": []},
        {"items": [{"sku": "P0"}]},
        {"items": [{"sku": "P0", "quantity": 0}]},
        {"items": [{"quantity": 1}]},
        {"tracking": "RR1"},
        {"tracking": {"url": "javascript:alert(1)"}},
        {"tracking": {"carier": "CTT"}},
        {"id": "1"},
    ],
)
async def test_a_body_that_is_no_parcel_is_refused(
    api: Api, order: str, problem: Problem, body: Any
) -> None:
    """A body that the description forbids is 400, and ships nothing."""
    problem(await api.post(f"{order}/shipments", json=body), 400)
    assert (await api.get(order)).json()["status"] == "paid"


async def test_parcels_of_nothing(api: Api, order: str, problem: Problem) -> None:
    """An order that isn't there has no parcels, and a parcel is found under its own order."""
    nowhere = f"/orders/{uuid4()}"
    problem(await api.get(f"{nowhere}/shipments"), 404)
    for path in ("shipments", "cancellations"):
        problem(await api.post(f"{nowhere}/{path}", json={}), 404, "DP010")
    parcel = (await api.post(f"{order}/shipments", json={})).json()["id"]
    problem(await api.get(f"{nowhere}/shipments/{parcel}"), 404)


async def test_customers_follow_their_parcels(
    api: Api,
    shop: Any,
    client: Callable[..., Api],
    warehouse: str,
    order_body: Body,
    run_sagas: RunSagas,
    problem: Problem,
) -> None:
    """A customer reads its own orders' parcels, not their packer, of others none; ships none."""
    assert warehouse
    alice, bob = uuid4(), uuid4()
    hers = client("authenticated", alice)
    order = f"/orders/{(await hers.post('/orders', json=order_body((0, 1)))).json()['id']}"
    await run_sagas()
    for path in ("shipments", "cancellations"):
        problem(await hers.post(f"{order}/{path}", json={}), 403, "42501")
    parcel = (await api.post(f"{order}/shipments", json={"tracking": {"number": "1"}})).json()
    assert (await hers.get(f"{order}/shipments")).json()["data"] == [parcel]
    assert (await hers.get(order)).json()["shipments"] == [parcel]
    packer = (await shop.values("select actor from shipments"))[0]
    assert packer
    for path in (order, f"{order}/shipments", f"/sagas/{order.rpartition('/')[2]}/events"):
        answer = await hers.get(path)
        assert (answer.status_code, packer in answer.text) == (200, False)
    problem(await client("authenticated", bob).get(f"{order}/shipments"), 404)
    assert (await client().get(f"{order}/shipments/{parcel['id']}")).status_code in {401, 403}


async def test_what_left_in_a_parcel_comes_back(
    api: Api, order: str, listed: Listed, problem: Problem
) -> None:
    """The order tells its parcels, and of each line what came back: no more than has left."""
    one = {"items": [{"sku": "P0", "quantity": 1}]}
    problem(await api.post(f"{order}/returns", json=one), 409, "DP019")
    parcel = (await api.post(f"{order}/shipments", json=one)).json()
    two = {"items": [{"sku": "P0", "quantity": 2}]}
    problem(await api.post(f"{order}/returns", json=two), 409, "DP021")
    assert (await api.post(f"{order}/returns", json=one)).status_code == 201
    told = (await api.get(order)).json()
    assert told["shipments"] == [parcel]
    assert [each["returned_quantity"] for each in told["items"]] == [1, 0]
    (listed_order,) = await listed("/orders", include="items")
    assert listed_order["items"] == told["items"]
