"""Two cells on two servers: one catalogue, and each its own orders and stock.

All tests of this file have the same two, since making them takes longer than what they do.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest
from places import Place
from shop import APPROVED, DECLINED, Shop
from terminal import Run

Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]


@pytest.fixture
def arrived(pair: Pair, until: Until) -> Callable[[UUID], Awaitable[None]]:
    """Waits until the other cell has a product as home has it now."""
    here, there = pair

    async def is_there(product: UUID) -> None:
        query = "select version from products where id = %s"
        wanted = await here.values(query, product)

        async def same() -> bool:
            return await there.values(query, product) == wanted

        await until(same)

    return is_there


async def test_what_is_sold_is_the_same_everywhere(
    pair: Pair, arrived: Callable[[UUID], Awaitable[None]]
) -> None:
    """A product made, priced or withdrawn at home is so in the other cell a moment later."""
    here, there = pair
    product = await here.product("10")
    await arrived(product)
    await there.receive(product, 5, there.rotterdam)
    first = await there.order((product, 1), warehouse=there.rotterdam)
    await here.run("update products set unit_price = 12 where id = %s", product)
    await arrived(product)
    second = await there.order((product, 1), warehouse=there.rotterdam)
    totals = "select total_amount from orders where id = any(%s) order by order_number"
    assert await there.values(totals, [first, second]) == [10, 12]
    await here.run("update products set is_active = false where id = %s", product)
    await arrived(product)
    with there.refused("DP003"):
        await there.order((product, 1), warehouse=there.rotterdam)
    with there.refused("DP051"):
        await there.run("update products set is_active = true where id = %s", product)
    with here.refused("DP016"):
        await here.run("delete from products where id = %s", product)
    await there.settle(await there.advance(), DECLINED)


async def test_each_cell_does_its_own(
    pair: Pair, arrived: Callable[[UUID], Awaitable[None]]
) -> None:
    """An order is placed, paid and sent in the cell of its warehouse, and refused in the other."""
    here, there = pair
    product = await here.product()
    await arrived(product)
    for shop, own, other in (
        (here, here.lisbon, here.rotterdam),
        (there, there.rotterdam, here.lisbon),
    ):
        await shop.receive(product, 3, own)
        with shop.refused("DP050") as refusal:
            await shop.receive(product, 3, other)
        assert "belongs to another cell" in refusal.message
        with shop.refused("DP050"):
            await shop.order((product, 1), warehouse=other)
        order = await shop.order((product, 1), p_warehouse_id=None)
        await shop.settle(await shop.advance(), APPROVED)
        found = await shop.row("select warehouse_id, status from orders where id = %s", order)
        assert found == {"warehouse_id": own, "status": "fulfilled"}
        assert await shop.stock(product, own) == (2, 0)


async def test_numbers_and_ids_are_of_one_cell(
    pair: Pair, arrived: Callable[[UUID], Awaitable[None]]
) -> None:
    """No order number is given in both, and an id that a cell makes says which one made it."""
    here, there = pair
    product = await here.product()
    await arrived(product)
    made = []
    for shop, own in ((here, here.lisbon), (there, there.rotterdam)):
        await shop.receive(product, 3, own)
        order = await shop.order((product, 1), warehouse=own)
        query = "select order_number, cell_of_id(id) as cell from orders where id = %s"
        made.append(await shop.row(query, order))
        await shop.settle(await shop.advance(), APPROVED)
    assert [each["cell"] for each in made] == [1, 2]
    assert made[0]["order_number"] < 2 * 10**12 < made[1]["order_number"] < 3 * 10**12


async def test_one_id_in_two_cells_is_two_orders(
    pair: Pair, arrived: Callable[[UUID], Awaitable[None]]
) -> None:
    """An id that a client chose twice shares no payment, no saga and no customer between cells."""
    here, there = pair
    product, chosen = await here.product(), uuid4()
    await arrived(product)
    keys, customers = [], []
    for shop, own, customer in (
        (here, here.lisbon, "anna"),
        (there, there.rotterdam, "bert"),
    ):
        await shop.receive(product, 3, own)
        await shop.order((product, 1), warehouse=own, p_order_id=chosen, p_customer_id=customer)
        (request,) = await shop.advance()
        keys.append(request["request"]["idempotency_key"])
        customers.append(await shop.value("select customer_id from orders where id = %s", chosen))
    assert keys == [f"{chosen}:process_payment", f"{chosen}:process_payment@2"]
    assert customers == ["anna", "bert"]
    assert await here.told(keys[1], APPROVED) == "unmatched"
    assert await there.told(keys[0], APPROVED) == "unmatched"
    assert await here.told(keys[0], DECLINED) == "applied"
    assert await there.told(keys[1], APPROVED) == "applied"
    for shop in pair:
        await shop.advance()
    states = [await shop.value("select status from orders where id = %s", chosen) for shop in pair]
    assert states == ["cancelled", "fulfilled"]


async def test_a_cell_that_hears_nothing_goes_on(
    pair: Pair, arrived: Callable[[UUID], Awaitable[None]], run: Run
) -> None:
    """While the catalogue doesn't come, orders go by what is known; then it catches up."""
    here, there = pair
    product = await here.product("10")
    await arrived(product)
    await there.receive(product, 5, there.rotterdam)
    await there.run("alter subscription darkpearl_catalogue disable")
    await here.run("update products set unit_price = 12 where id = %s", product)
    order = await there.order((product, 1), warehouse=there.rotterdam)
    assert await there.value("select total_amount from orders where id = %s", order) == 10
    _, north = (await run("cells", "status", "--json")).rows
    assert "its subscription is disabled" in north["trouble"]
    await there.run("alter subscription darkpearl_catalogue enable")
    await arrived(product)
    await there.settle(await there.advance(), APPROVED)


