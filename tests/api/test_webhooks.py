"""Webhooks of gateways: signed, taken once, and told to the saga that waits."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import stripe
from litestar import Litestar
from shop import Shop

from darkpearl import database
from darkpearl.api.app import create_app
from darkpearl.config import ConfigError, Settings

Json = dict[str, Any]
SECRET = "whsec_of_the_tests"
PATH = "/payments/webhooks/stripe"


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Litestar]:
    """The application of a shop that has Stripe."""
    settings = Settings(
        pool_size=2, gateway="stripe", stripe_api_key="sk_test_1", webhook_secret=SECRET
    )
    app = create_app(settings, database.as_role(database_url, "darkpearl_api"))
    async with app.lifespan():
        yield app


@pytest.fixture
def deliver(api: httpx.AsyncClient) -> Callable[..., Awaitable[httpx.Response]]:
    """Sends an event about a payment intent, signed, and without any other credentials."""

    async def send(
        event: str, kind: str, status: str, code: str = "lost_card", **metadata: str
    ) -> httpx.Response:
        intent = {
            "id": "pi_1",
            "status": status,
            "amount": 2000,
            "amount_received": 2000,
            "currency": "usd",
            "created": 0,
            "metadata": metadata,
            "last_payment_error": {"code": "card_declined", "decline_code": code},
        }
        body = json.dumps({"id": event, "type": kind, "data": {"object": intent}})
        header = stripe.WebhookSignature.generate_signature_header(body, SECRET)
        return await api.post(PATH, content=body, headers={"Stripe-Signature": header})

    return send


async def waiting(shop: Shop) -> str:
    """The payment key of an order that the gateway has answered with pending."""
    order = await shop.order((shop.products[0], 2))
    answer = {"outcome": "pending", "gateway": "stripe", "deadline_seconds": 60}
    await shop.settle(await shop.advance(), answer)
    key: str = (await shop.payment(order))["idempotency_key"]
    return key


async def orders(shop: Shop) -> dict[str, int]:
    """How many orders have which status, once every saga has gone as far as it can."""
    requests = await shop.advance()
    while requests:
        approved = {"outcome": "approved", "gateway": "stripe"}
        requests = await shop.settle(requests, approved) + await shop.advance()
    return await shop.statuses()


async def test_an_event_answers_a_pending_payment(
    shop: Shop, deliver: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """An approval takes the order to its end; the same event again is a duplicate."""
    key = await waiting(shop)
    for disposition in ("applied", "duplicate"):
        response = await deliver("evt_1", "payment_intent.succeeded", "succeeded", payment_key=key)
        assert response.status_code == 200
        assert response.json() == {"disposition": disposition}
    assert await orders(shop) == {"fulfilled": 1}
    response = await deliver("evt_2", "payment_intent.succeeded", "succeeded", payment_key=key)
    assert response.json() == {"disposition": "stale"}


async def test_an_event_can_decline(
    shop: Shop, deliver: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """A failed payment cancels the order, with the gateway's code."""
    key = await waiting(shop)
    kind = "payment_intent.payment_failed"
    response = await deliver("evt_1", kind, "requires_payment_method", payment_key=key)
    assert response.json() == {"disposition": "applied"}
    assert await shop.values("select decline_code from payments") == ["lost_card"]
    assert await orders(shop) == {"cancelled": 1}


@pytest.fixture
def dispute(app: Litestar, api: httpx.AsyncClient) -> Callable[..., Awaitable[httpx.Response]]:
    """Sends an event about a dispute of a payment; what Stripe says of its key, or raises."""

    async def send(event: str, status: str, key: str | Exception | None) -> httpx.Response:
        async def payment_key(reference: str) -> str | None:
            assert reference == "pi_1"
            if isinstance(key, Exception):
                raise key
            return key

        app.state.gateway.payment_key = payment_key
        about = {
            "id": "du_1",
            "amount": 2000,
            "currency": "usd",
            "payment_intent": "pi_1",
            "reason": "fraudulent",
            "status": status,
        }
        kind = "charge.dispute.updated"
        body = json.dumps({"id": event, "type": kind, "data": {"object": about}})
        header = stripe.WebhookSignature.generate_signature_header(body, SECRET)
        return await api.post(PATH, content=body, headers={"Stripe-Signature": header})

    return send


async def test_a_dispute_is_told_of_its_payment(
    shop: Shop,
    deliver: Callable[..., Awaitable[httpx.Response]],
    dispute: Callable[..., Awaitable[httpx.Response]],
) -> None:
    """It is marked, and closed, by the key that Stripe has for the name in the event."""
    key = await waiting(shop)
    await deliver("evt_1", "payment_intent.succeeded", "succeeded", payment_key=key)
    for event, status in (("evt_2", "needs_response"), ("evt_3", "lost")):
        response = await dispute(event, status, key)
        assert (response.status_code, response.json()) == (200, {"disposition": "applied"})
    assert await shop.values("select status::text from disputed_payments") == ["lost"]


