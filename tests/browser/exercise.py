"""Ten troubles, as whoever runs the shop meets them: `make exercise`.

Each is made to happen to a shop that is really run, found by its line of `darkpearl doctor`, seen
on the page, and mended from there: by a button, or by the command that the doctor names; without
SQL, which is for who makes the trouble. At the end of each all is well again, and an order comes
through.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from exercised import (
    KEYBOARD,
    MOUSE,
    ROTTERDAM,
    SECRET,
    Exercised,
    full,
    small_disk,
    until,
)
from playwright.async_api import expect
from server import served
from windows import Window, token

from darkpearl import embedded, schema
from darkpearl.gateways.http import SIGNATURE_HEADER, sign

MEMORY = embedded.MEMORY if os.access(embedded.MEMORY, os.W_OK) else None
SEEN_MS = 30_000
HERE = socket.gethostname()
Opened = Callable[..., Awaitable[Window]]


@pytest.fixture(scope="module")
def disk() -> Iterator[tuple[Path, bool]]:
    """Where the database is, and whether that is a disk of its own."""
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=MEMORY) as folder:
        Path(folder).chmod(0o711)  # for root's `nobody`
        with small_disk(Path(folder)) as is_small:
            yield Path(folder), is_small


@pytest.fixture(scope="module")
async def site(
    disk: tuple[Path, bool], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Exercised]:
    """The shop with its demo data, two listeners and an API, all of which are well."""
    server = await asyncio.to_thread(embedded.start, disk[0] / "home")
    try:
        await schema.migrate(server.url)
        await schema.seed(server.url)
        async with httpx.AsyncClient(timeout=30) as client:
            client.headers["Authorization"] = f"Bearer {token(subject='ada', seconds=3600)}"
            site = Exercised(server, tmp_path_factory.mktemp("gateway"), client)
            with served(server.url, site.of_the_api()) as (host, port):
                client.base_url = httpx.URL(f"http://{host}:{port}")
                async with site.running():
                    await site.become("fulfilled", await site.order())
                    yield site
    finally:
        embedded.stop(server)


@pytest.fixture
def address(site: Exercised) -> str:
    """Where the page is served."""
    return str(site.api.base_url)


@pytest.fixture
async def page(window: Opened) -> Window:
    """The page, signed in as staff."""
    return await (await window()).sign_in()


@pytest.fixture(autouse=True)
async def _well(site: Exercised, page: Window) -> AsyncIterator[None]:
    """Before and after each trouble all is well, on the page and in an order."""
    await sees(page, "", "All well", at="#state")
    yield
    await sees(page, "", "All well", at="#state")
    await site.become("fulfilled", await site.order())


async def sees(page: Window, path: str, *texts: str, at: str = "#screen") -> None:
    """Open a screen and find it said there."""
    await page.open(path)
    for text in texts:
        await expect(page.page.locator(at)).to_contain_text(text, timeout=SEEN_MS)


async def acts(page: Window, button: str, reason: str) -> None:
    """Click a button of the screen, say why, and confirm."""
    await page.page.locator("#screen button.act", has_text=button).first.click()
    await page.page.fill("#dialog textarea", reason)
    await page.page.click("#dialog form button:not([data-close])")
    await expect(page.page.locator("#toast")).to_contain_text("done")


async def finds(site: Exercised, check: str, state: str, words: str) -> dict[str, Any]:
    """Ask the doctor until its line says so."""
    found: dict[str, Any] = {}

    async def said() -> bool:
        found.update(await site.doctor(check))
        return found["state"] == state and words in found["says"]

    await until(said, found)
    sys.stdout.write(f"\n{state:4}  {check}  {found['says']}")
    return found


async def is_well(site: Exercised, check: str) -> None:
    """The doctor has nothing to say of it any more."""
    await finds(site, check, "ok", "")


async def test_the_gateway_is_down(site: Exercised, page: Window) -> None:
    """Every listener's breaker opens; once it is up again, all goes on by itself."""
    site.gateway.send(signal.SIGTERM)
    orders = []

    async def nobody_is_answered() -> bool:
        orders.append(await site.order())
        return "answers none of 2" in (await site.doctor("listener-gateways"))["says"]

    await until(nobody_is_answered)
    await finds(site, "listener-gateways", "fail", "the gateway answers none of 2 listeners")
    await finds(site, "gateway", "fail", "http doesn't answer")
    await site.tells("darkpearl_listener_breakers_open", 2)
    await sees(page, "", "A gateway fails", at="#state")
    await sees(page, "", "2 listeners can't reach their gateway")
    await page.photograph("exercise-gateway-down")
    await site.start_gateway()
    await site.become("fulfilled", *orders)
    await is_well(site, "gateway")


