"""The doctor over cells: each is asked, and what goes wrong between them is found and mended."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from places import Place
from shop import Shop
from terminal import Run

from darkpearl.cells.joining import without_secrets
from darkpearl.doctor import several

Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
Ask = Callable[..., Awaitable[dict[str, dict[str, Any]]]]


@pytest.fixture
def ask(pair: Pair, places: tuple[Place, Place], run: Run, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Makes one check, which gives a verdict for each cell."""
    assert pair
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(places[0].url))

    async def verdicts(check: str) -> dict[str, dict[str, Any]]:
        done = await run("doctor", "--only", check, "--json")
        return {each["cell"]: each for each in done.rows if each["check"] == check}

    return verdicts


async def test_every_cell_is_asked(ask: Ask, pair: Pair, run: Run) -> None:
    """A line for each check of each; one that is away costs the others none of theirs."""
    here, _ = pair
    assert {name: each["state"] for name, each in (await ask("version")).items()} == {
        "home": "ok", "north": "ok",
    }  # fmt: skip
    said = (await run("doctor", "--only", "version", "--cell", "north")).said
    assert "north" in said
    assert "home" not in said
    await here.run("update cells set url = url || ' dbname=nowhere' where number = 2")
    try:
        found = await ask("connection")
        assert {name: each["state"] for name, each in found.items()} == {
            "home": "ok", "north": "fail",
        }  # fmt: skip
        done = await run("doctor", "--only", "version", "--json")
        assert done.code == 1
        assert [(each["cell"], each["check"]) for each in done.rows] == [
            ("home", "connection"), ("home", "version"), ("north", "connection"),
        ]  # fmt: skip
    finally:
        await here.run(
            "update cells set url = replace(url, ' dbname=nowhere', '') where number = 2"
        )


async def test_a_catalogue_that_does_not_come(
    ask: Ask, pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that is disabled or fails, a slot that is missing, WAL that is kept."""
    here, there = pair
    here.audited = there.audited = True

    async def is_well() -> bool:
        return {each["state"] for each in (await ask("catalogue")).values()} == {"ok"}

    await until(is_well)
    with monkeypatch.context() as patch:
        patch.setattr(several, "SLOT_BYTES", -1)
        found = (await ask("catalogue"))["home"]
        assert (found["state"], found["says"][:13]) == ("warn", "north is late")
    await there.run("alter subscription darkpearl_catalogue disable")
    found = (await ask("catalogue"))["north"]
    assert (found["state"], found["says"][:27]) == ("fail", "its subscription is disabled"[:27])
    async with there.unguarded():
        await there.run("insert into adjustment_reasons (code, description) values ('twice', 'x')")
    await here.run("insert into adjustment_reasons (code, description) values ('twice', 'x')")
    await there.run("alter subscription darkpearl_catalogue enable")

    async def fails() -> bool:
        return "after" in (await ask("catalogue"))["north"]["says"]

    await until(fails)
    async with there.unguarded():
        await there.run("delete from adjustment_reasons where code = 'twice'")
    await until(is_well)
    await here.run("alter publication darkpearl_catalogue rename to another")
    try:
        found = (await ask("catalogue"))["home"]
        assert (found["state"], "no publication" in found["says"]) == ("fail", True)
    finally:
        await here.run("alter publication another rename to darkpearl_catalogue")
    await here.run("insert into cells (number, name, url) values (9, 'ghost', 'host=nowhere')")
    try:
        found = (await ask("catalogue"))["home"]
        assert (found["state"], found["says"]) == ("fail", "ghost has no slot")
    finally:
        async with here.unguarded():
            async with here.unguarded():
                await here.run("delete from cells where number = 9")
            here.audited = True


async def test_a_move_that_stopped(ask: Ask, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warehouse that nobody has open for long is named, with what goes on with its move."""
    here, _ = pair
    monkeypatch.setattr(several, "CLOSED_SECONDS", -1.0)
    assert (await ask("moves"))["home"]["state"] == "ok"
    await here.run("select close_warehouse(%s, 2)", here.lisbon)
    try:
        # Neither a new cell nor a closed warehouse is a release that somebody has changed.
        assert {each["state"] for each in (await ask("routines")).values()} == {"ok"}
        found = await ask("moves")
        assert found["home"]["state"] == "fail"
        assert found["home"]["says"].startswith("LIS: closed for")
        assert found["north"]["state"] == "ok"
        await here.run("select close_warehouse(%s, 2, 'coming')", here.lisbon)
        late = "update moved_warehouses set changed_at = clock() - %s * interval '1 minute'"
        for minutes, state in ((50, "ok"), (70, "warn")):
            await here.run(late, minutes)
            found = (await ask("moves"))["home"]
            assert (found["state"], "retention rests" in found["says"]) == (state, state == "warn")
    finally:
        await here.run("select open_warehouse(%s)", here.lisbon)


async def test_goods_that_do_not_arrive(
    ask: Ask, pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cell that they have left, by the warehouse that they go to."""
    here, there = pair
    product = await here.product(on_hand=10)

    async def is_known() -> bool:
        return product in await there.values("select id from products")

    await until(is_known)
    transfer = uuid4()
    await here.run(
        "select transfer_stock(%s, %s, %s, 4, %s)",
        *(here.lisbon, here.rotterdam, product, transfer),
    )
    assert {each["says"] for each in (await ask("transfers")).values()} == {"none are late"}
    monkeypatch.setattr(several, "TRANSIT_SECONDS", -1.0)
    found = await ask("transfers")
    assert (found["home"]["state"], found["north"]["state"]) == ("warn", "ok")
    assert found["home"]["says"].startswith("4 units for RTM in transit for")
    await here.run("select call_back_transfer(%s)", transfer)
    await here.advance()
    assert {each["state"] for each in (await ask("transfers")).values()} == {"ok"}
