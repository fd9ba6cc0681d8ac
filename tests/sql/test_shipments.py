"""routines/65_shipments.sql: goods leave parcel by parcel, paid and never twice."""

import json
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, LONG, Row, Shop

TWO_DAYS = 172_800


@pytest.fixture
async def shop(shop: Shop) -> Shop:
    """Lisbon packs its orders."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    return shop


@pytest.fixture
async def goods(shop: Shop) -> tuple[UUID, UUID]:
    """Ten units at 10.00 and ten at 2.50, in the order of their ids."""
    one, two = sorted([await shop.product(on_hand=10), await shop.product(on_hand=10)])
    await shop.run("update products set unit_price = 2.5 where id = %s", two)
    return one, two


@pytest.fixture
async def paid(shop: Shop, goods: tuple[UUID, UUID]) -> UUID:
    """A paid order of 35.00: three of the one, two of the other."""
    order = await shop.order((goods[0], 3), (goods[1], 2))
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "paid"
    return order


def items(*lines: tuple[UUID, int]) -> str | None:
    """Lines as JSON; none for all."""
    named = [{"product_id": str(product), "quantity": count} for product, count in lines]
    return json.dumps(named) if named else None


async def ship(
    shop: Shop,
    order: UUID,
    *lines: tuple[UUID, int],
    shipment: UUID | None = None,
    tracking: Any = None,
) -> Row:
    """An application ships a parcel, all that is left when no lines are named."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.row(
            "select * from ship_items(%s, %s, %s, %s)",
            order,
            items(*lines),
            json.dumps(tracking) if tracking is not None else None,
            shipment or uuid4(),
        )


async def take_out(
    shop: Shop, order: UUID, *lines: tuple[UUID, int], cancellation: UUID | None = None
) -> list[tuple[UUID, int]]:
    """An application takes goods out of an order; what moved."""
    async with shop.acting_as("darkpearl_app"):
        rows = await shop.rows(
            "select product_id, quantity from cancel_items(%s, %s, 'sold out', %s)",
            order,
            items(*lines),
            cancellation or uuid4(),
        )
    return [(row["product_id"], row["quantity"]) for row in rows]


