"""Orders and their sagas."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
from litestar import Litestar, post
from litestar.di import NamedDependency

from darkpearl.api.access import Caller

Api = httpx.AsyncClient
Body = Callable[..., dict[str, Any]]
Listed = Callable[..., Awaitable[list[dict[str, Any]]]]
Problem = Callable[..., dict[str, Any]]
RunSagas = Callable[..., Awaitable[None]]


async def test_an_order_is_placed_with_its_lines(api: Api, shop: Any, order_body: Body) -> None:
    """201 with the order, its priced lines, where it is and what happens next."""
    customer = str(uuid4())
    made = await api.post(
        "/orders", json=order_body((0, 2), (1, 1), customer_id=customer, notes="fragile")
    )
    assert made.status_code == 201, made.text
    order = made.json()
    assert order["status"] == "pending"
    assert order["total_amount"] == 30
    assert order["customer_id"] == customer
    assert order["notes"] == "fragile"
    assert order["warehouse"]["code"] == "W"
    assert [
        (each["product"]["sku"], each["quantity"], each["unit_price"], each["line_total"])
        for each in order["items"]
    ] == [("P0", 2, 10, 20), ("P1", 1, 10, 10)]
    assert "saga" in order["message"]
    assert made.headers["location"] == f"/orders/{order['id']}"
    assert UUID(order["id"]).version == 7
    assert await shop.value("select count(*) from sagas where id = %s", order["id"]) == 1


async def test_a_price_may_be_named(api: Api, order_body: Body) -> None:
    """The API acts as service_role, which sets prices; the total follows them exactly."""
    body = order_body((0, 3))
    body["items"][0]["unit_price"] = "0.11"
    made = await api.post("/orders", json=body)
    assert '"total_amount":0.33' in made.text


async def test_an_orders_id_may_be_the_clients(
    api: Api, order_body: Body, problem: Problem, listed: Listed
) -> None:
    """Sent again after an answer was lost, it is refused instead of ordered twice."""
    body = order_body((0, 1), id=str(uuid4()))
    assert (await api.post("/orders", json=body)).json()["id"] == body["id"]
    problem(await api.post("/orders", json=body), 409, "23505")
    assert len(await listed("/orders")) == 1


async def test_orders_that_make_no_sense_are_refused(
    api: Api, shop: Any, order_body: Body, problem: Problem, listed: Listed
) -> None:
    """No lines, unknown or inactive product or warehouse, another currency: nothing is left."""
    problem(await api.post("/orders", json=order_body()), 400)
    nowhere = order_body((0, 1)) | {"warehouse_id": str(uuid4())}
    problem(await api.post("/orders", json=nowhere), 422, "DP003")
    nothing = order_body((0, 1))
    nothing["items"][0]["product_id"] = str(uuid4())
    problem(await api.post("/orders", json=nothing), 422, "DP003")
    problem(await api.post("/orders", json=order_body((0, 1), currency="EUR")), 422, "DP003")
    await api.patch(f"/products/{shop.products[0]}", json={"is_active": False})
    problem(await api.post("/orders", json=order_body((0, 1))), 422, "DP003")
    assert await listed("/orders") == []


async def test_bad_fields_of_lines_are_named_by_their_place(
    api: Api, order_body: Body, problem: Problem
) -> None:
    """One answer names every wrong field of every line."""
    body = order_body((0, 0), (1, 1))
    body["items"][1] |= {"product_id": "x", "discount": 5}
    told = problem(await api.post("/orders", json={**body, "currency": "usd"}), 400)
    assert {each["field"] for each in told["errors"]} == {
        "currency",
        "items[0].quantity",
        "items[1].product_id",
        "items[1].discount",
    }


async def test_a_fulfilled_order_tells_its_whole_story(
    api: Api, order_body: Body, run_sagas: RunSagas
) -> None:
    """GET has the lines, the payment and the saga, pending and after."""
    order = (await api.post("/orders", json=order_body((0, 2)))).json()
    pending = (await api.get(f"/orders/{order['id']}")).json()
    assert pending | {key: order[key] for key in order if key != "message"} == pending
    assert pending["payment"] is None
    assert pending["saga"]["status"] == "running"
    assert pending["saga"]["current_step"] == "reserve_stock"
    await run_sagas()
    done = (await api.get(f"/orders/{order['id']}")).json()
    assert done["status"] == "fulfilled"
    assert done["payment"]["status"] == "captured"
    assert done["payment"]["captured_amount"] == 20
    assert done["payment"]["gateway_reference"] == "ref-1"
    assert done["saga"]["id"] == order["id"]
    assert done["saga"]["status"] == "completed"
    assert done["saga"]["current_step"] is None
    assert done["saga"]["completed_at"] is not None


async def test_a_declined_order_says_why(api: Api, order_body: Body, run_sagas: RunSagas) -> None:
    """The last failure of the saga is part of the order."""
    order = (await api.post("/orders", json=order_body((0, 2)))).json()
    await run_sagas("declined")
    ended = (await api.get(f"/orders/{order['id']}")).json()
    assert ended["status"] == "cancelled"
    assert ended["payment"]["status"] == "declined"
    assert ended["saga"]["status"] == "compensated"
    assert ended["saga"]["error_code"] == "DP014"
    assert "card_declined" in ended["saga"]["error_message"]


async def test_orders_filter(
    api: Api, shop: Any, order_body: Body, listed: Listed, run_sagas: RunSagas
) -> None:
    """By status, customer and warehouse; newest first."""
    customer = str(uuid4())
    first = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    await run_sagas()
    second = (await api.post("/orders", json=order_body((0, 1), customer_id=customer))).json()["id"]

    async def found(**filters: Any) -> list[str]:
        return [each["id"] for each in await listed("/orders", **filters)]

    assert await found() == [second, first]
    assert await found(status="fulfilled") == [first]
    assert await found(customer_id=customer) == [second]
    assert await found(warehouse_id=shop.lisbon, status="pending") == [second]
    assert await found(warehouse_id=uuid4()) == []
    assert await found(limit=1, offset=1) == [first]
    assert (await api.get("/orders?status=lost")).status_code == 400


async def test_cancelling_is_accepted_and_then_done(
    api: Api, shop: Any, order_body: Body, run_sagas: RunSagas
) -> None:
    """202 with the order as it is; its saga gives back what it took. Twice is once."""
    order = (await api.post("/orders", json=order_body((0, 2)))).json()
    for _ in range(2):
        asked = await api.delete(f"/orders/{order['id']}", params={"reason": "changed my mind"})
        assert asked.status_code == 202
        assert asked.json()["id"] == order["id"]
    await run_sagas()
    assert (await api.get(f"/orders/{order['id']}")).json()["status"] == "cancelled"
    said = await shop.values("select message from saga_events where event_type = 'cancelled'")
    assert said == ["changed my mind"]
    assert await shop.audit() == []


async def test_what_is_fulfilled_is_not_cancelled(
    api: Api, order_body: Body, problem: Problem, run_sagas: RunSagas
) -> None:
    """409 for an order that is through, 404 for none."""
    order = (await api.post("/orders", json=order_body((0, 2)))).json()
    await run_sagas()
    problem(await api.delete(f"/orders/{order['id']}"), 409, "DP007")
    problem(await api.delete(f"/orders/{uuid4()}"), 404, "DP010")


async def test_a_refusal_at_commit_is_a_proper_answer(
    app: Litestar, api: Api, shop: Any, problem: Problem, listed: Listed
) -> None:
    """A check that the database makes at commit is known before the response goes out."""

    @post("/orders-without-lines")
    async def place(caller: NamedDependency[Caller]) -> None:
        query = "insert into orders (warehouse_id) values (%(id)s) returning id"
        await caller.run((query, {"id": shop.lisbon}))

    app.register(place)
    problem(await api.post("/orders-without-lines"), 422, "DP001")
    assert await listed("/orders") == []


async def test_sagas_are_listed_and_read(
    api: Api, order_body: Body, listed: Listed, run_sagas: RunSagas
) -> None:
    """By status and type, newest first; one by its order's id."""
    first = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    await run_sagas()
    second = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]

    async def found(**filters: Any) -> list[str]:
        return [each["id"] for each in await listed("/sagas", **filters)]

    assert await found() == [second, first]
    assert await found(status="completed") == [first]
    assert await found(saga_type="order_fulfilment", status="running") == [second]
    assert await found(saga_type="restock") == []
    saga = (await api.get(f"/sagas/{first}")).json()
    assert saga in await listed("/sagas")


