"""routines/57_operators.sql: undos that fail, stuck sagas, and what an operator does."""

from uuid import UUID, uuid4

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, LONG, UNKNOWN, Shop, of_cell


async def make_stuck(shop: Shop, undo: str) -> tuple[UUID, UUID]:
    """A paid order that could not be fulfilled, and whose undo fails; and its product."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.give_up_after(0)
    requests = await shop.advance()
    await shop.cancel(order)
    (void,) = await shop.settle(requests, APPROVED)
    if undo == "void_payment":
        await shop.settle([void], DECLINED)
    else:
        await shop.poison("release_stock", order)
        await shop.settle([void], APPROVED)
        await shop.advance()
    assert (await shop.saga(order))["status"] == "stuck"
    return order, product


@pytest.mark.parametrize("undo", ["void_payment", "release_stock"])
async def test_an_undo_that_fails_leaves_the_saga_stuck(shop: Shop, undo: str) -> None:
    """It stops for a person: no lease, no next attempt, an event, a row in stuck_sagas."""
    order, _ = await make_stuck(shop, undo)
    assert (await shop.events(order))[-2:] == [f"step_failed {undo}", "saga_stuck"]
    assert await shop.order_status(order) not in {"cancelled", "fulfilled"}
    stuck = await shop.row("select * from stuck_sagas")
    assert (stuck["id"], stuck["current_step"]) == (order, undo)
    assert stuck["amount_held"] == (10 if undo == "void_payment" else 0)
    assert stuck["amount_owed"] == (10 if undo == "void_payment" else None)
    await shop.turn_clock(LONG)
    await shop.advance()
    assert shop.claimed == 0


async def test_an_undo_has_tries_of_its_own(shop: Shop) -> None:
    """An undo that raises is tried for a while, with backoff, before the saga is stuck."""
    await shop.give_up_after(7.2, "reserve_stock")
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("release_stock", order)
    await shop.settle(await shop.advance(), DECLINED)
    for _ in range(10):
        await shop.advance()
        await shop.turn_clock(LONG)
    failures = await shop.rows(
        "select * from saga_events where step_name = 'release_stock' order by id"
    )
    assert [each["attempt"] for each in failures] == [1, 2, 3, 4, 5]
    assert {each["error_code"] for each in failures} == {"22012"}
    assert [each["next_attempt_at"] is None for each in failures] == [False] * 4 + [True]
    assert (await shop.saga(order))["status"] == "stuck"


async def test_a_void_that_stays_unknown_is_asked_again(shop: Shop) -> None:
    """An unknown answer to a void is followed by the same void, under a new token."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    await shop.cancel(order)
    (void,) = await shop.settle(requests, APPROVED)
    assert await shop.settle([void], UNKNOWN) == []
    await shop.turn_clock(LONG)
    (again,) = await shop.advance()
    assert again["request"] == void["request"]
    assert again["lease_token"] > void["lease_token"]
    await shop.settle([again], APPROVED)
    assert (await shop.payment(order))["status"] == "refunded"


async def test_retry_saga_tries_again(shop: Shop) -> None:
    """Once the cause is gone, the compensation goes on where it stood; who and why are kept."""
    order, product = await make_stuck(shop, "release_stock")
    await shop.cure("release_stock")
    async with shop.acting_as("service_role"):
        saga = await shop.row("select * from retry_saga(%s, 'disk replaced')", order)
    assert (saga["status"], saga["attempts"]) == ("compensating", 0)
    event = await shop.event(order, "retried")
    assert event["message"] == "disk replaced"
    assert event["actor"] == await shop.value("select session_user")
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    assert (await shop.events(order))[-3:] == ["retried release_stock", *COMPENSATED]


async def test_retry_saga_can_fail_again(shop: Shop) -> None:
    """A retry whose cause is still there ends stuck once more."""
    order, _ = await make_stuck(shop, "release_stock")
    await shop.run("select retry_saga(%s, 'hope')", order)
    await shop.advance()
    assert (await shop.saga(order))["status"] == "stuck"
    assert (await shop.events(order)).count("saga_stuck") == 2


async def test_skip_step_goes_on_behind_it(shop: Shop) -> None:
    """What an operator did by hand counts as the gateway's answer, and the rest is undone."""
    order, product = await make_stuck(shop, "void_payment")
    async with shop.acting_as("service_role"):
        await shop.run("select skip_step(%s, 'refunded at the counter')", order)
    event = await shop.event(order, "skipped")
    assert (event["step_name"], event["message"]) == ("void_payment", "refunded at the counter")
    assert event["actor"] == await shop.value("select session_user")
    assert await shop.advance() == []
    assert (await shop.events(order))[-4:] == [
        "skipped void_payment",
        "step_compensated void_payment",
        *COMPENSATED,
    ]
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 10)