async def test_status_tells_of_each(pair: Pair, run: Run, until: Until) -> None:
    """Which cells there are, on what, how far behind, with how much to do; and what is wrong."""
    here, there = pair

    async def is_well() -> bool:
        return all(each["trouble"] == "" for each in (await run("cells", "status", "--json")).rows)

    await until(is_well)
    home, north = (await run("cells", "status", "--json")).rows
    assert (home["name"], home["number"], home["warehouses"]) == ("home", 1, 1)
    assert (north["name"], north["number"], north["warehouses"]) == ("north", 2, 1)
    assert home["server"] == north["server"]
    assert north["ready"] == await there.value("select ready from engine_health")
    assert north["kept_bytes"] < 10_000_000
    async with there.unguarded():
        await there.run("delete from adjustment_reasons where code = 'theft'")
    there.audited = True
    await here.run("update cells set url = url || ' dbname=nowhere' where number = 2")
    _, north = (await run("cells", "status", "--json")).rows
    assert north["trouble"].startswith("no answer")
    shown = await run("cells", "status")
    assert (shown.code, "no answer" in shown.said) == (0, True)
    await here.run("update cells set url = replace(url, ' dbname=nowhere', '') where number = 2")
    listed = (await run("cells", "list", "--json")).rows
    assert [each["name"] for each in listed] == ["home", "north"]


@pytest.mark.usefixtures("pair")
async def test_a_cell_that_says_nothing_is_told(
    run: Run, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lag of a cell is how long it has been silent, once that is longer than cells are."""
    states = sys.modules["darkpearl.cells.states"]  # a function has its name in the package
    monkeypatch.setattr(states, "_CATALOGUE", "select * from catalogue_state('50 milliseconds')")

    async def is_told() -> bool:
        _, north = (await run("cells", "status", "--json")).rows
        is_silent = "has said nothing of its slot" in north["trouble"]
        return is_silent and north["lag_seconds"] > 0.05

    await until(is_told)


async def test_no_password_is_anywhere_to_be_read(pair: Pair) -> None:
    """The address of a cell has none; that of home in a subscription is a superuser's to read."""
    here, there = pair
    assert "password" not in await here.value("select url from cells where number = 2")
    for odd in ("host=x password=y", "postgresql://me:secret@x/y"):
        with here.refused("23514"):
            await here.run("update cells set url = %s where number = 2", odd)
    for role in ("darkpearl_reader", "service_role", "darkpearl_owner"):
        async with there.acting_as(role):
            with there.refused("42501"):
                await there.run("select subconninfo from pg_subscription")


async def test_no_cell_is_reset(
    pair: Pair, places: tuple[Place, Place], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home that has cells isn't thrown away, nor a cell, which would take itself for home."""
    here, there = pair
    for shop, place, number in zip(pair, places, (1, 2), strict=True):
        monkeypatch.setenv("DARKPEARL_DATABASE_URL", place.url)
        refused = await run("db", "reset", "--yes")
        assert (refused.code, refused.errors.count("\n")) == (2, 1)
        assert f"this is cell {number} of several" in refused.errors
        assert await shop.value("select count(*) from warehouses") == 2
    assert await there.value("select this_cell()") == 2
    assert await here.value("select this_cell()") == 1


async def test_the_audit_looks_across(
    pair: Pair, arrived: Callable[[UUID], Awaitable[None]]
) -> None:
    """Stock whose product is lost at home, behind every guard, is found in the cell that has it."""
    here, there = pair
    product = await here.product()
    await arrived(product)
    await there.receive(product, 5, there.rotterdam)
    kept = await here.row("select to_jsonb(p) as row from products as p where id = %s", product)
    async with here.unguarded():
        await here.run("delete from products where id = %s", product)
    await arrived(product)
    assert [each["finding"] for each in await there.rows("select * from audit")] == [
        "stock of a product or a warehouse that does not exist"
    ]
    await here.run(
        "insert into products select * from jsonb_populate_record(null::products, %s)",
        json.dumps(kept["row"], default=str),
    )
    await arrived(product)
