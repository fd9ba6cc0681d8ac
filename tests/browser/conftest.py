"""A busy shop, the API in front of it on a socket, and Chromium in front of that.

Debian's Chromium is driven where it is installed; DARKPEARL_TEST_CHROMIUM names another.
"""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from server import SECRET, served
from shop import APPROVED, DECLINED, PENDING, Shop
from windows import STEADY_SECONDS, Window

from darkpearl.config import Settings

CHROMIUM = os.environ.get("DARKPEARL_TEST_CHROMIUM") or shutil.which("chromium") or ""
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
try:
    import axe_playwright_python  # noqa: F401
    from playwright.async_api import Browser, async_playwright, expect
except ImportError:
    WHY = "playwright and axe-playwright-python are not installed (the extra dev has them)"
else:
    WHY = "" if CHROMIUM else "there is no Chromium (apt-get install chromium)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser the tests that need one are left out, with one line that says why."""
    here = Path(__file__).parent
    for item in items:
        if WHY and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(scope="session")
async def browser() -> "AsyncIterator[Browser]":
    """One Chromium for the session."""
    expect.set_options(timeout=STEADY_SECONDS * 1000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def address(database_url: str) -> Iterator[str]:
    """Where the page is served."""
    settings = Settings(host="127.0.0.1", port=0, pool_size=8, jwt_secret=SECRET)
    with served(database_url, settings) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
async def window(
    browser: "Browser", address: str
) -> AsyncIterator[Callable[..., Awaitable[Window]]]:
    """Opens windows; at the end their consoles are empty, and they have asked nobody else."""
    async with AsyncExitStack() as stack:
        windows = []

        async def opened(*, noisy: bool = False, **options: Any) -> Window:
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            page = await context.new_page()
            page.set_default_timeout(STEADY_SECONDS * 1000)
            made = Window(page, address)
            if not noisy:
                windows.append(made)
            return made

        yield opened
        for each in windows:
            assert each.console == []
            assert each.elsewhere == []


HEARTBEAT = "select report_listener(new_id(), %s, %s, '1.0', 'stripe', %s, 'idle', 3)"


class Busy:
    """What there is to be seen in the shop."""

    fulfilled: UUID
    stuck: UUID
    declined: UUID
    waiting: UUID
    saga_of_refund: UUID


@pytest.fixture
async def busy(shop: Shop) -> Busy:
    """A shop where a bit of everything has happened."""
    busy = Busy()
    shop.audited = False  # some orders are left in the middle
    await shop.turn_clock(-180)
    async with shop.acting_as("darkpearl_listener"):
        await shop.run(HEARTBEAT, "warehouse-2", 4711, "open")
    pearls = await shop.product("24.90", on_hand=120, sku="PEARL-S", name="Pearl, small")
    rings = await shop.product("1249.00", on_hand=4, sku="RING-18", name="Ring, 18 carat")
    for count in (1, 2, 3):
        busy.fulfilled = await shop.fulfilled((pearls, count), (rings, 1))
    await shop.take_back(busy.fulfilled, (pearls, 1))
    busy.saga_of_refund = (await shop.refund(busy.fulfilled, Decimal("24.90")))["id"]
    await shop.settle(await shop.advance(), APPROVED)
    busy.declined = await shop.order((pearls, 2), p_customer_id="mallory")
    await shop.settle(await shop.advance(), DECLINED)
    busy.waiting = await shop.order((pearls, 4), p_customer_id="grace")
    await shop.settle(await shop.advance(), PENDING)
    stuck = [await shop.order((pearls, 1), p_customer_id=f"customer {n}") for n in range(3)]
    await shop.poison("request_payment", *stuck, sqlstate="42703")
    for _ in stuck:  # a batch comes apart, one after the other
        await shop.advance()
    await shop.cure("request_payment")
    busy.stuck = stuck[0]
    await shop.told("nobody:charge", {"outcome": "approved", "reference": "ch_x"}, "evt_lost")
    await shop.turn_clock(180)
    async with shop.acting_as("darkpearl_listener"):
        await shop.run(HEARTBEAT, "warehouse-1", 1512, "closed")
    await shop.run("select fill_step_minutes(60)")
    await shop.run("select run_audit()")
    async with shop.acting_as("service_role"):
        await shop.run("select pause_external_steps(600, 'the gateway is being moved')")
    return busy
