"""Bodies and queries that are too long, unreadable or absurd: the client's problem, not ours."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from darkpearl.api.bodies import MAX_BODY_BYTES

Api = httpx.AsyncClient
Problem = Callable[..., dict[str, Any]]

JSON = {"content-type": "application/json"}
WRITES = [
    ("POST", "/products"),
    ("POST", "/warehouses"),
    ("POST", "/inventory"),
    ("POST", "/stock-movements"),
    ("POST", "/orders"),
    ("PUT", "/products/{id}"),
    ("PATCH", "/warehouses/{id}"),
    ("PATCH", "/inventory/{id}"),
]
DEEP = 100_000
UNREADABLE = {
    "nothing": b"",
    "half": b'{"sku": "x',
    "more than one": b"{} {}",
    "NUL": b"\x00",
    "a raw NUL in a text": b'{"sku": "a\x00b"}',
    "no UTF-8": b'{"sku": "\xff\xfe"}',
    "UTF-16": '{"sku": "x"}'.encode("utf-16"),
    "half a pair of surrogates": b'{"sku": "\\ud800"}',
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "a deep unknown field": b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "no object": b"[]",
    "null": b"null",
    "NaN": b'{"quantity": NaN}',
}
HUGE = ["1e400", "-1e400", "1e-400", "9" * 5000, "1" + "0" * 400, "1e999999999", "0." + "1" * 5000]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_an_unreadable_body_is_a_bad_request(
    api: Api, problem: Problem, method: str, path: str, body: bytes
) -> None:
    """400 for every handler that takes a body."""
    path = path.format(id="0190a000-0000-7000-8000-000000000000")
    problem(await api.request(method, path, content=body, headers=JSON), 400)


@pytest.mark.parametrize("number", HUGE)
async def test_a_number_out_of_all_bounds_is_a_bad_request(
    api: Api, problem: Problem, number: str
) -> None:
    """Wherever a number may stand, too many digits or too great an exponent is 400."""
    for path, body in (
        ("/products", '{{"sku": "x", "name": "x", "unit_price": {}}}'),
        ("/products", '{{"sku": "x", "name": "x", "unit_price": "{}"}}'),
        ("/products", '{{"sku":"x","name":"x","unit_price":1,"is_active":{}}}'),
        ("/inventory", '{{"reorder_point": {}}}'),
        ("/stock-movements", '{{"quantity": {}}}'),
        ("/orders", '{{"items": [{{"quantity": {}}}]}}'),
    ):
        problem(await api.post(path, content=body.format(number), headers=JSON), 400)


async def test_a_long_body_is_refused_however_it_comes(api: Api, problem: Problem) -> None:
    """413 by its announced length, and by its real one when it comes in chunks without any."""

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 1000

    problem(await api.post("/products", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON), 413)
    told = await api.post("/products", content=chunks(MAX_BODY_BYTES // 1000 + 1), headers=JSON)
    assert "content-length" not in told.request.headers
    problem(told, 413)
    problem(await api.post("/products", content=chunks(MAX_BODY_BYTES // 1000), headers=JSON), 400)
    keyed = {**JSON, "idempotency-key": "k"}
    problem(await api.post("/products", content=chunks(2000), headers=keyed), 413)


@pytest.mark.parametrize(
    "text", ["%00", "%ff", "%F0%9F%92%A9", "%", "%zz", "a" * 5000, "%ed%a0%80"]
)
async def test_an_odd_query_is_no_error_of_the_server(api: Api, text: str) -> None:
    """Bytes that no text is made of are refused, or match nothing."""
    for path in ("/products?search=", "/products?sku=", "/products?sort=", "/products?cursor="):
        assert (await api.get(path + text)).status_code in {200, 400}, path
    for name in ("limit", "status", "customer_id", "created_after", text):
        assert (await api.get(f"/orders?{name}={text}")).status_code in {200, 400}, name
    assert (await api.get(f"/products/{text}")).status_code == 404


async def test_every_write_wants_json(api: Api, problem: Problem) -> None:
    """Another type of content, or none, is 415 whatever the body is."""
    for method, path in WRITES:
        path = path.format(id="0190a000-0000-7000-8000-000000000000")  # noqa: PLW2901
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
            headers = {"content-type": kind} if kind else {}
            problem(await api.request(method, path, content=b"{}", headers=headers), 415)
