"""States that a screen can be in: empty, loading, gone, without a database; and what they cost."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect
from server import SECRET, served
from shop import Shop
from windows import Window

from darkpearl import embedded, schema
from darkpearl.config import Settings

Opened = Callable[..., Awaitable[Window]]
MEMORY = embedded.MEMORY if os.access(embedded.MEMORY, os.W_OK) else None
EMPTY = {
    "overview": ("", "No minute has been counted yet"),
    "orders": ("/orders", "There are no orders yet"),
    "filtered": ("/orders?status=cancelled", "No order is like that"),
    "sagas": ("/sagas", "There are no sagas yet"),
    "stuck": ("/stuck", "Nothing is stuck"),
    "stock": ("/stock", "Nothing runs low"),
    "listeners": ("/listeners", "No listener has been seen"),
    "activity": ("/activity", "Nobody has done anything by hand"),
    "audit": ("/audit", "No audit has been run yet"),
}


@pytest.mark.usefixtures("shop")
async def test_what_is_empty_says_what_would_be_there(window: Opened) -> None:
    """A new shop's screens are drawn, and say what would fill them."""
    opened = await window()
    await opened.sign_in()
    for name, (path, said) in EMPTY.items():
        await opened.open(path)
        await expect(opened.page.locator("#screen")).to_contain_text(said)
        await opened.photograph(f"empty-{name}")
    assert await opened.violations() == []


@pytest.mark.parametrize(
    "path", ["/orders/0190a000-0000-7000-8000-000000000000", "/nowhere", "/orders?before=x"]
)
@pytest.mark.usefixtures("shop")
async def test_what_is_not_there_is_said(window: Opened, path: str) -> None:
    """An address that leads nowhere is answered in words, under the same menu."""
    opened = await window(noisy=True)
    await opened.sign_in(path)
    assert await opened.page.locator(".problem").is_visible()
    await opened.photograph("problem")


async def test_what_somebody_wrote_is_shown_and_never_run(window: Opened, shop: Shop) -> None:
    """Names, reasons and messages are text, whatever they look like."""
    evil = "<img src=x onerror=alert(1)><hx-partial hx-target=body>"
    product = await shop.product(on_hand=9, name=evil)
    order = await shop.order((product, 1), p_customer_id="'\"><script>alert(2)</script>")
    opened = await window()
    await opened.sign_in(f"/orders/{order}")
    assert evil in await opened.text()
    assert await opened.page.locator("#screen img, #screen script").count() == 0


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for a server of its own, in memory where there is some."""
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=MEMORY) as folder:
        Path(folder).chmod(0o711)  # for root's `nobody`
        yield Path(folder)


async def test_a_restart_of_the_database_is_waited_for(browser: Any, home: Path) -> None:
    """What was seen stays and says so; a screen that is opened meanwhile comes by itself."""
    server = await asyncio.to_thread(embedded.start, home, embedded.UNSAFE)
    again = {**embedded.UNSAFE, "port": str(server.port)}
    try:
        await schema.migrate(server.url)
        await schema.seed(server.url)
        settings = Settings(host="127.0.0.1", port=0, pool_size=4, jwt_secret=SECRET)
        with served(server.url, settings) as (host, port):
            context = await browser.new_context()
            opened = Window(await context.new_page(), f"http://{host}:{port}")
            await opened.sign_in("/stock?show=all")
            shelves = await opened.page.locator("tbody tr").count()
            await asyncio.to_thread(embedded.stop, server)
            await expect(opened.page.locator("#state")).to_contain_text(
                "doesn't answer", timeout=20_000
            )
            assert await opened.page.locator("tbody tr").count() == shelves > 0
            await opened.photograph("database-away")
            await opened.open("/orders")
            assert "doesn't answer" in await opened.text()
            await opened.photograph("database-away-opened")
            server = await asyncio.to_thread(embedded.start, home, again)
            await expect(opened.page.locator("#screen")).to_contain_text(
                "There are no orders yet", timeout=20_000
            )
            await expect(opened.page.locator("#state")).not_to_contain_text("doesn't answer")
            await context.close()
    finally:
        embedded.stop(server)