async def test_what_nobody_can_do_by_hand_is_not_skipped(shop: Shop) -> None:
    """A step inside the database is mended and retried: skipping it would leave its effect out."""
    order, _ = await make_stuck(shop, "release_stock")
    with shop.refused("DP018"):
        await shop.run("select skip_step(%s, 'thrown away')", order)
    assert (await shop.saga(order))["status"] == "stuck"


async def stuck_forward(shop: Shop, function: str) -> tuple[UUID, UUID]:
    """An order that a function leaves stuck on its way forward, and its product."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    requests = await shop.advance()
    await shop.poison(function, order, sqlstate="DP023")
    while requests:
        requests = await shop.settle(requests, APPROVED)
    await shop.advance()
    await shop.cure(function)
    (stuck,) = await shop.rows("select id, current_step, amount_owed from stuck_sagas")
    assert stuck["current_step"] in await shop.values("select step_name from saga_steps")
    assert (stuck["id"], stuck["amount_owed"]) == (order, None)
    assert "compensation_started" not in await shop.events(order)
    return order, product


async def test_retry_saga_goes_on_forward(shop: Shop) -> None:
    """A saga that is stuck on its way forward tries the step, not an undo, and ships once."""
    order, product = await stuck_forward(shop, "fulfill_order")
    saga = await shop.row("select * from retry_saga(%s, 'paid after all')", order)
    assert (saga["status"], saga["attempts"]) == ("running", 0)
    assert await shop.audit() == []
    await shop.advance()
    assert (await shop.events(order))[-3:] == [
        "retried fulfill_order",
        "step_completed fulfill_order",
        "saga_completed",
    ]
    assert await shop.stock(product) == (0, 0)
    assert (await shop.payment(order))["status"] == "captured"


async def test_retry_saga_asks_again_for_what_is_outside(shop: Shop) -> None:
    """Stuck at a call: it is made again, under the same key and a token of its own."""
    order, _ = await stuck_forward(shop, "record_payment")
    await shop.run("select retry_saga(%s, 'the gateway is back')", order)
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == of_cell(f"{order}:process_payment")
    assert request["attempt"] == 1
    await shop.settle([request], APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_turn_back_saga_gives_a_saga_up(shop: Shop) -> None:
    """Stuck on its way forward, it is undone as if it had been cancelled; who and why are kept."""
    order, product = await stuck_forward(shop, "fulfill_order")
    async with shop.acting_as("service_role"):
        saga = await shop.row("select * from turn_back_saga(%s, 'lost in a fire')", order)
    assert saga["status"] == "compensating"
    assert await shop.audit() == []
    event = await shop.event(order, "cancelled")
    assert (event["step_name"], event["message"]) == ("fulfill_order", "lost in a fire")
    assert event["actor"] == await shop.value("select session_user")
    (void,) = await shop.advance()
    await shop.settle([void], APPROVED)
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.payment(order))["status"] == "refunded"
    assert await shop.stock(product) == (1, 0)
    assert (await shop.events(order))[-5:] == [
        "compensation_started",
        "step_waiting void_payment",
        "step_compensated void_payment",
        *COMPENSATED,
    ]


async def test_turn_back_saga_undoes_a_call_that_may_have_been_done(shop: Shop) -> None:
    """Stuck at a call: whether it was done or not, nothing is to be held in the end."""
    order, _ = await stuck_forward(shop, "record_payment")
    await shop.run("select turn_back_saga(%s, 'nobody knows')", order)
    (void,) = await shop.advance()
    assert void["step_name"] == "void_payment"
    await shop.settle([void], APPROVED)
    assert await shop.order_status(order) == "cancelled"


async def test_turn_back_saga_at_the_first_step(shop: Shop) -> None:
    """Where nothing was done there is nothing to undo: the saga has ended at once."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.poison("reserve_stock", order, sqlstate="DP023")
    await shop.advance()
    await shop.cure("reserve_stock")
    saga = await shop.row("select * from turn_back_saga(%s, 'never mind')", order)
    assert saga["status"] == "compensated"
    assert await shop.order_status(order) == "cancelled"


