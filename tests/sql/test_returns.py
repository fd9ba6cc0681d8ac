"""routines/63_returns.sql: money and goods come back, each by itself, never more than left."""

import json
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, PENDING, UNKNOWN, Shop, of_cell


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Three units at 10.00 in Lisbon."""
    return await shop.product("10", on_hand=3)


@pytest.fixture
async def order(shop: Shop, product: UUID) -> UUID:
    """A fulfilled order of 30.00 for all of them."""
    return await shop.fulfilled((product, 3))


async def refund_of(shop: Shop, refund: UUID) -> dict[str, Any]:
    """A refund as it stands."""
    return await shop.row("select * from refunds where id = %s", refund)


# Money.


@pytest.mark.parametrize("capture", [False, True], ids=["at_payment", "at_fulfilment"])
async def test_all_the_money_goes_back(shop: Shop, product: UUID, *, capture: bool) -> None:
    """Without an amount all of it is refunded, by a saga with the refund's id."""
    if capture:
        await shop.capture_at_fulfilment()
    order = await shop.order((product, 3))
    requests = await shop.advance()
    while requests:
        requests = await shop.settle(requests, APPROVED)
    refund = await shop.refund(order)
    assert (refund["status"], refund["amount"], refund["currency"]) == ("requested", 30, "USD")
    charge = (await shop.payment(order))["idempotency_key"]
    (request,) = await shop.advance()
    assert request["request"] == {
        "operation": "refund",
        "idempotency_key": of_cell(f"{refund['id']}:refund_payment"),
        "payment_key": charge,
        "amount": "30",
        "currency": "USD",
        "reference": "ch_1",
    }
    await shop.settle([request], APPROVED | {"reference": "re_1"})
    told = await refund_of(shop, refund["id"])
    assert (told["status"], told["gateway_reference"]) == ("refunded", "re_1")
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 30)
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.events(refund["id"]) == [
        "saga_started",
        "step_waiting refund_payment",
        "step_completed refund_payment",
        "saga_completed",
    ]
    event = await shop.event(refund["id"], "saga_started")
    assert (event["message"], event["actor"]) == (
        "a scratch",
        await shop.value("select session_user"),
    )


async def test_money_goes_back_in_parts(shop: Shop, order: UUID) -> None:
    """Part after part is refunded, until nothing is left."""
    for amount, refunded, status in [
        ("10.01", "10.01", "captured"),
        ("0.99", "11.00", "captured"),
        (None, "30.00", "refunded"),
    ]:
        await shop.refund(order, amount)
        await shop.settle(await shop.advance(), APPROVED)
        payment = await shop.payment(order)
        assert (str(payment["refunded_amount"]), payment["status"]) == (refunded, status)
    with shop.refused("DP020"):
        await shop.refund(order)
    assert await shop.values("select amount::text from refunds order by created_at") == [
        "10.01",
        "0.99",
        "19.00",
    ]


@pytest.mark.parametrize("left", ["0.01", "0.99"])
async def test_the_last_cents_go_back_too(shop: Shop, order: UUID, left: str) -> None:
    """Without an amount all that is left is refunded, however little that is."""
    await shop.refund(order, Decimal(30) - Decimal(left))
    await shop.settle(await shop.advance(), APPROVED)
    assert str((await shop.refund(order))["amount"]) == left


async def test_two_refunds_of_one_order_in_one_batch_add_up(shop: Shop, order: UUID) -> None:
    """Refunds that are answered together are both counted."""
    await shop.refund(order, 10)
    await shop.refund(order, 20)
    await shop.settle(await shop.advance(), APPROVED)
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 30)


async def test_open_refunds_count_against_what_is_left(shop: Shop, order: UUID) -> None:
    """What is on its way back can't be asked for again; the refusal says what can."""
    await shop.refund(order, 20)
    with shop.refused("DP020") as refusal:
        await shop.refund(order, "10.01")
    assert "10 USD" in refusal.detail
    assert (await shop.refund(order))["amount"] == 10
    with shop.refused("DP020"):
        await shop.refund(order)


