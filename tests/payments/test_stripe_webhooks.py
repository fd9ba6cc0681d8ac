"""Webhooks of Stripe: signed, and told to the call that they answer."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import stripe
from stripe_as_documented import API_KEY, Json, Stripe

from darkpearl.gateways import Answer, Call, SignatureError, WebhookEvent
from darkpearl.gateways.stripe import StripeGateway

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text")

SECRET = "whsec_of_the_tests"


def signed(event: Json, secret: str = SECRET, age_seconds: int = 0) -> tuple[Json, bytes]:
    """Headers and body of a webhook."""
    body = json.dumps(event)
    at = int(datetime.now(UTC).timestamp()) - age_seconds
    header = stripe.WebhookSignature.generate_signature_header(body, secret, at)
    return {"stripe-signature": header}, body.encode()


def told(gateway: StripeGateway, kind: str, about: Json, key: str | None = None) -> Any:
    """The event as the gateway understands it."""
    event = {"id": "evt_1", "type": kind, "data": {"object": about}}
    return gateway.webhook(*signed({**event, "request": {"idempotency_key": key}}))


async def test_events_answer_the_calls_they_are_about(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Approval and capture, each under the idempotency key of its call."""
    held = await gateway.authorize(order())
    path = f"/payment_intents/{held.reference}"
    kind = "payment_intent.amount_capturable_updated"
    assert told(gateway, kind, await server.object(path)) == WebhookEvent(
        event_id="evt_1", idempotency_key=order().idempotency_key, answer=held
    )
    taken = await gateway.capture(order("capture", reference=held.reference))
    event = told(gateway, "payment_intent.succeeded", await server.object(path))
    assert event.idempotency_key == order("capture").idempotency_key
    assert event.answer == taken


