"""A shop with an API in front of it, in one process: no socket, no listener."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from litestar import Litestar
from shop import Shop

from darkpearl.api import tokens
from darkpearl.api.app import create_app
from darkpearl.config import Settings

Json = dict[str, Any]
SECRET = "a secret of the tests, and of nothing else"


@pytest.fixture
async def shop(shop: Shop) -> Shop:
    """100 units of product P0, 5 of P1, at 10.00, in warehouse W, the only one."""
    await shop.run("delete from warehouses where id = %s", shop.rotterdam)
    await shop.run("update warehouses set code = 'W', name = 'W'")
    for number, on_hand in enumerate((100, 5)):
        await shop.product(sku=f"P{number}", name=f"Product {number}", on_hand=on_hand)
    return shop


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Litestar]:
    """The application, started."""
    app = create_app(Settings(pool_size=4, jwt_secret=SECRET), database_url)
    async with app.lifespan():
        yield app


@pytest.fixture
async def client(app: Litestar) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """Makes clients of it: `client("authenticated", subject)`; `client()` sends no token."""
    async with AsyncExitStack() as stack:

        def make(role: tokens.Role | None = None, subject: object = None) -> httpx.AsyncClient:
            headers = {}
            if role:
                name = str(subject) if subject else None
                token = tokens.mint(Settings(jwt_secret=SECRET), role, name, 60)
                headers["Authorization"] = f"Bearer {token}"
            made = httpx.AsyncClient(
                transport=httpx.ASGITransport(app),  # type: ignore[arg-type]
                base_url="http://api",
                headers=headers,
            )
            stack.push_async_callback(made.aclose)
            return made

        yield make


@pytest.fixture
def api(client: Callable[..., httpx.AsyncClient]) -> httpx.AsyncClient:
    """A client of it whose token says service_role."""
    return client("service_role")


@pytest.fixture
def order_body(shop: Shop) -> Callable[..., Json]:
    """The body of an order over (index of the product, quantity) lines."""

    def body(*lines: tuple[int, int], **more: Any) -> Json:
        items = [{"product_id": str(shop.products[p]), "quantity": q} for p, q in lines]
        return {"warehouse_id": str(shop.lisbon), "items": items, **more}

    return body


@pytest.fixture
def run_sagas(shop: Shop) -> Callable[..., Awaitable[None]]:
    """Takes every saga to its end, as a listener whose gateway gives one answer to all."""

    async def run(outcome: str | None = "approved") -> None:
        requests = await shop.advance()
        while outcome and requests:
            answer = {"outcome": outcome, "gateway": "test", "reference": "ref-1"}
            if outcome == "declined":
                answer["code"] = "card_declined"
            requests = await shop.settle(requests, answer) + await shop.advance()

    return run


@pytest.fixture(scope="session")
def problem() -> Callable[..., Json]:
    """The document of a response, checked for status, code and shape."""

    def told(response: httpx.Response, status: int, code: str = "") -> Json:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        document: Json = response.json()
        assert document["status"] == status
        assert document["title"]
        assert document["instance"] == response.request.url.path
        assert document["type"] == (f"/problems/{code}" if code else "about:blank")
        assert document.get("code", "") == code
        return document

    return told


@pytest.fixture
def listed(api: httpx.AsyncClient) -> Callable[..., Awaitable[list[Json]]]:
    """The data of the list at a path with some parameters, checked for its shape."""

    async def fetch(path: str, **parameters: Any) -> list[Json]:
        response = await api.get(path, params=parameters)
        assert response.status_code == 200, response.text
        page = response.json()
        assert page.keys() == {"data", "count", "limit", "offset", "next"}
        assert page["limit"] == int(parameters.get("limit", 100))
        assert page["offset"] == int(parameters.get("offset", 0))
        assert page["count"] >= len(page["data"])
        data: list[Json] = page["data"]
        return data

    return fetch
