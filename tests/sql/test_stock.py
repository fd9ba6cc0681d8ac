"""routines/30_stock.sql: the ledger, the shelves, and who may move them."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, Shop

MOVES = {
    "receive": "select * from receive_stock(%s, %s, %s, %s)",
    "adjust": "select * from adjust_stock(%s, %s, %s, %s)",
}


async def transfer(shop: Shop, product: UUID, quantity: int, key: UUID | None = None) -> list[Any]:
    """From Lisbon to Rotterdam."""
    return await shop.rows(
        "select * from transfer_stock(%s, %s, %s, %s, %s)",
        shop.lisbon,
        shop.rotterdam,
        product,
        quantity,
        key or uuid4(),
    )


async def test_receiving_adds_to_the_shelf(shop: Shop) -> None:
    """Goods that arrive can be sold, and their movement says how many there are now."""
    product = await shop.product()
    for expected in (7, 14):
        movement = await shop.row(MOVES["receive"], shop.lisbon, product, 7, uuid4())
        assert (movement["movement_type"], movement["quantity"]) == ("receive", 7)
        assert (movement["available_after"], movement["reserved_after"]) == (expected, 0)
    assert await shop.stock(product) == (14, 0)
    assert await shop.value("select quantity_sellable from inventory") == 14


async def test_a_movement_says_who_why_and_what_for(shop: Shop) -> None:
    """Actor, notes and reference of a movement are kept."""
    product, delivery = await shop.product(), uuid4()
    movement = await shop.row(
        "select * from receive_stock(%s, %s, 1, %s, 'from Setúbal', 'delivery', %s)",
        shop.lisbon,
        product,
        uuid4(),
        delivery,
    )
    assert movement["actor"] == await shop.value("select session_user")
    assert movement["notes"] == "from Setúbal"
    assert (movement["reference_type"], movement["reference_id"]) == ("delivery", delivery)


async def test_adjusting_moves_both_ways(shop: Shop) -> None:
    """A correction adds or takes units and keeps its sign in the ledger."""
    product = await shop.product(on_hand=10)
    down = await shop.row(MOVES["adjust"], shop.lisbon, product, -4, uuid4())
    up = await shop.row(MOVES["adjust"], shop.lisbon, product, 1, uuid4())
    assert [down["quantity"], up["quantity"]] == [-4, 1]
    assert [down["available_after"], up["available_after"]] == [6, 7]
    assert await shop.stock(product) == (7, 0)


async def test_a_transfer_moves_both_shelves(shop: Shop) -> None:
    """What leaves one warehouse arrives in the other, under one correlation id."""
    product, key = await shop.product(on_hand=10), uuid4()
    out, into = await transfer(shop, product, 3, key)
    assert (out["movement_type"], into["movement_type"]) == ("transfer_out", "transfer_in")
    assert (out["warehouse_id"], into["warehouse_id"]) == (shop.lisbon, shop.rotterdam)
    assert (out["available_after"], into["available_after"]) == (7, 3)
    assert (out["reference_id"], into["reference_id"]) == (shop.rotterdam, shop.lisbon)
    assert {out["correlation_id"], into["correlation_id"]} == {key}
    assert await shop.stock(product) == (7, 0)
    assert await shop.stock(product, shop.rotterdam) == (3, 0)


async def test_a_transfer_makes_the_shelf_it_needs_and_no_other(shop: Shop) -> None:
    """Goods are stocked where they arrive: not elsewhere, and nothing else is stocked there."""
    product, _ = await shop.product(on_hand=5), await shop.product()
    await shop.run("insert into warehouses (code, name) values ('PAR', 'Paris')")
    with shop.refused("DP010"):
        await shop.run("select transfer_stock(%s, %s, %s, 1)", shop.lisbon, uuid4(), product)
    assert await shop.values("select warehouse_id from inventory") == [shop.lisbon]
    await transfer(shop, product, 1)
    shelves = await shop.rows("select product_id, warehouse_id from inventory")
    assert {tuple(shelf.values()) for shelf in shelves} == {
        (product, shop.lisbon),
        (product, shop.rotterdam),
    }


@pytest.mark.parametrize("orders", [1, 2])
async def test_whatever_moves_on_a_shelf_is_its_next_version(shop: Shop, orders: int) -> None:
    """Who has read a shelf sees by its version that a step of orders has moved it since."""
    product = await shop.product(on_hand=9)
    versions = [await shop.value("select version from inventory")]
    for _ in range(orders):
        await shop.order((product, 1))
    requests = await shop.advance()
    versions.append(await shop.value("select version from inventory"))
    await shop.settle(requests, APPROVED)
    versions.append(await shop.value("select version from inventory"))
    await shop.run("select count_stock(%s, %s, 5)", shop.lisbon, product)
    versions.append(await shop.value("select version from inventory"))
    assert versions == list(range(versions[0], versions[0] + 4))


async def test_counting_writes_the_difference(shop: Shop) -> None:
    """A stock-take sets the shelf to what was counted by one adjust movement."""
    product = await shop.product(on_hand=10)
    row = await shop.row("select * from count_stock(%s, %s, 8)", shop.lisbon, product)
    assert (row["quantity_available"], row["quantity_sellable"]) == (8, 8)
    movement = await shop.row("select * from stock_movements where movement_type = 'adjust'")
    assert (movement["quantity"], movement["notes"]) == (-2, "stock-take")


async def test_a_count_that_agrees_writes_nothing(shop: Shop) -> None:
    """A stock-take that finds what the row says adds nothing to the ledger."""
    product = await shop.product(on_hand=10)
    row = await shop.row("select * from count_stock(%s, %s, 10)", shop.lisbon, product)
    assert row["quantity_available"] == 10
    assert await shop.values("select movement_type from stock_movements") == ["receive"]


@pytest.mark.parametrize("move", MOVES)
async def test_repeating_a_movement_adds_nothing(shop: Shop, move: str) -> None:
    """The same operation again returns the movement of the first time and moves nothing."""
    product, key = await shop.product(on_hand=10), uuid4()
    first = await shop.row(MOVES[move], shop.lisbon, product, 5, key)
    await shop.receive(product, 1)
    assert await shop.row(MOVES[move], shop.lisbon, product, 5, key) == first
    assert await shop.stock(product) == (16, 0)


async def test_repeating_a_transfer_adds_nothing(shop: Shop) -> None:
    """A transfer repeated under its correlation id is the first one, even with the shelf empty."""
    product, key = await shop.product(on_hand=3), uuid4()
    first = await transfer(shop, product, 3, key)
    assert await transfer(shop, product, 3, key) == first
    assert await shop.stock(product, shop.rotterdam) == (3, 0)


@pytest.mark.parametrize("move", MOVES)
async def test_a_correlation_id_means_one_thing(shop: Shop, move: str) -> None:
    """The same correlation id with another quantity is refused."""
    product, key = await shop.product(), uuid4()
    await shop.row(MOVES[move], shop.lisbon, product, 5, key)
    with shop.refused("DP011"):
        await shop.row(MOVES[move], shop.lisbon, product, 6, key)
    assert await shop.stock(product) == (5, 0)


async def test_a_transfers_correlation_id_means_one_thing(shop: Shop) -> None:
    """A transfer repeated with another quantity is refused and moves neither shelf."""
    product, key = await shop.product(on_hand=10), uuid4()
    await transfer(shop, product, 3, key)
    with shop.refused("DP011"):
        await transfer(shop, product, 4, key)
    assert await shop.stock(product) == (7, 0)


async def test_reserved_units_do_not_leave(shop: Shop) -> None:
    """Neither transfer, nor adjustment, nor count takes what is promised to an order."""
    product = await shop.product(on_hand=10)
    await shop.order((product, 8))
    await shop.advance()
    with shop.refused("DP006") as refusal:
        await transfer(shop, product, 3)
    assert "3 units asked for, 2 can go (10 on the shelf, 8 reserved)" in refusal.detail
    with shop.refused("DP006"):
        await shop.run(MOVES["adjust"], shop.lisbon, product, -3, uuid4())
    with shop.refused("DP006"):
        await shop.run("select count_stock(%s, %s, 7)", shop.lisbon, product)
    assert await shop.stock(product) == (10, 8)
    await transfer(shop, product, 2)
    assert await shop.stock(product) == (8, 8)


async def test_what_is_not_there_does_not_leave(shop: Shop) -> None:
    """Taking from a shelf that never was is short of stock, and makes no shelf."""
    product = await shop.product()
    with shop.refused("DP006"):
        await shop.run(MOVES["adjust"], shop.lisbon, product, -1, uuid4())
    with shop.refused("DP006"):
        await transfer(shop, product, 1)
    assert await shop.rows("select from inventory") == []


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("unknown", ["product", "warehouse", "both"])
async def test_unknown_places_and_things_are_named(shop: Shop, move: str, unknown: str) -> None:
    """A movement of an unknown product, or in an unknown warehouse, says so."""
    product = await shop.product() if unknown == "warehouse" else uuid4()
    warehouse = shop.lisbon if unknown == "product" else None if unknown == "both" else uuid4()
    with shop.refused("DP010"):
        await shop.run(MOVES[move], warehouse, product, 1, uuid4())


async def test_a_transfer_to_nowhere_moves_nothing(shop: Shop) -> None:
    """A transfer whose second half is refused leaves the first undone."""
    product = await shop.product(on_hand=5)
    with shop.refused("DP010"):
        await shop.run("select transfer_stock(%s, %s, %s, 1)", shop.lisbon, uuid4(), product)
    assert await shop.stock(product) == (5, 0)


async def test_counting_needs_a_shelf(shop: Shop) -> None:
    """A product that was never stocked somewhere can't be counted there."""
    with shop.refused("DP010"):
        await shop.run("select count_stock(%s, %s, 0)", shop.lisbon, await shop.product())


