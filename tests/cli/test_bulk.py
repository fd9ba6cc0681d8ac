"""Bulk actions from a terminal: a preview, a yes, and a batch that listeners work off."""

from uuid import UUID

import pytest
from shop import APPROVED, DECLINED, Shop
from terminal import Refused, Run


async def stuck_at_void(shop: Shop, count: int) -> list[UUID]:
    """Cancelled orders of 10.00 whose gateway won't void."""
    product = await shop.product("10", on_hand=count)
    orders = [await shop.order((product, 1)) for _ in range(count)]
    await shop.give_up_after(0)
    requests = await shop.advance()
    for order in orders:
        await shop.cancel(order)
    await shop.settle(await shop.settle(requests, APPROVED), DECLINED)
    return orders


async def worked_off(shop: Shop) -> None:
    """A listener has done what there is of batches."""
    async with shop.acting_as("darkpearl_listener"):
        while await shop.rows("select * from work_batches(100)"):
            pass


async def test_stuck_sagas_are_retried_by_a_filter(shop: Shop, run: Run, refused: Refused) -> None:
    """Grouped by cause; looked at first; done only with a yes; each with its result."""
    orders = await stuck_at_void(shop, 3)
    cause = (await run("sagas", "causes", "--json")).row
    assert (cause["step_name"], cause["sagas"]) == ("void_payment", 3)
    assert cause["amounts"] == {"USD": 30}
    assert "void_payment" in (await run("sagas", "causes")).said
    retry = ("sagas", "retry", "--step", "void_payment", "--cause", cause["cause"])
    why = ("--reason", "the bank is back")
    looked = await run(*retry, *why, "--dry-run")
    assert (looked.code, looked.said) == (0, "3 found, of 30 USD\n")
    preview = (await run(*retry, *why, "--dry-run", "--json")).row
    assert (preview["batch_id"], preview["total"]) == (None, 3)
    asked = await run(*retry, *why)
    assert (asked.code, asked.errors) == (
        2,
        "darkpearl: 3 would be changed; say --yes to do it\n",
    )
    assert (await run("batches", "list", "--json")).rows == []
    begun = (await run(*retry, *why, "--yes", "--json")).row
    assert begun["total"] == 3
    running = (await run("batches", "list", "--json")).row
    assert (running["id"], running["state"], running["done"]) == (begun["batch_id"], "running", 0)
    assert running["filter"] == {"step": "void_payment", "cause": cause["cause"]}
    await worked_off(shop)
    shown = (await run("batches", "show", begun["batch_id"], "--json")).row
    assert (shown["state"], shown["done"]) == ("finished", 3)
    assert {(each["saga_id"], each["result"]) for each in shown["items"]} == {
        (str(order), "done") for order in orders
    }
    plain = (await run("batches", "show", begun["batch_id"])).said
    assert "the bank is back" in plain
    assert str(orders[0]) in plain
    await shop.settle(await shop.advance(), APPROVED)
    await shop.advance()
    assert await shop.statuses() == {"cancelled": 3}
    failed = await run("batches", "show", begun["batch_id"], "--failed", "--json")
    assert failed.row["items"] == []
    assert "0 found" in (await run(*retry, *why, "--yes")).said
    assert await refused("batches", "show", orders[0])


async def test_a_batch_is_stopped(shop: Shop, run: Run, refused: Refused) -> None:
    """What is done stays; a batch that has ended isn't stopped again."""
    await stuck_at_void(shop, 2)
    begun = (await run("sagas", "skip", "--all", "--reason", "by hand", "--yes", "--json")).row
    stop = ("batches", "stop", begun["batch_id"], "--reason", "a mistake")
    assert (await run(*stop)).said == f"batch {begun['batch_id']} is stopped\n"
    assert (await run("batches", "list", "--json")).row["state"] == "stopped"
    assert await refused(*stop)


@pytest.mark.parametrize("status", ["pending", "reserved"])
async def test_orders_are_cancelled_by_a_filter(shop: Shop, run: Run, status: str) -> None:
    """Of a customer, of a warehouse, of a status; no other."""
    tea = await shop.product(sku="TEA", on_hand=9)
    mine = await shop.order((tea, 1), p_customer_id="ada")
    other = await shop.order((tea, 1), p_customer_id="bob")
    cancel = ("orders", "cancel", "--customer", "ada", "--status", status, "--warehouse", "LIS")
    done = await run(*cancel, "--reason", "a mistake", "--yes", "--dry-run", "--json")
    assert done.row["total"] == int(status == "pending")
    await run(*cancel, "--reason", "a mistake", "--yes")
    await worked_off(shop)
    await shop.advance()
    expected = "cancelled" if status == "pending" else "payment_processing"
    assert await shop.order_status(mine) == expected
    assert await shop.order_status(other) == "payment_processing"


async def test_waiting_sagas_are_resumed(shop: Shop, run: Run, refused: Refused) -> None:
    """One by name at once, others by a filter; one that doesn't wait is refused."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order)
    await shop.advance()
    await shop.cure("reserve_stock")
    assert (await run("sagas", "resume", order, "--reason", "mended")).code == 0
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"
    assert await refused("sagas", "resume", order, "--reason", "again")
    assert "0 found" in (await run("sagas", "resume", "--all", "--reason", "x", "--yes")).said


async def test_events_of_a_gateway_are_acknowledged(shop: Shop, run: Run, refused: Refused) -> None:
    """All of one gateway at once; without a gateway or --all it is refused."""
    for name in ("evt_1", "evt_2"):
        await shop.told(f"none:{name}", APPROVED, name)
    assert "say which" in await refused("gateway", "ack", "--reason", "x")
    done = await run("gateway", "ack", "mock", "--reason", "of the old shop", "--yes", "--json")
    assert done.row["total"] == 2
    await worked_off(shop)
    assert (await run("gateway", "events", "--json")).rows == []


async def test_a_choice_that_makes_no_sense_is_a_line(refused: Refused) -> None:
    """A pace that is none, a time that is none."""
    assert "--pace" in await refused("sagas", "retry", "--all", "--reason", "x", "--pace", 0)
    assert "--since" in await refused("sagas", "retry", "--since", "yesterday", "--reason", "x")
