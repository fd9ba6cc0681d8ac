"""routines/61_order_fulfilment.sql: plans say what move_goods() does, and goods leave paid."""

from uuid import UUID

import pytest
from shop import APPROVED, COMPENSATED, LONG, Shop

RESERVE = """step(
    'reserve_stock', p_function => 'reserve_stock',
    p_effect_function => 'move_goods', p_effect => 'reserve',
    p_undo => 'release_stock', p_undo_effect_function => 'move_goods', p_undo_effect => 'release'
)"""
CHARGE = """step(
    'process_payment', p_function => 'request_payment', p_settle_function => 'record_payment',
    p_undo => 'void_payment', p_undo_function => 'request_void',
    p_undo_settle_function => 'record_void'
)"""
AUTHORIZE = CHARGE.replace("request_payment", "request_authorization").replace(
    "record_payment", "record_authorization"
)
APPROVAL = "step('approval', p_on_deadline => 'stuck')"


def ship(effect: str = "fulfill") -> str:
    """The step by which goods leave."""
    return (
        f"step('ship', p_effect_function => 'move_goods', p_effect => '{effect}',"
        " p_order_status_done => 'fulfilled')"
    )


async def declare(shop: Shop, *steps: str) -> None:
    """From now on orders of Lisbon follow this plan."""
    await shop.run(f"select define_plan('order_fulfilment', {', '.join(steps)})")


async def work_off(shop: Shop) -> None:
    """The listener claims until nothing is ready: who fails goes on alone, a step at a time."""
    await shop.advance()
    while shop.claimed:
        await shop.advance()


async def failure(shop: Shop, order: UUID) -> str:
    """The SQLSTATE of the last failure of a saga."""
    return await shop.value("select last_error_code from saga_overview where id = %s", order)


async def assert_set_aside(shop: Shop, order: UUID) -> None:
    """A saga stands stuck before its goods would have left unpaid."""
    assert (await shop.saga(order))["status"] == "stuck"
    assert (await shop.events(order))[-2:] == ["step_failed ship", "saga_stuck"]
    assert await failure(shop, order) == "DP023"
    await shop.turn_clock(LONG)
    await shop.advance()
    assert shop.claimed == 0


async def test_an_unknown_effect_moves_nothing(shop: Shop) -> None:
    """It raises, alone or among others; nothing that move_goods() doesn't know is guessed."""
    product = await shop.product(on_hand=4)
    orders = [await shop.order((product, 1)) for _ in range(2)]
    for effects in (
        ["ship"],
        ["", "reserve"],
        ["reserve", "Fulfill"],
        ["reserve", None],
        [None, "reserve"],
        ["transfer_out"],
        ["receive"],
    ):
        with shop.refused("DP015"):
            await shop.run(
                "select move_goods(%s, %s, %s)",
                *([shop.lisbon], orders[: len(effects)], effects),
            )
        assert await shop.stock(product) == (4, 0)
    assert await shop.rows("select * from stock_movements where movement_type <> 'receive'") == []


async def test_a_plan_with_an_unknown_effect_ships_nothing(shop: Shop) -> None:
    """Its sagas fail there as at any step that raises, and turn back in the end."""
    await declare(shop, RESERVE, CHARGE, ship("ship"))
    await shop.give_up_after(1)
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.settle(await shop.advance(), APPROVED)
    for _ in range(6):
        await shop.settle(await shop.ask_again(), APPROVED)
    assert await failure(shop, order) == "DP015"
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    assert (await shop.payment(order))["status"] == "refunded"


async def test_goods_leave_only_when_they_are_paid(shop: Shop) -> None:
    """What its plan forgot to charge is set aside, nothing of it moved; the rest of the pass ships.

    An operator gives it up: the goods can be sold again.
    """
    await shop.run("update warehouses set capture_method = 'at_fulfilment' where code = 'RTM'")
    await declare(shop, RESERVE, ship())
    product, gift = await shop.product(on_hand=9), await shop.product("0")
    await shop.receive(gift, 9, shop.rotterdam)
    unpaid = [await shop.order((product, 1)) for _ in range(2)]
    free = [await shop.order((gift, 1), warehouse=shop.rotterdam) for _ in range(5)]
    unpaid += [await shop.order((product, 1))]
    await work_off(shop)
    for order in free:
        assert await shop.order_status(order) == "fulfilled"
    for order in unpaid:
        await assert_set_aside(shop, order)
    assert await shop.stock(product) == (9, 3)
    assert await shop.stock(gift, shop.rotterdam) == (4, 0)

    await shop.run("select turn_back_saga(%s, 'nobody will pay')", unpaid[0])
    await shop.advance()
    assert await shop.order_status(unpaid[0]) == "cancelled"
    assert (await shop.events(unpaid[0]))[-4:] == [
        "cancelled ship",
        "compensation_started",
        *COMPENSATED,
    ]
    assert await shop.stock(product) == (9, 2)
    await shop.run("select retry_saga(%s, 'hope')", unpaid[1])
    await shop.advance()
    await assert_set_aside(shop, unpaid[1])


async def test_a_plan_may_say_that_goods_leave_unpaid(shop: Shop) -> None:
    """On account, as a sample: it has to say so, and then nothing is wrong with it."""
    await declare(shop, RESERVE, ship("fulfill_unpaid"))
    product = await shop.product(on_hand=3)
    order = await shop.order((product, 2))
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (1, 0)
    assert await shop.audit() == []


async def test_money_that_is_only_held_pays_for_nothing(shop: Shop) -> None:
    """An authorised payment isn't captured. Once it is, the saga goes on where it was set aside."""
    await declare(shop, RESERVE, AUTHORIZE, ship())
    product = await shop.product(on_hand=2)
    orders = [await shop.order((product, 1)) for _ in range(2)]
    await shop.settle(await shop.advance(), APPROVED)
    await work_off(shop)
    for order in orders:
        await assert_set_aside(shop, order)
    assert await shop.stock(product) == (2, 2)

    captured, given_up = orders
    await shop.run(
        "update payments set status = 'captured', captured_amount = 10 where order_id = %s",
        captured,
    )
    await shop.run("select retry_saga(%s, 'captured by hand')", captured)
    await shop.run("select turn_back_saga(%s, 'expired')", given_up)
    (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    assert await shop.order_status(captured) == "fulfilled"
    assert await shop.order_status(given_up) == "cancelled"
    assert (await shop.payment(given_up))["status"] == "voided"
    assert await shop.stock(product) == (1, 0)


@pytest.mark.parametrize(
    "change", ["refunded_amount = 1", "refunded_amount = 10", "status = 'void_requested'"]
)
async def test_money_that_went_back_pays_for_nothing(shop: Shop, change: str) -> None:
    """Given back before the goods left, be it a part, or on its way: that isn't paid in full."""
    await declare(shop, RESERVE, CHARGE, APPROVAL, ship())
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.settle(await shop.advance(), APPROVED)
    await shop.run(f"update payments set {change}")
    await shop.run("select signal_saga(%s, 'approval')", order)
    await work_off(shop)
    await assert_set_aside(shop, order)
    assert await shop.stock(product) == (1, 1)
    await shop.run("select turn_back_saga(%s, 'they have their money')", order)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