async def test_a_dispute_of_somebody_else_is_ignored(
    shop: Shop, dispute: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """Others may use the account."""
    response = await dispute("evt_1", "lost", None)
    assert (response.status_code, response.json()) == (200, {"disposition": "ignored"})
    assert await shop.rows("select * from gateway_events") == []


async def test_a_dispute_that_cant_be_looked_up_is_sent_again(
    shop: Shop, dispute: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """Stripe is asked to deliver it later; then it is news."""
    key = await waiting(shop)
    assert (await dispute("evt_1", "lost", stripe.APIConnectionError("away"))).status_code == 503
    response = await dispute("evt_1", "lost", key)
    assert response.json() == {"disposition": "applied"}


async def test_events_of_nothing_known_are_taken_all_the_same(
    shop: Shop, deliver: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """They are answered with success, or the gateway would send them for days."""
    response = await deliver("evt_1", "payment_intent.succeeded", "succeeded", payment_key="x")
    assert (response.status_code, response.json()) == (200, {"disposition": "unmatched"})
    response = await deliver("evt_2", "payment_intent.succeeded", "succeeded")
    assert (response.status_code, response.json()) == (200, {"disposition": "ignored"})
    assert await shop.values("select event_id from gateway_events") == ["evt_1"]


async def test_an_event_with_half_a_character_is_cleaned(
    shop: Shop, deliver: Callable[..., Awaitable[httpx.Response]]
) -> None:
    """A text that was cut in the middle of a character is no reason to refuse what is signed."""
    key = await waiting(shop)
    kind, code = "payment_intent.payment_failed", "lost \U0001f41a\ud83d \\ud800"
    for disposition in ("applied", "duplicate"):
        response = await deliver(
            "evt\udc1a", kind, "requires_payment_method", code, payment_key=key
        )
        assert (response.status_code, response.json()) == (200, {"disposition": disposition})
    assert await shop.values("select decline_code from payments") == [
        "lost \U0001f41a\ufffd \\ud800"
    ]


@pytest.mark.parametrize(
    ("event", "code"),
    [("evt\0x", "lost\0card"), ("e" * 300, "c" * 20_000), ("\0", "\0")],
    ids=["NUL", "long", "nothing else"],
)
async def test_an_event_that_cant_be_kept_as_it_is_is_cleaned(
    shop: Shop, deliver: Callable[..., Awaitable[httpx.Response]], event: str, code: str
) -> None:
    """What is final and signed is taken, once: refused, it would be sent for days."""
    key = await waiting(shop)
    for disposition in ("applied", "duplicate"):
        response = await deliver(
            event, "payment_intent.payment_failed", "requires_payment_method", code, payment_key=key
        )
        assert (response.status_code, response.json()) == (200, {"disposition": disposition})
    (kept,) = await shop.values("select decline_code from payments")
    assert kept == code.replace("\0", "")[:255]
    assert await orders(shop) == {"cancelled": 1}


@pytest.mark.parametrize(
    "header", ["", "t=1,v1=0", f"t={int(time.time())},v1=0"], ids=["none", "old", "wrong"]
)
async def test_what_is_not_signed_changes_nothing(
    shop: Shop, api: httpx.AsyncClient, problem: Callable[..., Json], header: str
) -> None:
    """Without a good signature it is 401, and nothing is kept of it."""
    await waiting(shop)
    response = await api.post(PATH, content=b"{}", headers={"Stripe-Signature": header})
    assert problem(response, 401)["detail"].startswith("Not signed by stripe")
    assert await shop.rows("select from gateway_events") == []


async def test_signed_nonsense_is_a_bad_request(
    api: httpx.AsyncClient, problem: Callable[..., Json]
) -> None:
    """A body that is no event is 400, which a gateway shows to its people."""
    for body in ("[]", "{", '{"id": 1}'):
        header = stripe.WebhookSignature.generate_signature_header(body, SECRET)
        response = await api.post(PATH, content=body, headers={"Stripe-Signature": header})
        problem(response, 400)


@pytest.mark.parametrize("name", ["mock", "paypal"])
async def test_only_the_gateway_in_use_is_heard(
    api: httpx.AsyncClient, problem: Callable[..., Json], name: str
) -> None:
    """Another gateway's name is 404."""
    response = await api.post(f"/payments/webhooks/{name}", content=b"{}")
    assert problem(response, 404)["detail"] == "The gateway here is stripe."


def test_a_gateway_without_its_settings_is_told_at_the_start() -> None:
    """An API that couldn't check a signature doesn't come up."""
    with pytest.raises(ConfigError, match="DARKPEARL_STRIPE_API_KEY"):
        create_app(Settings(gateway="stripe"), "")