async def test_a_refund_is_made_once(shop: Shop, order: UUID) -> None:
    """The same id again returns the refund it made, also once it is through."""
    refund = uuid4()
    first = await shop.refund(order, 10, refund)
    assert await shop.refund(order, 10, refund) == first
    assert await shop.refund(order, None, refund) == first
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.refund(order, 10, refund))["status"] == "refunded"
    assert await shop.value("select count(*) from refunds") == 1


async def test_a_refund_id_stands_for_one_refund(shop: Shop, order: UUID) -> None:
    """Another amount or another order under the same id is refused."""
    other = await shop.fulfilled((await shop.product(on_hand=1), 1))
    refund = uuid4()
    await shop.refund(order, 10, refund)
    with shop.refused("DP011"):
        await shop.refund(order, 11, refund)
    with shop.refused("DP011"):
        await shop.refund(other, 10, refund)


@pytest.mark.parametrize("amount", ["0", "-1", "1.001"])
async def test_a_refund_is_of_an_amount_that_can_be_paid(
    shop: Shop, order: UUID, amount: str
) -> None:
    """Nothing, less than nothing, or a part of a cent is no refund."""
    with shop.refused("DP015"):
        await shop.refund(order, amount)


@pytest.mark.parametrize("amount", ["30.01", "1e11", "NaN"])
async def test_a_refund_is_within_what_was_captured(shop: Shop, order: UUID, amount: str) -> None:
    """Nobody gets back more than they paid."""
    with shop.refused("DP020"):
        await shop.refund(order, amount)


async def test_only_what_is_fulfilled_is_refunded(shop: Shop, product: UUID) -> None:
    """Before, an order is cancelled instead; afterwards nothing is there to refund."""
    order = await shop.order((product, 1))
    with shop.refused("DP019") as refusal:
        await shop.refund(order)
    assert "cancel_order()" in refusal.hint
    await shop.advance()
    with shop.refused("DP019"):
        await shop.refund(order)
    with shop.refused("DP010"):
        await shop.refund(uuid4())


async def test_what_cost_nothing_has_nothing_to_refund(shop: Shop) -> None:
    """Of an order over zero nothing is left from the start."""
    product = await shop.product("0", on_hand=1)
    order = await shop.order((product, 1))
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    with shop.refused("DP020"):
        await shop.refund(order)


async def test_a_refund_that_is_declined_gives_its_amount_free(shop: Shop, order: UUID) -> None:
    """It is final and says why, and another may be tried for the same money."""
    refund = (await shop.refund(order))["id"]
    await shop.settle(await shop.advance(), DECLINED)
    told = await refund_of(shop, refund)
    assert (told["status"], told["decline_code"]) == ("declined", "card_declined")
    assert (await shop.saga(refund))["status"] == "compensated"
    assert (await shop.event(refund, "step_failed"))["message"] == "refund declined: card_declined"
    assert (await shop.payment(order))["refunded_amount"] == 0
    assert (await shop.refund(order))["amount"] == 30


async def make_stuck(shop: Shop, order: UUID) -> UUID:
    """A refund that the gateway never answers."""
    await shop.give_up_after(0.5)
    refund = (await shop.refund(order, 10))["id"]
    (first,) = await shop.advance()
    await shop.settle([first], UNKNOWN)
    (again,) = await shop.ask_again()
    assert again["request"] == first["request"]
    await shop.settle([again], UNKNOWN)
    assert (await shop.saga(refund))["status"] == "stuck"
    return refund


async def test_a_refund_that_nobody_answers_needs_a_person(shop: Shop, order: UUID) -> None:
    """It is never given up nor taken for paid: it stands in stuck_sagas with whom it is owed to."""
    customer = "bob"
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1), p_customer_id=customer)
    await shop.settle(await shop.advance(), APPROVED)
    refund = await make_stuck(shop, order)
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["id"], stuck["order_id"], stuck["current_step"]) == (
        refund,
        order,
        "refund_payment",
    )
    assert (stuck["owed_to"], stuck["amount_owed"]) == (customer, 10)
    assert (await refund_of(shop, refund))["status"] == "requested"
    with shop.refused("DP020"):
        await shop.refund(order)


