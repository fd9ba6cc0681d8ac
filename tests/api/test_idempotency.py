"""Idempotency-Key: a POST that is sent again is answered as the first time, and done once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

Api = httpx.AsyncClient
Json = dict[str, Any]
Problem = Callable[..., Json]
PRODUCT: Json = {"sku": "LAMP", "name": "Lamp", "unit_price": 19.99, "description": "\u00e9 \u2603"}


def keyed(key: str | None = None) -> dict[str, str]:
    """The header, with a new key unless one is given."""
    return {"idempotency-key": key or str(uuid4())}


@pytest.fixture
def bodies(shop: Any, order_body: Callable[..., Json]) -> dict[str, Json]:
    """A body for each path that takes a POST."""
    here = {"product_id": str(shop.products[0]), "warehouse_id": str(shop.lisbon)}
    return {
        "/products": PRODUCT,
        "/warehouses": {"code": "X", "name": "X"},
        "/inventory": {**here, "warehouse_id": str(shop.lisbon), "quantity_available": 3},
        "/stock-movements": {**here, "movement_type": "receive", "quantity": 5},
        "/orders": order_body((0, 1), (1, 2)),
    }


@pytest.mark.parametrize(
    "path", ["/products", "/warehouses", "/inventory", "/stock-movements", "/orders"]
)
async def test_a_repeated_post_is_answered_as_the_first(
    api: Api, shop: Any, bodies: dict[str, Json], path: str
) -> None:
    """The same status, body, Location and ETag, and a mark; the row is there once."""
    body, headers = bodies[path], keyed()
    if path == "/inventory":
        spare = (await api.post("/products", json=PRODUCT)).json()["id"]
        body = {**body, "product_id": spare}
    counted = f"select count(*) from {path.strip('/').replace('-', '_')}"
    before = await shop.value(counted)
    first, *others = [await api.post(path, json=body, headers=headers) for _ in range(3)]
    assert first.status_code == 201, first.text
    assert "idempotency-replayed" not in first.headers
    for again in others:
        assert again.headers["idempotency-replayed"] == "true"
        assert (again.status_code, again.content) == (201, first.content)
        for header in ("location", "etag", "content-type"):
            assert again.headers.get(header) == first.headers.get(header), header
    assert await shop.value(counted) == before + 1
    assert (await api.get(first.headers["location"])).status_code == 200


async def test_without_a_key_nothing_is_kept(api: Api, shop: Any, bodies: dict[str, Json]) -> None:
    """Two movements without a key are two, and the table stays empty."""
    for _ in range(2):
        made = await api.post("/stock-movements", json=bodies["/stock-movements"])
        assert made.status_code == 201
    assert await shop.stock(shop.products[0]) == (110, 0)
    assert await shop.value("select count(*) from idempotency_keys") == 0


async def test_an_answer_stays_what_it_was(api: Api) -> None:
    """A repetition tells of the row as it was made, whatever became of it since."""
    headers = keyed()
    first = await api.post("/products", json=PRODUCT, headers=headers)
    await api.patch(first.headers["location"], json={"name": "Changed"})
    again = await api.post("/products", json=PRODUCT, headers=headers)
    assert again.content == first.content
    await api.delete(first.headers["location"])
    assert (await api.post("/products", json=PRODUCT, headers=headers)).content == first.content
    assert (await api.get(first.headers["location"])).status_code == 404


async def test_a_key_stands_for_one_request(
    api: Api, problem: Problem, bodies: dict[str, Json]
) -> None:
    """Another body or another path under the key is 422, and is not done."""
    headers = keyed()
    await api.post("/products", json=PRODUCT, headers=headers)
    other = {**PRODUCT, "sku": "OTHER"}
    told = problem(await api.post("/products", json=other, headers=headers), 422, "DP036")
    assert headers["idempotency-key"] in told["detail"]
    path = "/warehouses"
    problem(await api.post(path, json=bodies[path], headers=headers), 422, "DP036")
    assert (await api.get("/products")).json()["count"] == 3
    assert (await api.post("/products", json=other, headers=keyed())).status_code == 201


async def test_a_quoted_key_is_the_same_key(api: Api) -> None:
    """The draft's quoted form and the bare form that most clients send are one."""
    first = await api.post("/products", json=PRODUCT, headers=keyed("abc"))
    again = await api.post("/products", json=PRODUCT, headers=keyed('"abc"'))
    assert (again.status_code, again.content) == (201, first.content)


