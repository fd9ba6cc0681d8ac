"""routines/60_payments.sql: money adds up, and never goes back."""

import json
from itertools import product as combinations
from string import ascii_uppercase
from uuid import UUID

import pytest
from shop import APPROVED, DECLINED, UNKNOWN, Shop, of_cell

from darkpearl.gateways.money import minor_units


@pytest.fixture
async def requested(shop: Shop) -> UUID:
    """An order of 20.00 that waits for the gateway."""
    order = await shop.order((await shop.product("10", on_hand=2), 2))
    await shop.advance()
    return order


async def test_the_intent_is_written_before_the_call(shop: Shop, requested: UUID) -> None:
    """A payment stands there with its amount and its key before anybody asks the gateway."""
    payment = await shop.payment(requested)
    assert payment["status"] == "requested"
    assert (payment["requested_amount"], payment["captured_amount"]) == (20, 0)
    assert payment["idempotency_key"] == of_cell(f"{requested}:process_payment")


@pytest.mark.parametrize(
    "amounts",
    [
        "authorized_amount = -1",
        "captured_amount = 1",
        "authorized_amount = 5, captured_amount = 6",
        "authorized_amount = 5, captured_amount = 5, refunded_amount = 6",
        "refunded_amount = 1",
        "voided_amount = 20.01",
        "authorized_amount = 20, captured_amount = 20, voided_amount = 1",
        "captured_amount = 'NaN'",
    ],
)
async def test_amounts_stay_within_each_other(shop: Shop, requested: UUID, amounts: str) -> None:
    """0 <= refunded <= captured <= authorised, and voided is of what wasn't captured."""
    with shop.refused("23514"):
        await shop.run(f"update payments set {amounts} where order_id = %s", requested)


@pytest.mark.parametrize(
    "less", ["captured_amount = 9.99", "refunded_amount = 8.99", "voided_amount = 9.99"]
)
async def test_money_that_moved_stays_moved(shop: Shop, requested: UUID, less: str) -> None:
    """What was captured, refunded or voided never shrinks."""
    shop.audited = False
    await shop.run(
        "update payments set authorized_amount = 20, captured_amount = 10, refunded_amount = 9,"
        " voided_amount = 10"
    )
    with shop.refused("DP005"):
        await shop.run(f"update payments set {less} where order_id = %s", requested)


@pytest.mark.parametrize(
    "change",
    [
        "requested_amount = 19",
        "requested_amount = 21",
        "currency = 'EUR'",
        "idempotency_key = 'another'",
        "order_id = gen_random_uuid()",
        "warehouse_id = gen_random_uuid()",
    ],
)
async def test_what_was_asked_stays_asked(shop: Shop, requested: UUID, change: str) -> None:
    """The request behind an idempotency key never changes."""
    with shop.refused("DP005"):
        await shop.run(f"update payments set {change} where order_id = %s", requested)


async def test_an_approval_captures_the_total(shop: Shop) -> None:
    """What was authorised and captured is the order's total; gateway and reference are kept."""
    order = await shop.fulfilled((await shop.product("7.5", on_hand=3), 3))
    payment = await shop.payment(order)
    assert payment["status"] == "captured"
    assert payment["authorized_amount"] == payment["captured_amount"]
    assert str(payment["captured_amount"]) == "22.5"
    assert (payment["gateway"], payment["gateway_reference"]) == ("mock", "ch_1")


async def test_what_costs_nothing_pays_for_nobody_else(shop: Shop) -> None:
    """In one batch with an order that is free, the other is asked for its money all the same."""
    free = await shop.order((await shop.product("0", on_hand=1), 1))
    other = await shop.order((await shop.product("10", on_hand=1), 1))
    (request,) = await shop.advance()
    assert request["saga_id"] == str(other)
    assert await shop.order_status(free) == "fulfilled"
    assert await shop.order_status(other) == "payment_processing"
    await shop.settle([request], APPROVED)
    assert await shop.order_status(other) == "fulfilled"


async def test_a_decline_captures_nothing(shop: Shop) -> None:
    """A declined payment holds no money and says why."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), DECLINED)
    payment = await shop.payment(order)
    assert (payment["status"], payment["decline_code"]) == ("declined", "card_declined")
    assert payment["authorized_amount"] == payment["captured_amount"] == 0


@pytest.mark.parametrize("outcome", ["unknown", "declined"])
async def test_what_a_gateway_says_is_kept_in_part(shop: Shop, outcome: str) -> None:
    """500 characters of it at most get into the history, with each try."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), {"outcome": outcome, "message": "x" * 60_000})
    message = (await shop.event(order, "step_failed"))["message"]
    assert message.removeprefix("payment declined: ") == "x" * 500


async def test_nobody_but_the_engine_writes_payments(shop: Shop, requested: UUID) -> None:
    """No role of ours inserts or changes a payment."""
    assert requested
    for role in ("service_role", "darkpearl_app", "darkpearl_listener", "darkpearl_reader"):
        async with shop.acting_as(role):
            with shop.refused("42501"):
                await shop.run("update payments set status = 'captured'")
            with shop.refused("42501"):
                await shop.run("insert into payments default values")


# The payer's means of payment.