@pytest.mark.parametrize(
    "call",
    [
        "receive_stock(%(here)s, %(product)s, 0)",
        "receive_stock(%(here)s, %(product)s, -1)",
        "receive_stock(%(here)s, %(product)s, null)",
        "adjust_stock(%(here)s, %(product)s, 0)",
        "adjust_stock(%(here)s, %(product)s, null)",
        "transfer_stock(%(here)s, %(there)s, %(product)s, 0)",
        "transfer_stock(%(here)s, %(there)s, %(product)s, -1)",
        "transfer_stock(%(here)s, %(here)s, %(product)s, 1)",
        "count_stock(%(here)s, %(product)s, -1)",
        "count_stock(%(here)s, %(product)s, null)",
    ],
)
async def test_quantities_make_sense(shop: Shop, call: str) -> None:
    """A quantity that means nothing is refused before anything moves."""
    product = await shop.product(on_hand=5)
    places = {"here": shop.lisbon, "there": shop.rotterdam, "product": product}
    with shop.refused("DP015"):
        await shop.connection.execute(f"select {call}", places)
    assert await shop.stock(product) == (5, 0)
    assert await shop.value("select count(*) from stock_movements") == 1


async def test_a_shelf_has_bounds(shop: Shop) -> None:
    """No shelf holds more than a thousand million units, however they arrive."""
    product = await shop.product(on_hand=1_000_000_000)
    with shop.refused("23514"):
        await shop.receive(product, 1)
    assert await shop.stock(product) == (1_000_000_000, 0)


