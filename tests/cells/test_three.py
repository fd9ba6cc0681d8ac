"""Three cells on three servers: what two can't show, since home is neither here nor there.

South has a server that replicates, as a warehouse's rows leave it; north's doesn't.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest
from places import LOGICAL, Place, shops_at, temporary, write_passwords
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from shop import APPROVED, DECLINED, Shop
from terminal import Run, done

from darkpearl import cells, schema
from darkpearl.cells.directory import read_directory
from darkpearl.cells.joining import without_secrets
from darkpearl.embedded import Server

Three = tuple[Shop, Shop, Shop]
Until = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
async def three_places(
    home_server: Server, other_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Place, Place, Place]]:
    """Home, and south and north beside it, on a server each."""
    with temporary(LOGICAL) as third_server, pytest.MonkeyPatch.context() as patch:
        home, south = Place(home_server, "home"), Place(third_server, "south")
        north = Place(other_server, "north")
        passwords = tmp_path_factory.mktemp("cells") / "pgpass"
        write_passwords(passwords, home, south, north)
        patch.setenv("PGPASSFILE", str(passwords))
        for each in (home, south, north):
            await each.anew()
        await schema.migrate(home.url)
        for each in (south, north):
            async for _ in cells.add(home.url, each.url, each.name):
                pass
        yield home, south, north
        for each in (south, north):
            await each.forget()
        await home.forget_slots()


@pytest.fixture(scope="module")
async def three(three_places: tuple[Place, Place, Place]) -> AsyncIterator[Three]:
    """Home, which has Lisbon; south, cell 2, which has Rotterdam; and north, cell 3."""
    async with shops_at(*three_places) as (home, south, north):
        await home.run(
            "insert into warehouses (id, code, name, cell) values (%s, 'LIS', 'L', 1),"
            " (%s, 'RTM', 'R', 2), (gen_random_uuid(), 'OSL', 'O', 3)",
            *(home.lisbon, home.rotterdam),
        )
        yield home, south, north
        for shop in (home, south, north):
            assert await shop.audit() == []


@pytest.fixture
async def product(three: Three, until: Until) -> UUID:
    """A product that all three know."""
    product = await three[0].product()

    async def is_known() -> bool:
        query = "select id from products where id = %s and (select count(*) from warehouses) = 3"
        return all([await shop.rows(query, product) for shop in three])

    await until(is_known)
    return product


@pytest.fixture
def run(three_places: tuple[Place, Place, Place], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command at home."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", three_places[0].url)
    return lambda *arguments: asyncio.to_thread(done, arguments)


async def warehouses(shop: Shop) -> list[UUID]:
    """The warehouses of cells 1, 2 and 3, in this order."""
    return await shop.values("select id from warehouses order by code = 'OSL', code = 'RTM'")


async def test_each_has_its_own_and_names_who_has_the_rest(three: Three, product: UUID) -> None:
    """An order ends in the cell of its warehouse; each of the others says which one that is."""
    numbers = []
    for at, (shop, own) in enumerate(zip(three, await warehouses(three[0]), strict=True)):
        await shop.receive(product, 3, own)
        for other in three:
            if other is not shop:
                with other.refused("DP050") as refusal:
                    await other.order((product, 1), warehouse=own)
                assert f"of cell {at + 1} " in refusal.detail
        order = await shop.order((product, 1), warehouse=own)
        await shop.settle(await shop.advance(), APPROVED)
        assert await shop.order_status(order) == "fulfilled"
        assert order.bytes[-1] == at + 1
        numbers.append(await shop.value("select order_number from orders where id = %s", order))
    assert [number // 10**12 for number in numbers] == [0, 2, 3]


@pytest.mark.usefixtures("product")
async def test_each_knows_all_of_them(
    three: Three, three_places: tuple[Place, Place, Place]
) -> None:
    """Whichever is asked tells the same directory, with an address for each of the others."""
    owners = {}
    for at, (shop, place) in enumerate(zip(three, three_places, strict=True)):
        directory = await read_directory(shop.connection, without_secrets(place.url))
        assert directory.here == at + 1
        owners[at] = directory.of_warehouse
        for other in directory.others:
            async with await AsyncConnection.connect(other.url) as connection:
                found = await connection.execute("select darkpearl.this_cell()")
                assert await found.fetchone() == (other.number,)
    assert owners[0] == owners[1] == owners[2]
    assert sorted(owners[0].values()) == [1, 2, 3]


async def test_a_warehouse_moves_between_two_that_are_not_home(
    three: Three, three_places: tuple[Place, Place, Place], product: UUID, run: Run
) -> None:
    """Home directs it and has none of its rows; orders made in cell 2 end in cell 3."""
    home, south, north = three
    rotterdam = home.rotterdam
    await south.receive(product, 100, rotterdam)
    orders = [await south.order((product, 1), warehouse=rotterdam) for _ in range(4)]
    requests = await south.advance(2)
    source = ("--source-url", three_places[1].url)
    moved = await run("cells", "move-warehouse", "RTM", "--to", "north", "--yes", *source)
    assert moved.code == 0, moved
    await south.settle(requests, APPROVED)
    assert len(south.stale) == len(requests) > 0
    orders.append(await north.order((product, 1), warehouse=rotterdam))
    await north.settle(await north.advance(), DECLINED)
    for _ in range(4):
        await north.settle(await north.ask_again(), APPROVED)
    states = [await north.order_status(each) for each in orders]
    assert (states.count("fulfilled"), states.count("cancelled")) == (2, 3)
    assert await north.stock(product, rotterdam) == (98, 0)
    assert [each.bytes[-1] for each in orders] == [2, 2, 2, 2, 3]
    for shop in (home, south):
        with shop.refused("DP050") as refusal:
            await shop.order((product, 1), warehouse=rotterdam)
        assert "of cell 3 (north)" in refusal.detail
    assert await home.value("select count(*) from orders where warehouse_id = %s", rotterdam) == 0
    with south.refused("DP050"):
        await south.cancel(orders[0])
    for shop in (home, south, north):
        assert await shop.value("select cell from warehouses where id = %s", rotterdam) == 3
        left = "select count(*) from pg_replication_slots where slot_name ^@ 'darkpearl_move'"
        assert await shop.value(left) == 0


async def test_what_is_done_at_home_is_refused_elsewhere(
    three: Three,
    three_places: tuple[Place, Place, Place],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cell 2 adds no cell, moves no warehouse and writes no catalogue, though its server could."""
    _, south, _ = three
    url = three_places[1].url
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", url)
    empty = make_conninfo(url, dbname="postgres")
    for arguments in (
        ("add", empty, "--name", "fourth"),
        ("remove", "north", "--yes"),
        ("move-warehouse", "OSL", "--to", "south", "--yes"),
        ("move-warehouse", "OSL", "--to", "south", "--undo"),
    ):
        refused = await run("cells", *arguments)
        assert (refused.code, refused.errors.count("\n")) == (2, 1), refused
        assert "this is cell 2" in refused.errors
    for statement in (
        "insert into warehouses (code, name, cell) values ('X', 'X', 2)",
        "update warehouses set cell = 2",
        "delete from cells",
    ):
        with south.refused("DP051"):
            await south.run(statement)


async def test_a_cell_that_gave_its_last_warehouse_away_may_go(
    three: Three, product: UUID, run: Run, until: Until
) -> None:
    """It is let go, its number is given to nobody, and the other two go on."""
    home, _, north = three
    assert await home.values("select code from warehouses where cell = 2") == []
    removed = await run("cells", "remove", "south", "--yes")
    assert removed.code == 0, removed
    await home.run("update products set unit_price = 12 where id = %s", product)

    async def has_heard() -> bool:
        return await north.value("select unit_price from products where id = %s", product) == 12

    await until(has_heard)
    await north.receive(product, 5, home.rotterdam)
    order = await north.order((product, 1), warehouse=home.rotterdam)
    await north.settle(await north.advance(), APPROVED)
    assert await north.order_status(order) == "fulfilled"
    assert [each["number"] for each in (await run("cells", "status", "--json")).rows] == [1, 3]
    with home.refused("DP010"):
        await home.run("insert into warehouses (code, name, cell) values ('X', 'X', 2)")