async def test_a_sagas_events_are_its_history(
    api: Api, order_body: Body, listed: Listed, problem: Problem, run_sagas: RunSagas
) -> None:
    """Oldest first, paged like every list; 404 where there is no saga."""
    order = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    await run_sagas()
    events = await listed(f"/sagas/{order}/events")
    assert [(each["event_type"], each["step_name"]) for each in events] == [
        ("saga_started", None),
        ("step_completed", "reserve_stock"),
        ("step_waiting", "process_payment"),
        ("step_completed", "process_payment"),
        ("step_completed", "fulfill_order"),
        ("saga_completed", None),
    ]
    assert await listed(f"/sagas/{order}/events", limit=2, offset=1) == events[1:3]
    problem(await api.get(f"/sagas/{uuid4()}/events"), 404)


async def test_an_order_without_a_warehouse_is_served_by_who_can(
    api: Api, client: Any, shop: Any, problem: Problem
) -> None:
    """By one, like any order; else by several at once, with their group; repeated, it is one."""
    there = (await api.post("/warehouses", json={"code": "V", "name": "V", "priority": 200})).json()
    await shop.receive(shop.products[1], 3, there["id"])
    customer, stranger = client("authenticated", "auth0|ann"), client("authenticated", uuid4())

    def body(quantity: int) -> dict[str, Any]:
        return {"items": [{"sku": "P1", "quantity": quantity}], "email": "ann@example.com"}

    shops = {"items": [{"sku": "P1", "quantity": 8, "metadata": {}}]}
    problem(await customer.post("/orders", json=shops), 403, "42501")

    alone = await customer.post("/orders", json=body(5))
    assert alone.status_code == 201, alone.text
    assert (alone.json()["warehouse"]["code"], alone.json()["group"]) == ("W", None)
    key = {"Idempotency-Key": "k1"}
    made = await customer.post("/orders", json=body(8), headers=key)
    assert made.status_code == 201, made.text
    group = made.json()["group"]
    assert [each["warehouse"]["code"] for each in group["orders"]] == ["W", "V"]
    assert (group["id"], group["total_amount"]) == (made.json()["id"], 80)
    for each in (group, *group["orders"]):
        assert each["customer_id"] == "auth0|ann"
    assert {each["email"] for each in group["orders"]} == {"ann@example.com"}
    again = await customer.post("/orders", json=body(8), headers=key)
    assert again.json() == made.json()
    assert (await customer.get(f"/orders/groups/{group['id']}")).json() == group
    for each in group["orders"]:
        details = (await customer.get(f"/orders/{each['id']}")).json()
        assert details["group_id"] == group["id"]
    assert (await api.get("/orders")).json()["count"] == 3
    problem(await stranger.get(f"/orders/groups/{group['id']}"), 404)
    told = problem(await customer.post("/orders", json=body(9)), 409, "DP006")
    assert "8 can be sold in all" in told["detail"]
    assert (
        "group"
        not in (
            await customer.post("/orders", json={**body(1), "warehouse_id": there["id"]})
        ).json()
    )