async def test_a_stuck_refund_is_retried(shop: Shop, order: UUID) -> None:
    """Under the same key, so that a first try which went through isn't paid twice."""
    refund = await make_stuck(shop, order)
    await shop.run("select retry_saga(%s, 'gateway is back')", refund)
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == of_cell(f"{refund}:refund_payment")
    await shop.settle([request], APPROVED)
    assert (await refund_of(shop, refund))["status"] == "refunded"
    assert (await shop.payment(order))["refunded_amount"] == 10
    assert "retried refund_payment" in await shop.events(refund)


async def test_a_stuck_refund_is_paid_by_hand(shop: Shop, order: UUID) -> None:
    """What an operator paid out counts as refunded, and says so."""
    refund = await make_stuck(shop, order)
    await shop.run("select skip_step(%s, 'paid at the counter')", refund)
    assert (await refund_of(shop, refund))["status"] == "refunded"
    assert (await shop.payment(order))["refunded_amount"] == 10
    assert (await shop.saga(refund))["status"] == "completed"
    assert (await shop.events(refund))[-3:] == [
        "skipped refund_payment",
        "step_completed refund_payment",
        "saga_completed",
    ]


async def test_a_refund_may_be_told_of_later(shop: Shop, order: UUID) -> None:
    """Pending, it waits for its webhook."""
    refund = (await shop.refund(order))["id"]
    await shop.settle(await shop.advance(), PENDING)
    assert (await refund_of(shop, refund))["status"] == "requested"
    assert await shop.told(f"{refund}:refund_payment", APPROVED) == "applied"
    assert (await refund_of(shop, refund))["status"] == "refunded"


@pytest.mark.parametrize(
    "change", ["amount = 1", "currency = 'EUR'", "order_id = gen_random_uuid()",
               "status = 'requested'", "status = 'declined'"],
)  # fmt: skip
async def test_a_refund_stays_what_it_is(shop: Shop, order: UUID, change: str) -> None:
    """What it is for never changes, and refunded is final."""
    await shop.refund(order)
    await shop.settle(await shop.advance(), APPROVED)
    with shop.refused("DP005"):
        await shop.run(f"update refunds set {change}")
    with shop.refused("DP005"):
        await shop.run("delete from refunds")


# Goods.


async def test_all_the_goods_come_back(shop: Shop, product: UUID, order: UUID) -> None:
    """Without items all that was sent is stock again, as movements that name the order."""
    assert await shop.stock(product) == (0, 0)
    assert await shop.take_back(order) == [(product, 3)]
    assert await shop.stock(product) == (3, 0)
    movement = await shop.row("select * from stock_movements where reference_type = 'return'")
    assert (movement["movement_type"], movement["reference_id"]) == ("receive", order)
    assert (movement["notes"], movement["warehouse_id"]) == ("unopened", shop.lisbon)


async def test_goods_come_back_in_parts(shop: Shop) -> None:
    """Part after part, of each product what is still out, until nothing is."""
    one, two = sorted([await shop.product(on_hand=3), await shop.product(on_hand=2)])
    order = await shop.fulfilled((one, 2), (one, 1), (two, 2))
    assert await shop.take_back(order, (one, 1), (one, 1)) == [(one, 2)]
    with shop.refused("DP021"):
        await shop.take_back(order, (two, 1), (one, 2))
    assert await shop.stock(two) == (0, 0)
    assert await shop.take_back(order) == [(one, 1), (two, 2)]
    with shop.refused("DP021"):
        await shop.take_back(order)


async def test_no_more_comes_back_than_was_sent(shop: Shop, product: UUID, order: UUID) -> None:
    """One unit too many, a product the order never had, or of another order: refused."""
    other = await shop.product(on_hand=1)
    await shop.fulfilled((other, 1))
    with shop.refused("DP021") as refusal:
        await shop.take_back(order, (product, 4))
    assert "4 units came, 3 are out there" in refusal.detail
    for stranger in (other, uuid4()):
        with shop.refused("DP021"):
            await shop.take_back(order, (stranger, 1))
    with shop.refused("DP021"):
        await shop.take_back(order, (product, 2_000_000_000), (product, 2_000_000_000))