@pytest.mark.parametrize(
    "columns",
    [
        "quantity_available = -1",
        "quantity_reserved = 1",
        "quantity_reserved = -1",
        "quantity_available = 1000000001",
        "reorder_point = -1",
        "reorder_quantity = 1000000001",
    ],
)
async def test_an_inventory_row_is_never_nonsense(shop: Shop, columns: str) -> None:
    """0 <= reserved <= available, and nothing is out of bounds, even for a superuser."""
    product = await shop.product(on_hand=1)
    await shop.run(MOVES["adjust"], shop.lisbon, product, -1, uuid4())
    with shop.refused("23514"):
        await shop.run(f"update inventory set {columns}")


@pytest.mark.parametrize(("movement", "quantity"), [("receive", 0), ("reserve", -1), ("adjust", 0)])
async def test_a_movement_is_signed_by_its_type(shop: Shop, movement: str, quantity: int) -> None:
    """Only adjust may be negative in the ledger, and nothing may be zero."""
    with shop.refused("23514"):
        await shop.run(
            "insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,"
            " quantity, available_after, reserved_after) values (%s, %s, %s, %s, %s, 0, 0)",
            uuid4(),
            shop.lisbon,
            uuid4(),
            movement,
            quantity,
        )


async def test_past_stock_can_be_read(shop: Shop) -> None:
    """The stock of any past moment is what the last movement before it left."""
    product, other = await shop.product(), await shop.product()
    moments = []

    async def an_hour_passes() -> None:
        moments.append(await shop.value("select clock()"))
        await shop.turn_clock(3600)

    await an_hour_passes()
    await shop.receive(product, 10)
    await shop.receive(other, 7)
    await shop.receive(product, 8, shop.rotterdam)
    await an_hour_passes()
    await shop.order((product, 4))
    requests = await shop.advance()
    await an_hour_passes()
    await shop.settle(requests, {"outcome": "approved"})
    await an_hour_passes()

    ask = "select * from stock_at(%s, %s, %s)"
    told = [await shop.rows(ask, shop.lisbon, product, moment) for moment in moments]
    assert [[tuple(row.values()) for row in rows] for rows in told] == [
        [],
        [(10, 0)],
        [(10, 4)],
        [(6, 0)],
    ]
    assert await shop.rows(ask, shop.rotterdam, other, moments[-1]) == []


