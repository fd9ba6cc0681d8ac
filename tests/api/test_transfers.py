"""Goods that go to a warehouse of another cell, over HTTP."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from shop import APPROVED, Shop

Json = dict[str, Any]
Api = httpx.AsyncClient
Problem = Callable[..., Json]


@pytest.fixture
async def elsewhere(shop: Shop) -> str:
    """A warehouse of another cell, which has no address that anybody could ask."""
    await shop.run("insert into cells (number, name) values (7, 'north')")
    return str(
        await shop.value(
            "insert into warehouses (code, name, cell) values ('N', 'N', 7) returning id"
        )
    )


@pytest.fixture
def body(shop: Shop, elsewhere: str) -> Json:
    """Three units leave Lisbon for it."""
    return {
        "movement_type": "transfer_out",
        "warehouse_id": str(shop.lisbon),
        "to_warehouse_id": elsewhere,
        "product_id": str(shop.products[0]),
        "quantity": 3,
        "notes": "for the fair",
    }


async def test_a_transfer_to_another_cell_is_under_way(
    api: Api, shop: Shop, body: Json, elsewhere: str
) -> None:
    """202 with what has left and what becomes of it; under its key the same again is the same."""
    key = {"Idempotency-Key": str(uuid4())}
    sent = await api.post("/stock-movements", json=body, headers=key)
    assert sent.status_code == 202, sent.text
    movement = sent.json()
    transfer = movement["transfer"]
    assert (movement["movement_type"], movement["quantity"]) == ("transfer_out", 3)
    assert movement["counterpart"] is None
    assert sent.headers["location"].endswith(f"/transfers/{movement['correlation_id']}")
    assert (transfer["status"], transfer["refusal"]) == ("in_transit", None)
    assert (transfer["warehouse"]["code"], transfer["to_warehouse"]["code"]) == ("W", "N")
    again = await api.post("/stock-movements", json=body, headers=key)
    assert (again.status_code, again.json()) == (202, movement)
    assert again.headers["idempotency-replayed"] == "true"
    assert (await api.get(sent.headers["location"])).json() == transfer
    for filters, found in (
        ({"status": "in_transit"}, [transfer]),
        ({"status": "arrived,undone"}, []),
        ({"warehouse_id": str(shop.lisbon), "to_warehouse_id": elsewhere}, [transfer]),
        ({"product_id": str(uuid4())}, []),
    ):
        listed = await api.get("/transfers", params=filters)
        assert (listed.status_code, listed.json()["data"]) == (200, found)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await api.get(sent.headers["location"])).json()["status"] == "arrived"


async def test_asked_for_by_its_other_end_it_is_the_same(api: Api, body: Json) -> None:
    """A transfer_in is answered with the movement that was made: that the goods have left."""
    body = body | {
        "movement_type": "transfer_in",
        "warehouse_id": body["to_warehouse_id"],
        "from_warehouse_id": body["warehouse_id"],
    }
    del body["to_warehouse_id"]
    sent = await api.post("/stock-movements", json=body)
    assert (sent.status_code, sent.json()["movement_type"]) == (202, "transfer_out")
    assert sent.json()["transfer"]["status"] == "in_transit"


async def test_what_is_in_transit_is_called_back(
    api: Api, shop: Shop, body: Json, problem: Problem
) -> None:
    """DELETE is answered with 202, and the goods are on their shelf again."""
    sent = await api.post("/stock-movements", json=body)
    path = f"/transfers/{sent.json()['correlation_id']}"
    called = await api.delete(path, params={"reason": "the fair is off"})
    assert (called.status_code, called.json()["status"]) == (202, "in_transit")
    await shop.advance()
    over = (await api.get(path)).json()
    assert (over["status"], over["refusal"]) == ("undone", "called back")
    assert (await shop.stock(UUID(body["product_id"])))[0] == 100
    assert (await api.delete(path)).json()["status"] == "undone"
    problem(await api.delete(f"/transfers/{uuid4()}"), 404, "DP010")
    problem(await api.get(f"/transfers/{uuid4()}"), 404)


async def test_what_cannot_leave_is_told_at_once(
    api: Api, client: Callable[..., Api], body: Json, problem: Problem
) -> None:
    """More than is there is 409 DP006, and nobody but staff sees or moves any of it."""
    problem(await api.post("/stock-movements", json=body | {"quantity": 101}), 409, "DP006")
    assert (await api.get("/transfers")).json()["data"] == []
    for method, path in (("get", "/transfers"), ("delete", f"/transfers/{uuid4()}")):
        refused = await getattr(client("authenticated", uuid4()), method)(path)
        assert refused.status_code in {403, 404}, refused.text


async def test_within_a_cell_nothing_is_told_of_transfers(api: Api, shop: Shop) -> None:
    """A transfer that is done at once is answered with 201, its other end and no new member."""
    other = await api.post("/warehouses", json={"code": "O", "name": "O"})
    made = await api.post(
        "/stock-movements",
        json={
            "movement_type": "transfer_out",
            "warehouse_id": str(shop.lisbon),
            "to_warehouse_id": other.json()["id"],
            "product_id": str(shop.products[0]),
            "quantity": 3,
        },
    )
    assert made.status_code == 201, made.text
    assert "transfer" not in made.json()
    assert made.json()["counterpart"]["movement_type"] == "transfer_in"
