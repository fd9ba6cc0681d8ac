"""`darkpearl orders`: placed, looked at, cancelled and packed from a terminal."""

from uuid import uuid4

import pytest
from shop import APPROVED, Shop
from terminal import Refused, Run


async def test_an_order_is_placed_and_shown(shop: Shop, run: Run, refused: Refused) -> None:
    """By SKU and code; the same id again, and goods that aren't there, are refused in a line."""
    await shop.product("12.50", sku="TEA", on_hand=9)
    await shop.product("3", sku="CUP=BIG", on_hand=9)
    order = uuid4()
    placed = await run(
        *("orders", "place", "TEA=2", "CUP=BIG=1", "--warehouse", "LIS", "--id", order),
        *("--customer", "c 1", "--reference", "cart-7", "--json"),
    )
    assert placed.code == 0, placed.errors
    (row,) = placed.rows
    assert (row["id"], row["total_amount"]) == (str(order), "28.00")
    await shop.settle(await shop.advance(), APPROVED)
    shown = await run("orders", "show", row["order_number"])
    for word in ("fulfilled", "TEA", "CUP=BIG", "c 1", "cart-7", "saga_completed", "captured"):
        assert word in shown.said
    (told,) = (await run("orders", "show", order, "--json")).rows
    assert [each["quantity"] for each in told["items"]] == [2, 1]
    assert told["items"][0]["unit_price"] == "12.50"
    assert told["timeline"][0]["what"] == "saga_started"
    assert {each["kind"] for each in told["timeline"]} == {"event", "payment", "movement"}
    assert "duplicate" in await refused("orders", "place", "TEA=1", "--id", order)
    assert "there is no warehouse XXX" in await refused(
        "orders", "place", "TEA", "--warehouse", "XXX"
    )
    assert "NONE" in await refused("orders", "place", "NONE=1", "--warehouse", "LIS")
    assert "no SKU=UNITS" in await refused("orders", "place", "TEA=many")
    assert "there is no order 999" in await refused("orders", "show", "999")
    assert "neither an id nor" in await refused("orders", "show", "x")


async def test_an_order_without_a_warehouse_is_sourced(shop: Shop, run: Run) -> None:
    """The first warehouse that can serve it does."""
    product = await shop.product(sku="TEA")
    await shop.receive(product, 3, shop.rotterdam)
    (row,) = (await run("orders", "place", "TEA=3", "--json")).rows
    assert row["warehouse_id"] == str(shop.rotterdam)


async def test_orders_are_listed_by_filters(shop: Shop, run: Run) -> None:
    """Status, warehouse, customer, search and time each leave out the rest; newest first."""
    tea = await shop.product(sku="TEA", on_hand=9)
    first = await shop.fulfilled((tea, 1))
    second = await shop.order((tea, 1), p_customer_id="ada")
    await shop.receive(tea, 1, shop.rotterdam)
    third = await shop.order((tea, 1), warehouse=shop.rotterdam)

    async def listed(*filters: str) -> list[str]:
        done = await run("orders", "list", "--json", *filters)
        assert done.code == 0, done.errors
        return [row["id"] for row in done.rows]

    assert await listed() == [str(third), str(second), str(first)]
    assert await listed("--limit", "1") == [str(third)]
    assert await listed("--status", "fulfilled") == [str(first)]
    assert await listed("--status", "fulfilled", "--status", "pending", "--warehouse", "LIS") == [
        str(second),
        str(first),
    ]
    assert await listed("--warehouse", "RTM") == [str(third)]
    assert await listed("--customer", "ada") == [str(second)]
    assert await listed("--search", str(second)) == [str(second)]
    assert await listed("--since", "2999-01-01") == []
    plain = (await run("orders", "list")).said
    assert len(plain.splitlines()) == 4
    assert plain.splitlines()[0].split()[:4] == ["order", "number", "id", "status"]


async def test_orders_are_cancelled_each_for_itself(shop: Shop, run: Run, refused: Refused) -> None:
    """One that can't be cancelled is a line of its own and exit code 2; the others are."""
    tea = await shop.product(sku="TEA", on_hand=9)
    done, waiting = await shop.fulfilled((tea, 1)), await shop.order((tea, 1))
    told = await run("orders", "cancel", done, waiting, "--reason", "a mistake", "--json")
    assert (told.code, [row["id"] for row in told.rows]) == (2, [str(waiting)])
    assert told.errors.startswith("darkpearl: ")
    assert told.errors.count("\n") == 1
    await shop.advance()
    assert await shop.order_status(waiting) == "cancelled"
    assert "reason" in await refused("orders", "cancel", waiting)


async def test_an_order_is_watched_to_its_end(shop: Shop, run: Run) -> None:
    """Every event of it, and 0 when it ended by itself."""
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    done = await run("orders", "watch", order, "--json")
    assert done.code == 0
    events = [" ".join(filter(None, (row["event_type"], row["step_name"]))) for row in done.rows]
    assert events == await shop.events(order)
    assert "saga_completed" in (await run("orders", "watch", order)).said


async def test_a_parcel_is_sent(shop: Shop, run: Run, refused: Refused) -> None:
    """A part with its tracking, once per id; then all that is left."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    tea = await shop.product(sku="TEA", on_hand=9)
    order = await shop.order((tea, 3))
    await shop.settle(await shop.advance(), APPROVED)
    (waiting,) = (await run("orders", "list", "--to-ship", "--json")).rows
    assert (waiting["id"], waiting["units_left"]) == (str(order), 3)
    assert str(order) in (await run("orders", "list", "--to-ship")).said
    parcel = uuid4()
    part = ("orders", "ship", order, "TEA=1", "--carrier", "DHL", "--number", "42", "--id", parcel)
    for _ in range(2):
        (sent,) = (await run(*part, "--json")).rows
        assert (sent["id"], sent["carrier"], sent["tracking_number"]) == (str(parcel), "DHL", "42")
    assert "42" in (await run("orders", "show", order)).said
    await shop.advance()
    assert (await run("orders", "ship", order)).code == 0
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    assert await refused("orders", "ship", order)


async def test_a_cancelled_order_is_placed_again(shop: Shop, run: Run, refused: Refused) -> None:
    """As a new one, that says so; one that isn't cancelled is refused."""
    tea = await shop.product(sku="TEA", on_hand=9)
    order = await shop.order((tea, 2))
    await shop.cancel(order)
    await shop.advance()
    again = ("orders", "fork", order, "--reason", "the card works now", "--json")
    row = (await run(*again)).row
    assert row["id"] != str(order)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(row["id"]) == "fulfilled"
    assert await refused("orders", "fork", row["id"], "--reason", "no")


@pytest.mark.parametrize("flag", ["--json", ""])
async def test_nothing_found_is_nothing_printed(run: Run, flag: str) -> None:
    """An empty list is fine."""
    done = await run("orders", "list", *filter(None, [flag]))
    assert (done.code, done.errors) == (0, "")
    assert len(done.said.splitlines()) == (0 if flag else 1)