async def test_a_request_that_failed_can_be_tried_again(
    api: Api, shop: Any, problem: Problem, bodies: dict[str, Json]
) -> None:
    """A refusal of any kind keeps no answer: under the same key the same may succeed later."""
    headers = keyed()
    problem(await api.post("/products", json={"sku": "x"}, headers=headers), 400)
    body = {**bodies["/stock-movements"], "movement_type": "adjust", "quantity": -101}
    problem(await api.post("/stock-movements", json=body, headers=headers), 409, "DP006")
    gone = {**bodies["/inventory"], "warehouse_id": str(uuid4())}
    problem(await api.post("/inventory", json=gone, headers=headers), 404)
    unknown = {**bodies["/orders"], "items": [{"sku": "nobody's", "quantity": 1}]}
    problem(await api.post("/orders", json=unknown, headers=headers), 422, "DP003")
    assert await shop.value("select count(*) from idempotency_keys") == 0
    await shop.receive(shop.products[0], 1)
    made = await api.post("/stock-movements", json=body, headers=headers)
    assert made.status_code == 201
    assert "idempotency-replayed" not in made.headers
    assert await shop.stock(shop.products[0]) == (0, 0)


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "\u00e9", "a\tb"])
async def test_a_key_that_is_none_is_refused(api: Api, problem: Problem, key: str) -> None:
    """One to 255 visible characters of ASCII; else 400 names the header."""
    headers = httpx.Headers([(b"idempotency-key", key.encode())])
    told = problem(await api.post("/products", json=PRODUCT, headers=headers), 400)
    assert [each["field"] for each in told["errors"]] == ["Idempotency-Key"]
    assert (await api.post("/products", json=PRODUCT, headers=keyed("x" * 255))).is_success


async def test_duplicates_at_once_are_done_once(
    api: Api, shop: Any, bodies: dict[str, Json]
) -> None:
    """Twenty clients with one key: one movement, twenty equal answers, one of them the first."""
    headers = keyed()
    answers = await asyncio.gather(
        *(
            api.post("/stock-movements", json=bodies["/stock-movements"], headers=headers)
            for _ in range(20)
        )
    )
    assert {(each.status_code, each.content) for each in answers} == {(201, answers[0].content)}
    assert sum("idempotency-replayed" not in each.headers for each in answers) == 1
    assert await shop.stock(shop.products[0]) == (105, 0)


async def test_a_duplicate_does_not_wait_for_ever(
    api: Api, shop: Any, connect: Callable[..., Awaitable[Any]], problem: Problem
) -> None:
    """While the first is under way a second is 409 after the bound; later it gets the answer."""
    await shop.run("alter function begin_request set lock_timeout = '50ms'")
    blocker = await connect(autocommit=False)
    await blocker.execute("lock table products in share mode")
    both = [
        asyncio.create_task(api.post("/products", json=PRODUCT, headers=keyed("k")))
        for _ in range(2)
    ]
    (second,), (first,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    told = problem(second.result(), 409, "DP037")
    assert "again" in told["hint"]
    await blocker.rollback()
    assert (await first).status_code == 201
    again = await api.post("/products", json=PRODUCT, headers=keyed("k"))
    assert again.content == first.result().content


async def test_keys_are_the_callers_own(
    client: Callable[..., Api], shop: Any, order_body: Callable[..., Json]
) -> None:
    """Two customers and the staff under one key place three orders, and each repeats its own."""
    callers = [("authenticated", uuid4()), ("authenticated", uuid4()), ("service_role", None)]
    orders = set()
    for role, subject in callers:
        api = client(role, subject)
        body = order_body((0, 1), customer_id=str(subject) if subject else None)
        first, again = [await api.post("/orders", json=body, headers=keyed("k")) for _ in range(2)]
        assert first.status_code == 201, first.text
        assert again.content == first.content
        orders.add(first.json()["id"])
    assert await shop.value("select count(*) from orders") == len(orders) == 3
