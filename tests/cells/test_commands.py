"""Commands over cells: lists are of all, what is about one thing goes where it is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from moving import Moving, new_warehouse
from places import Place, stocked
from shop import APPROVED, Shop
from terminal import Run

from darkpearl.cells.joining import without_secrets
from darkpearl.gateways import GatewayPayment

Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]


@pytest.fixture(autouse=True)
def _address(run: Run, places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are given home's address without its password, since each server has another."""
    assert run
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(places[0].url))


@pytest.fixture
async def product(pair: Pair, until: Until) -> UUID:
    """A product that both cells know, with 100 units in Lisbon and 50 in Rotterdam."""
    return await stocked(pair, until, 100, 50)


@asynccontextmanager
async def away(home: Shop) -> AsyncIterator[None]:
    """North can't be reached at the address that home knows."""
    await home.run("update cells set url = url || ' dbname=nowhere' where number = 2")
    try:
        yield
    finally:
        await home.run(
            "update cells set url = replace(url, ' dbname=nowhere', '') where number = 2"
        )


async def test_lists_are_of_all_cells(pair: Pair, product: UUID, run: Run) -> None:
    """In the order of one list and as long as one, each row with its cell; or of one cell alone."""
    here, there = pair
    ids = []
    for shop, place in ((here, here.lisbon), (there, there.rotterdam)) * 2:
        ids.append(str(await shop.order((product, 1), warehouse=place)))
    listed = (await run("orders", "list", "--limit", 3, "--json")).rows
    assert [(each["cell"], each["id"]) for each in listed] == [
        ("north", ids[3]), ("home", ids[2]), ("north", ids[1])
    ]  # fmt: skip
    assert (await run("orders", "list")).said.split()[0] == "cell"
    for name in ("north", 2):
        done = await run("orders", "list", "--cell", name, "--json")
        assert [each["id"] for each in done.rows][:2] == [ids[3], ids[1]]
        assert "cell" not in done.rows[0]
    shelves = (await run("stock", "show", product, "--json")).rows
    assert {(each["cell"], each["quantity_available"]) for each in shelves} == {
        ("home", 100), ("north", 50)
    }  # fmt: skip
    moved = (await run("stock", "history", product, "--json")).rows
    assert {each["cell"] for each in moved} == {"home", "north"}
    refused = await run("orders", "list", "--cell", "south")
    assert (refused.code, refused.errors) == (2, "darkpearl: there is no cell south\n")


async def test_what_is_about_one_thing_goes_where_it_is(
    pair: Pair, product: UUID, run: Run
) -> None:
    """By a number, an id, an id that a client chose, or the code of a warehouse."""
    here, there = pair
    order = await there.order((product, 1), warehouse=there.rotterdam)
    number = await there.value("select order_number from orders where id = %s", order)
    chosen = await there.order((product, 1), warehouse=there.rotterdam, p_order_id=uuid4())
    for name, found in ((number, order), (order, order), (chosen, chosen)):
        assert (await run("orders", "show", name, "--json")).row["id"] == str(found)
        assert (await run("sagas", "show", name, "--json")).row["id"] == str(found)
    cancelled = await run("orders", "cancel", order, chosen, "--reason", "test", "--json")
    assert [each["id"] for each in cancelled.rows] == [str(order), str(chosen)]
    assert (await there.saga(order))["cancel_requested"]
    received = await run("stock", "receive", "RTM", product, 7)
    assert received.code == 0
    assert await there.stock(product, there.rotterdam) == (57, 0)
    placed = await run("orders", "place", f"{await sku(here, product)}=2", "--warehouse", "RTM")
    assert placed.code == 0
    assert await there.value("select count(*) from orders where warehouse_id = %s", there.rotterdam)
    missing = await run("orders", "show", uuid4())
    assert (missing.code, missing.errors[:25]) == (2, "darkpearl: there is no order"[:25])


async def sku(shop: Shop, product: UUID) -> str:
    """The name of a product."""
    return str(await shop.value("select sku from products where id = %s", product))


