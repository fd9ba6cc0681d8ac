"""routines/57_operators.sql: undos that fail, stuck sagas, and what an operator does."""

from uuid import UUID, uuid4

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, LONG, UNKNOWN, Shop


async def make_stuck(shop: Shop, undo: str) -> tuple[UUID, UUID]:
    """A paid order that could not be fulfilled, and whose undo fails; and its product."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.run("update step_settings set max_attempts = 1")
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
    await shop.turn_clock(LONG)
    await shop.advance()
    assert shop.claimed == 0


async def test_an_undo_has_attempts_of_its_own(shop: Shop) -> None:
    """An undo that raises is tried max_attempts times with backoff before the saga is stuck."""
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
    assert {each["error_code"] for each in failures} == {"XX001"}
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


@pytest.mark.parametrize("action", ["retry_saga", "skip_step"])
async def test_operators_act_on_stuck_sagas_only(shop: Shop, action: str) -> None:
    """A saga that isn't stuck is the engine's; one that isn't there is nobody's."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    with shop.refused("DP008"):
        await shop.run(f"select {action}(%s, 'why not')", order)
    with shop.refused("DP010"):
        await shop.run(f"select {action}(%s, 'why not')", uuid4())
    assert await shop.events(order) == ["saga_started"]