async def test_an_order_waits_for_its_parcel(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Paid, it keeps its stock reserved until somebody packs; one parcel of all fulfils it."""
    assert await shop.advance() == []
    assert await shop.stock(goods[0]) == (10, 3)
    parcel = await ship(shop, paid, tracking={"carrier": "CTT", "number": "RR1", "url": None})
    assert parcel["shipped_at"] is not None
    assert (parcel["carrier"], parcel["tracking_number"], parcel["tracking_url"]) == (
        "CTT", "RR1", None,
    )  # fmt: skip
    assert (parcel["order_id"], parcel["actor"]) == (paid, await shop.value("select session_user"))
    assert await shop.order_status(paid) == "fulfilled"
    assert (await shop.saga(paid))["status"] == "completed"
    assert await shop.stock(goods[0]) == (7, 0)
    assert await shop.stock(goods[1]) == (8, 0)
    assert (await shop.events(paid))[-6:] == [
        "step_waiting await_parcel",
        "step_completed await_parcel",
        "step_completed send_parcel",
        "step_completed ship_order",
        "saga_completed",
        "shipped",
    ]
    told = await shop.event(paid, "shipped")
    assert (told["message"], told["actor"]) == (str(parcel["id"]), None)


async def test_an_order_leaves_in_several_parcels(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Each parcel takes its units from the shelf; the order is fulfilling from first to last."""
    one, two = goods
    first = await ship(shop, paid, (one, 1))
    assert await shop.order_status(paid) == "fulfilling"
    assert await shop.stock(one) == (9, 2)
    await ship(shop, paid, (one, 1), (two, 2))
    assert await shop.order_status(paid) == "fulfilling"
    assert await shop.stock(two) == (8, 0)
    assert await shop.rows("select * from goods_to_ship(%s)", paid) == [
        {"product_id": one, "quantity": 1}
    ]
    await ship(shop, paid)
    assert await shop.order_status(paid) == "fulfilled"
    assert await shop.stock(one) == (7, 0)
    movement = await shop.row(
        "select * from stock_movements where correlation_id = %s", first["id"]
    )
    assert (movement["movement_type"], movement["reference_type"], movement["reference_id"]) == (
        "fulfill", "shipment", paid,
    )  # fmt: skip
    assert await shop.advance() == []


async def test_a_parcel_is_made_once(shop: Shop, paid: UUID, goods: tuple[UUID, UUID]) -> None:
    """The same id again returns the parcel it made, also once the order is fulfilled."""
    one, _ = goods
    name = uuid4()
    first = await ship(shop, paid, (one, 1), shipment=name, tracking={"carrier": "CTT"})
    assert await ship(shop, paid, (one, 1), shipment=name, tracking={"carrier": "CTT"}) == first
    await ship(shop, paid)
    assert await ship(shop, paid, (one, 1), shipment=name, tracking={"carrier": "CTT"}) == first
    assert await shop.value("select count(*) from shipments") == 2


async def test_a_shipment_id_stands_for_one_parcel(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Other goods, tracking or order, an id of something else, or one used later: refused."""
    one, _ = goods
    name = uuid4()
    await ship(shop, paid, (one, 1), shipment=name)
    other = await shop.order((one, 1))
    await shop.settle(await shop.advance(), APPROVED)
    for refused in (
        ship(shop, paid, (one, 2), shipment=name),
        ship(shop, paid, (one, 1), shipment=name, tracking={"carrier": "DHL"}),
        ship(shop, other, (one, 1), shipment=name),
        ship(shop, other, shipment=paid),
        ship(shop, other, shipment=await shop.value("select correlation_id from stock_movements"
                                                    " where movement_type = 'receive' limit 1")),
    ):  # fmt: skip
        with shop.refused("DP011"):
            await refused
    with shop.refused("DP038"):
        await shop.order((one, 1), p_order_id=name)
    with shop.refused("DP038"):
        await shop.run("select receive_stock(%s, %s, 1, %s)", shop.lisbon, one, name)
    await ship(shop, paid)
    with shop.refused("DP038"):
        await shop.take_back(paid, return_id=name)
    await shop.cancel(other)
    await shop.settle(await shop.advance(), APPROVED)


async def test_no_more_is_shipped_than_is_left(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """One unit too many, a product the order never had, or nothing left: refused."""
    one, two = goods
    await ship(shop, paid, (one, 2))
    for lines in [(one, 2)], [(one, 1), (one, 1)], [(uuid4(), 1)]:
        with shop.refused("DP029") as refusal:
            await ship(shop, paid, *lines)
    assert "0 are left" in refusal.detail
    await ship(shop, paid, (one, 1), (two, 2))
    with shop.refused("DP024"):
        await ship(shop, paid)


async def test_an_order_has_so_many_parcels(shop: Shop, paid: UUID) -> None:
    """A thousand of them, and not one more."""
    async with shop.unguarded():
        await shop.run(
            "insert into shipments (order_id, warehouse_id) select %s, %s"
            " from generate_series(1, 1000)",
            paid,
            shop.lisbon,
        )
    with shop.refused("DP015"):
        await ship(shop, paid)
    async with shop.unguarded():
        await shop.run("delete from shipments where id = (select id from shipments limit 1)")
    await ship(shop, paid)


async def test_only_what_is_paid_and_packed_is_shipped(
    shop: Shop, goods: tuple[UUID, UUID]
) -> None:
    """An order that isn't paid, is to be cancelled, or isn't there has nothing to ship."""
    order = await shop.order((goods[0], 1))
    with shop.refused("DP024"):
        await ship(shop, order)
    requests = await shop.advance()
    with shop.refused("DP024") as refusal:
        await ship(shop, order)
    assert "orders_to_ship" in refusal.hint
    await shop.settle(requests, APPROVED)
    await shop.cancel(order)
    with shop.refused("DP024") as refusal:
        await ship(shop, order)
    assert "to be cancelled" in refusal.detail
    with shop.refused("DP010"):
        await ship(shop, uuid4())
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.statuses() == {"cancelled": 1}


async def test_orders_of_other_warehouses_leave_by_themselves(
    shop: Shop, goods: tuple[UUID, UUID]
) -> None:
    """The method counts for new orders, and an automatic one is nobody's to ship."""
    await shop.run("update warehouses set fulfilment_method = 'automatic'")
    order = await shop.fulfilled((goods[0], 1))
    with shop.refused("DP024") as refusal:
        await ship(shop, order)
    assert "fulfilment_method" in refusal.hint


@pytest.mark.parametrize(
    ("tracking", "sqlstate"),
    [
        ([], "DP015"),
        ({"carier": "CTT"}, "DP015"),
        ({"number": 17}, "DP015"),
        ({"carrier": " "}, "23514"),
        ({"number": "1" * 101}, "23514"),
        ({"url": "javascript:alert(1)"}, "23514"),
        ({"url": "https://a b"}, "23514"),
    ],
)
async def test_tracking_is_what_people_can_use(
    shop: Shop, paid: UUID, tracking: Any, sqlstate: str
) -> None:
    """Carrier, number and a web address, bounded; what is refused ships nothing."""
    with shop.refused(sqlstate):
        await ship(shop, paid, tracking=tracking)
    assert await shop.order_status(paid) == "paid"


async def test_an_order_is_cancelled_until_its_first_parcel(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Before, all comes back; after it, what hasn't left is taken out instead."""
    other = await shop.order((goods[0], 2))
    await shop.settle(await shop.advance(), APPROVED)
    await shop.cancel(other)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(other) == "cancelled"
    assert (await shop.payment(other))["status"] == "refunded"
    await ship(shop, paid, (goods[0], 1))
    with shop.refused("DP007") as refusal:
        await shop.cancel(paid)
    assert "cancel_items()" in refusal.hint
    await ship(shop, paid)


BRING_BACK = "select amount from return_and_refund(%s, %s)"


async def test_what_has_left_comes_back_before_the_rest_leaves(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Goods and their money, no more than that; the rest is shipped or taken out all the same."""
    one, two = goods
    await ship(shop, paid, (one, 2))
    with shop.refused("DP019") as refusal:
        await shop.refund(paid)
    assert "return_items()" in refusal.hint
    with shop.refused("DP021"):
        await shop.run(BRING_BACK, paid, items((two, 1)))
    assert await shop.value(BRING_BACK, paid, items((one, 1))) == 10
    for amount in (None, 1):
        with shop.refused("DP019"):
            await shop.refund(paid, amount)
    await shop.take_back(paid, (one, 1))
    with shop.refused("DP020"):
        await shop.refund(paid, 11)
    await shop.refund(paid, 4)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(paid))["refunded_amount"] == 14
    assert await shop.stock(one) == (10, 1)
    await ship(shop, paid, (one, 1))
    assert await take_out(shop, paid, (two, 1)) == [(two, 1)]
    assert (await shop.refund(paid))["amount"] == 6
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(paid))["refunded_amount"] == Decimal("22.5")
    await ship(shop, paid)
    assert await shop.order_status(paid) == "fulfilled"
    assert await shop.stock(two) == (9, 0)


async def test_what_has_not_left_is_taken_out(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Its units can be sold again, its money goes back under the same id, the rest is shipped."""
    one, two = goods
    await ship(shop, paid, (one, 1))
    name = uuid4()
    assert await take_out(shop, paid, (one, 1), (two, 2), cancellation=name) == [(one, 1), (two, 2)]
    assert await take_out(shop, paid, (one, 1), (two, 2), cancellation=name) == [(one, 1), (two, 2)]
    assert await shop.stock(one) == (9, 1)
    assert await shop.stock(two) == (10, 0)
    refund = await shop.row("select * from refunds")
    assert (refund["id"], refund["amount"], refund["reason"]) == (name, 15, "sold out")
    (request,) = await shop.advance()
    assert (request["request"]["operation"], request["request"]["amount"]) == ("refund", "15.00")
    await shop.settle([request], APPROVED)
    assert (await shop.payment(paid))["refunded_amount"] == 15
    with shop.refused("DP029"):
        await ship(shop, paid, (one, 2))
    await ship(shop, paid)
    assert await shop.order_status(paid) == "fulfilled"
    assert await shop.stock(one) == (8, 0)
    assert (await shop.refund(paid))["amount"] == 20


async def test_the_last_that_is_taken_out_ends_the_order(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """When nothing is left to ship the order is fulfilled, with less money than it had."""
    one, _ = goods
    await ship(shop, paid, (one, 3))
    await take_out(shop, paid)
    assert await shop.order_status(paid) == "fulfilled"
    assert (await shop.saga(paid))["status"] == "completed"
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(paid))["refunded_amount"] == 5
    with shop.refused("DP024"):
        await take_out(shop, paid)


async def test_nothing_is_taken_out_before_a_parcel(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Until then the whole order is cancelled; nor is more taken out than is left."""
    with shop.refused("DP024") as refusal:
        await take_out(shop, paid, (goods[0], 1))
    assert "cancel_order()" in refusal.hint
    await ship(shop, paid, (goods[0], 2))
    with shop.refused("DP029"):
        await take_out(shop, paid, (goods[0], 2))
    await ship(shop, paid)


async def test_a_cancellation_id_stands_for_one(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Other goods, or an id of something else: refused."""
    one, _ = goods
    parcel = await ship(shop, paid, (one, 1))
    name = uuid4()
    await take_out(shop, paid, (one, 1), cancellation=name)
    with shop.refused("DP011"):
        await take_out(shop, paid, (one, 2), cancellation=name)
    with shop.refused("DP011"):
        await take_out(shop, paid, cancellation=paid)
    with shop.refused("DP011"):
        await take_out(shop, paid, (one, 1), cancellation=parcel["id"])
    with shop.refused("DP011"):
        await ship(shop, paid, shipment=name)


async def test_a_cancelled_order_s_id_is_no_cancellation_of_another(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """That the same goods were released under it doesn't mean that these were taken out."""
    one, _ = goods
    cancelled = await shop.order((one, 1))
    await shop.settle(await shop.advance(), DECLINED)
    assert await shop.order_status(cancelled) == "cancelled"
    await ship(shop, paid, (one, 1))
    with shop.refused("DP011"):
        await take_out(shop, paid, (one, 1), cancellation=cancelled)
    assert await shop.stock(one) == (9, 2)


async def test_what_was_given_away_is_taken_out_for_nothing(shop: Shop) -> None:
    """Goods that cost nothing are released, and nothing is refunded."""
    free, dear = await shop.product("0", on_hand=2), await shop.product("1", on_hand=1)
    order = await shop.order((free, 2), (dear, 1))
    await shop.settle(await shop.advance(), APPROVED)
    await ship(shop, order, (dear, 1))
    name = uuid4()
    assert await take_out(shop, order, (free, 1), cancellation=name) == [(free, 1)]
    assert await take_out(shop, order, (free, 1), cancellation=name) == [(free, 1)]
    assert await shop.rows("select * from refunds") == []
    with shop.refused("DP038"):
        await shop.order((free, 1), p_order_id=name)
    await ship(shop, order)
    assert await shop.order_status(order) == "fulfilled"


async def test_of_lines_of_other_prices_the_last_are_taken_out(shop: Shop) -> None:
    """Whatever is taken out in which parts, what goes back adds up to what those units cost."""
    product = await shop.product("10", on_hand=9)
    async with shop.acting_as("service_role"):
        order = await shop.value(
            "select id from place_order(%s, %s)",
            shop.lisbon,
            json.dumps(
                [
                    {"product_id": str(product), "quantity": 2, "unit_price": price}
                    for price in (10, 4, 1)
                ]
            ),
        )
    await shop.settle(await shop.advance(), APPROVED)
    await ship(shop, order, (product, 1))
    for units, amount in (1, 1), (2, 5), (2, 14):
        name = uuid4()
        await take_out(shop, order, (product, units), cancellation=name)
        assert await shop.value("select amount from refunds where id = %s", name) == amount
    assert await shop.order_status(order) == "fulfilled"
    await shop.settle(await shop.advance(), APPROVED)


async def test_money_of_what_was_taken_out_is_owed(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """A decline calls a person; a refund that fails after all is asked for again, and no more."""
    name = uuid4()
    await ship(shop, paid, (goods[0], 1))
    with shop.refused("DP019") as refusal:
        await shop.refund(paid)
    assert "cancel_items()" in refusal.hint
    await take_out(shop, paid, (goods[1], 2), cancellation=name)
    await shop.settle(await shop.advance(), DECLINED)
    assert (await shop.row("select * from stuck_sagas"))["last_error_code"] == "DP028"
    await shop.run("select retry_saga(%s, 'the bank is back')", name)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.told(f"{name}:refund_payment", DECLINED)
    assert (await shop.row("select * from failed_refunds"))["id"] == name
    with shop.refused("DP020"):
        await shop.refund(paid, "5.01")
    assert (await shop.refund(paid))["amount"] == 5
    await shop.settle(await shop.advance(), APPROVED)
    await ship(shop, paid)
    assert await shop.order_status(paid) == "fulfilled"


async def test_goods_leave_only_while_their_money_is_there(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Once more went back than was taken out, no parcel leaves: whoever asks, nothing moves."""
    await ship(shop, paid, (goods[0], 1))
    async with shop.unguarded():
        await shop.run("update payments set refunded_amount = 1")
    with shop.refused("DP023"):
        await ship(shop, paid)
    assert await shop.stock(goods[0]) == (9, 2)


# Captured at the first parcel.


@pytest.fixture
async def held(shop: Shop, goods: tuple[UUID, UUID]) -> UUID:
    """An order of 35.00 whose money is held."""
    await shop.capture_at_fulfilment()
    order = await shop.order((goods[0], 3), (goods[1], 2))
    assert await shop.settle(await shop.advance(), APPROVED) == []
    assert (await shop.payment(order))["status"] == "authorized"
    return order


async def test_the_first_parcel_asks_for_the_money(
    shop: Shop, held: UUID, goods: tuple[UUID, UUID]
) -> None:
    """It leaves when the capture is recorded, with what was packed meanwhile; not before."""
    one, _ = goods
    first = await ship(shop, held, (one, 1))
    assert first["shipped_at"] is None
    assert await shop.stock(one) == (10, 3)
    (request,) = await shop.advance()
    assert request["step_name"] == "capture_payment"
    second = await ship(shop, held, (one, 1))
    assert second["shipped_at"] is None
    with shop.refused("DP007"):
        await shop.cancel(held)
    assert await shop.values("select status from order_shipments") == ["waiting", "waiting"]
    await shop.settle([request], APPROVED)
    assert await shop.order_status(held) == "fulfilling"
    assert await shop.values("select status from order_shipments") == ["shipped", "shipped"]
    assert (await ship(shop, held, (one, 1), shipment=first["id"]))["shipped_at"] is not None
    assert await shop.stock(one) == (8, 1)
    await ship(shop, held)
    assert await shop.order_status(held) == "fulfilled"


async def test_many_parcels_leave_with_one_answer(shop: Shop, goods: tuple[UUID, UUID]) -> None:
    """Captures that are answered together send the parcels of each order, and of no other."""
    await shop.capture_at_fulfilment()
    orders = [await shop.order((goods[0], 1), (goods[1], 1)) for _ in range(3)]
    await shop.settle(await shop.advance(), APPROVED)
    for order in orders[:2]:
        await ship(shop, order, (goods[0], 1))
    await shop.settle(await shop.advance(), APPROVED)
    assert [await shop.order_status(order) for order in orders] == [
        "fulfilling", "fulfilling", "payment_processing",
    ]  # fmt: skip
    assert await shop.stock(goods[0]) == (8, 1)
    left = "select distinct reference_id from stock_movements where movement_type = 'fulfill'"
    assert sorted(await shop.values(left)) == orders[:2]


async def test_a_parcel_whose_money_is_refused_stays(
    shop: Shop, held: UUID, goods: tuple[UUID, UUID]
) -> None:
    """A capture that is declined turns the order back: the parcel never leaves, and says so."""
    parcel = await ship(shop, held)
    (void,) = await shop.settle(await shop.advance(), DECLINED)
    assert await shop.values("select status from order_shipments") == ["refused"]
    await shop.settle([void], APPROVED)
    assert await shop.order_status(held) == "cancelled"
    assert (await ship(shop, held, shipment=parcel["id"]))["shipped_at"] is None
    assert await shop.stock(goods[0]) == (10, 0)


async def test_a_held_order_is_cancelled_until_its_money_is_asked_for(
    shop: Shop, held: UUID
) -> None:
    """A parcel that waits for the money is refused, when the order is cancelled first."""
    await ship(shop, held)
    await shop.cancel(held)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(held) == "cancelled"
    assert await shop.values("select status from order_shipments") == ["refused"]


@pytest.mark.parametrize("capture", [False, True], ids=["at_payment", "at_fulfilment"])
async def test_what_costs_nothing_is_packed_too(shop: Shop, *, capture: bool) -> None:
    """An order over zero waits for its parcel, and asks no gateway."""
    if capture:
        await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product("0", on_hand=2), 2))
    assert await shop.advance() == []
    await ship(shop, order)
    assert await shop.advance() == []
    assert await shop.order_status(order) == "fulfilled"


# Time, views, what is kept.


async def test_orders_that_nobody_packs_are_listed(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Overdue after the step's time, they go on waiting; a parcel gives the rest its time anew."""

    async def listed() -> Row:
        async with shop.acting_as("darkpearl_reader"):
            return await shop.row("select * from orders_to_ship")

    row = await listed()
    assert (row["id"], row["status"], row["units_left"], row["parcels"]) == (paid, "paid", 5, 0)
    assert (row["due_at"] - row["waits_since"]).total_seconds() == TWO_DAYS
    assert (row["is_overdue"], row["is_disputed"]) == (False, False)
    dispute = {"outcome": "disputed", "dispute": "open", "reference": "dp_1"}
    await shop.told(f"{paid}:process_payment", dispute)
    assert (await listed())["is_disputed"] is True
    await shop.turn_clock(TWO_DAYS + LONG)
    assert await shop.advance() == []
    row = await listed()
    assert (row["is_overdue"], await shop.order_status(paid)) == (True, "paid")
    event = (await shop.rows("select * from saga_events where saga_id = %s order by id", paid))[-1]
    assert (event["event_type"], event["error_code"]) == ("step_waiting", "DP013")
    await ship(shop, paid, (goods[0], 1))
    row = await listed()
    assert (row["is_overdue"], row["status"], row["units_left"]) == (False, "fulfilling", 4)
    await shop.turn_clock(TWO_DAYS + LONG)
    await shop.advance()
    assert (await listed())["is_overdue"] is True
    await ship(shop, paid)
    assert await shop.rows("select * from orders_to_ship") == []


async def test_a_parcel_is_no_news_of_another_order(shop: Shop, paid: UUID) -> None:
    """What one order has waited for its packers isn't forgotten when another's parcel leaves."""
    product = await shop.product(on_hand=2)
    other = await shop.order((product, 2))
    await shop.settle(await shop.advance(), APPROVED)
    waits = "select waits_since, is_overdue from orders_to_ship where id = %s"
    since = (await shop.row(waits, paid))["waits_since"]
    await shop.turn_clock(TWO_DAYS + LONG)
    await shop.advance()
    await ship(shop, other, (product, 1))
    assert await shop.row(waits, paid) == {"waits_since": since, "is_overdue": True}
    assert (await shop.row(waits, other))["is_overdue"] is False


async def test_packers_are_waited_for_since_the_order_was_paid(
    shop: Shop, goods: tuple[UUID, UUID]
) -> None:
    """What was said to the step before it was reached doesn't make the order overdue earlier."""
    order = await shop.order((goods[0], 1))
    requests = await shop.advance()
    await shop.run("select signal_saga(%s, 'await_parcel')", order)
    await shop.turn_clock(TWO_DAYS)
    await shop.settle(requests, APPROVED)
    row = await shop.row("select * from orders_to_ship")
    began = "select min(created_at) from saga_events where saga_id = %s"
    began += " and event_type = 'step_waiting' and step_name = 'await_parcel'"
    assert (row["waits_since"], row["is_overdue"]) == (await shop.value(began, order), False)


async def test_a_signal_is_no_parcel(shop: Shop, paid: UUID) -> None:
    """Who tells the saga what only a parcel may say changes nothing: it goes on waiting."""
    for step in ("await_parcel", "ship_order"):
        await shop.run("select signal_saga(%s, %s)", paid, step)
        assert await shop.advance() == []
        assert await shop.order_status(paid) == "paid"
    await ship(shop, paid)
    assert await shop.order_status(paid) == "fulfilled"


async def test_goods_come_back_from_parcels(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """What has left may come back, also before the last parcel has; no more than that."""
    one, _ = goods
    await ship(shop, paid, (one, 2))
    with shop.refused("DP021"):
        await shop.take_back(paid, (one, 3))
    assert await shop.take_back(paid) == [(one, 2)]
    await ship(shop, paid)
    assert await shop.take_back(paid, (one, 1)) == [(one, 1)]


@pytest.mark.parametrize("table", ["shipments", "shipment_items"])
async def test_parcels_are_history(shop: Shop, paid: UUID, table: str) -> None:
    """What was packed and when it left stays written."""
    await ship(shop, paid)
    for statement in (f"update {table} set warehouse_id = order_id", f"delete from {table}",
                      f"truncate {table}"):  # fmt: skip
        with shop.refused("DP005"):
            await shop.run(statement)


async def test_parcels_go_with_their_order(
    shop: Shop, paid: UUID, goods: tuple[UUID, UUID]
) -> None:
    """Retention takes them with all that moved, and their ids stay spent."""
    one, _ = goods
    named, unnamed = uuid4(), await shop.value("select new_id()")
    await ship(shop, paid, (one, 1), shipment=named)
    await ship(shop, paid, (one, 1), shipment=unnamed)
    await take_out(shop, paid)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.turn_clock(60 * 86_400)
    await shop.run("update retention set keep_days = 30 where kind = 'orders'")
    async with shop.acting_as("darkpearl_listener"):
        await shop.run("select * from apply_retention('orders')")
    for table in ("orders", "shipments", "shipment_items"):
        assert await shop.rows(f"select * from {table}") == []
    kinds = await shop.values("select distinct movement_type::text from stock_movements")
    assert sorted(kinds) == ["balance", "receive"]
    assert await shop.stock(one) == (8, 0)
    assert await shop.values("select id from spent_ids where id in (%s, %s)", named, unnamed) == [
        named
    ]
    assert await shop.value(
        "select bool_and(is_spent(i)) from unnest(%s::uuid[]) as i", [named, unnamed]
    )


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("update shipment_items set quantity = 1", "shipment and ledger disagree"),
        ("delete from saga_events where event_type = 'shipped'", "shipment and history disagree"),
        ("delete from stock_movements where movement_type = 'fulfill'",
         "ended order does not balance in the ledger"),
    ],
)  # fmt: skip
async def test_the_audit_sees_what_is_wrong(
    shop: Shop, paid: UUID, change: str, finding: str
) -> None:
    """Parcels, orders and the ledger are compared."""
    await ship(shop, paid)
    assert await shop.audit() == []
    async with shop.unguarded():
        await shop.run(change)
    assert finding in {row["finding"] for row in await shop.rows("select * from audit")}
    assert finding in {row["finding"] for row in await shop.rows(
        "select * from audit_since(clock() - interval '1 hour')")}  # fmt: skip
