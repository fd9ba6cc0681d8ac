"""Stripe as its documentation has it: every call once, whatever gets lost."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from msgspec.structs import replace
from stripe_as_documented import Json, Stripe

from darkpearl.gateways import Call, GatewayPayment, Operation
from darkpearl.gateways.money import AmountError
from darkpearl.gateways.stripe import StripeGateway
from darkpearl.gateways.stripe_objects import Intent, from_stripe, to_stripe

# The SDK hands its body to httpx in a way that httpx would rather not see any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text")

BAD = "pm_card_chargeCustomerFail"
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


async def books(gateway: StripeGateway, call: Call) -> GatewayPayment:
    """The only payment that Stripe has under a key."""
    found = [each async for each in gateway.payments(EPOCH) if each.payment_key == call.payment_key]
    assert len(found) == 1
    return found[0]


def charged(server: Stripe) -> int:
    """How many confirmations went out."""
    return sum(each.endswith("/confirm") for each in server.requests)


async def money(gateway: StripeGateway, call: Call) -> tuple[str, str, str, bool]:
    """A payment at Stripe: authorised, captured, refunded, and if it is void."""
    payment = await books(gateway, call)
    return str(payment.authorized), str(payment.captured), str(payment.refunded), payment.voided


# The ordinary way.


async def test_an_authorisation_holds_the_money_until_the_capture(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Authorised, captured, refunded in part, refunded again: the books agree at each point."""
    held = await gateway.authorize(order())
    assert (held.outcome, held.gateway, held.captured) == ("approved", "stripe", 0)
    assert await money(gateway, order()) == ("20.00", "0.00", "0.00", False)

    taken = await gateway.capture(order("capture", reference=held.reference))
    assert (taken.outcome, taken.captured) == ("approved", 20)
    assert await money(gateway, order()) == ("20.00", "20.00", "0.00", False)

    part = order("refund", reference=held.reference, amount=Decimal("5.50"))
    for key in ("first", "first", "second"):
        refund = await gateway.refund(replace(part, idempotency_key=part.payment_key + key))
        assert refund.outcome == "approved"
        assert refund.reference
        assert refund.reference.startswith("re_")
    assert await money(gateway, order()) == ("20.00", "20.00", "11.00", False)


