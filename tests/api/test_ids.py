"""An id is one in the whole database, over HTTP too."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from shop import Shop

Json = dict[str, Any]
Client = Callable[..., httpx.AsyncClient]
Problem = Callable[..., Json]
OrderBody = Callable[..., Json]
RunSagas = Callable[..., Awaitable[None]]

ALICE, BOB = uuid4(), uuid4()


@pytest.fixture
async def elsewhere(shop: Shop) -> str:
    """A second warehouse, with ten units of P0."""
    await shop.run("insert into warehouses (id, code, name) values (%s, 'E', 'E')", shop.rotterdam)
    await shop.receive(shop.products[0], 10, shop.rotterdam)
    return str(shop.rotterdam)


async def test_one_customer_uses_an_id_once(
    client: Client, shop: Shop, elsewhere: str, order_body: OrderBody, problem: Problem
) -> None:
    """Posted to two warehouses it is 201, then 409 that speaks of the id; one is charged."""
    api = client("authenticated", ALICE)
    body = order_body((0, 1), id=str(uuid4()))
    assert (await api.post("/orders", json=body)).status_code == 201
    for again in (body | {"warehouse_id": elsewhere}, body):
        told = problem(await api.post("/orders", json=again), 409, "23505")
        assert "id is taken" in told["detail"]
        assert "new id" in told["hint"]
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"].startswith(body["id"])
    assert (await api.get("/orders")).json()["count"] == 1


async def test_an_id_that_is_made_says_where(
    client: Client, shop: Shop, order_body: OrderBody
) -> None:
    """Ids that the API makes end in the number of the cell, as those of the database do."""
    here = await shop.value("select this_cell()")
    for _ in range(2):
        order = (await client("service_role").post("/orders", json=order_body((0, 1)))).json()
        assert UUID(order["id"]).bytes[15] == here
        assert await shop.value("select cell_of_id(%s)", order["id"]) == here


async def test_a_known_id_gives_nobody_a_right(
    client: Client, shop: Shop, elsewhere: str, order_body: OrderBody, problem: Problem
) -> None:
    """Another customer who knows the id can't place it elsewhere, read it, follow it, cancel it."""
    body = order_body((0, 1), id=str(uuid4()))
    assert (await client("authenticated", ALICE).post("/orders", json=body)).status_code == 201
    api = client("authenticated", BOB)
    taken = await api.post("/orders", json=body | {"warehouse_id": elsewhere})
    told = problem(taken, 409, "23505")
    assert str(ALICE) not in str(told)
    for path in ("/orders/{}", "/orders/{}/events", "/sagas/{}", "/sagas/{}/events"):
        problem(await api.get(path.format(body["id"])), 404)
    problem(await api.delete(f"/orders/{body['id']}"), 404, "DP010")
    assert await shop.events(body["id"]) == ["saga_started"]


async def test_a_refund_with_the_id_of_an_order_is_a_conflict(
    api: httpx.AsyncClient, order_body: OrderBody, problem: Problem, run_sagas: RunSagas
) -> None:
    """409 that speaks of the id, for refunds and for returns."""
    order = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    await run_sagas()
    for path in ("refunds", "returns"):
        made = await api.post(f"/orders/{order}/{path}", json={"id": order})
        assert order in problem(made, 409, "DP011")["detail"]
