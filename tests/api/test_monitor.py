"""The page at /monitor, without a browser: who may see it, what may run on it, what it costs."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from server import SECRET, served
from shop import Shop

from darkpearl.api import tokens
from darkpearl.api.access import Caller
from darkpearl.config import Settings

Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
def address(database_url: str) -> Iterator[str]:
    """Where the page is served: a stream wants a socket."""
    settings = Settings(host="127.0.0.1", port=0, pool_size=8, jwt_secret=SECRET)
    with served(database_url, settings) as (host, port):
        yield f"http://{host}:{port}"


def token(role: tokens.Role) -> str:
    """A token of the API."""
    return tokens.mint(Settings(jwt_secret=SECRET), role, "ada", 600)


async def test_nothing_but_the_page_itself_may_run(address: str) -> None:
    """The policy of the page allows its own scripts and styles, and no others, nor any eval."""
    async with httpx.AsyncClient(base_url=address) as client:
        for path in ("/monitor", "/monitor/orders"):
            policy = (await client.get(path)).headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
            assert "unsafe" not in policy
        for path in ("/monitor/live/orders", "/monitor/act/retry_saga"):
            assert (await client.get(path)).status_code == 401


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_the_page_is_for_staff(client: Client, role: str) -> None:
    """Customers and visitors open no screen and no dialog."""
    outsider = client(role, "mallory")
    for path in ("/monitor/live", "/monitor/live/orders", "/monitor/act/retry_saga?id=1"):
        answer = await outsider.get(path)
        assert answer.status_code == 403
        assert answer.headers["content-type"].startswith("text/html")


async def test_who_only_reads_is_refused_every_action(client: Client, shop: Shop) -> None:
    """Neither the dialog nor what it would do; nor does the database let that role."""
    order = await shop.order((shop.products[0], 1))
    reader = client("darkpearl_reader", "ada")
    asked = {"id": str(order), "reason": "why not"}
    assert (await reader.get("/monitor/act/cancel_order", params=asked)).status_code == 403
    assert (await reader.post("/monitor/act/cancel_order", data=asked)).status_code == 403
    assert (await reader.delete(f"/orders/{order}")).status_code == 403
    assert await shop.order_status(order) == "pending"


async def test_an_action_wants_a_reason(client: Client, shop: Shop) -> None:
    """Without one nothing is done, and the dialog comes back and says so."""
    order = await shop.order((shop.products[0], 1))
    told = await client("service_role", "ada").post(
        "/monitor/act/cancel_order", data={"id": str(order), "reason": " "}
    )
    assert told.status_code == 400
    assert "A reason is needed" in told.text
    assert await shop.value("select not cancel_requested from sagas where id = %s", order)


async def streaming(client: httpx.AsyncClient, path: str, arrived: asyncio.Event) -> None:
    """Look at a screen, until told to stop."""
    async with client.stream("GET", path) as response:
        assert response.status_code == 200
        async for _ in response.aiter_lines():
            arrived.set()


@pytest.mark.parametrize("viewers", [1, 50])
async def test_fifty_viewers_cost_what_one_does(
    address: str, shop: Shop, monkeypatch: pytest.MonkeyPatch, viewers: int
) -> None:
    """All screens that are looked at are one statement a second, and none when nobody looks."""
    product = await shop.product(on_hand=3)
    screens = ("", "/orders", "/stuck", f"/stock/{product}/{shop.lisbon}", "/listeners")
    asked: list[str] = []
    find = Caller.find

    async def counted(self: Any, kind: Any, *statements: Any) -> Any:
        asked.append(statements[-1][0])
        return await find(self, kind, *statements)

    monkeypatch.setattr("darkpearl.api.access.Caller.find", counted)
    limits = httpx.Limits(max_connections=100)
    bearer = {"Authorization": f"Bearer {token('service_role')}"}
    async with httpx.AsyncClient(
        base_url=address, headers=bearer, limits=limits, timeout=20
    ) as client:
        arrived = [asyncio.Event() for _ in range(viewers)]
        tasks = [
            asyncio.create_task(streaming(client, f"/monitor/live{screens[n % 5]}", each))
            for n, each in enumerate(arrived)
        ]
        await asyncio.gather(*(each.wait() for each in arrived))
        asked.clear()
        await asyncio.sleep(3)  # what is measured is time
        while_looking = list(asked)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert 1 <= len(while_looking) <= 4  # fewer when the machine is slow
    assert {query.count("monitor_") for query in while_looking} == {1 + min(viewers, 5)}
    await asyncio.sleep(1.5)
    asked.clear()
    await asyncio.sleep(1.5)
    assert asked == []
