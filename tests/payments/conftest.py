from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from stripe_as_documented import API_KEY, Stripe, localstripe

from darkpearl.gateways import Call, Operation
from darkpearl.gateways.stripe import StripeGateway

SECRET = "whsec_of_the_tests"
GOOD = "pm_card_visa"


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """localstripe, started when it is first needed."""
    with localstripe() as url:
        yield url


@pytest.fixture
def server(url: str) -> Stripe:
    """Stripe, with the payments of the tests before."""
    return Stripe(url)


@pytest.fixture
async def gateway(server: Stripe) -> AsyncIterator[StripeGateway]:
    """The gateway under test."""
    gateway = StripeGateway(API_KEY, f"old, {SECRET}", api_base=server.url, http_client=server)
    yield gateway
    await gateway.close()


@pytest.fixture
def order() -> Callable[..., Call]:
    """Calls for one payment of 20.00 USD, authorised by its name, others by their operation."""
    payment = str(uuid4())

    def call(operation: Operation = "authorize", **more: Any) -> Call:
        key = payment if operation == "authorize" else f"{payment}:{operation}"
        asked = {"amount": Decimal("20.00"), "currency": "USD", "token": GOOD, **more}
        return Call(operation=operation, idempotency_key=key, payment_key=payment, **asked)

    return call
