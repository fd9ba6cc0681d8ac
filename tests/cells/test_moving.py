"""darkpearl cells move-warehouse: a warehouse goes from one cell to another, and loses nothing."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from moving import (
    Load,
    Moving,
    Third,
    all_states,
    check,
    finished,
    known,
    new_warehouse,
    nothing_is_left,
    settled,
    takes,
)
from places import Place
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from shop import APPROVED, DECLINED, Shop
from terminal import Run

from darkpearl import cells, schema
from darkpearl.cells.joining import lock, without_secrets
from darkpearl.cells.replication import unsubscribe

Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
Places = tuple[Place, Place]
EVERY = 5
"""A run is cut off at every so manieth statement, each time further on."""


async def test_a_warehouse_moves_with_all_that_is_its_own(
    pair: Pair, moving: Moving, run: Run
) -> None:
    """Each order ends where the warehouse went, wherever it stood; nothing is told twice."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)
    lease = await here.lease(orders[45])
    before = await there.value("select coalesce(max(id), 0) from feed")
    done = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert done.code == 0, done
    assert await there.rows("select * from feed where id > %s", before) == []
    await here.settle([lease], APPROVED)
    assert here.stale == [(orders[45], "DP009")]
    after = await there.order((product, 1), warehouse=warehouse)
    query = "select quantity_available from stock_at(%s, %s, clock())"
    assert await there.value(query, warehouse, product) == 980
    await check(pair, warehouse, product, [*orders, after])
    told = await there.rows(
        "select subject from feed where topic = 'order.placed' and id > %s", before
    )
    assert [each["subject"] for each in told] == [after]
    again = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert again.code == 0, again


class Killed(BaseException):
    """The end of the process, at some statement."""


