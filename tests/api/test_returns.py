"""Refunds and returns, and how an order is paid."""

import logging
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
async def order(api: Api, order_body: Body, run_sagas: RunSagas) -> str:
    """The path of a fulfilled order of 30.00: two units of P0, one of P1."""
    made = await api.post("/orders", json=order_body((0, 2), (1, 1)))
    await run_sagas()
    return f"/orders/{made.json()['id']}"


async def test_money_goes_back(api: Api, order: str, run_sagas: RunSagas, listed: Listed) -> None:
    """201 with the refund and where it is; it is refunded once its saga is through."""
    made = await api.post(f"{order}/refunds", json={"amount": 10.5, "reason": "a scratch"})
    assert made.status_code == 201, made.text
    refund = made.json()
    assert (refund["status"], refund["amount"], refund["currency"]) == ("requested", 10.5, "USD")
    assert refund["reason"] == "a scratch"
    assert order == f"/orders/{refund['order_id']}"
    assert made.headers["location"] == f"{order}/refunds/{refund['id']}"
    assert (await api.get(made.headers["location"])).json() == refund

    await run_sagas()
    (told,) = await listed(f"{order}/refunds")
    assert (told["status"], told["gateway_reference"]) == ("refunded", "ref-1")
    details = (await api.get(order)).json()
    assert details["refunds"] == [told]
    assert details["payment"]["refunded_amount"] == 10.5
    assert (await api.get(f"/sagas/{refund['id']}")).json()["saga_type"] == "refund"


async def test_all_that_is_left_goes_back(
    api: Api, order: str, listed: Listed, problem: Problem
) -> None:
    """Without an amount it is the rest; then nothing is left."""
    assert (await api.post(f"{order}/refunds", json={"amount": "0.01"})).json()["amount"] == 0.01
    assert (await api.post(f"{order}/refunds", json={})).json()["amount"] == 29.99
    problem(await api.post(f"{order}/refunds", json={}), 409, "DP020")
    assert [each["amount"] for each in await listed(f"{order}/refunds")] == [0.01, 29.99]


async def test_a_refund_is_made_once(api: Api, order: str, problem: Problem) -> None:
    """The same id again is the same refund; with other content it is refused."""
    body = {"id": str(uuid4()), "amount": 10}
    first = await api.post(f"{order}/refunds", json=body)
    again = await api.post(f"{order}/refunds", json=body)
    assert (again.status_code, again.json()) == (201, first.json())
    problem(await api.post(f"{order}/refunds", json={**body, "amount": 11}), 409, "DP011")


