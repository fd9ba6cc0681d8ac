"""A payment of a held order and whatever else happens to it at the same moment."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import anyio
import pytest
from shop import APPROVED, PENDING, Shop

Connect = Callable[..., Awaitable[Any]]
Race = Callable[..., Awaitable[str]]

PAY = "select status from pay_order(%s, %s)"
BY_HAND = "select status from record_manual_payment(%s, 30, 'T-1')"
GIVE_UP = "select status from cancel_payment(%s)"
TOLD = "select record_gateway_event('mock', 'evt_1', %s, %s) as status"
CANCEL = "select status from cancel_order(%s)"
ADVANCE = ("select * from advance()",)
HOUR = 3600


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units at 10.00."""
    return await shop.product(on_hand=10)


@pytest.fixture
async def held(shop: Shop, product: UUID) -> UUID:
    """An order of three of them that is held for an hour."""
    pay_by = await shop.value("select clock() + interval '1 hour'")
    order = await shop.order((product, 3), p_pay_by=pay_by)
    await shop.advance()
    return order


@pytest.mark.parametrize(("token", "sqlstate"), [("tok_1", ""), ("tok_2", "DP033")])
async def test_two_payments_at_once(
    shop: Shop, race: Race, held: UUID, token: str, sqlstate: str
) -> None:
    """One is tried; the same again finds it under way, another is refused."""
    assert await race((PAY, held, "tok_1"), (PAY, held, token)) == sqlstate
    (request,) = await shop.advance()
    assert request["request"]["token"] == "tok_1"
    assert len(await shop.rows("select * from saga_events where event_type = 'signalled'")) == 1


@pytest.mark.parametrize("call", [PAY, BY_HAND])
async def test_a_deadline_that_beats_a_payment(
    shop: Shop, race: Race, held: UUID, product: UUID, call: str
) -> None:
    """The pass that turns the order back is waited for; nobody is charged for it then."""
    await shop.turn_clock(HOUR + 1)
    paid = (call, held, "tok_1") if call == PAY else (call, held)
    assert await race(ADVANCE, paid, "darkpearl_listener") == "DP034"
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)
    assert await shop.rows("select * from payment_tokens") == []
    assert await shop.rows("select * from payments") == []


async def test_a_payment_that_beats_its_deadline(
    shop: Shop, connect: Connect, held: UUID, product: UUID
) -> None:
    """A pass leaves the order to who is paying it; once that has happened its answer decides."""
    payer = await connect("darkpearl_app", autocommit=False)
    await payer.execute(PAY, [held, "tok_1"])
    await shop.turn_clock(HOUR + 1)
    await shop.advance()
    assert shop.claimed == 0
    await payer.commit()
    requests = await shop.advance()
    assert await shop.stock(product) == (10, 3)
    await shop.settle(requests, APPROVED)
    assert await shop.order_status(held) == "fulfilled"


async def test_a_payer_that_is_killed_has_paid_nothing(
    shop: Shop, connect: Connect, held: UUID
) -> None:
    """Token, attempt and saga change together or not at all; the same again pays."""
    payer = await connect("darkpearl_app", autocommit=False)
    await payer.execute(PAY, [held, "tok_1"])
    await shop.run("select pg_terminate_backend(%s, 5000)", payer.info.backend_pid)
    await payer.close()
    assert await shop.order_status(held) == "reserved"
    assert await shop.rows("select * from payment_tokens") == []
    await shop.run(PAY, held, "tok_1")
    assert len(await shop.advance()) == 1


async def test_a_payment_that_beats_a_cancel(
    shop: Shop, race: Race, held: UUID, product: UUID
) -> None:
    """It is asked for by nobody then, and nothing is to be given back."""
    assert await race((PAY, held, "tok_1"), (CANCEL, held)) == ""
    assert await shop.advance() == []
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)


@pytest.mark.parametrize("call", [PAY, BY_HAND])
async def test_a_cancel_that_beats_a_payment(
    shop: Shop, race: Race, held: UUID, product: UUID, call: str
) -> None:
    """Once the order is to be cancelled nobody pays it."""
    paid = (call, held, "tok_1") if call == PAY else (call, held)
    assert await race((CANCEL, held), paid) == "DP033"
    assert await shop.advance() == []
    assert await shop.order_status(held) == "cancelled"
    assert await shop.stock(product) == (10, 0)


async def test_money_by_hand_and_by_card_at_once(shop: Shop, race: Race, held: UUID) -> None:
    """Whoever comes first; the other is told that it is paid, or being paid."""
    assert await race((BY_HAND, held), (PAY, held, "tok_1")) == "DP033"
    assert await shop.advance() == []
    assert await shop.order_status(held) == "fulfilled"


async def test_money_by_hand_that_comes_while_a_card_is_tried(
    shop: Shop, race: Race, held: UUID
) -> None:
    """It waits for the answer: the order isn't paid twice."""
    assert await race((PAY, held, "tok_1"), (BY_HAND, held)) == "DP033"
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.payment(held))["gateway"] == "mock"


