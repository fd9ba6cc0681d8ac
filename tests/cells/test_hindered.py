"""darkpearl cells move-warehouse where something is in its way: it goes on, or says what it is."""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from moving import (
    Moving,
    Third,
    all_states,
    check,
    finished,
    known,
    nothing_is_left,
    settled,
    takes,
)
from places import Place
from psycopg import AsyncConnection
from shop import Shop
from terminal import Run

from darkpearl import cells

Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
STATES = "select id, status from orders where warehouse_id = %s order by id"


async def moved_until(
    places: Places, code: str, word: str, to: str = "north", source: str = ""
) -> None:
    """A move that is left off where it says some word."""
    home = places[0].url
    async for line in cells.move(home, code, to, source_url=source or home):
        if word in line:
            return
    raise AssertionError(word)


async def drop_slot(shop: Shop, name: str) -> None:
    """A slot goes, whoever reads it."""
    while await shop.values("select 1 from pg_replication_slots where slot_name = %s", name):
        try:
            await shop.run(
                "select pg_terminate_backend(active_pid), pg_drop_replication_slot(slot_name)"
                " from pg_replication_slots where slot_name = %s",
                name,
            )
        except psycopg.errors.ObjectInUse:
            await asyncio.sleep(0)


@pytest.mark.parametrize("closed", [False, True])
async def test_a_copy_that_lost_its_place_is_begun_anew(
    pair: Pair, places: Places, moving: Moving, run: Run, *, closed: bool
) -> None:
    """What has changed since its slot was lost is not missing where the warehouse goes."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)
    await moved_until(places, code, "copied")
    await drop_slot(here, f"darkpearl_move_{warehouse.hex}")
    await finished(here)
    if closed:
        await here.run("select close_warehouse(%s, 2)", warehouse)
    assert await takes(here, warehouse, product, orders) is not closed
    done = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert done.code == 0, done
    assert await there.rows(STATES, warehouse) == await here.rows(STATES, warehouse)
    for shop in pair:
        assert await shop.audit() == []
    await nothing_is_left(pair)
    await finished(there)


async def test_nothing_is_closed_while_a_cell_is_deaf(
    pair: Pair, moving: Moving, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where home isn't heard nobody would open it again: that is told, and it works on."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)
    monkeypatch.setattr("darkpearl.cells.replication.CATCH_UP_SECONDS", 1.0)
    await there.run("alter subscription darkpearl_catalogue disable")
    try:
        refused = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    finally:
        await there.run("alter subscription darkpearl_catalogue enable")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "cell 2 doesn't hear from home" in refused.errors
    assert await takes(here, warehouse, product, orders)
    await nothing_is_left(pair)
    assert (await run("cells", "move-warehouse", code, "--to", "north", "--yes")).code == 0
    await check(pair, warehouse, product, orders)


async def test_who_reads_keeps_no_warehouse_closed(
    pair: Pair, places: Places, moving: Moving, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump that begins while nobody has it open doesn't keep it from opening, nor from undo."""
    here, there = pair
    code, warehouse, product = moving
    orders = await all_states(here, warehouse, product)
    look = "select count(*) from darkpearl.orders, darkpearl.sagas"
    await moved_until(places, code, "closed")
    async with await AsyncConnection.connect(places[0].url) as dump:
        await dump.execute(look)
        with monkeypatch.context() as patch:
            patch.setattr("darkpearl.cells.transit.LOCK_SECONDS", (0.1, 0.2, 1.5))
            undone = await run("cells", "move-warehouse", code, "--to", "north", "--undo")
        assert (undone.code, "pid" in undone.errors) == (2, True), undone
        assert await takes(here, warehouse, product, orders)
    assert (await run("cells", "move-warehouse", code, "--to", "north", "--undo")).code == 0
    on_its_way = cells.move(places[0].url, code, "north")
    async for line in on_its_way:
        if "closed" in line:
            break
    async with await AsyncConnection.connect(places[1].url) as dump:
        await dump.execute(look)
        async for _ in on_its_way:
            pass
        assert await takes(there, warehouse, product, orders)
    await check(pair, warehouse, product, orders)


@pytest.mark.parametrize("which", [0, 1])
async def test_cells_of_different_releases_are_told(
    pair: Pair, moving: Moving, run: Run, which: int
) -> None:
    """Whichever of the two has a migration that this release doesn't know: nothing is begun."""
    code, warehouse, product = moving
    books = "darkpearl_migrations._yoyo_migration"
    await pair[which].run(
        f"insert into {books} (migration_hash, migration_id, applied_at_utc)"
        " values ('later', '0099.later', now())"
    )
    try:
        refused = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    finally:
        await pair[which].run(f"delete from {books} where migration_hash = 'later'")
    assert (refused.code, refused.errors.count("\n")) == (2, 1)
    assert "different releases" in refused.errors
    await nothing_is_left(pair)
    assert await takes(pair[0], warehouse, product, [])


@pytest.mark.parametrize("stage", ["published", "copied", "closed"])
async def test_it_goes_to_one_cell_at_a_time(
    pair: Pair,
    places: Places,
    moving: Moving,
    third: Third,
    run: Run,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """One that is on its way goes nowhere else before that is undone, and then does."""
    here, _ = pair
    name, url, other = third
    code, warehouse, product = moving
    await known(third, moving, until)
    orders = await all_states(here, warehouse, product)
    if stage == "published":
        with monkeypatch.context() as patch:
            patch.setattr("darkpearl.cells.transit.as_owner", cut_off)
            with pytest.raises(cells.CellError, match="cut off"):
                await moved_until(places, code, "copied")
    else:
        await moved_until(places, code, stage)
    elsewhere = ("cells", "move-warehouse", code, "--to", name, "--source-url", places[0].url)
    refused = await run(*elsewhere, "--yes")
    assert (refused.code, refused.errors.count("\n")) == (2, 1), refused
    assert "on its way to cell 2" in refused.errors
    wrong = await run("cells", "move-warehouse", code, "--to", name, "--undo")
    assert (wrong.code, "isn't on its way" in wrong.errors) == (2, True)
    undone = await run("cells", "move-warehouse", code, "--to", "north", "--undo")
    assert undone.code == 0, undone
    await nothing_is_left(pair)
    assert (await run(*elsewhere, "--yes")).code == 0
    await moved_until(places, code, "at rest", "home", url)
    await settled((here, other), moving, orders)


async def cut_off(*_: object) -> None:
    """In place of a step: the end of a run."""
    raise cells.CellError("cut off")


async def test_what_a_move_left_undone_is_done_by_the_next(
    pair: Pair, places: Places, moving: Moving, third: Third, run: Run, until: Until
) -> None:
    """A cell that a warehouse passed through keeps no WAL for it, nor rests, once it is on."""
    here, there = pair
    name, url, other = third
    code, warehouse, product = moving
    await known(third, moving, until)
    await all_states(here, warehouse, product)
    await moved_until(places, code, "at rest", name)
    await moved_until(places, code, "open in", "home", url)
    assert await other.value("select is_warehouse_moving()") is True
    done = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert done.code == 0, done
    assert await other.value("select is_warehouse_moving()") is False
    assert await there.rows(STATES, warehouse) == await other.rows(STATES, warehouse)
    await nothing_is_left(pair)
