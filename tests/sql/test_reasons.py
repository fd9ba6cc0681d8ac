"""routines/30_stock.sql: why units are adjusted, and counts that name what they expected."""

from uuid import uuid4

import pytest
from shop import Shop

ADJUST = "select * from adjust_stock(%s, %s, %s, %s, p_reason_code => %s)"


async def test_an_adjustment_says_why(shop: Shop) -> None:
    """Its reason stands in the ledger beside it; one without a reason has none."""
    product = await shop.product(on_hand=10)
    for quantity, reason in [(-2, "damaged"), (1, "found"), (-1, None)]:
        await shop.run(ADJUST, shop.lisbon, product, quantity, uuid4(), reason)
    told = await shop.rows("select quantity, reason_code from stock_ledger order by id")
    assert [tuple(row.values()) for row in told] == [
        (10, None),
        (-2, "damaged"),
        (1, "found"),
        (-1, None),
    ]
    assert await shop.stock(product) == (8, 0)


async def test_the_usual_reasons_are_there_and_users_add_theirs(shop: Shop) -> None:
    """A reason that isn't there is refused with those that are, and may be added by staff."""
    product = await shop.product(on_hand=10)
    async with shop.acting_as("service_role"):
        there = await shop.values("select code from adjustment_reasons")
        assert {"damaged", "lost", "found", "theft", "expired", "correction"} <= set(there)
        with shop.refused("DP015") as refusal:
            await shop.run(ADJUST, shop.lisbon, product, -1, uuid4(), "mice")
        assert "damaged" in refusal.detail
        await shop.run("insert into adjustment_reasons (code) values ('mice')")
        await shop.run(ADJUST, shop.lisbon, product, -1, uuid4(), "mice")
    assert await shop.stock(product) == (9, 0)


async def test_an_application_says_why_it_adjusts(shop: Shop) -> None:
    """Under the key of an adjustment that it has inserted, once, and of nothing else."""
    product, key = await shop.product(on_hand=10), uuid4()
    move = (
        "insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,"
        " quantity) values (%s, %s, %s, %s, %s)"
    )
    say = (
        "insert into movement_reasons (correlation_id, product_id, warehouse_id, reason_code)"
        " values (%s, %s, %s, %s)"
    )
    async with shop.acting_as("darkpearl_app"):
        async with shop.connection.transaction():
            await shop.run(move, key, shop.lisbon, product, "adjust", -2)
            await shop.run(say, key, product, shop.lisbon, "theft")
        received = uuid4()
        await shop.run(move, received, shop.lisbon, product, "receive", 2)
        for operation in received, uuid4():
            with shop.refused("DP010"):
                await shop.run(say, operation, product, shop.lisbon, "theft")
        with shop.refused("23505"):
            await shop.run(say, key, product, shop.lisbon, "lost")
        with shop.refused("42501"):
            await shop.run("update movement_reasons set reason_code = 'lost'")
    told = await shop.rows("select quantity, reason_code from stock_ledger order by id")
    assert [tuple(row.values()) for row in told] == [(10, None), (-2, "theft"), (2, None)]


@pytest.mark.parametrize("code", ["", "Mice", "1st", "a b", "x" * 51, "é"])
async def test_a_reason_is_a_word(shop: Shop, code: str) -> None:
    """Codes are for programs: a small letter, then letters, digits and underscores."""
    with shop.refused("23514"):
        await shop.run("insert into adjustment_reasons (code) values (%s)", code)


async def test_an_operation_has_one_reason(shop: Shop) -> None:
    """Repeated it moves nothing; under another reason, or none, it is another and refused."""
    product, key = await shop.product(on_hand=10), uuid4()
    first = await shop.row(ADJUST, shop.lisbon, product, -2, key, "lost")
    assert await shop.row(ADJUST, shop.lisbon, product, -2, key, "lost") == first
    for other in ("theft", None):
        with shop.refused("DP011") as refusal:
            await shop.run(ADJUST, shop.lisbon, product, -2, key, other)
        assert "lost" in refusal.detail
    without = uuid4()
    await shop.run(ADJUST, shop.lisbon, product, -2, without, None)
    with shop.refused("DP011"):
        await shop.run(ADJUST, shop.lisbon, product, -2, without, "lost")
    assert await shop.stock(product) == (6, 0)


async def test_the_reason_of_a_movement_stays(shop: Shop) -> None:
    """It is neither changed nor removed, and a reason that a movement has isn't either."""
    product = await shop.product(on_hand=10)
    await shop.run(ADJUST, shop.lisbon, product, -2, uuid4(), "lost")
    for change in (
        "update movement_reasons set reason_code = 'found'",
        "delete from movement_reasons",
        "truncate movement_reasons",
    ):
        with shop.refused("DP005"):
            await shop.run(change)
    async with shop.acting_as("service_role"):
        with shop.refused("23503"):
            await shop.run("delete from adjustment_reasons where code = 'lost'")
        await shop.run("delete from adjustment_reasons where code = 'theft'")


async def test_reasons_go_with_their_movements(shop: Shop) -> None:
    """Retention leaves an opening balance, which has no reason, and removes the reason."""
    product = await shop.product(on_hand=10)
    await shop.run(ADJUST, shop.lisbon, product, -2, uuid4(), "lost")
    await shop.turn_clock(40 * 86400)
    await shop.run(ADJUST, shop.lisbon, product, -1, uuid4(), "found")
    await shop.run("update retention set keep_days = 30 where kind = 'movements'")
    async with shop.acting_as("darkpearl_listener"):
        await shop.run("select apply_retention('movements')")
    told = await shop.rows("select movement_type, reason_code from stock_ledger order by id")
    assert [tuple(row.values()) for row in told] == [("balance", None), ("adjust", "found")]
    assert await shop.values("select reason_code from movement_reasons") == ["found"]


async def test_a_count_names_what_it_expected(shop: Shop) -> None:
    """It is booked when that is still there; else it is refused with what is there now."""
    product = await shop.product(on_hand=10)
    count = "select quantity_available from count_stock(%s, %s, %s, p_expected => %s)"
    assert await shop.value(count, shop.lisbon, product, 9, 10) == 9
    await shop.order((product, 2))
    await shop.advance()
    assert await shop.value(count, shop.lisbon, product, 9, 9) == 9
    await shop.receive(product, 5)
    for counted in (8, 9, 14):
        with shop.refused("DP032") as refusal:
            await shop.run(count, shop.lisbon, product, counted, 9)
        assert "9 units were expected, 14 are on the shelf by now, 2 of them reserved" in (
            refusal.detail
        )
    assert await shop.stock(product) == (14, 2)
