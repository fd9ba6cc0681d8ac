"""Transfers between two cells on two servers, each with its listener: once, or not at all."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from moving import listener
from network import Road
from places import Place
from psycopg import AsyncConnection
from shop import APPROVED, Shop
from terminal import Run

from darkpearl import cells
from darkpearl.cells.joining import without_secrets

Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
UNITS = 10
LEASE_SECONDS = 2


@pytest.fixture
async def product(pair: Pair, until: Until) -> UUID:
    """Ten units in Lisbon, which is home's, of a product that north knows; leases are short."""
    here, there = pair
    product = await here.product(on_hand=UNITS)
    await here.run(
        "update step_settings set timeout_seconds = %s where saga_type = 'transfer'", LEASE_SECONDS
    )

    async def is_known() -> bool:
        return product in await there.values("select id from products where is_active")

    await until(is_known)
    return product


def at_work(place: Place) -> AbstractAsyncContextManager[None]:
    """A listener of a cell, whose passwords are where libpq looks for them."""
    return listener(without_secrets(place.url))


async def send(shop: Shop, product: UUID, units: int = 4) -> UUID:
    """Goods leave Lisbon for Rotterdam; the transfer's id."""
    transfer = uuid4()
    await shop.run(
        "select transfer_stock(%s, %s, %s, %s, %s)",
        *(shop.lisbon, shop.rotterdam, product, units, transfer),
    )
    return transfer


async def in_all(pair: Pair, product: UUID) -> int:
    """The units on all shelves of both cells, where each is open, and those in transit."""
    return sum(
        [
            int(
                await shop.value(
                    "select coalesce((select sum(quantity_available) from inventory where"
                    " product_id = %s and not warehouse_id = any(closed_warehouses())), 0) +"
                    " coalesce((select sum(quantity) from stock_in_transit where product_id = %s),"
                    " 0)",
                    *(product, product),
                )
            )
            for shop in pair
        ]
    )


async def check(pair: Pair, product: UUID, there_now: int) -> None:
    """Nothing was lost or made, so many units are in Rotterdam, and both audits are empty."""
    here, there = pair
    assert await in_all(pair, product) == UNITS
    assert await here.stock(product) == (UNITS - there_now, 0)
    rotterdam = await there.values(
        "select quantity_available from inventory where product_id = %s and warehouse_id = %s",
        *(product, there.rotterdam),
    )
    assert sum(rotterdam) == there_now
    for shop in pair:
        assert await shop.audit() == []


def over(shop: Shop, transfer: UUID) -> Callable[[], Awaitable[bool]]:
    """Whether a transfer is over, and so is its saga."""

    async def is_over() -> bool:
        return bool(
            await shop.value(
                "select count(*) from transfers as t inner join sagas as s on s.id = t.id"
                " where t.id = %s and t.status <> 'in_transit' and s.ready_at is null",
                transfer,
            )
        )

    return is_over


