"""What a gateway says it did is compared with what it was asked to do, before goods move."""

from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, PENDING, Row, Shop, of_cell

ASKED = {"amount": "29.90", "currency": "EUR"}
WRONG = {
    "less was taken": ({"amount": "1.00"}, "1.00"),
    "less was captured": ({"captured": "1.00"}, "1.00"),
    "asked for, but less captured": ({**ASKED, "captured": "1.00"}, "1.00"),
    "more was taken": ({"amount": "299.00"}, "299.00"),
    "nothing was taken": ({**ASKED, "captured": "0"}, "0"),
    "another currency": ({**ASKED, "currency": "USD"}, "0"),
    "no number": ({"amount": "much"}, "0"),
    "NaN": ({"amount": "NaN"}, "0"),
    "less than nothing": ({"amount": "-29.90"}, "0"),
    "no money": ({"amount": "1e20"}, "0"),
    "a part of a cent": ({"amount": "29.900001"}, "0"),
    "no end": ({"amount": "9" * 200_000}, "0"),
    "a list": ({"amount": [29.9]}, "0"),
}


@pytest.fixture
async def order(shop: Shop) -> UUID:
    """An order of 29.90 EUR, whose payment the gateway is being asked for."""
    return await place(shop)


async def place(shop: Shop) -> UUID:
    """Such an order."""
    product = await shop.product("29.90", on_hand=1, currency="EUR")
    order = await shop.order((product, 1), p_currency="EUR")
    (request,) = await shop.advance()
    assert {name: request["request"][name] for name in ASKED} == ASKED
    return order


async def answer(shop: Shop, order: UUID, call: str, said: Row, *, by_webhook: bool) -> list[Row]:
    """The gateway says it, one way or the other; the requests that follow."""
    if by_webhook:
        assert await shop.told(f"{order}:{call}", said) == "applied"
        return await shop.advance()
    return await shop.settle([await shop.lease(order)], said)


async def cancelled_with(shop: Shop, order: UUID, void: Row, taken: str) -> None:
    """The void that was asked for gives back what was taken, and nothing is owed."""
    assert void["request"]["operation"] == "void"
    assert str((await shop.payment(order))["captured_amount"]) == taken
    failure = await shop.event(order, "step_failed")
    assert failure["error_code"] == "DP026"
    assert failure["message"].startswith("asked for 29.90 EUR")
    await shop.settle([void], APPROVED)
    payment = await shop.payment(order)
    assert payment["captured_amount"] == payment["refunded_amount"]
    assert await shop.order_status(order) == "cancelled"
    assert "step_completed fulfill_order" not in await shop.events(order)
    assert await shop.audit() == []


@pytest.mark.parametrize("by_webhook", [False, True], ids=["answer", "webhook"])
@pytest.mark.parametrize("case", WRONG)
async def test_an_approval_of_something_else_ships_nothing(
    shop: Shop, order: UUID, case: str, *, by_webhook: bool
) -> None:
    """What was taken instead is in the books and goes back; history tells both numbers."""
    said, taken = WRONG[case]
    (void,) = await answer(shop, order, "process_payment", APPROVED | said, by_webhook=by_webhook)
    await cancelled_with(shop, order, void, taken)


@pytest.mark.parametrize("by_webhook", [False, True], ids=["answer", "webhook"])
@pytest.mark.parametrize(
    "said", [{"amount": "1.00"}, {"amount": "29.90", "currency": "USD"}, {"amount": "NaN"}]
)
async def test_another_amount_is_not_held(shop: Shop, said: Row, *, by_webhook: bool) -> None:
    """An authorisation of something else is voided, and nothing is captured of it."""
    await shop.capture_at_fulfilment()
    order = await place(shop)
    (void,) = await answer(shop, order, "authorize_payment", APPROVED | said, by_webhook=by_webhook)
    await cancelled_with(shop, order, void, "0")


@pytest.mark.parametrize("by_webhook", [False, True], ids=["answer", "webhook"])
@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ({"amount": "1.00"}, "1.00"),
        ({"captured": "30"}, "30"),
        ({"currency": "USD"}, "0"),
        ({**ASKED, "reference": "ch_2"}, "0"),
    ],
)
async def test_another_amount_is_not_captured(
    shop: Shop, said: Row, taken: str, *, by_webhook: bool
) -> None:
    """A capture of something else, or of another payment, is undone with the hold."""
    await shop.capture_at_fulfilment()
    order = await place(shop)
    await shop.settle([await shop.lease(order)], APPROVED | ASKED)
    (void,) = await answer(shop, order, "capture_payment", APPROVED | said, by_webhook=by_webhook)
    await cancelled_with(shop, order, void, taken)


@pytest.mark.parametrize(
    "said",
    [
        {},
        ASKED,
        {**ASKED, "captured": 29.9},
        {"amount": "2.99E+1", "captured": "29.9000000"},
        {"amount": "29.9000", "currency": "eur", "captured": "29.90", "refunded": "0"},
    ],
)
async def test_an_approval_of_what_was_asked_ships(shop: Shop, order: UUID, said: Row) -> None:
    """Written one way or the other; and a gateway that names no amount is believed."""
    await shop.settle([await shop.lease(order)], APPROVED | said)
    assert await shop.order_status(order) == "fulfilled"
    assert str((await shop.payment(order))["captured_amount"]) == "29.90"


