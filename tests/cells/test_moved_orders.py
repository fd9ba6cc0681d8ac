"""What orders of a warehouse that has moved still go through, here and where it was."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from moving import Moving, finished
from places import Place
from shop import APPROVED, PENDING, Shop
from terminal import Run

from darkpearl import cells

Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
CHARGED = APPROVED | {"amount": "10.00", "currency": "USD"}
PERSONAL = {"email": "ann@example.com", "shipping_address": {"line1": "Rua 1", "country": "PT"}}


async def move(places: Places, code: str, to: str = "north") -> None:
    """A whole move."""
    async for _ in cells.move(places[0].url, code, to):
        pass


async def test_what_was_removed_before_is_known_to_be_gone(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """History that retention took where the warehouse was is no finding, and no empty shelf."""
    here, there = pair
    code, warehouse, product = moving
    order = await here.order((product, 1), warehouse=warehouse)
    await here.settle(await here.advance(), APPROVED)
    before = await here.value("select clock()")
    for shop in pair:
        await shop.turn_clock(200 * 86400)
    await here.run(
        "select drop_event_partitions("
        "date_trunc('month', clock() - interval '40 days')::date, 'disk')"
    )
    assert await remove(here, "movements") > 0
    await move(places, code)
    assert await there.events(order) == []
    assert await there.values("select finding from audit") == []
    for shop in pair:
        with shop.refused("DP038"):
            await shop.run("select stock_at(%s, %s, %s)", warehouse, product, before)
        await remove(shop, "orders")


async def remove(shop: Shop, kind: str) -> int:
    """Retention takes what is old, of one kind; how many rows."""
    rule = "update retention set keep_days = %s where kind = %s"
    await shop.run(rule, 100, kind)
    try:
        return int(await shop.value("select removed from apply_retention(%s, 10000)", kind))
    finally:
        await shop.run(rule, None, kind)


async def test_a_customer_is_erased_from_what_was_left_behind(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """In both cells, from orders that had ended and from copies of others; while it moves later."""
    here, there = pair
    code, warehouse, product = moving
    said = {"p_customer_id": "ann", "p_particulars": json.dumps(PERSONAL)}
    orders = [await here.order((product, 1), warehouse=warehouse, **said)]
    await here.settle(await here.advance(), APPROVED)
    orders.append(await here.order((product, 1), warehouse=warehouse, **said))
    beside = await here.order((product, 1), warehouse=here.lisbon, **said)
    await here.settle([r for r in await here.advance() if r["saga_id"] == str(beside)], APPROVED)
    erase = "select erase_customer('ann', 'asked for it')"
    personal = (
        "select array_agg(num_nonnulls(email, shipping_address) order by order_id = any(%s),"
        " order_id) from order_particulars where order_id = any(%s) or order_id = %s"
    )
    async for line in cells.move(places[0].url, code, "north"):
        if "closed" in line:
            with here.refused("DP053"):
                await here.run(erase)
    assert await here.value(erase) == 3
    assert await here.value(personal, orders, orders, beside) == [0, 0, 0]
    for unchanged in ("reference = 'x'", "metadata = '{\"a\": 1}'", "email = 'eve@example.com'"):
        with here.refused("DP050"):
            await here.run(
                f"update order_particulars set {unchanged} where order_id = %s", orders[1]
            )
    assert await there.value(erase) == 1
    assert await there.value(personal, orders, orders, beside) == [0, 2]
    await finished(there)
    assert await there.value(erase) == 1
    assert await there.value(personal, orders, orders, beside) == [0, 0]


async def test_tokens_are_counted_while_it_moves(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """Housekeeping takes none at either end that the other has still: the move ends."""
    here, there = pair
    code, warehouse, product = moving
    order = await here.order((product, 1), warehouse=warehouse, p_payment_token="tok_1")
    await here.settle(await here.advance(), APPROVED)
    assert await here.order_status(order) == "fulfilled"
    tokens = "select count(*) from payment_tokens where warehouse_id = %s"
    async for line in cells.move(places[0].url, code, "north"):
        for shop in (there, here) if "closed" in line else (there,):
            await shop.run("select forget_payment_tokens()")
    assert await here.value(tokens, warehouse) == 0
    await there.run("select forget_payment_tokens()")
    assert await there.value(tokens, warehouse) == 0


async def test_an_earlier_charge_is_known_after_a_payment_in_the_new_cell(
    pair: Pair, places: Places, moving: Moving
) -> None:
    """What it took goes back, though the last payment is under another cell's key."""
    here, there = pair
    code, warehouse, product = moving
    hold = await here.value("select clock() + interval '3 hours'")
    held = {"warehouse": warehouse, "p_pay_by": hold, "p_payment_token": "tok_1"}
    order = await here.order((product, 1), **held)
    await here.settle(await here.advance(), PENDING)
    await here.run("select cancel_payment(%s)", order)
    await here.settle(await here.advance(), APPROVED)
    assert await here.order_status(order) == "payment_failed"
    await move(places, code)
    await there.run("select record_manual_payment(%s, 10, 'T-1', 'by transfer')", order)
    await there.advance()
    assert await there.order_status(order) == "fulfilled"
    assert await told(there, f"{order}:process_payment", CHARGED) == "applied"
    refund = await there.value("select id from refunds where order_id = %s", order)
    (request,) = await there.advance()
    assert request["request"]["idempotency_key"] == f"{refund}:refund_payment"
    voided = APPROVED | {"captured": "10.00", "refunded": "10.00", "currency": "USD"}
    assert await told(there, f"{refund}:refund_payment", voided) == "applied"
    assert await there.value("select status from refunds where id = %s", refund) == "refunded"


async def told(shop: Shop, key: str, answer: dict[str, Any]) -> str:
    """The gateway tells a cell what became of a call, by the key that it was made under."""
    return str(
        await shop.value(
            "select record_gateway_event('mock', %s, %s, %s)", str(uuid4()), key, json.dumps(answer)
        )
    )


async def errand(shop: Shop, warehouse: UUID) -> UUID:
    """A saga of an own type that waits to be told twice."""
    saga = uuid4()
    await shop.run("select start_saga('errand', %s, %s)", saga, warehouse)
    await shop.advance()
    return saga


async def test_sagas_of_ones_own_go_on_where_they_stand(
    pair: Pair, places: Places, moving: Moving, run: Run
) -> None:
    """Told and not gone on yet, or told early: neither cell's audit finds a sleeper."""
    here, there = pair
    code, warehouse, _ = moving
    plan = "select define_plan('errand', {})".format(
        ", ".join(
            f"step('{name}', p_on_deadline => 'stuck', p_timeout_seconds => 86400)"
            for name in ("first", "second")
        )
    )
    await here.run(plan)
    saga = await errand(here, warehouse)
    refused = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert (refused.code, "plan of errand isn't the same" in refused.errors) == (2, True)
    await there.run(plan)
    sagas = [saga, *[await errand(here, warehouse) for _ in range(2)]]
    for each, name in ((sagas[0], "first"), (sagas[1], "second")):
        await here.run("select signal_saga(%s, %s)", each, name)
    await move(places, code)
    for shop in pair:
        assert await shop.audit() == []
    for each in sagas:
        with here.refused("DP050"):
            await here.run("select signal_saga(%s, 'first')", each)
    await there.run("select signal_saga(%s, 'first')", sagas[1])
    await there.advance()
    assert await there.values(
        "select position from sagas where id = any(%s) order by array_position(%s, id)",
        *(sagas, sagas),
    ) == [2, 2, 1]
    assert (await there.saga(sagas[1]))["status"] == "completed"