async def test_nothing_turns_back_behind_the_pivot(shop: Shop) -> None:
    """Where a saga only goes forward it can't be given up; retried, it goes on."""
    await shop.capture_at_fulfilment()
    order, product = await stuck_forward(shop, "fulfill_order")
    with shop.refused("DP007") as refusal:
        await shop.run("select turn_back_saga(%s, 'too late')", order)
    assert "only goes forward" in refusal.detail
    assert (await shop.saga(order))["status"] == "stuck"
    await shop.run("select retry_saga(%s, 'found it')", order)
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (0, 0)


@pytest.mark.parametrize("undo", ["void_payment", "release_stock"])
async def test_nothing_turns_back_twice(shop: Shop, undo: str) -> None:
    """A saga that is stuck in an undo is on its way back already."""
    order, _ = await make_stuck(shop, undo)
    with shop.refused("DP007") as refusal:
        await shop.run("select turn_back_saga(%s, 'again')", order)
    assert undo in refusal.detail
    assert "cancelled" not in (await shop.events(order))[-2:]


async def test_skip_step_goes_on_forward(shop: Shop) -> None:
    """What an operator has taken at the counter counts as the gateway's answer: the goods leave."""
    await shop.run(
        """
        select define_plan(
            'order_fulfilment',
            step('reserve_stock', p_function => 'reserve_stock',
                p_effect_function => 'move_goods', p_effect => 'reserve'),
            step('charge', p_function => 'request_payment', p_settle_function => 'record_payment',
                p_order_status_waiting => 'payment_processing', p_forward_only => true),
            step('ship', p_effect_function => 'move_goods', p_effect => 'fulfill',
                p_order_status_done => 'fulfilled', p_forward_only => true)
        )
        """
    )
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.settle(await shop.advance(), DECLINED)
    assert (await shop.row("select * from stuck_sagas"))["current_step"] == "charge"
    await shop.run("select skip_step(%s, 'paid in cash')", order)
    assert await shop.advance() == []
    assert (await shop.events(order))[-4:] == [
        "skipped charge",
        "step_completed charge",
        "step_completed ship",
        "saga_completed",
    ]
    payment = await shop.payment(order)
    assert (payment["status"], payment["captured_amount"]) == ("captured", 10)
    assert payment["gateway"] == "by hand"
    assert await shop.stock(product) == (0, 0)


async def test_an_effect_is_not_skipped_forward(shop: Shop) -> None:
    """Goods that were to leave have left only when the ledger says so."""
    order, product = await stuck_forward(shop, "fulfill_order")
    with shop.refused("DP018"):
        await shop.run("select skip_step(%s, 'it is on the truck')", order)
    assert await shop.stock(product) == (1, 1)


@pytest.mark.parametrize("action", ["retry_saga", "turn_back_saga", "skip_step"])
async def test_operators_act_on_stuck_sagas_only(shop: Shop, action: str) -> None:
    """A saga that isn't stuck is the engine's; one that isn't there is nobody's."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    with shop.refused("DP008"):
        await shop.run(f"select {action}(%s, 'why not')", order)
    with shop.refused("DP010"):
        await shop.run(f"select {action}(%s, 'why not')", uuid4())
    assert await shop.events(order) == ["saga_started"]


@pytest.mark.parametrize("action", ["retry_saga", "turn_back_saga", "skip_step"])
@pytest.mark.parametrize("reason", [None, " "])
async def test_operators_say_why(shop: Shop, action: str, reason: str | None) -> None:
    """Without a reason a stuck saga stays as it is, and nothing is written."""
    order, _ = await stuck_forward(shop, "record_payment")
    before = await shop.events(order)
    with shop.refused("DP015"):
        await shop.run(f"select {action}(%s, %s)", order, reason)
    assert (await shop.saga(order))["status"] == "stuck"
    assert await shop.events(order) == before
    assert await shop.rows("select * from action_log") == []


@pytest.mark.parametrize("action", ["retry_saga", "turn_back_saga", "skip_step"])
async def test_what_operators_do_is_noted(shop: Shop, action: str) -> None:
    """The action log has who, which saga, at which step and why."""
    order, _ = await stuck_forward(shop, "record_payment")
    await shop.run(f"select {action}(%s, 'ticket 4711')", order)
    row = await shop.row(
        "select action, subject, reason, detail, actor = session_user from action_log"
    )
    assert list(row.values()) == [
        action,
        str(order),
        "ticket 4711",
        {"step": "process_payment"},
        True,
    ]