async def test_one_listener_has_wrong_settings(site: Exercised, page: Window) -> None:
    """The gateway answers the others: page and doctor name the process, which is started anew."""
    lost = site.start_listener(DARKPEARL_GATEWAY_URL="http://127.0.0.1:9")
    orders = []

    async def is_not_answered() -> bool:
        orders.extend([await site.order() for _ in range(5)])
        return (await site.doctor("listener-gateways"))["state"] == "fail"

    await until(is_not_answered)
    await finds(site, "listener-gateways", "fail", f"answer {HERE} {lost.pid}, but others")
    await site.tells("darkpearl_listener_breakers_open", 1)
    await sees(page, "", "1 listener can't reach its gateway")
    await sees(page, "/listeners", str(lost.pid))
    row = page.page.locator("#screen tr", has_text=str(lost.pid))
    await expect(row).to_contain_text(re.compile("open"))
    await page.photograph("exercise-wrong-settings")
    lost.send(signal.SIGTERM)
    await is_well(site, "listener-gateways")
    await site.become("fulfilled", *orders)


async def test_a_listener_dies(site: Exercised, page: Window) -> None:
    """It is silent; another is started in its place, and it is dismissed on the page."""
    dead = site.start_listener()
    await finds(site, "listeners", "ok", f"{HERE} {dead.pid}")
    dead.send(signal.SIGKILL)
    line = await finds(site, "silent-listeners", "warn", f"{HERE} {dead.pid}")
    assert "darkpearl listeners dismiss" in line["mend"]
    await site.tells("darkpearl_listeners_silent", 1)
    await sees(page, "/listeners", "A listener is silent", at="#state")
    row = page.page.locator("#screen tr", has_text=str(dead.pid))
    await expect(row).to_contain_text("silent")
    assert await page.violations() == []
    await page.photograph("exercise-dead-listener")
    await acts(page, "Dismiss", "its machine is gone")
    await is_well(site, "silent-listeners")


async def test_a_listener_freezes(site: Exercised, page: Window) -> None:
    """It is silent too, and still there: its process is ended by what the doctor says."""
    frozen = site.start_listener()
    await finds(site, "listeners", "ok", f"{HERE} {frozen.pid}")
    frozen.send(signal.SIGSTOP)
    line = await finds(site, "silent-listeners", "warn", f"{HERE} {frozen.pid}")
    await sees(page, "/listeners", "A listener is silent", at="#state")
    await expect(page.page.locator("#screen")).to_contain_text("is frozen")
    assert f"kill -9 {frozen.pid} on {HERE}" in line["mend"]
    await site.tells("darkpearl_listeners_silent", 1)
    frozen.send(signal.SIGKILL)
    await site.follow(line["mend"], "it was frozen")
    await is_well(site, "silent-listeners")


async def test_a_shelf_is_locked(site: Exercised, page: Window) -> None:
    """Somebody's session holds it: whose it is is told, and the command that ends it."""
    with contextlib.suppress(psycopg.errors.AdminShutdown), site.session() as console:
        console.execute("begin")
        console.execute("select from inventory where product_id = %s for update", [KEYBOARD])
        order = await site.order(KEYBOARD)
        pid = console.info.backend_pid
        line = await finds(site, "blocking", "fail", f"pid {pid} (")
        await site.tells("darkpearl_sessions_blocking", 1)
        await sees(page, "/listeners", "Blocked", at="#state")
        await sees(page, "/listeners", f"Session {pid}", f"darkpearl db end-session {pid}")
        await page.photograph("exercise-locked-shelf")
        await site.become("fulfilled", await site.order(MOUSE))  # nobody else's trouble
        await site.follow(line["mend"])
    await site.become("fulfilled", order)
    await is_well(site, "blocking")


async def test_a_trigger_raises_for_a_product(site: Exercised, page: Window) -> None:
    """Its orders are stuck, told by cause; the cause is mended by the API, the rest by a button."""
    with site.session() as console:
        console.execute(
            "create function check_customs() returns trigger language plpgsql as $$ begin"
            " if (select p.metadata ->> 'customs_code' from darkpearl.products as p"
            " where p.id = new.product_id) is null then raise 'no customs code'; end if;"
            " return new; end $$"
        )
        console.execute(
            "create trigger customs before update on inventory for each row"
            f" when (new.product_id = '{KEYBOARD}') execute function check_customs()"
        )
    try:
        orders = [await site.order(KEYBOARD) for _ in range(3)]
        await finds(site, "stuck", "fail", "3 at reserve_stock (no customs code)")
        await site.tells('darkpearl_sagas_stuck{saga_type="order_fulfilment"}', 3)
        await sees(page, "/stuck", "3 stuck", at="#state")
        await sees(page, "/stuck", "no customs code", "P0001")
        await page.photograph("exercise-trigger")
        changed = await site.api.patch(
            f"/products/{KEYBOARD}", json={"metadata": {"customs_code": "8471.60"}}
        )
        assert changed.status_code == 200, changed.text
        await acts(page, "Retry all", "the product has its customs code now")
        await site.become("fulfilled", *orders)
        await is_well(site, "stuck")
    finally:
        with site.session() as console:
            console.execute("drop function check_customs() cascade")