async def test_an_order_without_a_place_goes_where_it_is_served(
    pair: Pair, run: Run, until: Until
) -> None:
    """As an API over all cells places it; its id and its reference are one in all of them."""
    here, there = pair
    product = await stocked(pair, until, 1, 50)
    name = await sku(here, product)
    own, chosen = str(uuid4()), uuid4()
    named = ("--reference", own, "--id", chosen)
    place = ("orders", "place", f"{name}=5")
    assert (await run(*place, *named, "--json")).row["warehouse_id"] == str(there.rotterdam)
    for again in (("--reference", own), ("--id", chosen)):
        refused = await run("orders", "place", name, *again)
        assert (refused.code, refused.errors.count("\n")) == (2, 1)
    for units, said in ((51, "only several cells together"), (52, "51 can be sold in all")):
        refused = await run("orders", "place", f"{name}={units}")
        assert (refused.code, said in refused.errors) == (2, True), refused.errors
    unknown = await run("orders", "place", "no-such-thing")
    assert (unknown.code, unknown.errors.count("\n")) == (2, 1)
    async with away(here):
        assert (await run("orders", "place", name, "--json")).row["warehouse_id"] == str(
            here.lisbon
        )
        for each in (("--id", uuid4()), ("--reference", uuid4())):
            refused = await run("orders", "place", name, *each)
            assert (refused.code, "cell north" in refused.errors) == (1, True)
    count = "select count(*) from order_items where product_id = %s"
    assert [await shop.value(count, product) for shop in pair] == [1, 1]


async def test_a_cell_that_is_away_costs_its_own_rows(pair: Pair, product: UUID, run: Run) -> None:
    """Lists have the others' and exit 3; what it may have isn't called missing."""
    here, there = pair
    here.audited = there.audited = True
    order = await here.order((product, 1))
    async with away(here):
        done = await run("orders", "list", "--json")
        assert (done.code, done.errors.count("\n")) == (3, 1)
        assert done.errors.startswith("darkpearl: cell north is left out: ")
        assert {each["cell"] for each in done.rows} == {"home"}
        assert (await run("orders", "show", order, "--json")).code == 0
        (shelf,) = (await run("stock", "show", product, "--json")).rows
        assert "in_transit" not in shelf  # what may be on its way from north isn't known
        assert (await run("orders", "list", "--cell", "home")).code == 0
        unknown = await run("orders", "show", uuid4())
        assert unknown.code == 1
        assert "in none that answers; cell north" in unknown.errors
        number = await here.value("select order_number from orders where id = %s", order)
        cancelled = await run("orders", "cancel", uuid4(), number, "--reason", "test", "--json")
        assert [each["id"] for each in cancelled.rows] == [str(order)]
        assert (cancelled.code, "cell north" in cancelled.errors) == (1, True)
        sent = await run("stock", "transfer", "LIS", "RTM", product, 2, "--json")
        assert (sent.code, sent.row["movement_type"]) == (0, "transfer_out")
        gone = await run("orders", "list", "--cell", "north")
        assert (gone.code, gone.errors.count("\n")) == (1, 1)


async def test_bulk_actions_are_previewed_over_all(pair: Pair, product: UUID, run: Run) -> None:
    """Each cell says how much it found, and has a batch of its own, which is found by its id."""
    here, there = pair
    for shop, place in ((here, here.lisbon), (there, there.rotterdam)):
        for _ in range(2):
            order = await shop.order((product, 1), warehouse=place, p_customer_id="bulk")
            await shop.run(
                "update sagas set ready_at = ready_at + interval '1 hour' where id = %s", order
            )
    chosen = ("orders", "cancel", "--customer", "bulk", "--reason", "test")
    preview = await run(*chosen, "--dry-run")
    assert preview.said.splitlines() == [
        "home: 2 found, of 20 USD",
        "north: 2 found, of 20 USD",
    ]
    started = (await run(*chosen, "--yes", "--json")).rows
    assert [each["cell"] for each in started] == ["home", "north"]
    shown = await run("batches", "show", started[1]["batch_id"], "--json")
    assert shown.row["total"] == 2
    stopped = await run("batches", "stop", started[1]["batch_id"], "--reason", "test")
    assert stopped.code == 0
    assert await there.value(
        "select stopped_by is not null from batches order by created_at desc limit 1"
    )
    await run("batches", "stop", started[0]["batch_id"], "--reason", "test")
    for pause in (("pause", 60), ("resume",)):
        assert (await run("gateway", *pause, "--reason", "test")).code == 0
        is_paused = "select bool_or(coalesce(paused_until > clock(), false)) from step_settings"
        assert {await shop.value(is_paused) for shop in pair} == {pause[0] == "pause"}


async def test_audits_are_of_all_cells(pair: Pair, product: UUID, run: Run) -> None:
    """A finding says where it was found."""
    _, there = pair
    done = await run("audit")
    assert (done.code, done.said) == (0, "nothing contradicts the rules\n")
    shelf = "quantity_available = quantity_available + %s where product_id = %s"
    async with there.unguarded():
        await there.run(f"update inventory set {shelf}", 1, product)
    try:
        done = await run("audit", "--json")
        assert done.code == 1
        assert {each["cell"] for each in done.rows} == {"north"}
        assert (await run("audit", "--cell", "home")).code == 0
    finally:
        async with there.unguarded():
            await there.run(f"update inventory set {shelf}", -1, product)