@asynccontextmanager
async def held(place: Place, table: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """A table that nobody else writes meanwhile; whether somebody waits for it."""
    async with await AsyncConnection.connect(
        place.url, options="-c search_path=darkpearl"
    ) as holder:
        await holder.execute(f"lock table {table} in share mode".encode())

        async def awaited() -> bool:
            found = await holder.execute(
                "select count(*) from pg_locks where relation = %s::regclass and not granted",
                [table],
            )
            return bool((await found.fetchone() or (0,))[0])

        yield awaited
        await holder.rollback()


async def test_goods_go_to_another_cell(
    pair: Pair, places: Places, product: UUID, until: Until
) -> None:
    """They leave at once, and come in by the listener of the cell that they left, once."""
    here, there = pair
    transfer = await send(here, product)
    assert await in_all(pair, product) == UNITS
    async with at_work(places[0]):
        await until(over(here, transfer))
        await check(pair, product, 4)
        back = uuid4()
        with there.refused("DP050"):
            await there.run(
                "select transfer_stock(%s, %s, %s, 1)", here.lisbon, here.rotterdam, product
            )
    async with at_work(places[1]):
        await there.run(
            "select transfer_stock(%s, %s, %s, 3, %s)",
            *(here.rotterdam, here.lisbon, product, back),
        )
        await until(over(there, back))
    await check(pair, product, 1)


@pytest.mark.parametrize("stage", ["asked", "decided"])
async def test_a_listener_is_killed_on_the_way(
    pair: Pair, places: Places, product: UUID, until: Until, stage: str
) -> None:
    """While its call is out, and before its answer is recorded: another one ends it, once."""
    here, there = pair
    place, table = (
        (places[1], "transfer_arrivals") if stage == "asked" else (places[0], "transfers")
    )
    transfer = await send(here, product)
    async with held(place, table) as awaited:
        async with at_work(places[0]):  # ended by kill -9
            await until(awaited)
        assert (
            await here.value("select status from transfers where id = %s", transfer) == "in_transit"
        )
        decided = await there.value(
            "select count(*) from transfer_arrivals where transfer_id = %s", transfer
        )
        assert decided == (stage == "decided")
    async with at_work(places[0]):
        await until(over(here, transfer))
    await check(pair, product, 4)


async def test_a_cell_that_is_away_is_waited_for(
    pair: Pair, places: Places, product: UUID, until: Until
) -> None:
    """Goods stay in transit, at the cost of no try, while its server answers nobody."""
    here, _ = pair
    server = places[1].server.pid
    await here.run("update step_settings set timeout_seconds = 30 where saga_type = 'transfer'")
    async with at_work(places[0]):
        os.kill(server, signal.SIGSTOP)
        try:
            transfer = await send(here, product)

            async def is_given_back() -> bool:
                return "step_deferred bring_in" in await here.events(transfer)

            await until(is_given_back)
            assert (await here.saga(transfer))["attempts"] == 0
            assert await here.values("select id from stock_in_transit") == [transfer]
            assert await in_all((here, here), product) == 2 * UNITS
            order = await here.order((product, 1))

            async def is_sent() -> bool:
                return await here.order_status(order) in {"fulfilled", "cancelled"}

            await until(is_sent)
        finally:
            os.kill(server, signal.SIGCONT)

        async def is_over() -> bool:
            try:
                await here.run("select resume_saga(%s, 'it is back')", transfer)
            except psycopg.Error:
                await asyncio.sleep(0.1)
            return await over(here, transfer)()

        await until(is_over)
    fulfilled = await here.order_status(order) == "fulfilled"
    assert await in_all(pair, product) == UNITS - fulfilled


@pytest.mark.parametrize("why", ["refused", "called back"])
async def test_what_does_not_come_in_is_put_back(
    pair: Pair, places: Places, product: UUID, until: Until, why: str
) -> None:
    """Refused there, or wanted back before it is in: the goods are where they were."""
    here, there = pair
    if why == "refused":
        await here.run("update products set is_active = false where id = %s", product)

        async def is_known() -> bool:
            return not await there.value("select is_active from products where id = %s", product)

        await until(is_known)
        transfer = await send(here, product)
        async with at_work(places[0]):
            await until(over(here, transfer))
    else:
        transfer = await send(here, product)
        async with held(places[1], "transfer_arrivals") as awaited, at_work(places[0]):
            await until(awaited)
            await here.run("select call_back_transfer(%s)", transfer)
        async with at_work(places[0]):
            await until(over(here, transfer))
    status = await here.value("select status from transfers where id = %s", transfer)
    refused = await there.value(
        "select refusal is not null from transfer_arrivals where transfer_id = %s", transfer
    )
    # A call that was out when its listener was killed may have come in first: then it has arrived.
    assert status == ("undone" if refused else "arrived")
    assert refused or why == "called back"
    await check(pair, product, 0 if refused else 4)


@pytest.mark.parametrize("which", ["source", "target"])
async def test_a_warehouse_moves_meanwhile(
    pair: Pair, places: Places, until: Until, which: str
) -> None:
    """A transfer under way goes along with the warehouse it left, and finds the one it goes to."""
    here, there = pair
    code = str(uuid4())[:8]
    moving = await here.value(
        "insert into warehouses (code, name) values (%s, 'M') returning id", code
    )
    product = await here.product()
    source, target = (moving, here.rotterdam) if which == "source" else (here.rotterdam, moving)
    first, second = (here, there) if which == "source" else (there, there)

    async def is_known() -> bool:
        found = await there.values("select id from warehouses union all select id from products")
        return {moving, product} <= set(found)

    await until(is_known)
    await first.receive(product, UNITS, source)
    transfer = uuid4()
    await first.run("select transfer_stock(%s, %s, %s, 4, %s)", source, target, product, transfer)
    async for _ in cells.move(places[0].url, code, "north"):
        pass
    await second.run(
        "update step_settings set timeout_seconds = %s where saga_type = 'transfer'", LEASE_SECONDS
    )
    async with at_work(places[1]):
        await until(over(second, transfer))
    assert await second.value("select status from transfers where id = %s", transfer) == "arrived"
    assert await there.stock(product, source) == (UNITS - 4, 0)
    assert await there.stock(product, target) == (4, 0)
    assert await in_all(pair, product) == UNITS
    for shop in pair:
        assert await shop.audit() == []


async def test_one_api_over_both_cells_sends_and_shows_them(
    pair: Pair, product: UUID, api: httpx.AsyncClient, client: Callable[..., httpx.AsyncClient]
) -> None:
    """Asked at home, goods leave the cell that has them; what is under way is found from there."""
    here, there = pair
    await there.receive(product, UNITS, there.rotterdam)
    await here.run(
        "update inventory set reorder_point = %s where product_id = %s", 2 * UNITS, product
    )
    ends = {"warehouse_id": str(here.rotterdam), "to_warehouse_id": str(here.lisbon)}
    body = {"movement_type": "transfer_out", "product_id": str(product), "quantity": 3, **ends}
    key = {"Idempotency-Key": str(uuid4())}
    sent = await api.post("/stock-movements", json=body, headers=key)
    assert sent.status_code == 202, sent.text
    again = await api.post("/stock-movements", json=body, headers=key)
    assert (again.status_code, again.json()) == (202, sent.json())
    fetched = {
        "movement_type": "transfer_in",
        "warehouse_id": str(here.lisbon),
        "from_warehouse_id": str(here.rotterdam),
        "product_id": str(product),
        "quantity": 2,
    }
    asked = await api.post("/stock-movements", json=fetched)
    assert (asked.status_code, asked.json()["movement_type"]) == (202, "transfer_out")
    back = await send(here, product)
    ids = [sent.json()["correlation_id"], asked.json()["correlation_id"], str(back)]
    for each, warehouse in zip(ids, ("RTM", "RTM", "LIS"), strict=True):
        found = await api.get(f"/transfers/{each}")
        assert found.status_code == 200, found.text
        assert found.json()["warehouse"]["code"] == warehouse
        assert found.json()["status"] == "in_transit"
    listed = await api.get(
        "/transfers", params={"status": "in_transit", "product_id": str(product)}
    )
    assert [each["id"] for each in listed.json()["data"]] == ids[::-1]
    assert listed.json()["count"] == 3
    low = await api.get("/inventory/reorder-suggestions", params={"product_id": str(product)})
    assert [
        (each["warehouse_code"], each["quantity_in_transit"]) for each in low.json()["data"]
    ] == [("LIS", 5), ("RTM", 4)][: len(low.json()["data"])]
    assert low.json()["data"]
    shelves = await api.get("/inventory", params={"product_id": str(product)})
    coming = {
        each["warehouse"]["code"]: each["quantity_in_transit"] for each in shelves.json()["data"]
    }
    assert (coming["LIS"], coming["RTM"]) == (5, 4)
    customers = await client("authenticated", uuid4()).get(
        "/inventory", params={"product_id": str(product)}
    )
    assert customers.json()["data"]
    assert not any("quantity_in_transit" in each for each in customers.json()["data"])
    for each in ids:
        called = await api.delete(f"/transfers/{each}")
        assert called.status_code == 202, called.text
    for shop in pair:
        await shop.advance()
    assert (await here.stock(product))[0] == (await there.stock(product, there.rotterdam))[0] == 10
    assert (await client("authenticated", uuid4()).get("/transfers")).status_code == 403


async def test_goods_leave_though_the_cell_that_fetches_them_is_away(
    pair: Pair, api: httpx.AsyncClient, product: UUID, road: Road
) -> None:
    """Whichever end is asked for, it is done where they leave: nobody waits for the other cell."""
    here, there = pair
    ends = [
        {"movement_type": "transfer_out", "warehouse_id": "LIS", "to_warehouse_id": "RTM"},
        {"movement_type": "transfer_in", "warehouse_id": "RTM", "from_warehouse_id": "LIS"},
    ]
    ids = {"LIS": str(here.lisbon), "RTM": str(there.rotterdam)}
    await road.close()
    try:
        for each in ends:
            body = {name: ids.get(value, value) for name, value in each.items()}
            body |= {"product_id": str(product), "quantity": 1}
            sent = await api.post("/stock-movements", json=body)
            assert sent.status_code == 202, sent.text
            called = await api.delete(f"/transfers/{sent.json()['correlation_id']}")
            assert called.status_code == 202, called.text
    finally:
        await road.restore()


async def test_commands_go_to_the_cell_of_a_transfer(
    pair: Pair, places: Places, product: UUID, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent, listed and called back by a command that was given home's address."""
    here, there = pair
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(places[0].url))
    await there.receive(product, UNITS, there.rotterdam)
    await here.run(
        "update inventory set reorder_point = %s where product_id = %s", 2 * UNITS, product
    )
    sent = (await run("stock", "transfer", "RTM", "LIS", product, 3, "--json")).row
    assert (sent["movement_type"], sent["quantity"]) == ("transfer_out", 3)
    seen = (await run("stock", "transit", product, "--to", "LIS", "--json")).row
    assert (seen["cell"], seen["id"], seen["quantity"]) == ("north", sent["correlation_id"], 3)
    low = (await run("stock", "low", "--warehouse", "LIS", "--json")).rows
    assert [each["in_transit"] for each in low if each["product_id"] == str(product)] == [3]
    shelves = (await run("stock", "show", product, "--json")).rows
    assert {each["warehouse"]: each["in_transit"] for each in shelves} == {"LIS": 3, "RTM": 0}
    for command in ("low", "show"):
        assert "in transit" in (await run("stock", command)).said
    back = (await run("stock", "call-back", sent["correlation_id"], "--json")).row
    assert back["status"] == "in_transit"
    await there.advance()
    assert (await run("stock", "transit", product, "--json")).rows == []
    assert (await there.stock(product, there.rotterdam)) == (UNITS, 0)


async def test_an_audit_over_both_cells_compares_the_ends(
    pair: Pair, places: Places, product: UUID, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goods that one cell says are in the other, which has never seen them, are a finding."""
    here, _ = pair
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(places[0].url))
    transfer = await send(here, product)
    (request,) = await here.advance()
    await here.settle([request], APPROVED)
    assert (await run("audit")).code == 0
    async with here.unguarded():
        await here.run(
            "update transfers set updated_at = updated_at - interval '1 hour' where id = %s",
            transfer,
        )
    told = await run("audit")
    assert told.code == 1
    assert f"{transfer} goods have left, and arrived nowhere" in told.said
    async with here.unguarded():
        await here.run("update transfers set updated_at = clock() where id = %s", transfer)
    here.audited = True
