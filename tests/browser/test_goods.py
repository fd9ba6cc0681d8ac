"""Goods and money, moved from the page: forms that say what is there, and are sent once."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import expect
from shop import APPROVED, Shop
from windows import Window, token

Opened = Callable[..., Awaitable[Window]]
LOOKS: list[dict[str, Any]] = [
    {"color_scheme": "light"},
    {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
]


async def done(opened: Window, *, twice: bool = False) -> None:
    """Send the dialog, perhaps by a double click, and wait until it was."""
    page = opened.page
    button = page.locator("#dialog .primary, #dialog .buttons .danger")
    await (button.dblclick() if twice else button.click())
    await expect(page.locator("#toast")).to_contain_text("done")
    await expect(page.locator("#dialog")).not_to_be_visible()


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
async def test_a_shelf_is_seen_to_from_the_page(
    window: Opened, shop: Shop, look: dict[str, Any]
) -> None:
    """Units come, are counted and written off, each with its reason; a double click is one."""
    product = await shop.product(on_hand=10, sku="PEARL-S")
    opened = await window(**look)
    page = opened.page
    await opened.sign_in(f"/stock/{product}/{shop.lisbon}")
    await page.click("text=Receive")
    await expect(page.locator("#dialog")).to_contain_text("10 on hand, 0 reserved")
    await page.fill("#dialog [name=units]", "5")
    await page.fill("#dialog textarea", "a delivery")
    await opened.photograph(f"receive-{look['color_scheme']}")
    assert await opened.violations() == []
    await done(opened, twice=True)
    await expect(page.locator("#ledger ~ .scroll")).to_contain_text("a delivery")
    assert await shop.stock(product) == (15, 0)

    await page.click("text=Count")
    await page.fill("#dialog [name=units]", "14")
    await page.fill("#dialog textarea", "stock-take")
    await done(opened)
    await expect(page.locator(".tiles")).to_contain_text("14")

    await page.click("text=Adjust")
    await page.fill("#dialog [name=units]", "-2")
    await page.select_option("#dialog [name=reason_code]", "damaged")
    await page.fill("#dialog textarea", "fell down")
    await opened.photograph(f"adjust-{look['color_scheme']}")
    assert await opened.violations() == []
    await done(opened, twice=True)
    assert await shop.stock(product) == (12, 0)
    last = "select quantity, notes, actor, reason_code from stock_ledger order by id desc limit 1"
    assert tuple((await shop.row(last)).values()) == (-2, "fell down", "ada", "damaged")


async def test_a_count_of_a_shelf_that_has_changed_is_refused(window: Opened, shop: Shop) -> None:
    """Whoever counted beside a sale is told, and nothing is written off."""
    product = await shop.product(on_hand=10)
    opened = await window(noisy=True)
    page = opened.page
    await opened.sign_in(f"/stock/{product}/{shop.lisbon}")
    await page.click("text=Count")
    await page.fill("#dialog [name=units]", "9")
    await page.fill("#dialog textarea", "stock-take")
    await shop.receive(product, 3)
    await page.click("#dialog .primary")
    await expect(page.locator("#dialog .error")).to_be_visible()
    assert await shop.stock(product) == (13, 0)


async def test_money_goes_back_from_the_page(window: Opened, shop: Shop) -> None:
    """A refund offers what is left, takes a part of it, and a double click is one."""
    order = await shop.fulfilled((await shop.product("24.90", on_hand=3), 2))
    opened = await window()
    page = opened.page
    await opened.sign_in(f"/orders/{order}")
    await page.click("text=Refund")
    await expect(page.locator("#dialog [name=amount]")).to_have_value("49.80")
    await page.fill("#dialog [name=amount]", "4.90")
    await page.fill("#dialog textarea", "a scratch")
    await opened.photograph("refund")
    assert await opened.violations() == []
    await done(opened, twice=True)
    await expect(page.locator("#screen .refund")).to_contain_text("a scratch")
    assert await shop.values("select amount::text from refunds") == ["4.90"]
    await page.click(".title >> text=Refund")
    await expect(page.locator("#dialog [name=amount]")).to_have_value("44.90")


async def test_a_parcel_is_sent_from_the_page(window: Opened, shop: Shop) -> None:
    """Lines that are left are offered; a part leaves, with its tracking number, then the rest."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    pearls = await shop.product(on_hand=5, sku="PEARL-S")
    rings = await shop.product(on_hand=5, sku="RING-18")
    order = await shop.order((pearls, 2), (rings, 1))
    await shop.settle(await shop.advance(), APPROVED)
    opened = await window()
    page = opened.page
    await opened.sign_in(f"/orders/{order}")
    await page.click("text=Send a parcel")
    await page.get_by_label("RING-18").fill("0")
    await page.fill("#dialog [name=carrier]", "CTT")
    await page.fill("#dialog [name=number]", "PT1")
    await opened.photograph("parcel")
    assert await opened.violations() == []
    await done(opened, twice=True)
    await expect(page.locator("#screen")).to_contain_text("PT1")
    assert await shop.value("select count(*) from shipments") == 1
    await shop.advance()
    await page.click("text=Send a parcel")
    await expect(page.get_by_label("RING-18")).to_have_value("1")
    await expect(page.get_by_label("PEARL-S")).to_have_count(0)
    await done(opened)
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    await expect(page.locator("main button.act", has_text="Send a parcel")).to_have_count(0)


async def test_who_may_only_look_moves_nothing(window: Opened, shop: Shop) -> None:
    """A token of darkpearl_reader is offered no form, and the server refuses it anyway."""
    product = await shop.product(on_hand=3)
    order = await shop.fulfilled((product, 1))
    opened = await window(noisy=True)
    for path in (f"/stock/{product}/{shop.lisbon}", f"/orders/{order}"):
        await opened.sign_in(path, "darkpearl_reader")
        await expect(opened.page.locator(".readonly")).to_be_visible()
        assert await opened.page.locator("main button.act").count() == 0
        await opened.page.evaluate("sessionStorage.clear()")
    asked = {"product": str(product), "warehouse": str(shop.lisbon), "units": "5", "reason": "x"}
    answer = await opened.page.request.post(
        f"{opened.address}/monitor/act/receive_stock",
        headers={"Authorization": f"Bearer {token('darkpearl_reader')}"},
        form={**asked, "operation": str(order)},
    )
    assert answer.status == 403
    assert await shop.stock(product) == (2, 0)


async def test_how_long_a_step_takes_is_drawn(window: Opened, shop: Shop) -> None:
    """The overview has a chart of the slowest step by the minute, and of the one that is chosen."""
    await shop.turn_clock(-240)
    product = await shop.product(on_hand=9)
    for _ in range(3):
        await shop.order((product, 1))
        requests = await shop.advance()
        await shop.turn_clock(2)
        await shop.settle(requests, APPROVED)
        await shop.turn_clock(58)
    await shop.turn_clock(60)
    await shop.run("select fill_step_minutes(60)")
    opened = await window()
    page = opened.page
    await opened.sign_in()
    await expect(page.locator("#durations")).to_contain_text("process payment")
    await expect(page.locator("[aria-labelledby=durations] dp-chart canvas")).to_be_visible()
    await page.click("#steps ~ .scroll >> text=reserve stock")
    await page.wait_for_url("**/monitor?step=reserve_stock")
    await expect(page.locator("#durations")).to_contain_text("reserve stock")
    assert await opened.violations() == []
    await opened.photograph("durations")
