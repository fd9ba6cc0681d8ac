"""What a person does on the page: signs in, looks, acts, types while it moves."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import expect
from shop import Shop
from windows import Window, token

Opened = Callable[..., Awaitable[Window]]
Until = Callable[..., Awaitable[None]]
PHONE = {"width": 390, "height": 844}


async def test_nothing_is_shown_before_signing_in(window: Opened, shop: Shop) -> None:
    """The page that comes without a token holds no data, asks for one, and can be used by all."""
    await shop.order((await shop.product(on_hand=5), 1), p_customer_id="grace")
    opened = await window(viewport=PHONE)
    await opened.page.goto(f"{opened.address}/monitor/orders")
    await expect(opened.page.locator("#token")).to_be_focused()
    assert "grace" not in await opened.page.content()
    assert not await opened.page.locator("#app").is_visible()
    assert await opened.violations() == []
    await opened.photograph("sign-in")


@pytest.mark.parametrize(
    ("role", "said"), [("anon", "not allowed"), ("authenticated", "not allowed")]
)
@pytest.mark.usefixtures("busy")
async def test_customers_and_visitors_see_nothing(window: Opened, role: Any, said: str) -> None:
    """A token that isn't staff's opens no screen."""
    opened = await window(noisy=True)
    await opened.sign_in("/orders", role)
    assert said in (await opened.text()).lower()
    assert "mallory" not in await opened.page.content()
    await opened.photograph(f"refused-{role}")


@pytest.mark.usefixtures("shop")
async def test_a_wrong_token_is_told_and_asked_for_again(window: Opened) -> None:
    """Whoever has no valid token is back at the form, which says why."""
    opened = await window(noisy=True)
    await opened.page.goto(f"{opened.address}/monitor")
    await opened.page.fill("#token", "eyJ.no.token")
    await opened.page.click("#token-form button")
    await expect(opened.page.locator("#sign-in-why")).to_contain_text("can't be read")
    assert await opened.page.evaluate("sessionStorage.length") == 0


async def test_a_stuck_saga_is_mended_from_the_page(window: Opened, busy: Any, shop: Shop) -> None:
    """Retrying asks for a reason, says in whose name it is kept, and the screen follows."""
    opened = await window()
    page = opened.page
    await opened.sign_in(f"/orders/{busy.stuck}")
    await page.click("text=Retry")
    await expect(page.locator("#dialog textarea")).to_be_focused()
    await opened.photograph("dialog")
    assert await opened.violations() == []
    await page.fill("#dialog textarea", "the column is back")
    await page.click("#dialog .primary")
    await expect(page.locator("#toast")).to_contain_text("done")
    await expect(page.locator("#dialog")).not_to_be_visible()
    await expect(page.locator(".timeline")).to_contain_text("the column is back")
    actor = await shop.value("select actor from action_log where action = 'retry_saga'")
    assert actor == "ada"


@pytest.mark.usefixtures("busy")
async def test_a_listener_that_is_gone_is_dismissed(window: Opened, shop: Shop) -> None:
    """Only one that is silent has the button; it goes from the list, and who said why is kept."""
    async with shop.acting_as("darkpearl_listener"):
        report = "select report_listener(new_id(), 'warehouse-3', 9, '1', 'stripe', %s, 'idle', 3)"
        await shop.run(report, "closed")
    opened = await window()
    page = opened.page
    await opened.sign_in("/listeners")
    gone = page.locator("#screen tr", has_text="warehouse-2")
    await expect(page.locator("#screen tr", has_text="warehouse-3")).to_contain_text("alive")
    assert await page.locator("#screen tr", has_text="warehouse-3").locator("button").count() == 0
    await gone.locator("button").click()
    await expect(page.locator("#dialog .subject")).to_contain_text("warehouse-2 4711")
    await page.fill("#dialog textarea", "replaced by warehouse-3")
    await page.click("#dialog .primary")
    await expect(page.locator("#toast")).to_contain_text("done")
    await expect(gone).to_have_count(0)
    said = await shop.row("select actor, reason from action_log where action = 'dismiss_listener'")
    assert said == {"actor": "ada", "reason": "replaced by warehouse-3"}


async def test_what_the_database_refuses_is_told_where_it_was_asked(
    window: Opened, busy: Any, shop: Shop
) -> None:
    """A refusal stands in the dialog, with the way out, and what was typed stays."""
    opened = await window(noisy=True)
    page = opened.page
    await opened.sign_in(f"/orders/{busy.stuck}")
    await page.click("text=Retry")
    await page.fill("#dialog textarea", "a good reason")
    await shop.run("select retry_saga(%s, 'somebody was faster')", busy.stuck)
    await page.click("#dialog .primary")
    await expect(page.locator("#dialog .error")).to_contain_text("stuck")
    assert await page.input_value("#dialog textarea") == "a good reason"
    await opened.photograph("dialog-refused")


async def test_who_may_only_look_is_offered_nothing_to_do(window: Opened, busy: Any) -> None:
    """A token of darkpearl_reader sees all screens and no button; the server refuses it anyway."""
    opened = await window(noisy=True)
    await opened.sign_in("/stuck", "darkpearl_reader")
    await expect(opened.page.locator(".readonly")).to_be_visible()
    assert await opened.page.locator("main button.act, main [name=chosen]").count() == 0
    await opened.photograph("read-only")
    await opened.open("/listeners")
    await expect(opened.page.locator("#screen")).to_contain_text("silent")
    assert await opened.page.locator("main button.act").count() == 0
    answer = await opened.page.request.post(
        f"{opened.address}/monitor/act/retry_saga",
        headers={"Authorization": f"Bearer {token('darkpearl_reader')}"},
        form={"id": str(busy.stuck), "reason": "why not"},
    )
    assert answer.status == 403


@pytest.mark.usefixtures("busy")
async def test_an_update_takes_neither_focus_nor_text(window: Opened, shop: Shop) -> None:
    """While somebody types a search and the list moves, every letter stays where it was typed."""
    opened = await window()
    page = opened.page
    await opened.sign_in("/orders")
    await page.keyboard.press("/")
    await page.keyboard.type("gra", delay=20)
    fresh = await shop.order((shop.products[0], 1), p_customer_id="brand new")
    await page.wait_for_selector(f"#o{fresh}")
    await expect(page.locator("#search")).to_be_focused()
    await page.keyboard.type("ce")
    assert await page.input_value("#search") == "grace"
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/monitor/orders?search=grace")
    await expect(page.locator("table.rows tbody tr")).to_have_count(1)
    await expect(page.locator("#search")).to_be_focused()


async def test_a_dialog_is_not_touched_by_updates(window: Opened, busy: Any, shop: Shop) -> None:
    """What is typed into a reason stays while the screen under it changes."""
    opened = await window()
    page = opened.page
    await opened.sign_in(f"/orders/{busy.waiting}")
    await page.click("text=Cancel order")
    await expect(page.locator("#dialog textarea")).to_be_focused()
    await page.keyboard.type("the customer", delay=20)
    await shop.cancel(busy.waiting)
    await expect(page.locator("#screen .standing")).to_contain_text("cancelling asked for")
    await page.keyboard.type(" called")
    assert await page.input_value("#dialog textarea") == "the customer called"


@pytest.mark.usefixtures("busy")
async def test_filters_are_in_the_address(window: Opened) -> None:
    """A link holds every filter: whoever opens it, or goes back, sees the same."""
    opened = await window()
    page = opened.page
    await opened.sign_in("/orders")
    await page.select_option("[name=status]", "cancelled")
    await page.wait_for_url("**/monitor/orders?status=cancelled")
    await expect(page.locator("table.rows tbody tr")).to_have_count(1)
    await page.go_back()
    await expect(page.locator("table.rows tbody tr")).to_have_count(8)
    await opened.open("/orders?status=cancelled&warehouse=LIS")
    await expect(page.locator("table.rows tbody tr")).to_have_count(1)
    assert await page.input_value("[name=status]") == "cancelled"
    assert await page.input_value("[name=warehouse]") == "LIS"


@pytest.mark.usefixtures("busy")
async def test_the_keyboard_is_enough(window: Opened) -> None:
    """Menu, rows, choosing and help, without a mouse."""
    opened = await window()
    page = opened.page
    await opened.sign_in()
    await page.keyboard.press("?")
    await expect(page.locator("#help")).to_be_visible()
    await opened.photograph("keyboard")
    await page.keyboard.press("Escape")
    await page.keyboard.press("4")
    await page.wait_for_url("**/monitor/stuck")
    await page.wait_for_selector("[name=chosen]")
    for key in "jjxjx":
        await page.keyboard.press(key)
    await expect(page.locator("[data-count]")).to_have_text("2 chosen")
    await opened.photograph("chosen")
    await page.keyboard.press("k")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/monitor/sagas/*")


@pytest.mark.usefixtures("busy")
async def test_many_are_mended_at_once_and_counted_before(window: Opened, shop: Shop) -> None:
    """All of a cause: how many and how much money is said first, the batch's progress after."""
    opened = await window()
    page = opened.page
    await opened.sign_in("/stuck")
    await page.click("text=Retry all")
    await expect(page.locator("#dialog .preview")).to_contain_text("74.70")
    await opened.photograph("bulk")
    assert await opened.violations() == []
    await page.fill("#dialog textarea", "the column is back")
    await page.click("#dialog .primary")
    await page.click("#toast a")
    await expect(page.locator("#screen")).to_contain_text("the column is back")
    assert await shop.value("select total from batches") == 3
    await opened.photograph("batch")


@pytest.mark.usefixtures("busy")
async def test_more_than_a_hundred_want_their_number_typed(window: Opened, shop: Shop) -> None:
    """A large batch isn't started by a click: its size is typed, and a wrong one is refused."""
    await shop.run(
        "insert into gateway_events (gateway, event_id, answer, disposition)"
        " select 'mock', 'evt_' || n, '{}', 'unmatched' from generate_series(1, 120) as n"
    )
    opened = await window(noisy=True)
    page = opened.page
    await opened.sign_in("/listeners")
    await page.click("text=Acknowledge all")
    await page.fill("#dialog textarea", "all are of the old shop")
    await page.fill("#dialog [name=typed]", "12")
    await page.click("#dialog .primary")
    await expect(page.locator("#dialog .error")).to_contain_text("Type 121")
    await page.fill("#dialog [name=typed]", "121")
    await page.click("#dialog .primary")
    await expect(page.locator("#toast")).to_contain_text("done")
    assert await shop.value("select total from batches") == 121
