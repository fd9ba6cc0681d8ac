"""Errors speak of HTTP, and say what to send."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

Api = httpx.AsyncClient
Problem = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/orders"), ("PATCH", f"/products/{UUID(int=1)}")],
)
async def test_a_missing_body_is_asked_for(
    api: Api, problem: Problem, method: str, path: str
) -> None:
    """400 whatever the type of content; the hint names the fields that have to be there."""
    for headers in ({}, {"content-type": "application/json"}):
        told = problem(await api.request(method, path, headers=headers), 400)
        assert told["detail"] == "The body is missing."
        assert "application/json" in told["hint"]
        assert ("items" in told["hint"]) == (path == "/orders")


async def test_a_wrong_choice_is_told_what_there_is(api: Api, shop: Any, problem: Problem) -> None:
    """In a body as in a filter the allowed values are named, beside other errors."""
    body = {"code": "A", "name": "A", "capture_method": "never", "priority": -1}
    told = problem(await api.post("/warehouses", json=body), 400)
    errors = {each["field"]: each["message"] for each in told["errors"]}
    assert errors["capture_method"] == "'never' is none of at_payment, at_fulfilment"
    assert "priority" in errors
    path = f"/warehouses/{shop.lisbon}"
    told = problem(await api.patch(path, json={"capture_method": "x"}), 400)
    assert "at_fulfilment" in told["errors"][0]["message"]
    told = problem(await api.get("/orders?status=lost"), 400)
    assert "'lost' is none of pending, reserved" in told["errors"][0]["message"]


async def test_an_id_that_is_none_is_told_what_one_is(
    api: Api, shop: Any, problem: Problem
) -> None:
    """In a path, in a filter and in a body."""
    for path, field in (
        ("/orders/4711", "order_id"),
        ("/orders/4711/refunds", "order_id"),
        ("/products/LAPTOP-14", "product_id"),
        (f"/orders/{uuid4()}/refunds/1", "refund_id"),
    ):
        told = problem(await api.get(path), 404)
        assert any(each["field"] == field for each in told["errors"]), path
        assert "Expected a UUID, such as" in told["errors"][-1]["message"]
    told = problem(await api.get("/stock-movements/first"), 404)
    assert "whole number" in told["errors"][0]["message"]
    assert "errors" not in problem(await api.get("/nothing/here"), 404)
    told = problem(await api.get("/orders?warehouse_id=me"), 400)
    assert "no UUID" in told["errors"][0]["message"]
    item = {"product_id": "LAPTOP-14", "quantity": 1}
    body = {"warehouse_id": str(shop.lisbon), "items": [item]}
    told = problem(await api.post("/orders", json=body), 400)
    assert told["errors"][0]["field"] == "items[0].product_id"
    assert "Expected a UUID, such as" in told["errors"][0]["message"]


async def test_a_price_that_is_none_is_named(api: Api, shop: Any, problem: Problem) -> None:
    """As its field, beside what is wrong with others."""
    items = [{"sku": "P0", "quantity": 1, "unit_price": -1}, {"sku": "P0", "quantity": 0}]
    body = {"warehouse_id": str(shop.lisbon), "items": items}
    told = problem(await api.post("/orders", json=body), 400)
    assert [each["field"] for each in told["errors"]] == [
        "items[0].unit_price",
        "items[1].quantity",
    ]


async def test_a_token_without_bearer_is_told_how_to_be_sent(
    client: Callable[..., Api], problem: Problem
) -> None:
    """Not to get a new one."""
    for header in ("eyJhbGciOiJIUzI1NiJ9.e30.x", "Basic eA==", "Bearer"):
        told = problem(
            await client().get("/orders", headers={"Authorization": header}), 401, "DP031"
        )
        assert "Authorization: Bearer, a space and the token" in told["hint"]


async def test_hints_of_the_database_name_requests(
    api: Api, shop: Any, order_body: Callable[..., Any]
) -> None:
    """No function, no argument, no query."""
    pending = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    for answer, hint in (
        (await api.post(f"/orders/{pending}/returns", json={}), "DELETE /orders/{id}"),
        (await api.post(f"/orders/{uuid4()}/refunds", json={}), "GET /orders"),
        (
            await api.post("/orders", json={**order_body((0, 1)), "warehouse_id": str(uuid4())}),
            "GET /warehouses?is_active=true",
        ),
        (
            await api.delete(f"/inventory/{await shop.value('select id from inventory limit 1')}"),
            "POST /stock-movements",
        ),
    ):
        told = answer.json()
        assert hint in told["hint"]
        assert "()" not in str(told)