@pytest.mark.parametrize("path", ["refunds", "returns"])
async def test_under_a_key_it_is_done_once(api: Api, shop: Any, order: str, path: str) -> None:
    """A repeat under its Idempotency-Key is answered as the first time, and says so."""
    key = {"Idempotency-Key": "k1"}
    first = await api.post(f"{order}/{path}", json={}, headers=key)
    again = await api.post(f"{order}/{path}", json={}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert await shop.value("select count(*) from refunds") == (1 if path == "refunds" else 0)


@pytest.mark.parametrize(
    "body", [{"amount": -1}, {"amount": "much"}, {"amount": 1e12}, {"sum": 1}, {"id": "1"}, []]
)
async def test_a_body_that_is_no_refund_is_refused(
    api: Api, order: str, problem: Problem, body: Any
) -> None:
    """A body that the description forbids is 400."""
    problem(await api.post(f"{order}/refunds", json=body), 400)


async def test_a_refund_that_makes_no_sense_is_refused(
    api: Api, order: str, order_body: Body, problem: Problem
) -> None:
    """Nothing, a part of a cent, too much, no such order, one that isn't fulfilled."""
    for amount in (0, "1.001"):
        problem(await api.post(f"{order}/refunds", json={"amount": amount}), 422, "DP015")
    problem(await api.post(f"{order}/refunds", json={"amount": 30.01}), 409, "DP020")
    problem(await api.post(f"/orders/{uuid4()}/refunds", json={}), 404, "DP010")
    pending = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    problem(await api.post(f"/orders/{pending}/refunds", json={}), 409, "DP019")


async def test_a_disputed_payment_says_so_and_keeps_its_money(
    api: Api, shop: Any, order: str, problem: Problem
) -> None:
    """The order's payment lists it; a refund is 409, unless the body says to pay all the same."""
    key = f"{order.rpartition('/')[2]}:process_payment"
    told = {"outcome": "disputed", "dispute": "open", "reference": "dp_1", "amount": "9.50"}
    assert (await api.get(order)).json()["payment"]["disputes"] == []
    await shop.told(key, told)
    (dispute,) = (await api.get(order)).json()["payment"]["disputes"]
    assert (dispute["status"], dispute["amount"]) == ("open", 9.5)
    refused = problem(await api.post(f"{order}/refunds", json={"amount": 5}), 409, "DP027")
    assert "To pay all the same, pass despite_dispute." in refused["hint"]
    body = {"amount": 5, "despite_dispute": True}
    made = await api.post(f"{order}/refunds", json=body)
    assert (made.status_code, made.json()["despite_dispute"]) == (201, True)


async def test_refunds_of_nothing(api: Api, order: str, listed: Listed, problem: Problem) -> None:
    """An order without refunds has an empty list; an order that isn't there has none."""
    assert await listed(f"{order}/refunds") == []
    assert (await api.get(order)).json()["refunds"] == []
    problem(await api.get(f"/orders/{uuid4()}/refunds"), 404)
    problem(await api.get(f"{order}/refunds/{uuid4()}"), 404)


async def test_goods_come_back(api: Api, shop: Any, order: str, listed: Listed) -> None:
    """201 with the movements that made them stock again, and where those are."""
    item = {"product_id": str(shop.products[0]), "quantity": 1}
    made = await api.post(f"{order}/returns", json={"items": [item], "reason": "too small"})
    assert made.status_code == 201, made.text
    (movement,) = made.json()["movements"]
    assert (movement["movement_type"], movement["quantity"]) == ("receive", 1)
    assert (movement["product"]["sku"], movement["notes"]) == ("P0", "too small")
    assert order == f"/orders/{made.json()['order_id']}"
    assert made.headers["location"] == f"/stock-movements?correlation_id={made.json()['id']}"
    assert (await api.get(made.headers["location"])).json()["data"] == [movement]
    assert await shop.stock(shop.products[0]) == (99, 0)

    rest = await api.post(f"{order}/returns", json={})
    assert [each["quantity"] for each in rest.json()["movements"]] == [1, 1]
    assert await shop.stock(shop.products[0]) == (100, 0)
    assert await shop.stock(shop.products[1]) == (5, 0)
    assert await listed(f"{order}/refunds") == []


async def test_returns_that_make_no_sense_are_refused(
    api: Api, shop: Any, order: str, order_body: Body, problem: Problem
) -> None:
    """Too much, no such order, one that isn't fulfilled, no items, an id that is taken."""
    too_much = [{"product_id": str(shop.products[0]), "quantity": 3}]
    problem(await api.post(f"{order}/returns", json={"items": too_much}), 409, "DP021")
    problem(await api.post(f"/orders/{uuid4()}/returns", json={}), 404, "DP010")
    pending = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    problem(await api.post(f"/orders/{pending}/returns", json={}), 409, "DP019")
    for items in ([], [{"product_id": str(shop.products[0]), "quantity": 0}], "all"):
        problem(await api.post(f"{order}/returns", json={"items": items}), 400)
    name = str(uuid4())
    one = [{"product_id": str(shop.products[0]), "quantity": 1}]
    again = [{"product_id": str(shop.products[1]), "quantity": 1}]
    await api.post(f"{order}/returns", json={"id": name, "items": one})
    problem(await api.post(f"{order}/returns", json={"id": name, "items": again}), 409, "DP011")


@pytest.mark.parametrize("path", ["refunds", "returns"])
async def test_customers_give_nothing_back_to_themselves(
    api: Api, client: Any, order_body: Body, run_sagas: RunSagas, problem: Problem, path: str
) -> None:
    """Customers may read their refunds, and only staff make them."""
    me = uuid4()
    customer, stranger = client("authenticated", me), client("authenticated", uuid4())
    made = await customer.post("/orders", json=order_body((0, 1), customer_id=str(me)))
    await run_sagas()
    order = f"/orders/{made.json()['id']}"
    problem(await customer.post(f"{order}/{path}", json={}), 403, "42501")
    problem(await client().post(f"{order}/{path}", json={}), 401, "DP030")
    await api.post(f"{order}/refunds", json={"amount": 1})
    assert (await customer.get(f"{order}/refunds")).json()["count"] == 1
    assert len((await customer.get(order)).json()["refunds"]) == 1
    problem(await stranger.get(f"{order}/refunds"), 404)


async def test_a_payment_token_is_never_sent_back(
    api: Api, shop: Any, order_body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway gets it; no answer, no repeat, no list and no log line has it."""
    caplog.set_level(logging.DEBUG)
    body = order_body((0, 1), payment_token="tok_visa")
    key = {"Idempotency-Key": "k1"}
    made = await api.post("/orders", json=body, headers=key)
    assert made.status_code == 201, made.text
    path = made.headers["location"]
    for response in [
        made,
        await api.post("/orders", json=body, headers=key),
        await api.post("/orders", json={**body, "id": made.json()["id"]}),
        await api.get(path),
        await api.get("/orders"),
        await api.get(f"/sagas/{made.json()['id']}/events"),
    ]:
        assert "tok_visa" not in response.text
    assert "tok_visa" not in caplog.text
    (request,) = await shop.advance()
    assert request["request"]["token"] == "tok_visa"


@pytest.mark.parametrize("token", ["", "x" * 501, 1])
async def test_a_payment_token_is_bounded(
    api: Api, order_body: Body, problem: Problem, token: Any
) -> None:
    """An amount or id that can't be one is refused by its name, not by its content."""
    told = problem(await api.post("/orders", json=order_body((0, 1), payment_token=token)), 400)
    assert [each["field"] for each in told["errors"]] == ["payment_token"]


async def test_a_warehouse_captures_when_it_says(
    api: Api, shop: Any, order_body: Body, run_sagas: RunSagas, problem: Problem
) -> None:
    """capture_method is written and read like any column, and its orders follow it."""
    path = f"/warehouses/{shop.lisbon}"
    assert (await api.get(path)).json()["capture_method"] == "at_payment"
    changed = await api.patch(path, json={"capture_method": "at_fulfilment"})
    assert changed.json()["capture_method"] == "at_fulfilment"
    problem(await api.patch(path, json={"capture_method": "never"}), 400)
    other = {"code": "X", "name": "X", "capture_method": "at_fulfilment"}
    assert (await api.post("/warehouses", json=other)).json()["capture_method"] == "at_fulfilment"
    made = await api.post("/orders", json=order_body((0, 1)))
    await shop.settle(
        await shop.advance(), {"outcome": "pending", "gateway": "test", "reference": "ref-1"}
    )
    order = f"/orders/{made.json()['id']}"
    assert (await api.get(order)).json()["payment"]["status"] == "pending"
    await shop.turn_clock(4000)
    await run_sagas()
    await shop.turn_clock(4000)
    await run_sagas()
    assert (await api.get(order)).json()["status"] == "fulfilled"


async def test_an_order_tells_what_came_back(
    api: Api, client: Any, shop: Any, order_body: Body, run_sagas: RunSagas
) -> None:
    """Its returns, and of each line how many units; to customers too, without what staff noted."""
    me = uuid4()
    customer = client("authenticated", me)
    made = await api.post("/orders", json=order_body((0, 2), (1, 1), customer_id=str(me)))
    await run_sagas()
    path = f"/orders/{made.json()['id']}"
    assert made.json()["items"][0]["returned_quantity"] == 0
    fresh = (await customer.get(path)).json()
    assert fresh["returns"] == []
    item = {"sku": "P0", "quantity": 1}
    body = {"items": [item], "reason": "a liar", "restock": False, "reason_code": "lost"}
    back = await api.post(f"{path}/returns", json=body)
    assert back.status_code == 201, back.text
    assert (back.json()["restocked"], back.json()["refund"]) == (False, None)
    assert [each["reason_code"] for each in back.json()["movements"]] == [None, "lost"]
    told = await customer.get(path)
    (returned,) = told.json()["returns"]
    assert (returned["id"], returned["restocked"]) == (back.json()["id"], False)
    assert [(each["product"]["sku"], each["quantity"]) for each in returned["items"]] == [("P0", 1)]
    assert [each["returned_quantity"] for each in told.json()["items"]] == [1, 0]
    assert "a liar" not in told.text
    assert await shop.stock(shop.products[0]) == (98, 0)


async def test_a_return_says_all_at_once(api: Api, order: str) -> None:
    """Metadata, why it can't be sold again, and its money; repeated, it is the same."""
    body = {
        "id": str(uuid4()),
        "items": [{"sku": "P0", "quantity": 1}],
        "metadata": {"rma": "R-7"},
        "restock": False,
        "reason_code": "damaged",
        "refund": {"amount": 4},
    }
    made = await api.post(f"{order}/returns", json=body)
    assert made.status_code == 201, made.text
    told = made.json()
    assert (told["metadata"], told["restocked"], told["refund"]["amount"]) == (
        {"rma": "R-7"},
        False,
        4,
    )
    assert (await api.post(f"{order}/returns", json=body)).json() == told
    (told,) = (await api.get(order)).json()["returns"]
    assert "metadata" not in told


async def test_goods_and_money_go_back_in_one_request(
    api: Api, order: str, listed: Listed, problem: Problem
) -> None:
    """The return has its refund, over what the goods cost or another amount; both or neither."""
    body = {"id": str(uuid4()), "items": [{"sku": "P0", "quantity": 1}], "refund": {}}
    made = await api.post(f"{order}/returns", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["refund"]["amount"] == 10
    again = await api.post(f"{order}/returns", json=body)
    assert again.json() == made.json()
    assert await listed(f"{order}/refunds") == [made.json()["refund"]]
    part = {"items": [{"sku": "P0", "quantity": 1}], "refund": {"amount": "25"}}
    problem(await api.post(f"{order}/returns", json=part), 409, "DP020")
    part["refund"] = {"amount": "7.5"}
    assert (await api.post(f"{order}/returns", json=part)).json()["refund"]["amount"] == 7.5


async def test_movements_are_found_by_their_order(api: Api, order: str, listed: Listed) -> None:
    """Those of its saga as those of its returns name it, and are filtered by that."""
    name = order.rpartition("/")[2]
    await api.post(f"{order}/returns", json={})
    told = await listed("/stock-movements", reference_id=name)
    assert {each["reference_id"] for each in told} == {name}
    kinds = {each["movement_type"]: each["reference_type"] for each in told}
    assert kinds == {"reserve": "order", "fulfill": "order", "receive": "return"}
    of_saga = await listed("/stock-movements", reference_type="order")
    assert of_saga == [each for each in told if each["reference_type"] == "order"]
