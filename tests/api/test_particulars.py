"""What an order is for, over HTTP: said when it is placed, changed, found."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Api = httpx.AsyncClient
Body = Callable[..., dict[str, Any]]
Listed = Callable[..., Awaitable[list[dict[str, Any]]]]
Problem = Callable[..., dict[str, Any]]
RunSagas = Callable[..., Awaitable[None]]

ADDRESS = {"name": "Ann", "line1": "1 Rua da Rosa", "city": "Lisboa", "country": "PT"}
WHOLE = {
    "reference": "W-1001",
    "email": "ann@example.com",
    "shipping_address": ADDRESS,
    "billing_address": {**ADDRESS, "company": "Pearls Lda"},
    "metadata": {"channel": "web", "weight": 1.25},
}


@pytest.fixture
async def order(api: Api, order_body: Body) -> str:
    """The path of an order that says all that it can."""
    made = await api.post("/orders", json=order_body((0, 1), **WHOLE))
    assert made.status_code == 201, made.text
    assert {name: made.json()[name] for name in WHOLE} == WHOLE
    return str(made.headers["location"])


async def test_an_order_is_read_as_it_was_sent(api: Api, order: str, listed: Listed) -> None:
    """Whole in the order; reference and email in the list, where the reference finds it."""
    shown = (await api.get(order)).json()
    assert {name: shown[name] for name in WHOLE} == WHOLE
    (row,) = await listed("/orders", reference="W-1001")
    assert (row["id"], row["email"]) == (shown["id"], "ann@example.com")
    assert await listed("/orders", reference="W-1") == []


async def test_an_order_is_patched(api: Api, order: str, problem: Problem) -> None:
    """A merge patch under the version that was read; the order's way changes no version."""
    read = await api.get(order)
    assert read.headers["etag"] == f'"{read.json()["version"]}"'
    patch = {
        "email": None,
        "shipping_address": {"line2": "2 esq", "name": None},
        "metadata": {"weight": None},
    }
    tag = {"If-Match": read.headers["etag"]}
    done = await api.patch(order, json=patch, headers=tag)
    assert done.status_code == 200, done.text
    changed = done.json()
    assert changed["email"] is None
    street = {"line1": "1 Rua da Rosa", "line2": "2 esq", "city": "Lisboa", "country": "PT"}
    assert changed["shipping_address"] == street
    assert changed["billing_address"] == WHOLE["billing_address"]
    assert changed["metadata"] == {"channel": "web"}
    assert (await api.get(order)).headers["etag"] == done.headers["etag"] != tag["If-Match"]
    problem(await api.patch(order, json=patch, headers=tag), 412, "DP035")
    merge = {"content-type": "application/merge-patch+json"}
    again = await api.patch(order, content=b'{"billing_address": null}', headers=merge)
    assert again.json()["billing_address"] is None


async def test_an_ended_order_is_patched_no_more(
    api: Api, order: str, run_sagas: RunSagas, problem: Problem
) -> None:
    """Once it is fulfilled, what it was for stays: 409."""
    await run_sagas()
    problem(await api.patch(order, json={"email": "eve@example.com"}), 409, "DP040")


async def test_notes_are_patched(api: Api, order: str) -> None:
    """Alone or beside the rest, with a new version; null takes them away."""
    first = (await api.get(order)).json()["version"]
    told = (await api.patch(order, json={"notes": "gift", "email": "b@example.com"})).json()
    assert (told["notes"], told["email"], told["version"]) == ("gift", "b@example.com", first + 1)
    told = (await api.patch(order, json={"notes": None})).json()
    assert (told["notes"], told["version"]) == (None, first + 2)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "ann"}, "email"),
        ({"reference": ""}, "reference"),
        ({"shipping_address": {"street": "Rua"}}, "shipping_address.street"),
        ({"billing_address": {"country": "Portugal"}}, "billing_address.country"),
        ({"metadata": []}, "metadata"),
    ],
)
async def test_what_makes_no_sense_is_400(
    api: Api, order: str, order_body: Body, problem: Problem, body: Any, field: str
) -> None:
    """By the name of the field, in a new order and in a change."""
    for told in (
        await api.post("/orders", json=order_body((0, 1), **body)),
        await api.patch(order, json=body),
    ):
        assert [each["field"] for each in problem(told, 400)["errors"]] == [field]


async def test_a_reference_is_taken_once(api: Api, order_body: Body, problem: Problem) -> None:
    """The second order under it is 409, and says so in words."""
    await api.post("/orders", json=order_body((0, 1), reference="W-1"))
    told = problem(
        await api.post("/orders", json=order_body((0, 1), reference="W-1")), 409, "23505"
    )
    assert "reference" in told["detail"]


async def test_customers_say_their_part(
    client: Callable[..., Api], order_body: Body, problem: Problem
) -> None:
    """Email and addresses of their own orders; reference and metadata are 403."""
    ann, eve = client("authenticated", "ann"), client("authenticated", "eve")
    mine = {"email": "ann@example.com", "shipping_address": ADDRESS}
    made = await ann.post("/orders", json=order_body((0, 1), **mine))
    assert made.status_code == 201, made.text
    order = made.headers["location"]
    changed = await ann.patch(order, json={"billing_address": ADDRESS})
    assert changed.json()["billing_address"] == ADDRESS
    for shops in {"reference": "W-1"}, {"metadata": {"vip": True}}:
        problem(await ann.patch(order, json=shops), 403, "42501")
        problem(await ann.post("/orders", json=order_body((0, 1), **shops)), 403, "42501")
    problem(await eve.patch(order, json={"email": "eve@example.com"}), 404, "DP010")
    problem(await client().patch(order, json={"email": None}), 401, "DP030")


async def test_metadata_of_products_lines_refunds_and_returns(
    api: Api, shop: Any, order_body: Body, run_sagas: RunSagas
) -> None:
    """Kept to the digit, and patched member by member where it may change."""
    product = f"/products/{shop.products[0]}"
    exact = b'{"metadata": {"rate": 0.1000000000000000000000000000001, "a": {"b": 1, "c": 2}}}'
    as_json = {"content-type": "application/json"}
    told = await api.patch(product, content=exact, headers=as_json)
    assert told.status_code == 200, told.text
    assert b"0.1000000000000000000000000000001" in told.content
    told = await api.patch(product, json={"metadata": {"rate": None, "a": {"b": None}}})
    assert told.json()["metadata"] == {"a": {"c": 2}}
    assert (await api.patch(product, json={"metadata": None})).json()["metadata"] == {}

    body = order_body((0, 1), (1, 1))
    body["items"][0]["metadata"] = {"engraved": "For Ann"}
    order = (await api.post("/orders", json=body)).json()
    assert [line["metadata"] for line in order["items"]] == [{"engraved": "For Ann"}, {}]
    await run_sagas()
    refund = {"amount": 1, "metadata": {"ticket": 7}}
    made = await api.post(f"/orders/{order['id']}/refunds", json=refund)
    assert made.json()["metadata"] == {"ticket": 7}
    told = await api.post(f"/orders/{order['id']}/returns", json={"metadata": {"rma": 7}})
    assert (told.status_code, told.json()["metadata"]) == (201, {"rma": 7})
    again = {"id": told.json()["id"], "metadata": {"rma": 7}}
    assert (await api.post(f"/orders/{order['id']}/returns", json=again)).json() == told.json()
