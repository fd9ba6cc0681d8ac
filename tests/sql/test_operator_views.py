"""What operators look at first: engine_health, queue_health, stuck_by_cause, why orders ended."""

from typing import Any
from uuid import UUID

from shop import APPROVED, DECLINED, UNKNOWN, Row, Shop


async def queue(shop: Shop) -> dict[tuple[str, str], Row]:
    """queue_health by type and step, as reports read it."""
    async with shop.acting_as("darkpearl_reader"):
        rows = await shop.rows("select * from queue_health")
    return {(row["saga_type"], row["step_name"]): row for row in rows}


async def counts(shop: Shop, step: str) -> dict[str, int]:
    """What queue_health counts at a step of orders, what is nothing left out."""
    row = (await queue(shop)).get(("order_fulfilment", step), {})
    kinds = ("ready", "waiting", "backing_off", "held_by_pause", "stuck")
    return {kind: row[kind] for kind in kinds if row and row[kind]}


async def test_a_forgotten_pause_is_seen(shop: Shop) -> None:
    """While calls are paused, health says for how long and how many orders stand still for it."""
    product = await shop.product(on_hand=5)
    for _ in range(3):
        await shop.order((product, 1))
    assert await counts(shop, "reserve_stock") == {"ready": 3}
    await shop.run("select pause_external_steps(600, 'maintenance')")
    await shop.advance()
    health = await shop.row("select * from engine_state()")
    assert health["held_by_pause"] == 3
    assert 590 < health["external_steps_paused_seconds"] <= 600
    assert await counts(shop, "process_payment") == {"held_by_pause": 3}
    await shop.run("select pause_external_steps(0, 'it is over')")
    health = await shop.row("select * from engine_state()")
    assert (health["held_by_pause"], health["external_steps_paused_seconds"]) == (0, 0)


async def test_the_queue_is_told_by_step(shop: Shop) -> None:
    """Those that are ready, wait for an answer, or back off count where they stand."""
    product = await shop.product(on_hand=9)
    await shop.order((product, 1))
    await shop.advance()
    failing = await shop.order((product, 1))
    await shop.poison("reserve_stock", failing)
    await shop.advance()
    await shop.cure("reserve_stock")
    await shop.order((product, 1))
    assert await counts(shop, "process_payment") == {"waiting": 1}
    assert await counts(shop, "reserve_stock") == {"ready": 1, "backing_off": 1}


async def test_the_oldest_that_has_not_ended_is_told(shop: Shop) -> None:
    """However it waits, be it stuck: health says how long ago it began; 0 when all have ended."""
    oldest = "select oldest_unfinished_seconds from engine_health"
    product = await shop.product(on_hand=9)
    await shop.fulfilled((product, 1))
    assert await shop.value(oldest) == 0
    order = await shop.order((product, 1))
    await shop.turn_clock(3600)
    assert 3600 <= await shop.value(oldest) < 3660
    await shop.poison("reserve_stock", order, sqlstate="P0001")
    await shop.advance()
    await shop.order((product, 1))
    assert await counts(shop, "reserve_stock") == {"ready": 1, "stuck": 1}
    assert 3600 <= await shop.value(oldest) < 3660
    (row,) = (await queue(shop)).values()
    assert 3600 <= row["oldest_unfinished_seconds"] < 3660
    assert row["oldest_ready_seconds"] < 60


async def stuck_void(shop: Shop, price: str, **columns: Any) -> UUID:
    """An order whose void was declined."""
    product = await shop.product(price, on_hand=1, **columns)
    arguments = {"p_currency": columns["currency"]} if columns else {}
    order = await shop.order((product, 1), **arguments)
    requests = await shop.advance()
    await shop.cancel(order)
    (void,) = await shop.settle(requests, APPROVED)
    await shop.settle([void], {**DECLINED, "message": f"charge ch_{price}a is 12.50 short"})
    assert (await shop.saga(order))["status"] == "stuck"
    return order


async def test_stuck_sagas_are_grouped_by_their_cause(shop: Shop) -> None:
    """Those with one cause are one row, though each message has its ids; with their money."""
    first = await stuck_void(shop, "10")
    await shop.turn_clock(60)
    await stuck_void(shop, "20")
    await stuck_void(shop, "7", currency="EUR")
    other = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", other, sqlstate="P0001")
    await shop.advance()
    async with shop.acting_as("darkpearl_reader"):
        rows = await shop.rows("select * from stuck_by_cause order by step_name")
    reserving, voiding = rows
    assert (reserving["step_name"], reserving["error_code"], reserving["cause"]) == (
        "reserve_stock",
        "P0001",
        "poison",
    )
    assert (voiding["step_name"], voiding["sagas"]) == ("void_payment", 3)
    assert voiding["amounts"] == {"USD": 30, "EUR": 7}
    assert voiding["example"] == first
    assert "ch_" not in voiding["cause"]
    found = await shop.row(
        "select total, amounts from retry_sagas("
        "jsonb_build_object('step', 'void_payment', 'cause', %s::text))",
        voiding["cause"],
    )
    assert found == {"total": 3, "amounts": {"USD": 30, "EUR": 7}}


async def test_a_cancelled_order_says_why_it_was_given_up(shop: Shop) -> None:
    """Not why its void failed once on the way: that the payment got no answer, or was declined."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.give_up_after(0, "process_payment")
    (void,) = await shop.settle(await shop.advance(), UNKNOWN)
    await shop.run("update step_settings set stuck_seconds = 600")
    await shop.settle([void], {"outcome": "unknown", "message": "void went nowhere"})
    last = "select last_error_code, last_error from saga_overview where id = %s"
    assert (await shop.row(last, order))["last_error"] == "void went nowhere"
    (void,) = await shop.ask_again()
    await shop.settle([void], {**APPROVED, "captured": "0"})
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    row = await shop.row(last, order)
    assert (row["last_error_code"], row["last_error"]) == ("DP017", "no answer")
    failure = await shop.value("select failure from order_summaries where id = %s", order)
    assert failure == {"code": "DP017", "message": "no answer"}