async def test_money_can_be_taken_at_once(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """An authorisation with capture leaves nothing to capture."""
    answer = await gateway.authorize(order(capture=True))
    assert (answer.outcome, answer.captured) == ("approved", 20)
    assert await money(gateway, order()) == ("20.00", "20.00", "0.00", False)


async def test_a_part_can_be_captured(gateway: StripeGateway, order: Callable[..., Call]) -> None:
    """The rest is released, which is no refund; what is refunded of the part is."""
    held = await gateway.authorize(order())
    part = {"reference": held.reference, "amount": Decimal("12.00")}
    assert (await gateway.capture(order("capture", **part))).captured == 12
    assert await money(gateway, order()) == ("20.00", "12.00", "0.00", False)
    assert (await gateway.refund(order("refund", **part))).outcome == "approved"
    assert await money(gateway, order()) == ("20.00", "12.00", "12.00", False)


@pytest.mark.parametrize(
    ("amount", "currency"), [("20.00", "USD"), ("2000", "JPY"), ("20.120", "KWD"), ("20", "ISK")]
)
async def test_every_approval_names_its_amount(
    gateway: StripeGateway, order: Callable[..., Call], amount: str, currency: str
) -> None:
    """Held, taken or given back, asked or looked up: in major units, with the currency."""
    money = {"amount": Decimal(amount), "currency": currency}
    held = await gateway.authorize(order(**money))
    named = {**money, "reference": held.reference}
    for answer in (
        held,
        await gateway.lookup(order(**money)),
        await gateway.capture(order("capture", **named)),
        await gateway.lookup(order("capture", **named)),
        await gateway.refund(order("refund", **named)),
        await gateway.lookup(order("refund", **named)),
    ):
        assert answer is not None
        assert (answer.outcome, answer.amount, answer.currency) == (
            "approved",
            Decimal(amount),
            currency,
        )
    void = await gateway.void(order("void", **named))
    assert (void.captured, void.refunded) == (Decimal(amount), Decimal(amount))


async def test_a_void_does_not_count_what_failed(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """A refund that came to nothing gave nothing back, whatever the charge says of it."""
    held = await gateway.authorize(order(capture=True))
    void = order("void", reference=held.reference)
    assert (await gateway.void(void)).outcome == "approved"
    refunds = await server.object("/refunds", payment_intent=str(held.reference))
    server.failed = {each["id"] for each in refunds["data"]}
    again = replace(void, idempotency_key="another")
    assert await gateway.lookup(again) is None
    answer = await gateway.void(again)
    assert (answer.outcome, answer.code) == ("unknown", "charge_already_refunded")


async def test_the_list_says_what_is_disputed(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """As the charge has it."""
    await gateway.authorize(order(capture=True))
    assert (await books(gateway, order())).disputed is False
    server.disputed = True
    assert (await books(gateway, order())).disputed is True


@pytest.mark.parametrize("capture", [False, True])
async def test_a_card_that_is_declined_says_why(
    gateway: StripeGateway, order: Callable[..., Call], *, capture: bool
) -> None:
    """A decline has Stripe's code, asked or looked up, and holds nothing."""
    for answer in (
        await gateway.authorize(order(token=BAD, capture=capture)),
        await gateway.lookup(order(token=BAD, capture=capture)),
    ):
        assert answer is not None
        assert (answer.outcome, answer.code) == ("declined", "card_declined")
    assert await money(gateway, order()) == ("0.00", "0.00", "0.00", False)


async def test_the_bank_s_reason_counts_before_the_general_one(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Where Stripe has the decline code of the bank, that is the code."""
    why = {"type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds"}
    server.fail("/confirm", 402, message="Your card has insufficient funds.", **why)
    answer = await gateway.authorize(order())
    assert (answer.outcome, answer.code) == ("declined", "insufficient_funds")
    assert answer.message == "Your card has insufficient funds."


async def test_a_capture_may_be_declined_as_a_card_is(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """What Stripe says of the card is the answer, whichever call it says it to."""
    held = await gateway.authorize(order())
    server.fail("/capture", 402, type="card_error", code="expired_card", message="Too old.")
    answer = await gateway.capture(order("capture", reference=held.reference))
    assert (answer.outcome, answer.code, answer.message) == ("declined", "expired_card", "Too old.")


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"token": None}, "payment_method_required"),
        ({"amount": Decimal("20.001")}, "amount_not_chargeable"),
        ({"token": "pm_unheard_of"}, "invalid_request"),
    ],
)
async def test_what_cannot_be_charged_is_declined(
    gateway: StripeGateway, order: Callable[..., Call], asked: Json, code: str
) -> None:
    """No payer, an amount that Stripe can't express, an unknown token: final, with a code."""
    answer = await gateway.authorize(order(**asked))
    assert (answer.outcome, answer.code) == ("declined", code)


async def test_more_than_was_captured_is_not_refunded(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Stripe's refusal is a decline with its code."""
    held = await gateway.authorize(order(capture=True))
    answer = await gateway.refund(
        order("refund", reference=held.reference, amount=Decimal("20.01"))
    )
    assert (answer.outcome, answer.code) == ("declined", "amount_too_large")


# Asked again, and looked up.


@pytest.mark.parametrize("lost", ["/payment_intents", "/confirm"])
async def test_an_authorisation_whose_answer_was_lost_charges_once(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call], lost: str
) -> None:
    """A lost answer is unknown; asking again finds the same payment and charges it once."""
    server.lose(lost)
    assert (await gateway.authorize(order())).outcome == "unknown"
    again = await gateway.authorize(order())
    assert again.outcome == "approved"
    assert await gateway.authorize(order()) == again
    assert await money(gateway, order()) == ("20.00", "0.00", "0.00", False)


async def test_a_decline_whose_answer_was_lost_is_repeated(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Asking again doesn't try the card again."""
    server.lose("/confirm")
    assert (await gateway.authorize(order(token=BAD))).outcome == "unknown"
    again = await gateway.authorize(order(token=BAD))
    assert (again.outcome, again.code) == ("declined", "card_declined")


@pytest.mark.parametrize("hours", [1, 25])
async def test_a_lookup_finds_what_a_lost_answer_was(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call], hours: int
) -> None:
    """At once by the idempotency key, though nothing is searchable; after a day by a search."""
    server.lose("/confirm")
    assert (await gateway.authorize(order())).outcome == "unknown"
    server.is_searchable = hours > 24
    if hours > 24:
        server.forget()
    found = await gateway.lookup(order())
    assert found is not None
    assert found.outcome == "approved"
    assert charged(server) == 1
    assert ("GET /payment_intents/search" in server.requests) == (hours > 24)


async def test_a_lookup_of_what_never_arrived_finds_nothing(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Nothing is found of a call that never arrived, and it can be made after that."""
    assert await gateway.lookup(order()) is None
    assert await gateway.lookup(order("void")) is None
    assert charged(server) == 0
    assert (await gateway.authorize(order())).outcome == "approved"
    assert await money(gateway, order()) == ("20.00", "0.00", "0.00", False)


async def test_lookups_tell_each_operation_apart(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Each operation is found once it was done, not before, and each refund by its own key."""
    held = await gateway.authorize(order())
    capture, void, refund = (
        order(operation, reference=held.reference) for operation in ("capture", "void", "refund")
    )
    for call, ask in (
        (capture, gateway.capture),
        (refund, gateway.refund),
    ):
        assert await gateway.lookup(call) is None
        assert (await ask(call)).outcome == "approved"
        found = await gateway.lookup(call)
        assert found is not None
        assert found.outcome == "approved"
    assert await gateway.lookup(replace(refund, idempotency_key="another")) is None
    found = await gateway.lookup(void)  # the refund gave everything back
    assert found is not None
    server.forget()
    found = await gateway.lookup(replace(capture, reference=None))
    assert found is not None
    assert found.reference == held.reference


async def test_a_capture_whose_answer_was_lost_captures_once(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Asking again is approved, within a day and after."""
    held = await gateway.authorize(order())
    capture = order("capture", reference=held.reference)
    server.lose("/capture")
    assert (await gateway.capture(capture)).outcome == "unknown"
    assert (await gateway.capture(capture)).outcome == "approved"
    server.forget()
    assert (await gateway.capture(capture)).outcome == "approved"
    assert await money(gateway, order()) == ("20.00", "20.00", "0.00", False)


@pytest.mark.parametrize("status", [401, 403, 409, 429, 500, 503])
@pytest.mark.parametrize("path", ["/payment_intents", "/confirm"])
async def test_trouble_is_no_answer(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call], status: int, path: str
) -> None:
    """A wrong key, a conflict, a limit and a failure are unknown: nobody is declined for them."""
    server.fail(path, status, message="trouble")
    answer = await gateway.authorize(order())
    assert answer.outcome == "unknown"
    assert "trouble" in str(answer.message)
    server.fail("/payment_intents", status, message="trouble")
    found = await gateway.lookup(order())
    assert found is not None
    assert found.outcome == "unknown"


@pytest.mark.parametrize("operation", ["capture", "refund"])
async def test_what_stripe_cannot_find_may_be_found_later(
    gateway: StripeGateway, order: Callable[..., Call], operation: Operation
) -> None:
    """A search lags behind: not to find the payment declines nothing, asked or looked up."""
    call = order(operation)
    ask = gateway.capture if operation == "capture" else gateway.refund
    for answer in (await ask(call), await gateway.lookup(call)):
        assert answer is not None
        assert (answer.outcome, answer.code) == ("unknown", "not_found")
        assert call.payment_key in str(answer.message)


@pytest.mark.parametrize(
    ("said", "code"),
    [({}, "invalid_request"), ({"code": "resource_missing"}, "resource_missing")],
)
async def test_a_look_that_is_refused_says_why(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call], said: Json, code: str
) -> None:
    """To ask wrongly says nothing of the payment; the code says that Stripe has answered."""
    server.fail("/payment_intents", 400, type="invalid_request_error", message="no", **said)
    found = await gateway.lookup(order())
    assert found is not None
    assert (found.outcome, found.code) == ("unknown", code)


async def test_another_amount_under_a_used_key_is_no_answer(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Stripe refuses it; the payment under the key stays as it was asked for."""
    await gateway.authorize(order())
    answer = await gateway.authorize(order(amount=Decimal("7.00")))
    assert (answer.outcome, answer.code) == ("unknown", "idempotency_error")
    assert await money(gateway, order()) == ("20.00", "0.00", "0.00", False)


# Undoing.


async def test_a_void_releases_what_is_held(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """A void of an authorisation cancels it, however often it is asked for."""
    held = await gateway.authorize(order())
    for reference in (None, held.reference, held.reference):
        answer = await gateway.void(order("void", reference=reference))
        assert (answer.outcome, answer.captured) == ("approved", 0)
    assert await money(gateway, order()) == ("20.00", "0.00", "0.00", True)
    assert (await gateway.capture(order("capture", reference=held.reference))).code == "canceled"


async def test_a_void_gives_back_the_rest_of_what_was_taken(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Money that was refunded before isn't refunded twice."""
    held = await gateway.authorize(order(capture=True))
    refund = order("refund", reference=held.reference, amount=Decimal(5))
    assert (await gateway.refund(refund)).outcome == "approved"
    for _ in range(2):
        answer = await gateway.void(order("void"))
        assert (answer.outcome, answer.reference) == ("approved", held.reference)
        assert (answer.captured, answer.refunded) == (20, 20)
    assert await money(gateway, order()) == ("20.00", "20.00", "20.00", False)


async def test_a_void_holds_against_a_charge_that_turns_up_later(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """A payment that was voided before Stripe heard of it is never made."""
    assert (await gateway.void(order("void"))).outcome == "approved"
    late = await gateway.authorize(order())
    assert (late.outcome, late.code) == ("declined", "canceled")
    assert await money(gateway, order()) == ("0.00", "0.00", "0.00", True)


async def test_a_void_finds_a_payment_of_the_day_before(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """After idempotency keys are forgotten, a void without a reference undoes the right one."""
    held = await gateway.authorize(order(capture=True))
    server.forget()
    assert (await gateway.void(order("void"))).outcome == "approved"
    intent = await server.object(f"/payment_intents/{held.reference}")
    assert intent["latest_charge"]["amount_refunded"] == 2000
    found = await gateway.lookup(order("void"))
    assert found is not None


async def test_a_void_may_not_know_the_amount(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Where the amount isn't that of the authorisation, the payment is found by a search."""
    await gateway.authorize(order())
    answer = await gateway.void(order("void", amount=Decimal("7.00")))
    assert answer.outcome == "approved"
    assert await money(gateway, order()) == ("20.00", "0.00", "0.00", True)


async def test_a_void_that_is_refused_is_asked_again(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Stripe's refusal to cancel says nothing final: the payment may be in the making."""
    await gateway.authorize(order())
    server.fail("/cancel", 400, type="invalid_request_error", message="it is processing")
    assert (await gateway.void(order("void"))).outcome == "unknown"
    assert (await gateway.void(order("void"))).outcome == "approved"


async def test_what_was_never_chargeable_is_void(
    gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """An amount that Stripe can't express was never charged, so there is nothing to undo."""
    odd = Decimal("0.001")
    assert await gateway.lookup(order(amount=odd)) is None
    assert (await gateway.void(order("void", amount=odd))).outcome == "approved"


# Answers that come later.


async def test_a_payer_may_have_to_confirm(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """3-D Secure is pending with a deadline, until the payer has confirmed."""
    card = {"number": "4000002500003155", "exp_month": "12", "exp_year": "2030", "cvc": "123"}
    method = await server.post(
        "/payment_methods", type="card", **{f"card[{name}]": value for name, value in card.items()}
    )
    answer = await gateway.authorize(order(token=method["id"]))
    assert answer.outcome == "pending"
    assert answer.deadline_seconds
    assert await money(gateway, order()) == ("0.00", "0.00", "0.00", False)

    intent = await server.object(f"/payment_intents/{answer.reference}")
    await server.post(
        f"/payment_intents/{answer.reference}/_authenticate",
        client_secret=intent["client_secret"],
        success="true",
    )
    found = await gateway.lookup(order(reference=answer.reference))
    assert found is not None
    assert found.outcome == "approved"


async def test_a_bank_may_take_its_time(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """A direct debit is pending until the bank has answered."""
    iban = {"sepa_debit[iban]": "DE62370400440532013001"}
    method = await server.post("/payment_methods", type="sepa_debit", **iban)
    answer = await gateway.authorize(order(token=method["id"], capture=True))
    assert answer.outcome == "pending"
    async with asyncio.timeout(20):
        while answer.outcome == "pending":
            answer = await gateway.lookup(order()) or answer
    assert (answer.outcome, answer.code) == ("declined", "card_declined")


# Its books.


async def test_the_list_is_read_to_its_end(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Every page is read; payments from before, and those of others, are left out."""
    await server.post("/payment_intents", amount="500", currency="usd")
    keys = [f"{order().payment_key} {n}" for n in range(103)]
    for key in keys:
        asked = {"amount": "500", "currency": "usd", "metadata[payment_key]": key}
        await server.post("/payment_intents", **asked)
    listed = [each async for each in gateway.payments(EPOCH)]
    assert {*keys} <= {each.payment_key for each in listed}
    assert len(listed) == len({each.reference for each in listed})
    assert sum(each == "GET /payment_intents" for each in server.requests) > 1
    later = datetime.now(UTC) + timedelta(hours=1)
    assert [each async for each in gateway.payments(later)] == []


# Amounts.


@pytest.mark.parametrize(
    ("amount", "currency", "counted"),
    [
        ("9.99", "USD", 999),
        ("500", "JPY", 500),
        ("5", "ISK", 500),
        ("5", "UGX", 500),
        ("10", "MGA", 10),
        ("5.120", "KWD", 5120),
        ("10.45", "HUF", 1045),
        ("800.45", "TWD", 80045),
    ],
)
def test_amounts_are_counted_as_stripe_does(amount: str, currency: str, counted: int) -> None:
    """Stripe's special cases, in both directions."""
    assert to_stripe(Decimal(amount), currency) == counted
    assert from_stripe(counted, currency) == Decimal(amount)


@pytest.mark.parametrize(
    ("amount", "currency"),
    [("9.999", "USD"), ("0.5", "JPY"), ("5.50", "ISK"), ("5.5", "UGX"), ("0.2", "MGA"),
     ("5.124", "KWD")],
)  # fmt: skip
def test_no_amount_is_rounded(amount: str, currency: str) -> None:
    """An amount that Stripe can't charge to the last unit is refused, not changed."""
    with pytest.raises(AmountError):
        to_stripe(Decimal(amount), currency)


def test_a_payer_who_has_to_act_is_told_how() -> None:
    """What Stripe.js wants for it, and until when; a payment that is decided has no more of it."""
    action = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
    intent = Intent(
        id="pi_1",
        status="requires_action",
        amount=2000,
        currency="usd",
        created=0,
        next_action=action,
        client_secret="pi_1_secret_x",
    )
    answer = intent.authorization()
    assert answer is not None
    assert (answer.outcome, answer.deadline_seconds) == ("pending", 3600)
    assert answer.client_action == {**action, "client_secret": "pi_1_secret_x"}
    for status in ("processing", "succeeded", "canceled"):
        answer = msgspec.structs.replace(intent, status=status).authorization()
        assert answer is not None
        assert answer.client_action is None
