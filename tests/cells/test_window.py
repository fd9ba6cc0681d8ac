"""The page over cells in a real browser: the picker, what keeps a cell, and all of them at once."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import httpx
import pytest
from shop import Shop
from windows import STEADY_SECONDS, Window

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("DARKPEARL_TEST_CHROMIUM") or shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
Pair = tuple[Shop, Shop]


@pytest.fixture
async def window(api: httpx.AsyncClient) -> AsyncIterator[Window]:
    """A window of a Chromium, whose console is empty at the end."""
    async with playwright.async_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = await (await browser.new_context(reduced_motion="reduce")).new_page()
        page.set_default_timeout(STEADY_SECONDS * 1000)
        window = Window(page, str(api.base_url).rstrip("/"))
        yield window
        assert (window.console, window.elsewhere) == ([], [])
        await browser.close()


async def ordered(pair: Pair, until: Callable[..., Awaitable[None]]) -> UUID:
    """An order of north."""
    here, there = pair
    product = await here.product(sku="RING", name="Ring")

    async def is_known() -> bool:
        return await there.value("select count(*) from products where id = %s", product) == 1

    await until(is_known)
    await there.receive(product, 10, there.rotterdam)
    return await there.order((product, 1), warehouse=there.rotterdam)


async def test_a_person_goes_from_cell_to_cell(
    pair: Pair, window: Window, until: Callable[..., Awaitable[None]]
) -> None:
    """The cell that was picked stays, by the menu, filters, rows and actions; axe finds nothing."""
    _, there = pair
    order = await ordered(pair, until)
    number = await there.value("select order_number from orders where id = %s", order)
    page = window.page
    picked = "#state nav.cells [aria-current]"
    await window.sign_in("/cells")
    assert await window.text(picked) == "All cells"
    await window.photograph("cells")
    wrong = await window.violations()
    await page.click("#screen a:text('north')")
    await page.wait_for_url("**/monitor?cell=2")
    await window.settled()
    await page.wait_for_selector(f"{picked}:text('north')")
    for section in ("orders", "sagas", "stuck", "stock", "listeners", "activity", "audit"):
        await page.click(f"nav [data-section={section}]")
        await page.wait_for_url(f"**/monitor/{section}?cell=2")
        await window.settled(f'[hx-sse\\:connect="/monitor/live/{section}?cell=2"]')
        await window.photograph(f"cells-{section}")
        wrong += await window.violations()
    await page.click("nav [data-section=orders]")
    await page.select_option("[name=status]", "pending")
    await page.wait_for_url("**/monitor/orders?cell=2&status=pending")
    await page.click(f"#screen a:text('#{number}')")
    await page.wait_for_url(f"**/monitor/orders/{order}?cell=2")
    await page.click("button:text('Cancel order')")
    await page.fill("#dialog textarea", "the customer asks for it")
    wrong += await window.violations()
    await page.click("#dialog button.danger")
    await page.wait_for_selector("#toast .done")
    assert await there.value("select cancel_requested from sagas where id = %s", order)
    await page.click("#state nav.cells a:text('home')")
    await page.wait_for_url("**/monitor/orders?cell=1")
    await page.fill("#search", str(number))
    await page.press("#search", "Enter")
    await page.wait_for_url("**/monitor/orders?*search=*")
    await page.wait_for_selector("#screen tbody a")
    assert wrong == []