async def test_an_event_tells_of_a_decline(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """A payment that failed is a decline of the authorisation."""
    answer = await gateway.authorize(order(token="pm_card_chargeCustomerFail"))
    path = f"/payment_intents/{answer.reference}"
    event = told(gateway, "payment_intent.payment_failed", await server.object(path))
    assert event.idempotency_key == order().idempotency_key
    assert (event.answer.outcome, event.answer.code) == ("declined", "card_declined")


async def test_an_event_of_a_cancellation_says_whose_it_was(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Ours approves the void; Stripe's own, after a week, ends the authorisation."""
    held = await gateway.authorize(order())
    await gateway.void(order("void"))
    about = await server.object(f"/payment_intents/{held.reference}")
    kind, void = "payment_intent.canceled", order("void").idempotency_key
    event = told(gateway, kind, about, server.keys[-1])
    assert (event.idempotency_key, event.answer.outcome) == (void, "approved")
    event = told(gateway, kind, about)
    assert event.idempotency_key == order().idempotency_key
    assert (event.answer.outcome, event.answer.code) == ("declined", "canceled")


async def test_events_of_refunds_have_the_key_of_the_refund(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """It answers its call; one made by hand answers none; one that waits, or a void, isn't told."""
    held = await gateway.authorize(order(capture=True))
    refund = order("refund", reference=held.reference, amount=Decimal(1))
    answer = await gateway.refund(refund)
    about = await server.object(f"/refunds/{answer.reference}")
    event = told(gateway, "refund.updated", about)
    assert event.idempotency_key == refund.idempotency_key
    assert event.answer == answer
    assert told(gateway, "refund.created", {**about, "status": "pending"}) is None
    assert told(gateway, "refund.created", {**about, "metadata": {}}).idempotency_key is None
    await gateway.void(order("void", reference=held.reference))
    refunds = (await server.object("/refunds", payment_intent=str(held.reference)))["data"]
    events = [told(gateway, "refund.updated", each) for each in refunds]
    assert sorted(events, key=bool) == [
        None,
        WebhookEvent(event_id="evt_1", idempotency_key=refund.idempotency_key, answer=answer),
    ]
    failed = {**about, "status": "failed", "failure_reason": "expired_or_canceled_card"}
    event = told(gateway, "refund.failed", failed)
    assert (event.answer.outcome, event.answer.code) == ("declined", "expired_or_canceled_card")


async def test_a_void_tells_when_its_money_did_not_go_back(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """Its refund is told under the key of the void, but only that it failed."""
    held = await gateway.authorize(order(capture=True))
    void = order("void", reference=held.reference)
    await gateway.void(void)
    (about,) = (await server.object("/refunds", payment_intent=str(held.reference)))["data"]
    assert told(gateway, "refund.updated", about) is None
    for kind in ("refund.failed", "refund.updated", "charge.refund.updated"):
        failed = {**about, "status": "failed", "failure_reason": "insufficient_funds"}
        event = told(gateway, kind, failed)
        assert event.idempotency_key == void.idempotency_key
        assert (event.answer.outcome, event.answer.code) == ("declined", "insufficient_funds")


@pytest.mark.parametrize("kind", ["created", "updated", "closed", "funds_withdrawn"])
@pytest.mark.parametrize(
    ("status", "so_far"),
    [
        ("warning_needs_response", "open"),
        ("needs_response", "open"),
        ("under_review", "open"),
        ("appeal_under_review", "open"),
        ("won", "won"),
        ("warning_closed", "won"),
        ("lost", "lost"),
        ("prevented", "lost"),
    ],
)
async def test_disputes_are_told_by_the_name_of_the_payment(
    gateway: StripeGateway, kind: str, status: str, so_far: str
) -> None:
    """What is disputed, why, and what became of it; the payment has Stripe's name."""
    event = told(
        gateway,
        f"charge.dispute.{kind}",
        {
            "id": "du_1",
            "object": "dispute",
            "amount": 1050,
            "currency": "eur",
            "charge": "ch_1",
            "payment_intent": "pi_1",
            "reason": "fraudulent",
            "status": status,
        },
    )
    assert (event.idempotency_key, event.payment_reference) == (None, "pi_1")
    assert event.answer == Answer(
        "disputed",
        gateway="stripe",
        reference="du_1",
        code="fraudulent",
        amount=Decimal("10.50"),
        currency="EUR",
        dispute=so_far,  # type: ignore[arg-type]
    )


async def test_stripe_s_name_leads_to_our_key(
    server: Stripe, gateway: StripeGateway, order: Callable[..., Call]
) -> None:
    """The key of a payment of ours; none of somebody else's, or of what isn't there."""
    held = await gateway.authorize(order())
    assert await gateway.payment_key(str(held.reference)) == order().payment_key
    other = await server.post("/payment_intents", amount="500", currency="usd")
    assert await gateway.payment_key(other["id"]) is None
    assert await gateway.payment_key("pi_unheard_of") is None


async def test_events_that_are_not_ours_are_left_alone(
    server: Stripe, gateway: StripeGateway
) -> None:
    """Other types, and payments that somebody else makes on the account, say nothing of a call."""
    assert told(gateway, "customer.created", {"id": "cus_1"}) is None
    other = await server.post("/payment_intents", amount="500", currency="usd")
    assert told(gateway, "payment_intent.canceled", other) is None


@pytest.mark.parametrize(
    "forged",
    [
        ({}, b"{}"),
        ({"stripe-signature": "t=now"}, b"{}"),
        (signed({})[0], b"{ }"),
        signed({}, secret="another"),
        signed({}, secret=""),
        signed({}, age_seconds=400),
    ],
)
async def test_what_is_not_signed_is_refused(gateway: StripeGateway, forged: Any) -> None:
    """No signature, a broken one, another body, another secret, or an old one: not from Stripe."""
    with pytest.raises(SignatureError):
        gateway.webhook(*forged)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"id": "evt_1", "type": "payment_intent.succeeded", "data": {}},
        {"id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": {"id": 7}}},
    ],
)
async def test_nonsense_is_told_apart_from_forgery(gateway: StripeGateway, event: Json) -> None:
    """A signed body that is no event is a ValueError of its own."""
    with pytest.raises(msgspec.DecodeError):
        gateway.webhook(*signed(event))


async def test_without_a_secret_no_webhook_is_taken(server: Stripe) -> None:
    """A gateway that wasn't given a secret trusts nobody."""
    gateway = StripeGateway(API_KEY, http_client=server)
    with pytest.raises(SignatureError):
        gateway.webhook(*signed({"id": "evt_1"}))
    await gateway.close()