async def test_a_return_is_booked_once(shop: Shop, product: UUID, order: UUID) -> None:
    """The same id again returns the movements it made."""
    name = uuid4()
    assert await shop.take_back(order, (product, 2), return_id=name) == [(product, 2)]
    assert await shop.take_back(order, (product, 2), return_id=name) == [(product, 2)]
    assert await shop.take_back(order, return_id=name) == [(product, 2)]
    assert await shop.stock(product) == (2, 0)


async def test_a_return_id_stands_for_one_return(shop: Shop, product: UUID, order: UUID) -> None:
    """Other goods, another order, or an id that stands for something else already: refused."""
    other = await shop.fulfilled((await shop.product(on_hand=1), 1))
    name = uuid4()
    await shop.take_back(order, (product, 1), return_id=name)
    with shop.refused("DP011"):
        await shop.take_back(order, (product, 2), return_id=name)
    for taken in (name, order):
        with shop.refused("DP011"):
            await shop.take_back(other, return_id=taken)


async def test_only_what_has_left_comes_back(shop: Shop, product: UUID) -> None:
    """An order that isn't fulfilled, or isn't there, has sent nothing."""
    order = await shop.order((product, 1))
    with shop.refused("DP019"):
        await shop.take_back(order)
    with shop.refused("DP010"):
        await shop.take_back(uuid4())


@pytest.mark.parametrize(
    "items",
    [
        {"product_id": "…"},
        [],
        [{"quantity": 1}],
        [{"product_id": "…"}],
        [{"product_id": "…", "quantity": 0}],
        [{"product_id": "…", "quantity": -1}, {"product_id": "…", "quantity": 2}],
        [{"product_id": "…", "quantity": None}, {"product_id": "…", "quantity": 2}],
    ],
)
async def test_items_that_make_no_sense_are_refused(
    shop: Shop, product: UUID, order: UUID, items: Any
) -> None:
    """Each item is a product and a positive number of units."""
    text = json.dumps(items, ensure_ascii=False).replace("…", str(product))
    with shop.refused("DP015"):
        await shop.run("select return_items(%s, %s)", order, text)


async def test_money_and_goods_come_back_apart(shop: Shop, product: UUID, order: UUID) -> None:
    """Goods may come back unpaid for, and money be given back for goods that stay."""
    await shop.take_back(order, (product, 3))
    assert await shop.value("select count(*) from refunds") == 0
    assert (await shop.payment(order))["refunded_amount"] == 0
    await shop.refund(order, 5)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.stock(product) == (3, 0)


BROKEN = "select * from return_items(%s, %s, 'in pieces', %s, false)"
BOTH = "select * from return_and_refund(%s, %s, p_return_id => %s)"


async def test_broken_goods_come_back_and_are_not_stock(
    shop: Shop, product: UUID, order: UUID
) -> None:
    """The ledger says that they came, and were written off for a reason."""
    name = uuid4()
    items = json.dumps([{"product_id": str(product), "quantity": 2}])
    first = await shop.rows(BROKEN, order, items, name)
    assert [(row["movement_type"], row["quantity"]) for row in first] == [
        ("receive", 2),
        ("adjust", -2),
    ]
    assert {(row["reference_type"], row["reference_id"]) for row in first} == {("return", order)}
    assert await shop.stock(product) == (0, 0)
    assert await shop.values(
        "select reason_code from stock_ledger where correlation_id = %s order by id", name
    ) == [None, "damaged"]
    assert await shop.rows(BROKEN, order, items, name) == first
    assert await shop.rows(BROKEN, order, None, name) == first
    with shop.refused("DP011"):
        await shop.take_back(order, (product, 2), return_id=name)
    with shop.refused("DP021"):
        await shop.take_back(order, (product, 2))
    with shop.refused("DP015"):
        await shop.run("select return_items(%s, p_restock => false, p_reason_code => 'x')", order)
    assert await shop.take_back(order) == [(product, 1)]


