"""Two sessions and one saga."""

from typing import Any

import anyio
import psycopg
import pytest
from psycopg.types.json import Jsonb
from shop import APPROVED, Shop


async def test_a_saga_that_one_session_has_claimed_is_skipped_by_another(
    shop: Shop, connect: Any
) -> None:
    """No two listeners ever work on one saga: a claimed one is invisible to every other claim."""
    for _ in range(4):
        await shop.order((await shop.product(on_hand=10), 1))
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("darkpearl_listener", autocommit=False)

    first = await (await one.execute("select sum(claimed) from advance(3)")).fetchone()
    second = await (await other.execute("select sum(claimed) from advance(3)")).fetchone()
    await one.commit()
    await other.commit()

    assert (first, second) == ((3,), (1,))
    assert await shop.statuses() == {"payment_processing": 4}


async def test_a_claim_that_is_rolled_back_leaves_everything_to_the_next(
    shop: Shop, connect: Any
) -> None:
    """A pass that does not commit has done nothing: the next listener finds the saga as it was."""
    product = await shop.product(on_hand=10)
    await shop.order((product, 3))
    one = await connect("darkpearl_listener", autocommit=False)
    await one.execute("select advance()")
    await one.rollback()

    assert await shop.stock(product) == (10, 0)
    assert await shop.value("select sum(claimed) from advance()") == 1
    assert await shop.stock(product) == (10, 3)


async def test_a_late_answer_cannot_settle_what_was_asked_again(shop: Shop, connect: Any) -> None:
    """The answer under an old lease token is refused, though the new one is still due."""
    saga = await shop.order((await shop.product(on_hand=10), 1))
    await shop.run("update step_settings set backoff_seconds = 0, timeout_seconds = 0.01")
    listener = await connect("darkpearl_listener")

    async def request() -> dict[str, Any]:
        while True:
            rows = await (await listener.execute("select requests from advance()")).fetchall()
            for (requests,) in rows:
                if requests:
                    return dict(requests[0])

    old, new = await request(), await request()
    assert old["lease_token"] < new["lease_token"]
    assert old["request"]["idempotency_key"] == new["request"]["idempotency_key"]

    def answer(to: dict[str, Any], outcome: str) -> Jsonb:
        token = to["lease_token"]
        return Jsonb([{"saga_id": str(saga), "lease_token": token, "answer": {"outcome": outcome}}])

    cursor = await listener.execute(
        "select saga_id, error_code from settle(%s)", [answer(old, "declined")]
    )
    assert await cursor.fetchall() == [(saga, "DP009")]
    assert await shop.statuses() == {"payment_processing": 1}
    await listener.execute("select * from settle(%s)", [answer(new, "approved")])
    assert await shop.statuses() == {"fulfilled": 1}


async def test_two_settlements_of_one_answer_wait_for_each_other(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """The same answer twice at once counts once: the second waits, then finds its token spent."""
    saga = await shop.order((await shop.product(on_hand=10), 1))
    (request,) = await shop.advance()
    token = request["lease_token"]
    answers = Jsonb(
        [{"saga_id": str(saga), "lease_token": token, "answer": {"outcome": "approved"}}]
    )
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("darkpearl_listener")
    await one.execute("select * from settle(%s)", [answers])
    found: list[Any] = []

    async def settle_again() -> None:
        cursor = await other.execute("select saga_id, error_code from settle(%s)", [answers])
        found.extend(await cursor.fetchall())

    async with anyio.create_task_group() as group:
        group.start_soon(settle_again)
        await waits(other.info.backend_pid)
        await one.commit()

    assert found == [(saga, "DP009")]
    assert await shop.statuses() == {"fulfilled": 1}


async def test_a_cancellation_waits_for_the_pass_that_holds_the_saga(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """cancel_order() never slips between a step and its commit: it waits, then is honoured."""
    saga = await shop.order((await shop.product(on_hand=10), 1))
    one = await connect("darkpearl_listener", autocommit=False)
    other = await connect("darkpearl_app")
    await one.execute("select advance()")

    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "select cancel_order(%s)", [saga])
        await waits(other.info.backend_pid)
        await one.commit()

    waiting = {"saga_id": saga, "lease_token": (await shop.saga(saga))["lease_token"]}
    (request,) = await shop.settle([waiting], APPROVED)
    assert request["step_name"] == "void_payment"
    await shop.settle([request], APPROVED)
    assert await shop.statuses() == {"cancelled": 1}
    assert await shop.value("select captured_amount = refunded_amount from payments")


async def test_lines_cannot_be_added_by_a_later_transaction(shop: Shop, connect: Any) -> None:
    """An order that another session has placed is frozen, even for who knows its id."""
    product = await shop.product(on_hand=10)
    saga = await shop.order((product, 1))
    app = await connect("darkpearl_app")
    with pytest.raises(psycopg.Error) as refused:
        await app.execute(
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " values (%s, %s, %s, 1)",
            [saga, shop.lisbon, product],
        )
    assert refused.value.sqlstate == "DP012"
    assert await shop.value("select total_amount from orders") == 10


async def test_of_two_pauses_at_once_the_longer_counts(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Whoever pauses calls while another does cuts nothing short of what the other said."""
    await shop.order((await shop.product(on_hand=1), 1))
    one, other = await connect(autocommit=False), await connect()
    await one.execute("select pause_external_steps(3600, 'an hour')")
    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "select pause_external_steps(60, 'a minute')")
        await waits(other.info.backend_pid)
        await one.commit()
    await shop.turn_clock(600)
    assert await shop.advance() == []


async def test_who_waits_for_the_idle_lock_has_not_got_it(connect: Any, waits: Any) -> None:
    """While a writer that rings nobody is at work, no listener takes another one for asleep."""
    writer, drowsy, other = await connect(autocommit=False), await connect(), await connect()
    await writer.execute("select pg_advisory_lock_shared(idle_lock_key())")
    async with anyio.create_task_group() as group:
        group.start_soon(drowsy.execute, "select pg_advisory_lock(idle_lock_key())")
        await waits(drowsy.info.backend_pid)
        cursor = await other.execute("select take_idle_lock()")
        assert await cursor.fetchone() == (False,)
        await writer.execute("select pg_advisory_unlock_all()")
    cursor = await other.execute("select take_idle_lock()")
    assert await cursor.fetchone() == (True,)