async def cut_off(
    monkeypatch: pytest.MonkeyPatch,
    move: Callable[[], AsyncIterator[str]],
    between: Callable[[], Awaitable[None]],
) -> int:
    """Run a move that is killed at every so manieth statement; how many runs didn't end."""
    execute, left = AsyncConnection.execute, itertools.count()

    async def killed(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        done = await execute(self, query, *arguments, **options)
        if next(left) == 0:
            raise Killed
        return done

    for runs in itertools.count():
        left = itertools.count(-1 - EVERY * runs)
        monkeypatch.setattr(AsyncConnection, "execute", killed)
        try:
            async for _ in move():
                pass
        except Killed:
            pass
        else:
            return runs
        finally:
            monkeypatch.setattr(AsyncConnection, "execute", execute)
        await between()
    raise AssertionError


async def test_a_kill_at_any_statement_is_mended_by_another_run(
    pair: Pair, places: Places, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is cut off, all has moved once; what is ordered meanwhile isn't lost."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)

    async def check_open() -> None:
        open_in = [each for each in pair if await takes(each, warehouse, product, orders)]
        assert len(open_in) < 2

    runs = await cut_off(monkeypatch, lambda: cells.move(places[0].url, code, "north"), check_open)
    assert runs > 8
    assert len(orders) > 82
    assert await takes(there, warehouse, product, orders)
    await check(pair, warehouse, product, orders)


@pytest.mark.parametrize("stage", ["copied", "arrived"])
async def test_it_is_undone_until_it_is_handed_over(
    pair: Pair, places: Places, moving: Moving, run: Run, stage: str
) -> None:
    """A move that stops half way is taken back by one command, and made anew by another."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)
    async for line in cells.move(places[0].url, code, "north"):
        if stage in line:
            break
    assert await takes(here, warehouse, product, orders) == (stage == "copied")
    assert not await takes(there, warehouse, product, orders)
    assert await there.audit() == []
    empties = "select bool_or(pubtruncate) from pg_publication where pubname ^@ 'darkpearl_move'"
    assert await here.value(empties) is False
    # What is copied works on, as others do.
    beside = await here.order((product, 1), warehouse=here.lisbon)
    await here.settle(await here.advance(), APPROVED)
    assert await here.order_status(beside) == "fulfilled"
    assert await here.order_status(orders[-1]) == ("fulfilled" if stage == "copied" else "pending")
    async with schema.connect(places[0].url) as another:
        await lock(another)
        refused = await run("cells", "move-warehouse", code, "--to", "north", "--undo")
    assert refused.errors == "darkpearl: another command changes cells: wait for its end\n"
    for code_, said in ((0, "stays where it was"), (2, "isn't on its way")):
        undone = await run("cells", "move-warehouse", code, "--to", "north", "--undo")
        assert undone.code == code_, undone
        assert said in undone.said + undone.errors
    await nothing_is_left(pair)
    for shop in pair:
        assert (
            await shop.value(
                "select count(*) from moved_warehouses where warehouse_id = %s", warehouse
            )
            == 0
        )
    assert await there.value("select count(*) from orders where warehouse_id = %s", warehouse) == 0
    assert await takes(here, warehouse, product, orders)
    assert (await run("cells", "move-warehouse", code, "--to", "2", "--yes")).code == 0
    await check(pair, warehouse, product, orders)
    late = await run("cells", "move-warehouse", code, "--to", "2", "--undo")
    assert (late.code, late.errors.count("\n")) == (2, 1)


async def test_orders_go_on_while_it_moves(pair: Pair, places: Places, moving: Moving) -> None:
    """Two hundred orders, and some a second meanwhile: none is lost, none is done twice."""
    load = Load(pair, places, moving, rate=30)
    await load.begin_with(200)
    async with load.running():
        async for _ in cells.move(places[0].url, moving[0], "north"):
            pass
    await load.check()


async def test_a_long_transaction_in_the_other_cell_stops_nobody(
    pair: Pair, places: Places, moving: Moving, until: Until
) -> None:
    """Whoever has written there and not ended keeps a warehouse open, and nobody waiting."""
    here, there = pair
    home, north = places
    code, warehouse, product = moving
    await here.run(
        "select setval('stock_movements_id_seq', %s)",
        await there.value("select nextval('stock_movements_id_seq') + 10 * 1000 * 1000"),
    )
    on_its_way = cells.move(home.url, code, "north")
    assert "copied" in await anext(on_its_way)
    async with await AsyncConnection.connect(north.url) as long:
        receive = "select darkpearl.receive_stock(%s, %s, 1)"
        await long.execute(receive, [there.rotterdam, product])
        rest = asyncio.create_task(anext(on_its_way))
        for _ in range(4):
            await until(lambda: there.value("select count(*) from pg_locks where not granted"))
            await there.run("select nextval('stock_movements_id_seq')")
            assert await takes(here, warehouse, product, [])
        with pytest.raises(cells.CellError, match="somebody holds"):
            await rest
        assert await takes(here, warehouse, product, [])
    async for _ in cells.move(home.url, code, "north"):
        pass
    assert await takes(there, warehouse, product, [])
    await finished(there)


async def test_nothing_is_removed_while_it_moves(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """Retention of neither cell takes what the other counts; once all is there it goes on."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)
    await finished(here)
    rule = "update retention set keep_days = %s where kind = 'orders'"
    removal = "select removed from apply_retention('orders', 10000)"
    count = "select count(*) from orders where id = any(%s)"
    for shop in pair:
        await shop.turn_clock(40 * 24 * 3600)
        await shop.run(rule, 30)
    try:
        async for _ in cells.move(places[0].url, code, "north"):
            for shop in pair:
                if await shop.value("select is_warehouse_moving()"):
                    assert await shop.value(removal) == 0
        assert await there.value(count, orders) == len(orders)
        assert await there.audit() == []
        for shop in pair:
            assert await shop.value(removal) > 0
            assert await shop.value(count, orders) == 0
    finally:
        for shop in pair:
            await shop.run(rule, None)


async def test_what_does_not_fit_is_told(pair: Pair, moving: Moving, run: Run) -> None:
    """No such warehouse, no such cell, another plan there: one line, and nothing is begun."""
    here, there = pair
    code, warehouse, product = moving
    await here.order((product, 1), warehouse=warehouse)
    change = "update saga_steps set forward_only = not forward_only where position = 2"
    async with there.unguarded():
        await there.run(change)
    for arguments, said in (
        (("nowhere", "--to", "north"), "no warehouse nowhere"),
        ((code, "--to", "nowhere"), "no cell nowhere"),
        ((code, "--to", "home"), "is cell home's already"),
        ((code, "--to", "north"), "isn't the same in cell 2"),
    ):
        refused = await run("cells", "move-warehouse", *arguments, "--yes")
        assert (refused.code, refused.errors.count("\n")) == (2, 1)
        assert said in refused.errors
    async with there.unguarded():
        await there.run(change)
    there.audited = True
    assert (
        await there.value(
            "select count(*) from moved_warehouses where warehouse_id = %s", warehouse
        )
        == 0
    )
    await here.settle(await here.advance(), APPROVED)


async def test_a_table_of_somebody_s_own_goes_along(
    pair: Pair, places: Places, moving: Moving, run: Run
) -> None:
    """One that can't is told before anything begins; then it is copied, and numbered on.

    Whatever search_path an operator's login has in one of the cells.
    """
    here, there = pair
    code, warehouse, _ = moving
    make = "create table labels (id serial primary key, warehouse_id uuid, said text)"
    ours = "alter table labels owner to darkpearl_owner"

    async def refused(because: str) -> None:
        done = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
        assert (done.code, done.errors.count("\n")) == (2, 1)
        assert because in done.errors
        state = "select state from moved_warehouses where warehouse_id = %s"
        assert await there.values(state, warehouse) == []
        await nothing_is_left(pair)

    await here.run(make)
    await refused("darkpearl_owner doesn't own labels in cell 1")
    await here.run(ours)
    await refused("don't have the same labels")
    await there.run(make)
    await there.run(ours)
    await there.run("alter table labels set unlogged")
    await refused("labels is unlogged in cell 2")
    await there.run("alter table labels set logged")
    odd = ["a\\N\tb\n", "", None, "\\N", "\U0001f9ea"]
    await here.run(
        "insert into labels (warehouse_id, said) select %s, unnest(%s::text[])", warehouse, odd
    )
    await here.run("alter database home set search_path = public")
    try:
        async for _ in cells.move(places[0].url, code, "north"):
            pass
    finally:
        await here.run("alter database home reset search_path")
    assert await there.values("select said from labels order by id") == odd
    query = "insert into labels (warehouse_id) values (%s) returning id"
    assert await there.value(query, warehouse) > len(odd)
    for shop in pair:
        await shop.run("drop table labels")


@pytest.mark.parametrize("what", ["id", "reference", "parcel"])
async def test_what_a_client_chose_in_both_cells_is_told(
    pair: Pair, moving: Moving, run: Run, what: str
) -> None:
    """An id or a reference that both have could never be copied: refused before anything begins."""
    here, there = pair
    code, warehouse, product = moving
    same = uuid4()
    chosen: dict[str, Any] = {"p_order_id": same} if what == "id" else {}
    if what == "reference":
        chosen = {"p_particulars": json.dumps({"reference": str(same)})}
    await there.receive(product, 1, there.rotterdam)
    for shop, place in ((here, warehouse), (there, there.rotterdam)):
        order = await shop.order((product, 1), warehouse=place, **chosen)
        if what == "parcel":
            await shop.run(
                "insert into shipments (id, order_id, warehouse_id) values (%s, %s, %s)",
                *(same, order, place),
            )
    await here.order((product, 1), warehouse=warehouse)
    refused = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert f"the same {'id' if what == 'parcel' else what}" in refused.errors
    assert str(same) in refused.errors
    state = "select state from moved_warehouses where warehouse_id = %s"
    assert await there.values(state, warehouse) == []
    for shop in pair:
        async with shop.unguarded():
            await shop.run("delete from shipments where id = %s", same)
        await finished(shop)


async def test_what_keeps_a_request_from_being_repeated_goes_along(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """A key that was answered, an id that is spent: neither does anything anew in the new cell."""
    here, there = pair
    code, warehouse, product = moving
    key, spent = str(uuid4()), uuid4()
    await here.run(
        "insert into idempotency_keys (caller, idempotency_key, request_hash, response)"
        " values ('anna', %s, sha256('x'), '{}')",
        key,
    )
    await here.run("insert into spent_ids (id) values (%s)", spent)
    async for _ in cells.move(places[0].url, code, "north"):
        pass
    keys = "select response from idempotency_keys where idempotency_key = %s"
    assert await there.value(keys, key) == "{}"
    with there.refused("DP038"):
        await there.order((product, 1), warehouse=warehouse, p_order_id=spent)


async def test_a_pause_of_the_old_cell_holds_nothing_in_the_new_one(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """Whoever ends it doesn't find there what it has held back: that goes on when it has come."""
    here, there = pair
    code, warehouse, product = moving
    order = await here.order((product, 1), warehouse=warehouse)
    await here.run("select pause_external_steps(86400, 'maintenance')")
    assert await here.advance() == []
    async for _ in cells.move(places[0].url, code, "north"):
        pass
    await here.run("select pause_external_steps(0, 'it is over')")
    assert [UUID(each["saga_id"]) for each in await there.advance()] == [order]
    await finished(there)
    assert await there.order_status(order) == "fulfilled"


async def test_a_warehouse_comes_home_and_moves_on(
    pair: Pair, places: Places, run: Run, until: Until
) -> None:
    """From any cell to any other, and on from there; the feed of each tells what happened in it.

    The address that home has for the others is theirs: a login that may not move anything.
    """
    here, there = pair
    home, _ = places
    theirs = make_conninfo(without_secrets(home.url), user="nobody")
    await here.run("update cells set url = %s where number = 1", theirs)
    beside = Place(home.server, "beside")
    await beside.anew()
    async for _ in cells.add(home.url, beside.url, "beside"):
        pass
    number = await here.value("select number from cells where name = 'beside'")
    code, warehouse, product = await new_warehouse(pair, until, cell=number)
    async with await AsyncConnection.connect(
        beside.url, autocommit=True, row_factory=dict_row, options="-c search_path=darkpearl"
    ) as connection:
        third = Shop(connection)

        async def is_known() -> bool:
            return bool(await third.value("select count(*) from products where id = %s", product))

        await until(is_known)
        await third.receive(product, 1000, warehouse)
        placed = {}
        for to, shop in (("", third), ("home", here), ("north", there)):
            if to:
                url = beside.url if to == "home" else home.url
                done = await run(
                    *("cells", "move-warehouse", code, "--to", to, "--yes", "--source-url", url)
                )
                assert done.code == 0, done
            placed[shop] = await shop.order((product, 1), warehouse=warehouse)
            await shop.settle(await shop.advance(), APPROVED)
        assert await there.stock(product, warehouse) == (997, 0)
        for shop, order in placed.items():
            assert await there.order_status(order) == "fulfilled"
            told = await shop.rows(
                "select order_id from feed where topic = 'order.placed' and warehouse_id = %s",
                warehouse,
            )
            assert [each["order_id"] for each in told] == [order]
            assert await shop.audit() == []
    await cells.remove(home.url, "beside")
    await nothing_is_left(pair)


async def test_a_warehouse_comes_back(
    pair: Pair, places: Places, moving: Moving, third: Third, until: Until
) -> None:
    """There and back, and again: nothing is lost, made, or told a second time in either cell."""
    here, _ = pair
    name, url, other = third
    code, warehouse, product = moving
    await known(third, moving, until)
    orders: list[UUID] = []
    home = places[0].url
    for to, shop, source in 2 * [(name, here, home), ("home", other, url)]:
        orders += await all_states(shop, warehouse, product)
        last = {each: await each.value("select max(id) from feed") for each in (here, other)}
        async for _ in cells.move(home, code, to, source_url=source):
            pass
        for each, before in last.items():
            assert await each.rows("select * from feed where id > %s", before or 0) == []
            assert await each.audit() == []
        with shop.refused("DP050"):
            await shop.order((product, 1), warehouse=warehouse)
    await settled((here, other), moving, orders)


async def test_a_kill_on_the_way_back_is_mended_by_another_run(
    pair: Pair,
    places: Places,
    moving: Moving,
    third: Third,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the move away never came to its end either, and what it left is in the way."""
    here, _ = pair
    name, url, other = third
    code, warehouse, product = moving
    await known(third, moving, until)
    home = places[0].url
    orders = await all_states(here, warehouse, product)
    async for line in cells.move(home, code, name, source_url=home):
        if "is open in" in line:
            break
    orders += await all_states(other, warehouse, product)

    async def check_open() -> None:
        open_in = [each for each in (here, other) if await takes(each, warehouse, product, orders)]
        assert len(open_in) < 2

    runs = await cut_off(
        monkeypatch, lambda: cells.move(home, code, "home", source_url=url), check_open
    )
    assert runs > 8
    assert len(orders) > 162
    await settled((here, other), moving, orders)


async def test_a_cell_goes_only_when_nobody_waits_for_it(
    pair: Pair, places: Places, moving: Moving, third: Third, run: Run, until: Until
) -> None:
    """Not before moves, goods and orders have ended; a move to one that died is undone."""
    here, _ = pair
    name, _, other = third
    code, warehouse, product = moving
    home = places[0].url
    await known(third, moving, until)
    remove = ("cells", "remove", name, "--yes")

    async def refused(because: str) -> None:
        done = await run(*remove)
        assert (done.code, done.errors.count("\n")) == (2, 1)
        assert because in done.errors

    number = await here.value("select number from cells where name = %s", name)
    place = await here.value(
        "insert into warehouses (code, name, cell) values (%s, 'N', %s) returning id", name, number
    )
    await known(third, (name, place, product), until)
    await here.run("select transfer_stock(%s, %s, %s, 1)", warehouse, place, product)
    await other.receive(product, 1, place)
    order = await other.order((product, 1), warehouse=place)
    await here.run("update warehouses set is_active = false where id = %s", place)
    async for line in cells.move(home, code, name, source_url=home):
        if "closed" in line:
            break
    await refused("a warehouse is on its way")
    assert (await run("cells", "move-warehouse", code, "--to", name, "--undo")).code == 0
    await refused("1 sagas that have not ended")
    await other.settle(await other.advance(), APPROVED)
    assert await other.order_status(order) == "fulfilled"
    await refused("1 transfers are on their way")
    await here.settle(await here.advance(), DECLINED)
    assert await here.values("select id from stock_in_transit") == []
    async for line in cells.move(home, code, name, source_url=home):
        if "closed" in line:
            break
    for subscription in ("darkpearl_catalogue", f"darkpearl_move_{warehouse.hex}"):
        await unsubscribe(other.connection, subscription)
    assert (await run(*remove, "--gone")).code == 0
    assert not await takes(here, warehouse, product, [])
    assert (await run("cells", "move-warehouse", code, "--to", name, "--undo")).code == 0
    assert await takes(here, warehouse, product, [])
    await finished(here)


async def test_it_does_not_come_back_before_all_is_told(
    pair: Pair, places: Places, moving: Moving, third: Third, run: Run, until: Until
) -> None:
    """Webhooks that a cell has still to send of the warehouse keep its old rows there."""
    here, _ = pair
    name, url, _ = third
    code, warehouse, product = moving
    await known(third, moving, until)
    endpoint = await here.value("select id from create_webhook_endpoint('https://example.com/')")
    order = await here.order((product, 1), warehouse=warehouse)
    await here.settle(await here.advance(), DECLINED)
    home = places[0].url
    away = await run(
        *("cells", "move-warehouse", code, "--to", name, "--yes", "--source-url", home)
    )
    assert away.code == 0, away
    back = ("cells", "move-warehouse", code, "--to", "home", "--yes", "--source-url", url)
    refused = await run(*back)
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "https://example.com/" in refused.errors
    assert await here.value("select count(*) from orders where id = %s", order) == 1
    await here.run(
        "update webhook_endpoints set position = (select max(id) from saga_events) where id = %s",
        endpoint,
    )
    assert (await run(*back)).code == 0
    assert await here.order_status(order) == "cancelled"
    await here.run("delete from webhook_endpoints where id = %s", endpoint)