async def test_goods_and_money_go_back_together(shop: Shop, product: UUID, order: UUID) -> None:
    """What the goods cost is refunded, once, however often it is asked for."""
    name, items = uuid4(), json.dumps([{"product_id": str(product), "quantity": 2}])
    async with shop.acting_as("darkpearl_app"):
        refund = await shop.row(BOTH, order, items, name)
        assert (refund["amount"], refund["order_id"], refund["status"]) == (20, order, "requested")
        assert await shop.row(BOTH, order, items, name) == refund
    assert await shop.stock(product) == (2, 0)
    told = await shop.row("select * from order_returns")
    assert told["refund"]["id"] == str(refund["id"])
    await shop.settle(await shop.advance(), APPROVED)
    rest = await shop.row(BOTH, order, None, uuid4())
    assert rest["amount"] == 10


async def test_neither_goods_nor_money_go_back_alone(
    shop: Shop, product: UUID, order: UUID
) -> None:
    """More than is left to refund, or more than was sent, and nothing has happened."""
    await shop.refund(order, 25)
    with shop.refused("DP020"):
        await shop.run(
            BOTH, order, json.dumps([{"product_id": str(product), "quantity": 1}]), uuid4()
        )
    assert await shop.stock(product) == (0, 0)
    with shop.refused("DP021"):
        await shop.run(
            "select return_and_refund(%s, %s, 1)",
            order,
            json.dumps([{"product_id": str(product), "quantity": 4}]),
        )
    assert await shop.value("select count(*) from refunds") == 1


async def test_a_product_on_two_lines_comes_back_line_by_line(shop: Shop) -> None:
    """What a unit cost, and of which line it is, follows the order of the lines."""
    product, other = await shop.product("10", on_hand=9), await shop.product("1", on_hand=9)
    lines = [(product, 2, 10), (other, 1, 1), (product, 3, 7)]
    items = [
        {"product_id": str(each), "quantity": count, "unit_price": price}
        for each, count, price in lines
    ]
    order = await shop.value("select id from place_order(%s, %s)", shop.lisbon, json.dumps(items))
    await shop.settle(await shop.advance(), APPROVED)
    amounts, returned = [], []
    for quantity in (1, 2, 2):
        some = json.dumps([{"product_id": str(product), "quantity": quantity}])
        amounts.append((await shop.row(BOTH, order, some, uuid4()))["amount"])
        details = await shop.row("select items from order_details where id = %s", order)
        returned.append([line["returned_quantity"] for line in details["items"]])
    assert amounts == [10, 17, 14]
    assert returned == [[1, 0, 0], [2, 0, 1], [2, 0, 3]]


async def test_what_cost_nothing_comes_back_without_a_refund(shop: Shop) -> None:
    """The goods are back, and no money moves."""
    product = await shop.product("0", on_hand=1)
    order = await shop.order((product, 1))
    await shop.advance()
    assert (await shop.row(BOTH, order, None, uuid4()))["id"] is None
    assert await shop.stock(product) == (1, 0)
    assert await shop.rows("select from refunds") == []


async def test_an_order_tells_what_came_back(shop: Shop, product: UUID, order: UUID) -> None:
    """Return by return, with the goods and whether they are stock again; nothing at first."""
    query = "select returns from order_details where id = %s"
    assert await shop.value(query, order) == []
    await shop.take_back(order, (product, 1))
    await shop.run(BROKEN, order, None, uuid4())
    told = await shop.value(query, order)
    assert [each["restocked"] for each in told] == [True, False]
    assert [[line["quantity"] for line in each["items"]] for each in told] == [[1], [2]]


async def test_movements_of_an_order_refer_to_it(shop: Shop, product: UUID, order: UUID) -> None:
    """Those of its saga and those of its returns alike, where the ledger is read with names."""
    await shop.take_back(order, (product, 1))
    told = await shop.rows(
        "select movement_type, reference_type, reference_id from stock_ledger"
        " where reference_id is not null order by id"
    )
    assert [tuple(row.values()) for row in told] == [
        ("reserve", "order", order),
        ("fulfill", "order", order),
        ("receive", "return", order),
    ]