async def test_voids_are_declined(site: Exercised, page: Window) -> None:
    """A cancelled order is stuck with its money: paid back by hand, and taken as done."""
    with site.session() as console:
        console.execute("update step_settings set stuck_seconds = 1, backoff_seconds = 0.2")
    site.gateway.send(signal.SIGTERM)
    await site.start_gateway("--void-decline-rate=1")
    path = f"/warehouses/{ROTTERDAM}"
    await site.api.patch(path, json={"fulfilment_method": "on_shipment"})
    order = await site.order(MOUSE, ROTTERDAM)
    await site.become("paid", order)
    cancelled = await site.api.delete(f"/orders/{order}")
    assert cancelled.status_code == 202, cancelled.text
    await finds(site, "stuck", "fail", "1 at void_payment (")
    await site.tells("darkpearl_sagas_stuck", 1)
    await sees(page, "/stuck", "void payment", "card_declined", "29.90")
    await page.photograph("exercise-declined-void")
    await acts(page, "Take as done", "sent back by bank transfer")
    await site.become("cancelled", order)
    await is_well(site, "stuck")
    site.gateway.send(signal.SIGTERM)
    await site.start_gateway()


async def test_a_webhook_belongs_to_nothing(site: Exercised, page: Window) -> None:
    """It is kept and shown with what it says, and acknowledged by who has looked at it."""
    body = (
        b'{"event_id": "evt_of_the_old_shop", "idempotency_key": "old:process_payment",'
        b' "answer": {"outcome": "approved"}}'
    )
    headers = {
        "Content-Type": "application/json",
        SIGNATURE_HEADER: sign(SECRET, body, time.time()),
    }
    told = await site.api.post("/payments/webhooks/http", content=body, headers=headers)
    assert told.json()["disposition"] == "unmatched", told.text
    line = await finds(site, "unmatched", "warn", "1 of http")
    assert "darkpearl gateway ack" in line["mend"]
    await site.tells("darkpearl_gateway_events_unmatched", 1)
    await sees(page, "", "Unmatched events", at="#state")
    await sees(page, "/listeners", "evt_of_the_old_shop", "old:process_payment")
    await page.photograph("exercise-unmatched")
    await acts(page, "Acknowledge", "of the shop that we had before")
    await is_well(site, "unmatched")


async def test_a_pause_is_forgotten(site: Exercised, page: Window) -> None:
    """No order moves and nothing fails: doctor and page say who and until when, and end it."""
    await site.run("gateway", "pause", 3600, "--reason", "before lunch")
    order = await site.order()
    await finds(site, "pause", "warn", "before lunch")
    await site.tells("darkpearl_external_steps_paused_seconds", 3000)
    await sees(page, "", "Paused", at="#state")
    await sees(page, "", "holds 1 of the sagas")
    await page.photograph("exercise-pause")
    await acts(page, "End pause", "lunch is over")
    await site.become("fulfilled", order)
    await is_well(site, "pause")


@contextlib.contextmanager
def without_vacuum(site: Exercised) -> Iterator[None]:
    """Have no vacuum drop the file by which sessions begin: on a full disk no other could."""
    with site.session() as session:
        session.execute("alter system set autovacuum = off")
        session.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            session.execute("alter system reset autovacuum")
            session.execute("select pg_reload_conf()")


async def test_the_disk_is_full(site: Exercised, page: Window, disk: tuple[Path, bool]) -> None:
    """Nothing is lost, nothing moves, and why is told; with room again all goes on by itself."""
    folder, is_small = disk
    if not is_small:
        pytest.skip("a small disk can't be made here: mounting one needs root")
    await site.run("gateway", "pause", 15, "--reason", "so that there is something to do")
    orders = await asyncio.gather(*(site.order() for _ in range(300)))
    with without_vacuum(site), full(folder):
        await finds(site, "disk", "fail", "0.0 GB free")
        await finds(site, "listeners", "fail", "No space left on device")
        await site.tells("darkpearl_listeners_failing", 1)
        await sees(page, "", "get nothing done")
        await sees(page, "/listeners", "No space left on device")
        await sees(page, "/listeners", "No listener gets anything done", at="#state")
        await page.photograph("exercise-full-disk")
    await site.become("fulfilled", *orders)
    await is_well(site, "listeners")
    await is_well(site, "disk")
    for begun_by in folder.rglob("pg_internal.init"):
        begun_by.unlink()  # as a vacuum of the catalogue does
    with full(folder):
        refused = await finds(site, "connection", "fail", "No space left on device")
        assert "Make room" in refused["mend"]
    await is_well(site, "connection")