async def test_a_payment_token_goes_with_every_try_of_the_charge(shop: Shop) -> None:
    """The gateway is handed the token whenever it is asked for the money, and at no other time."""
    async with shop.acting_as("service_role"):
        product = await shop.product(on_hand=1)
    async with shop.acting_as("darkpearl_app"):
        order = await shop.order((product, 1), p_payment_token="tok_visa")
    (request,) = await shop.advance()
    assert request["request"]["token"] == "tok_visa"
    await shop.settle([request], UNKNOWN)
    (again,) = await shop.ask_again()
    assert again["request"] == request["request"]
    await shop.cancel(order)
    (void,) = await shop.settle([again], APPROVED)
    assert "tok_visa" not in json.dumps(void)
    await shop.settle([void], APPROVED)


@pytest.mark.parametrize(
    "role",
    ["anon", "authenticated", "service_role", "darkpearl_app", "darkpearl_listener",
     "darkpearl_reader"],
)  # fmt: skip
async def test_a_payment_token_is_read_by_nobody(shop: Shop, role: str) -> None:
    """No role of ours sees a token, not even who has just written it; and it never changes."""
    await shop.order((await shop.product(on_hand=1), 1), p_payment_token="tok_visa")
    async with shop.acting_as(role):
        for column in ("token", "order_id"):
            with shop.refused("42501"):
                await shop.run(f"select {column} from payment_tokens")
    with shop.refused("DP005"):
        await shop.run("update payment_tokens set token = 'tok_mine'")


async def test_a_payment_token_stands_in_no_other_table(shop: Shop) -> None:
    """Neither history nor payment nor saga repeats it."""
    order = await shop.order((await shop.product(on_hand=1), 1), p_payment_token="tok_visa")
    await shop.settle(await shop.advance(), APPROVED)
    for table in ("orders", "payments", "sagas", "saga_events"):
        told = await shop.values(f"select to_jsonb(t)::text from {table} as t")
        assert told
        assert not [row for row in told if "tok_visa" in row]
    assert await shop.order_status(order) == "fulfilled"


async def test_a_payment_token_goes_with_its_saga(shop: Shop) -> None:
    """Housekeeping removes those of ended sagas, so many at a time; stuck ones may ask again."""
    product = await shop.product(on_hand=5)
    ended, cancelled, other, stuck, _ = [
        await shop.order((product, 1), p_payment_token=f"tok_{n}") for n in range(5)
    ]
    await shop.cancel(cancelled)
    paid = {str(ended), str(other)}
    requests = [each for each in await shop.advance() if each["saga_id"] in paid]
    await shop.settle(requests, APPROVED)
    await shop.run("update sagas set status = 'stuck', ready_at = null where id = %s", stuck)
    shop.audited = False  # no event tells of that
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.value("select forget_payment_tokens(2)") == 2
        assert await shop.value("select forget_payment_tokens(2)") == 1
        assert await shop.value("select forget_payment_tokens(2)") == 0
        with shop.refused("DP015"):
            await shop.run("select forget_payment_tokens(0)")
    kept = await shop.values("select token from payment_tokens order by token")
    assert kept == ["tok_3", "tok_4"]


@pytest.mark.parametrize("token", ["", "x" * 501])
async def test_a_payment_token_is_bounded(shop: Shop, token: str) -> None:
    """An empty token is a mistake, and a huge one is no token."""
    product = await shop.product(on_hand=1)
    with shop.refused("23514"):
        await shop.order((product, 1), p_payment_token=token)


# Currencies.


@pytest.mark.parametrize(
    ("currency", "price", "amount"),
    [("JPY", "1500", "3000"), ("KWD", "1.125", "2.250"), ("CLF", "0.0001", "0.0002")],
)
async def test_a_currency_has_its_own_decimals(
    shop: Shop, currency: str, price: str, amount: str
) -> None:
    """The gateway is asked for exactly what the lines add up to."""
    product = await shop.product(price, on_hand=2, currency=currency)
    order = await shop.order((product, 2), p_currency=currency)
    (request,) = await shop.advance()
    assert (request["request"]["amount"], request["request"]["currency"]) == (amount, currency)
    await shop.settle([request], APPROVED)
    assert str((await shop.payment(order))["captured_amount"]) == amount


@pytest.mark.parametrize(
    ("currency", "price"), [("JPY", "0.5"), ("USD", "9.999"), ("KWD", "1.0001")]
)
async def test_a_price_has_the_decimals_of_its_currency(
    shop: Shop, currency: str, price: str
) -> None:
    """What nobody can pay is no price: neither the catalogue's nor that of a line."""
    with shop.refused("23514"):
        await shop.product(price, currency=currency)
    product = await shop.product("7", on_hand=1, currency=currency)
    items = json.dumps([{"product_id": str(product), "quantity": 1, "unit_price": price}])
    with shop.refused("DP015"):
        await shop.order(p_items=items, p_currency=currency)


async def test_a_currency_has_the_same_decimals_for_gateways(shop: Shop) -> None:
    """What the database takes for an amount of a currency is what is converted for a gateway."""
    codes = ["".join(letters) for letters in combinations(ascii_uppercase, repeat=3)]
    told = await shop.values(
        "select minor_units(code) from unnest(%s::text[]) with ordinality as c (code, n)"
        " order by n",
        codes,
    )
    assert told == [minor_units(code) for code in codes]


async def test_zeros_at_the_end_are_no_decimals(shop: Shop) -> None:
    """1500.0000 yen are 1500 yen."""
    await shop.product("1500.0000", currency="JPY")
