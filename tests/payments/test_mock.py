"""The mock gateway says the same of the same call, always and everywhere."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from darkpearl.config import ConfigError
from darkpearl.gateways import Call, Operation, SignatureError
from darkpearl.gateways.mock import MockGateway, parse_script

SCRIPT = "13.37=declined:insufficient_funds, tok_slow=pending:30, tok_lost = unknown,7=declined,"


def call(key: str = "k", operation: Operation = "authorize", **more: Any) -> Call:
    """A call of 20.00 USD."""
    asked = {"payment_key": key, "amount": Decimal("20.00"), "currency": "USD", **more}
    return Call(operation=operation, idempotency_key=key, **asked)


async def test_a_key_has_one_answer() -> None:
    """Another gateway with the same seed says the same, asked or looked up, in any order."""
    keys = [f"payment {n}" for n in range(200)]
    first, second = MockGateway(0.5, seed=7), MockGateway(0.5, seed=7)
    answers = [await first.authorize(call(key)) for key in keys]
    assert [await second.authorize(call(key)) for key in reversed(keys)] == answers[::-1]
    assert [await second.lookup(call(key)) for key in keys] == answers
    assert 60 < sum(answer.outcome == "approved" for answer in answers) < 140
    assert answers != [await MockGateway(0.5, seed=8).authorize(call(key)) for key in keys]


@pytest.mark.parametrize(("rate", "outcome"), [(0.0, "declined"), (1.0, "approved")])
async def test_the_rate_holds_at_its_ends(rate: float, outcome: str) -> None:
    """0 approves nothing and 1 everything."""
    gateway = MockGateway(rate)
    answers = {(await gateway.authorize(call(str(n)))).outcome for n in range(100)}
    assert answers == {outcome}


async def test_the_script_decides_by_amount_and_by_token() -> None:
    """An amount is compared as a number; a token counts before the amount; codes are kept."""
    gateway = MockGateway(1.0, script=SCRIPT)
    answer = await gateway.authorize(call(amount=Decimal("13.3700")))
    assert (answer.outcome, answer.code) == ("declined", "insufficient_funds")
    assert (await gateway.authorize(call(amount=Decimal(7)))).code == "card_declined"
    slow = await gateway.authorize(call(amount=Decimal(7), token="tok_slow"))
    assert (slow.outcome, slow.deadline_seconds) == ("pending", 30)
    assert (await gateway.authorize(call(token="tok_lost"))).outcome == "unknown"
    assert (await gateway.authorize(call(token="tok_other"))).outcome == "approved"
    refund = await gateway.refund(call(operation="refund", amount=Decimal(7)))
    assert refund.outcome == "declined"


async def test_approvals_say_what_was_asked_unless_the_script_has_another_amount() -> None:
    """Amount and currency are those of the call; of a void, which has no amount, none are told."""
    gateway = MockGateway(1.0, script="tok_less=approved:1.00")
    for operation in ("authorize", "capture", "refund"):
        answer = await getattr(gateway, operation)(call(operation=operation, currency="EUR"))
        assert (answer.amount, answer.currency) == (20, "EUR")
    assert (await gateway.void(call(operation="void"))).amount is None
    less = await gateway.authorize(call(token="tok_less"))
    assert (less.outcome, less.amount, less.currency) == ("approved", 1, "USD")


async def test_a_pending_answer_has_come_by_the_time_it_is_looked_up() -> None:
    """A look when the deadline is over finds an approval."""
    found = await MockGateway(script=SCRIPT).lookup(call(token="tok_slow"))
    assert found is not None
    assert found.outcome == "approved"


async def test_a_payer_may_have_something_to_do() -> None:
    """Scripted, a pending answer says what; a look later finds it done."""
    gateway = MockGateway(script="tok_3ds=action:60, tok_3ds_soon=action")
    asked = await gateway.authorize(call(token="tok_3ds"))
    assert (asked.outcome, asked.deadline_seconds) == ("pending", 60)
    assert asked.client_action is not None
    assert asked.client_action["url"].startswith("https://")
    assert (await gateway.authorize(call(token="tok_3ds_soon"))).deadline_seconds == 30
    found = await gateway.lookup(call(token="tok_3ds"))
    assert found is not None
    assert (found.outcome, found.client_action) == ("approved", None)


async def test_a_lost_call_was_never_heard_of() -> None:
    """A scripted unknown is found nowhere, and can be voided."""
    gateway = MockGateway(script=SCRIPT)
    assert await gateway.lookup(call(token="tok_lost")) is None
    assert (await gateway.void(call(operation="void"))).outcome == "approved"


@pytest.mark.parametrize("operation", ["capture", "void", "refund"])
async def test_what_follows_an_authorisation_is_approved(operation: Operation) -> None:
    """Captures, voids and refunds go through, whatever the rate."""
    gateway = MockGateway(0.0)
    for answer in (
        await getattr(gateway, operation)(call(operation=operation)),
        await gateway.lookup(call(operation=operation)),
    ):
        assert (answer.outcome, answer.gateway) == ("approved", "mock")


@pytest.mark.parametrize(
    "part",
    ["13.37", "=declined", "1=perhaps", "1=pending:soon", "1=pending:-1", "1=pending:inf",
     "1=action:soon",
     "1=unknown:code", "1=approved:x"],
)  # fmt: skip
def test_a_script_that_cannot_be_read_is_refused(part: str) -> None:
    """One line names the setting, the part and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        parse_script(f"2=declined, {part}")
    told = f"DARKPEARL_MOCK_SCRIPT: {part!r} is not allowed; give AMOUNT=OUTCOME or TOKEN=OUTCOME"
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_it_has_no_books_and_sends_nothing() -> None:
    """A comparison with it says why it can't be; a webhook in its name is a forgery."""
    with pytest.raises(ConfigError, match="keeps no books"):
        MockGateway().payments(datetime.now(UTC))
    with pytest.raises(SignatureError):
        MockGateway().webhook({}, b"{}")
