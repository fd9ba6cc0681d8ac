"""What an order costs beside its lines, over HTTP, and refunds that say of what they are."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Api = httpx.AsyncClient
Body = Callable[..., dict[str, Any]]
Problem = Callable[..., dict[str, Any]]
RunSagas = Callable[..., Awaitable[None]]

ADJUSTMENTS = [
    {"kind": "shipping", "label": "Express", "amount": 4.90},
    {"kind": "discount", "label": "Spring", "amount": "-3", "item": 0},
    {"kind": "tax", "label": "VAT", "amount": 5},
]


async def test_an_order_says_what_it_costs(api: Api, order_body: Body, run_sagas: RunSagas) -> None:
    """Lines and adjustments add up, in the order and its payment; a refund says of what it is."""
    body = order_body((0, 2), (1, 1), adjustments=ADJUSTMENTS)
    made = await api.post("/orders", json=body)
    assert made.status_code == 201, made.text
    order = made.json()
    names = ("subtotal", "shipping_total", "discount_total", "tax_total", "fee_total")
    assert [order[name] for name in (*names, "total_amount")] == [30, 4.9, -3, 5, 0, 36.9]
    line = order["items"][0]["id"]
    assert [each["item_id"] for each in order["adjustments"]] == [None, line, None]
    await run_sagas()
    whole = (await api.get(made.headers["location"])).json()
    assert {name: whole[name] for name in names} == {name: order[name] for name in names}
    assert whole["adjustments"] == order["adjustments"]
    assert whole["payment"]["captured_amount"] == 36.9

    parts = [
        {"item_id": line, "quantity": 2, "amount": 20},
        {"adjustment_id": order["adjustments"][1]["id"], "amount": -3},
    ]
    refund = {"amount": 17, "breakdown": parts}
    told = await api.post(f"{made.headers['location']}/refunds", json=refund)
    assert (told.status_code, told.json()["breakdown"]) == (201, parts)


@pytest.mark.parametrize(
    ("adjustment", "status"),
    [
        ({"kind": "tip", "label": "A", "amount": 1}, 400),
        ({"kind": "fee", "label": "", "amount": 1}, 400),
        ({"kind": "fee", "label": "A", "amount": 1e12}, 400),
        ({"kind": "fee", "label": "A", "amount": 1, "rate": 1}, 400),
        ({"kind": "fee", "label": "A", "amount": -1}, 422),
        ({"kind": "fee", "label": "A", "amount": 1, "item": 9}, 422),
        ({"kind": "discount", "label": "A", "amount": -10.01}, 422),
    ],
)
async def test_what_makes_no_sense_is_refused(
    api: Api, shop: Any, order_body: Body, adjustment: Any, status: int
) -> None:
    """By the description or by the database; nothing is placed."""
    told = await api.post("/orders", json=order_body((0, 1), adjustments=[adjustment]))
    assert told.status_code == status, told.text
    assert await shop.value("select count(*) from orders") == 0


async def test_a_breakdown_that_does_not_add_up_is_422(
    api: Api, order_body: Body, run_sagas: RunSagas, problem: Problem
) -> None:
    """Nothing goes back by it."""
    order = (await api.post("/orders", json=order_body((0, 1)))).json()
    await run_sagas()
    parts = [{"item_id": order["items"][0]["id"], "amount": 4}]
    refund = {"amount": 5, "breakdown": parts}
    problem(await api.post(f"/orders/{order['id']}/refunds", json=refund), 422, "DP041")
    parts[0]["adjustment_id"] = 1
    problem(await api.post(f"/orders/{order['id']}/refunds", json=refund), 400)


async def test_customers_dont_say_what_it_costs(
    client: Callable[..., Api], order_body: Body, problem: Problem
) -> None:
    """A discount of one's own is 403."""
    ann = client("authenticated", "ann")
    told = await ann.post("/orders", json=order_body((0, 1), adjustments=ADJUSTMENTS))
    problem(told, 403, "42501")