async def test_a_shelf_with_stock_stays(shop: Shop) -> None:
    """An inventory row is deleted only when nothing lies there, and can be stocked again."""
    product = await shop.product(on_hand=3)
    async with shop.acting_as("service_role"):
        with shop.refused("DP016"):
            await shop.run("delete from inventory where product_id = %s", product)
        await shop.run(MOVES["adjust"], shop.lisbon, product, -3, uuid4())
        await shop.run("delete from inventory where product_id = %s", product)
    assert await shop.rows("select from inventory") == []
    await shop.receive(product, 2)
    assert await shop.stock(product) == (2, 0)


@pytest.mark.parametrize("column", ["product_id", "warehouse_id"])
async def test_a_shelf_stays_what_it_is(shop: Shop, column: str) -> None:
    """What is reserved on a shelf is found there: it is never made another's."""
    product = await shop.product(on_hand=3)
    elsewhere = shop.rotterdam if column == "warehouse_id" else await shop.product()
    with shop.refused("DP005"):
        await shop.run(f"update inventory set {column} = %s", elsewhere)
    assert await shop.stock(product) == (3, 0)


async def test_the_ledger_replays_to_the_shelf(shop: Shop) -> None:
    """Adding up the ledger of a product in the order written gives its row and each after-value."""
    product = await shop.product(on_hand=20)
    await shop.run(MOVES["adjust"], shop.lisbon, product, -2, uuid4())
    await shop.fulfilled((product, 3), (product, 2))
    refused = await shop.order((product, 4))
    await shop.settle(await shop.advance(), {"outcome": "declined"})
    assert await shop.order_status(refused) == "cancelled"
    await shop.order((product, 1))
    await shop.advance()
    on_hand = reserved = 0
    for movement in await shop.rows("select * from stock_movements order by id"):
        kind, quantity = movement["movement_type"], movement["quantity"]
        on_hand += {"receive": 1, "adjust": 1, "fulfill": -1}.get(kind, 0) * quantity
        reserved += {"reserve": 1, "release": -1, "fulfill": -1}.get(kind, 0) * quantity
        assert (movement["available_after"], movement["reserved_after"]) == (on_hand, reserved)
    assert await shop.stock(product) == (on_hand, reserved) == (13, 1)


async def test_movements_need_an_inventory_row(shop: Shop) -> None:
    """A movement for which there is no row to lock is refused, and not written."""
    product = await shop.product()
    with shop.refused("DP010"):
        await shop.run(
            "select apply_movements('receive', array[%s], array[%s], array[%s], array[1])",
            uuid4(),
            shop.lisbon,
            product,
        )
    assert await shop.rows("select from stock_movements") == []


async def test_a_reservation_needs_every_shelf(shop: Shop) -> None:
    """An order alone of which one shelf is gone reserves nothing of the others either."""
    kept, gone = await shop.product(on_hand=10), await shop.product(on_hand=10)
    order = await shop.order((kept, 1), (gone, 1))
    await shop.run("select adjust_stock(%s, %s, -10, %s)", shop.lisbon, gone, uuid4())
    await shop.run("delete from inventory where product_id = %s", gone)
    with shop.refused("DP010"):
        await shop.run(
            "select move_goods(array[%s], array[%s], array['reserve'])", shop.lisbon, order
        )
    assert await shop.rows("select from stock_movements where correlation_id = %s", order) == []
    assert await shop.stock(kept) == (10, 0)


async def test_a_transfer_under_a_used_id_goes_nowhere_else(shop: Shop) -> None:
    """Repeated with another warehouse it is another transfer, and refused: no goods are made."""
    product, operation = await shop.product(on_hand=9), uuid4()
    third = await shop.value(
        "insert into warehouses (code, name) values ('PAR', 'Paris') returning id"
    )
    transfer = "select transfer_stock(%s, %s, %s, 3, %s)"
    await shop.run(transfer, shop.lisbon, shop.rotterdam, product, operation)
    await shop.run(transfer, shop.lisbon, shop.rotterdam, product, operation)
    with shop.refused("DP011") as refusal:
        await shop.run(transfer, shop.lisbon, third, product, operation)
    assert str(shop.rotterdam) in refusal.detail
    assert await shop.value("select sum(quantity_available) from inventory") == 9