async def test_the_same_money_written_down_twice_at_once(
    shop: Shop, race: Race, held: UUID
) -> None:
    """It is one payment."""
    assert await race((BY_HAND, held), (BY_HAND, held)) == ""
    assert await shop.value("select count(*) from action_log") == 1


async def test_an_answer_and_a_second_payment_at_once(
    shop: Shop, connect: Connect, waits: Callable[[int], Awaitable[None]], held: UUID
) -> None:
    """The second card waits for what becomes of the first: declined, it is tried."""
    await shop.run(PAY, held, "tok_1")
    (request,) = await shop.advance()
    listener = await connect("darkpearl_listener", autocommit=False)
    payer = await connect("darkpearl_app")
    await listener.execute(
        "select * from settle(jsonb_build_array(jsonb_build_object('saga_id', %s::uuid,"
        " 'lease_token', %s::bigint, 'answer', '{\"outcome\": \"declined\"}'::jsonb)))",
        [held, request["lease_token"]],
    )
    async with anyio.create_task_group() as group:
        group.start_soon(payer.execute, PAY, [held, "tok_2"])
        await waits(payer.info.backend_pid)
        await listener.commit()
    (again,) = await shop.advance()
    assert again["request"]["token"] == "tok_2"
    assert again["request"]["idempotency_key"].endswith(":2")


CHARGED = json.dumps(APPROVED | {"captured": "30.00"})


@pytest.fixture
async def pending(shop: Shop, held: UUID) -> UUID:
    """Its payer has something to do."""
    await shop.run(PAY, held, "tok_1")
    await shop.settle(await shop.advance(), PENDING)
    return held


@pytest.mark.parametrize("call", [GIVE_UP, PAY])
async def test_an_approval_that_beats_who_gives_up(
    shop: Shop, race: Race, pending: UUID, call: str
) -> None:
    """The order is paid, and by nothing else."""
    told = (TOLD, f"{pending}:process_payment", CHARGED)
    given_up = (call, pending, "tok_2") if call == PAY else (call, pending)
    assert await race(told, given_up, "service_role") == "DP033"
    assert await shop.advance() == []
    assert await shop.order_status(pending) == "fulfilled"
    assert (await shop.payment(pending))["captured_amount"] == 30


@pytest.mark.parametrize("call", [GIVE_UP, PAY])
async def test_an_approval_that_comes_as_its_payment_is_given_up(
    shop: Shop, race: Race, pending: UUID, call: str
) -> None:
    """It is voided with it; the second is the only one that pays."""
    given_up = (call, pending, "tok_2") if call == PAY else (call, pending)
    told = (TOLD, f"{pending}:process_payment", CHARGED)
    assert await race(given_up, told, second_role="service_role") == ""
    (void,) = await shop.advance()
    assert void["request"]["operation"] == "void"
    back = APPROVED | {"captured": "30.00", "refunded": "30.00"}
    requests = await shop.settle([void], back)
    if call == GIVE_UP:
        await shop.run(PAY, pending, "tok_2")
        requests = await shop.advance()
    await shop.settle(requests, APPROVED)
    assert await shop.order_status(pending) == "fulfilled"
    kept = await shop.row(
        "select p.captured_amount - p.refunded_amount as paid,"
        " a.captured_amount - a.refunded_amount as kept from payments as p, payment_attempts as a"
    )
    assert kept == {"paid": 30, "kept": 0}


async def test_a_late_approval_and_a_second_payment_at_once(
    shop: Shop, race: Race, pending: UUID
) -> None:
    """The first was voided: it is voided anew beside the second, whoever comes first."""
    await shop.run(GIVE_UP, pending)
    await shop.settle(await shop.advance(), APPROVED)
    told = (TOLD, f"{pending}:process_payment", CHARGED)
    assert await race(told, (PAY, pending, "tok_2"), "service_role") == ""
    requests = {each["request"]["operation"]: each["request"] for each in await shop.advance()}
    assert requests["void"]["payment_key"] == f"{pending}:process_payment"
    assert requests["authorize"]["token"] == "tok_2"


async def test_two_who_give_up_at_once(shop: Shop, race: Race, pending: UUID) -> None:
    """It is one void."""
    assert await race((GIVE_UP, pending), (GIVE_UP, pending)) == ""
    assert len(await shop.advance()) == 1
    assert (await shop.events(pending)).count("compensation_started") == 1


async def test_a_gateways_deadline_and_who_gives_up_at_once(
    shop: Shop, connect: Connect, pending: UUID
) -> None:
    """A pass leaves the order to who holds it; what was given up isn't asked again."""
    payer = await connect("darkpearl_app", autocommit=False)
    await payer.execute(GIVE_UP, [pending])
    await shop.turn_clock(601)
    assert await shop.advance() == []
    await payer.commit()
    (void,) = await shop.advance()
    assert void["request"]["operation"] == "void"