@pytest.mark.parametrize(
    ("currency", "price", "good", "bad"),
    [("JPY", "2990", "2990.00", "29.90"), ("KWD", "2.990", "2.99", "29.90")],
)
async def test_amounts_are_in_major_units(
    shop: Shop, currency: str, price: str, good: str, bad: str
) -> None:
    """Currencies without decimals, or with three, are compared like all others."""
    product = await shop.product(price, on_hand=2, currency=currency)
    orders = [await shop.order((product, 1), p_currency=currency) for _ in range(2)]
    requests = {UUID(each["saga_id"]): each for each in await shop.advance()}
    for order, amount in zip(orders, (good, bad), strict=True):
        told = APPROVED | {"amount": amount, "currency": currency}
        await shop.settle([requests[order]], told)
    assert await shop.order_status(orders[0]) == "fulfilled"
    assert (await shop.event(orders[1], "step_failed"))["error_code"] == "DP026"


async def test_wrong_answers_in_a_batch_leave_the_others(shop: Shop) -> None:
    """The approved goes on, wrong ones are undone, the declined turns back, the pending waits.

    What was taken of each is what was told of it.
    """
    product = await shop.product("10", on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(5)]
    said: list[Any] = [
        APPROVED,
        APPROVED | {"amount": "1.00"},
        APPROVED | {"amount": "2.00"},
        {"outcome": "declined"},
        PENDING,
    ]
    requests = {UUID(each["saga_id"]): each for each in await shop.advance()}
    await shop.bring(
        [
            {"saga_id": order, "lease_token": requests[order]["lease_token"], "answer": each}
            for order, each in zip(orders, said, strict=True)
        ]
    )
    await shop.advance()
    assert [(await shop.saga(each))["status"] for each in orders] == [
        "completed", "compensating", "compensating", "compensated", "waiting",
    ]  # fmt: skip
    taken = [(await shop.payment(each))["captured_amount"] for each in orders]
    assert taken == [10, 1, 2, 0, 0]


async def test_each_is_told_what_went_wrong_with_its_own(shop: Shop) -> None:
    """Of two wrong answers in a batch that part on their way back, each has its own in history.

    They part in one pass: none of it is taken back to be done again one by one.
    """
    product = await shop.product("10", on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(2)]
    requests = {UUID(each["saga_id"]): each for each in await shop.advance()}
    disputed = {"outcome": "disputed", "gateway": "mock", "dispute": "open", "reference": "dp_1"}
    assert await shop.told(f"{orders[1]}:process_payment", disputed) == "applied"
    last = await shop.value("select max(id) from saga_events")
    await shop.bring(
        [
            {
                "saga_id": order,
                "lease_token": requests[order]["lease_token"],
                "answer": APPROVED | {"amount": amount},
            }
            for order, amount in zip(orders, ("1.00", "2.00"), strict=True)
        ]
    )
    assert [(await shop.saga(each))["status"] for each in orders] == ["compensating", "stuck"]
    ids = await shop.values("select id from saga_events where id > %s order by id", last)
    assert ids == [last + n for n in range(1, len(ids) + 1)]
    for order, amount in zip(orders, ("1.00", "2.00"), strict=True):
        message = "select message from saga_events where saga_id = %s and error_code = 'DP026'"
        assert amount in await shop.value(message, order)


@pytest.mark.parametrize(
    "said",
    [
        {"captured": "29.90", "refunded": "9.90"},
        {"refunded": "9.90"},
        {"captured": "29.90", "refunded": "NaN"},
        {"reference": "ch_2"},
    ],
)
async def test_a_void_that_leaves_money_with_us_is_stuck(
    shop: Shop, order: UUID, said: Row
) -> None:
    """Less went back than was taken: both numbers are told, and a person sees to the rest."""
    await shop.cancel(order)
    (void,) = await shop.settle([await shop.lease(order)], APPROVED)
    await shop.settle([void], APPROVED | said)
    stuck = await shop.row("select * from stuck_sagas")
    assert stuck["last_error_code"] == "DP026"
    assert "asked for 29.90 EUR back" in stuck["last_error"]
    await shop.run("select skip_step(%s, 'gave back the rest')", order)
    await shop.advance()
    payment = await shop.payment(order)
    assert payment["captured_amount"] == payment["refunded_amount"]
    assert await shop.order_status(order) == "cancelled"


@pytest.mark.parametrize("by_webhook", [False, True], ids=["answer", "webhook"])
@pytest.mark.parametrize("said", [{"amount": "5.00"}, {"amount": "10.00", "currency": "EUR"}])
async def test_a_refund_of_something_else_is_stuck(
    shop: Shop, said: Row, *, by_webhook: bool
) -> None:
    """It counts as asked for until a person has seen to the rest."""
    order = await shop.fulfilled((await shop.product("10", on_hand=1), 1))
    refund = (await shop.refund(order, 10))["id"]
    await shop.advance()
    await answer(shop, refund, "refund_payment", APPROVED | said, by_webhook=by_webhook)
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["last_error_code"], stuck["amount_owed"]) == ("DP026", 10)
    assert stuck["last_error"].startswith("asked for 10 USD back, the gateway says")
    assert (await shop.payment(order))["refunded_amount"] == 0
    await shop.run("select skip_step(%s, 'gave back the rest')", refund)
    assert (await shop.payment(order))["refunded_amount"] == 10


async def test_late_news_of_another_amount_is_for_people(shop: Shop, order: UUID) -> None:
    """What is told under our key, and isn't what is in the books, is kept and counted."""
    await shop.settle([await shop.lease(order)], APPROVED)
    key = of_cell(f"{order}:process_payment")
    assert await shop.told(key, APPROVED | ASKED) == "stale"
    assert await shop.told(key, APPROVED | {"amount": "1.00"}) == "unmatched"
    assert await shop.told(key, APPROVED | {"amount": "29.90", "currency": "USD"}) == "unmatched"
    assert (await shop.payment(order))["captured_amount"] > 1