class Books:
    """A gateway that keeps books: how much was captured under each key."""

    name = "mock"

    def __init__(self, captured: dict[str, Decimal]) -> None:
        self.captured = captured

    async def payments(self, _since: datetime) -> AsyncIterator[GatewayPayment]:
        for key, amount in self.captured.items():
            yield GatewayPayment(
                payment_key=key, reference="ch_1", currency="USD", authorized=amount,
                captured=amount, refunded=Decimal(0), voided=False,
                created_at=datetime.now(UTC),
            )  # fmt: skip

    async def close(self) -> None:
        """Nothing is open."""


async def test_each_cell_compares_its_own_payments(
    pair: Pair, places: tuple[Place, Place], until: Until, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One account serves all; a payment that nobody knows is told once, wherever others moved."""
    here, there = pair
    code, warehouse, product = await new_warehouse(pair, until)
    await there.receive(product, 10, there.rotterdam)
    await here.order((product, 1), warehouse=warehouse)
    await there.order((product, 1), warehouse=there.rotterdam)
    for shop in pair:
        while asked := await shop.advance():
            await shop.settle(asked, APPROVED)
    move = ("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert (await run(*move, "--source-url", places[0].url)).code == 0
    query = "select idempotency_key as key, captured_amount from payments where status = 'captured'"
    ours = {row["key"]: row["captured_amount"] for shop in pair for row in await shop.rows(query)}
    assert {key[-2:] == "@2" for key in ours} == {True, False}
    books = Books({**ours, "lost": Decimal(10), "lost@2": Decimal(10)})
    monkeypatch.setattr("darkpearl.cli.payments.make_gateway", lambda _: books)
    done = await run("payments", "reconcile", "--grace", 0, "--json")
    assert done.code == 1
    assert [(each["cell"], each["payment_key"], each["kind"]) for each in done.rows] == [
        ("home", "lost", "only_there"), ("north", "lost@2", "only_there")
    ]  # fmt: skip
    refunded = "update payments set refunded_amount = %s where warehouse_id = %s"
    async with there.unguarded():
        await there.run(refunded, 1, warehouse)
    found = (await run("payments", "reconcile", "--grace", 0, "--json")).rows
    assert {each["cell"] for each in found if each["kind"] == "refunded"} == {"north"}
    async with there.unguarded():
        await there.run(refunded, 0, warehouse)


async def test_what_has_moved_is_listed_where_it_is(
    pair: Pair, places: tuple[Place, Place], until: Until, run: Run
) -> None:
    """Copies that are left behind are neither shown nor acted on."""
    here, _ = pair
    moving: Moving = await new_warehouse(pair, until)
    code, warehouse, product = moving
    order = await here.order((product, 1), warehouse=warehouse)
    number = await here.value("select order_number from orders where id = %s", order)
    move = ("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert (await run(*move, "--source-url", places[0].url)).code == 0
    for asked in (("orders", "list"), ("sagas", "list"), ("stock", "show")):
        rows = (await run(*asked, "--warehouse", code, "--json")).rows
        assert [each["cell"] for each in rows] == ["north"]
    assert (await run("orders", "cancel", number, "--reason", "test")).code == 0
    asked = "select cancel_requested from sagas where id = %s"
    assert [await shop.value(asked, order) for shop in pair] == [False, True]


async def test_webhooks_are_seen_to_in_all_cells(
    pair: Pair, places: tuple[Place, Place], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made and removed at home, whatever address is given; switched on and told again in each."""
    here, there = pair
    ids = "select id::text from webhook_endpoints"
    url = "https://example.com/hook"
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(places[1].url))
    endpoint = (await run("webhooks", "add", url, "--json")).row["id"]
    assert [await shop.values(ids) for shop in pair] == [[endpoint], []]
    known = await here.value("select webhooks_of_home()::text")
    await there.run("select keep_webhook_endpoints(%s, 0)", known)
    await there.run("update webhook_endpoints set is_enabled = false, off_because = 'gone'")
    assert (await run("webhooks", "enable", endpoint)).said == f"{url} is on\n"
    assert await there.values("select is_enabled from webhook_endpoints") == [True]
    again = await run("webhooks", "replay", endpoint, "--from", "2026-01-01", "--json")
    assert [each["cell"] for each in again.rows] == ["home", "north"]
    unknown = await run("webhooks", "replay", uuid4(), "--from", "2026-01-01")
    assert (unknown.code, "there is no webhook endpoint" in unknown.errors) == (2, True)
    assert (await run("webhooks", "remove", endpoint, "--yes")).code == 0
    assert [await shop.values(ids) for shop in pair] == [[], [endpoint]]
    await there.run("delete from webhook_endpoints")
