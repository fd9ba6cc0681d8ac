"""routines/71 and 72: what is over goes in bites, what stays agrees, and no id comes again."""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, PENDING, Row, Shop

Connect = Callable[..., Awaitable[Any]]

DAY = 86400
BELONGS = {
    "orders": "id",
    "order_items": "order_id",
    "order_adjustments": "order_id",
    "order_particulars": "order_id",
    "return_metadata": "order_id",
    "sagas": "id",
    "saga_events": "saga_id",
    "saga_signals": "saga_id",
    "stock_movements": "correlation_id",
    "payment_tokens": "order_id",
}
"""What goes with an order, and by which column."""


async def keep(shop: Shop, kind: str, days: int | None, *, export_first: bool = False) -> None:
    """Staff say how long a kind is kept."""
    async with shop.acting_as("service_role"):
        await shop.run(
            "update retention set keep_days = %s, export_first = %s where kind = %s",
            *(days, export_first, kind),
        )


async def housekeep(shop: Shop, kind: str = "orders", limit: int = 500) -> int:
    """Housekeeping removes a kind until there is no more; how many went."""
    removed = 0
    async with shop.acting_as("darkpearl_listener"):
        while True:
            bite = await shop.row("select * from apply_retention(%s, %s)", kind, limit)
            removed += bite["removed"]
            if not bite["has_more"]:
                return removed


async def rows_of(shop: Shop, order: UUID) -> dict[str, int]:
    """How many rows of each table are an order's."""
    return {
        table: await shop.value(f"select count(*) from {table} where {column} = %s", order)
        for table, column in BELONGS.items()
    }


async def cancelled(shop: Shop, product: UUID) -> UUID:
    """An order that was declined."""
    order = await shop.order((product, 1))
    await shop.settle(await shop.advance(), DECLINED)
    return order


async def test_nothing_goes_unless_somebody_says_so(shop: Shop) -> None:
    """A database keeps orders, money and events for ever; only what is beside them has an age."""
    await shop.fulfilled((await shop.product(on_hand=2), 1))
    await shop.turn_clock(4000 * DAY)
    for kind in await shop.values("select kind from retention"):
        assert await housekeep(shop, kind) == 0
    assert await shop.values(
        "select kind from retention where keep_days is not null order by kind"
    ) == ["audit_runs", "batches", "step_minutes", "stock_alerts"]


async def test_whole_orders_go(shop: Shop) -> None:
    """Of an order that is over nothing is left but its payment; younger ones are untouched."""
    product = await shop.product(on_hand=10)
    fulfilled = await shop.order(
        (product, 2),
        p_particulars='{"email": "ann@example.com"}',
        p_adjustments='[{"kind": "shipping", "label": "Post", "amount": 5}]',
    )
    await shop.settle(await shop.advance(), APPROVED)
    refund = (await shop.refund(fulfilled, 5))["id"]
    await shop.settle(await shop.advance(), APPROVED)
    returned = uuid4()
    await shop.take_back(fulfilled, (product, 1), return_id=returned)
    await shop.run("select describe_return(%s, '{\"rma\": 7}')", returned)
    declined = await cancelled(shop, product)
    await shop.turn_clock(40 * DAY)
    young = await shop.fulfilled((product, 3))
    before = await rows_of(shop, young)
    await keep(shop, "orders", 30)
    assert await housekeep(shop) == 2
    for order in (fulfilled, declined, refund):
        assert set((await rows_of(shop, order)).values()) == {0}
    assert await rows_of(shop, young) == before
    assert await shop.values("select order_id from payments order by 1") == sorted(
        [fulfilled, declined, young]
    )
    assert await shop.values("select amount from refunds") == [5]
    assert await shop.stock(product) == (6, 0)
    assert await shop.audit() == []


async def test_bites_are_small(shop: Shop) -> None:
    """One call looks at no more orders than it is told; the next goes on behind them."""
    product = await shop.product(on_hand=10)
    waiting = await unfinished(shop, product)
    for _ in range(4):
        await shop.fulfilled((product, 1))
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    bites = [
        (each["removed"], each["has_more"])
        for _ in range(3)
        for each in await shop.rows("select * from apply_retention('orders', 2)")
    ]
    assert bites == [(1, True), (2, True), (1, False)]
    assert await shop.values("select id from orders") == [waiting]


async def test_the_ledger_keeps_its_balance(shop: Shop) -> None:
    """Opening balances stand where movements were, no two in a row, and kept days read as ever."""
    product = await shop.product(on_hand=20)
    for _ in range(3):
        await shop.fulfilled((product, 2))
        await shop.receive(product, 1)
    kept = await shop.order((product, 4))
    await shop.advance()
    await shop.fulfilled((product, 1))
    await shop.turn_clock(40 * DAY)
    moment = await shop.value("select clock()")
    stock_at = "select * from stock_at(%s, %s, %s)"
    before = await shop.row(stock_at, shop.lisbon, product, moment)
    await shop.turn_clock(DAY)
    await shop.fulfilled((product, 1))
    await keep(shop, "orders", 40)
    assert await housekeep(shop, limit=1) == 4
    types = "select movement_type::text from stock_movements order by id"
    balance, receive = "balance", "receive"
    assert await shop.values(types) == [
        *(receive, balance, receive, balance, receive, balance, receive),
        *("reserve", balance, "reserve", "fulfill"),
    ]
    assert await shop.row(stock_at, shop.lisbon, product, moment) == before
    assert await shop.audit() == []
    await keep(shop, "movements", 40)
    assert await housekeep(shop, "movements", limit=2) == 4
    assert await shop.values(types) == [balance, "reserve", balance, "reserve", "fulfill"]
    assert await shop.row(stock_at, shop.lisbon, product, moment) == before
    assert await shop.audit() == []
    await shop.cancel(kept)


async def test_each_shelf_keeps_a_balance_of_its_own(shop: Shop) -> None:
    """Of one product in two warehouses, both shelves have what was there when movements go."""
    product = await shop.product(on_hand=9)
    await shop.receive(product, 7, shop.rotterdam)
    for warehouse in shop.lisbon, shop.rotterdam:
        await shop.order((product, 2), warehouse=warehouse)
        await shop.settle(await shop.advance(), APPROVED)
    await shop.turn_clock(50 * DAY)
    for kind in "orders", "movements":
        await keep(shop, kind, 40)
        await housekeep(shop, kind)
    rows = await shop.rows(
        "select movement_type::text, available_after from stock_movements order by 2"
    )
    assert [tuple(row.values()) for row in rows] == [("balance", 5), ("balance", 7)]
    assert await shop.audit() == []


async def ledger_of(shop: Shop, warehouse: UUID) -> list[str]:
    """What there is in the ledger of a warehouse, in its order."""
    return await shop.values(
        "select movement_type::text from stock_movements where warehouse_id = %s order by id",
        warehouse,
    )


async def test_a_number_of_two_warehouses_leads_to_one(shop: Shop) -> None:
    """Where a warehouse has come from another cell, what goes of one leaves the other's alone."""
    product = await shop.product(on_hand=9)
    await shop.receive(product, 7, shop.rotterdam)
    old = await shop.fulfilled((product, 2))
    open_one = await shop.order((product, 2), warehouse=shop.rotterdam)
    await shop.settle(await shop.advance(), PENDING)
    for warehouse in shop.rotterdam, shop.lisbon:
        await shop.receive(product, 1, warehouse)
    await shop.number_alike()
    alike = "select count(*) from stock_movements group by id having count(*) = 2"
    assert await shop.values(alike) == [2, 2, 2]
    await shop.turn_clock(50 * DAY)
    await keep(shop, "orders", 40)
    assert await housekeep(shop) == 1
    assert await shop.values("select id from orders where id in (%s, %s)", old, open_one) == [
        open_one
    ]
    assert await ledger_of(shop, shop.rotterdam) == ["receive", "reserve", "receive"]
    assert await ledger_of(shop, shop.lisbon) == ["receive", "balance", "receive"]
    await keep(shop, "movements", 40)
    async with shop.acting_as("darkpearl_reader"):
        due = "select sum(row_count)::int from retention_due() where kind = 'movements'"
        assert await shop.value(due) == 4
    assert await housekeep(shop, "movements", limit=1) == 4
    assert await ledger_of(shop, shop.rotterdam) == ["balance", "reserve", "balance"]
    assert await ledger_of(shop, shop.lisbon) == ["balance"]
    assert await shop.values("select id from spent_ids where id = %s", open_one) == []
    assert await shop.audit() == []


async def test_an_empty_shelf_keeps_a_balance_too(shop: Shop) -> None:
    """When all that there was has left, what is kept of its movements is that nothing was left."""
    product = await shop.product(on_hand=2)
    await shop.fulfilled((product, 2))
    await shop.turn_clock(50 * DAY)
    moment = await shop.value("select clock()")
    await shop.receive(product, 3)
    for kind in "orders", "movements":
        await keep(shop, kind, 40)
        await housekeep(shop, kind)
    rows = await shop.rows(
        "select movement_type::text, quantity, available_after from stock_movements order by id"
    )
    assert [tuple(row.values()) for row in rows] == [("balance", 0, 0), ("receive", 3, 3)]
    stock = await shop.row("select * from stock_at(%s, %s, %s)", shop.lisbon, product, moment)
    assert stock == {"quantity_available": 0, "quantity_reserved": 0}


async def test_a_day_that_is_gone_is_refused(shop: Shop) -> None:
    """Of a time from which movements were removed nothing is told, rather than something wrong."""
    product = await shop.product(on_hand=5)
    await shop.fulfilled((product, 1))
    moment = await shop.value("select clock()")
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    await housekeep(shop)
    async with shop.acting_as("darkpearl_app"):
        with shop.refused("DP038"):
            await shop.rows("select * from stock_at(%s, %s, %s)", shop.lisbon, product, moment)
        now = "select quantity_available from stock_at(%s, %s, clock())"
        assert await shop.value(now, shop.lisbon, product) == 4


async def unfinished(shop: Shop, product: UUID) -> UUID:
    """An order that waits for the gateway."""
    order = await shop.order((product, 1))
    await shop.settle(await shop.advance(), PENDING)
    return order


async def stuck(shop: Shop, product: UUID) -> UUID:
    """An order that needs a person."""
    order = await shop.order((product, 1))
    await shop.poison("reserve_stock", order, sqlstate="XX000")
    await shop.advance()
    await shop.cure("reserve_stock")
    assert (await shop.saga(order))["status"] == "stuck"
    return order


async def disputed(shop: Shop, product: UUID) -> UUID:
    """An order whose payer has asked the bank."""
    order = await shop.fulfilled((product, 1))
    dispute = {"outcome": "disputed", "dispute": "open", "reference": "dp_1"}
    assert await shop.told(f"{order}:process_payment", dispute) == "applied"
    return order


async def owing(shop: Shop, product: UUID) -> UUID:
    """An order whose refund hasn't been answered."""
    order = await shop.fulfilled((product, 1))
    await shop.refund(order)
    await shop.advance()
    return order


async def unpaid(shop: Shop, product: UUID) -> UUID:
    """An order whose refund came to nothing."""
    order = await shop.fulfilled((product, 1))
    refund = await shop.refund(order)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.told(f"{refund['id']}:refund_payment", DECLINED) == "applied"
    return order


@pytest.mark.parametrize("make", [unfinished, stuck, disputed, owing, unpaid])
async def test_what_is_open_stays(
    shop: Shop, make: Callable[[Shop, UUID], Awaitable[UUID]]
) -> None:
    """However old, what is unfinished, stuck, disputed or owed stays as it is."""
    order = await make(shop, await shop.product(on_hand=5))
    before = await rows_of(shop, order)
    await shop.turn_clock(4000 * DAY)
    for kind, days in [("orders", 30), ("payments", 180), ("movements", 30)]:
        await keep(shop, kind, days)
        await housekeep(shop, kind)
    assert await rows_of(shop, order) == before


async def test_age_counts_from_the_last_news(shop: Shop) -> None:
    """An old order whose goods came back yesterday is as old as that."""
    product = await shop.product(on_hand=5)
    order = await shop.fulfilled((product, 1))
    await shop.turn_clock(40 * DAY)
    await shop.take_back(order)
    await keep(shop, "orders", 30)
    assert await housekeep(shop) == 0
    await shop.turn_clock(31 * DAY)
    assert await housekeep(shop) == 1


async def test_a_payment_is_as_old_as_its_last_dispute(shop: Shop) -> None:
    """What the bank decided last month is kept for as long as a payment of last month."""
    order = await shop.fulfilled((await shop.product(on_hand=5), 1))
    await shop.turn_clock(150 * DAY)
    for status in "open", "lost":
        dispute = {"outcome": "disputed", "dispute": status, "reference": "dp_1"}
        assert await shop.told(f"{order}:process_payment", dispute) == "applied"
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    await keep(shop, "payments", 180)
    assert [await housekeep(shop), await housekeep(shop, "payments")] == [1, 0]
    await shop.turn_clock(141 * DAY)
    assert await housekeep(shop, "payments") == 1
    assert await shop.rows("select from disputes") == []


async def test_who_holds_an_order_is_not_waited_for(shop: Shop, connect: Connect) -> None:
    """An order that a session has locked is left for another time; the others go."""
    product = await shop.product(on_hand=5)
    held, free = await shop.fulfilled((product, 1)), await shop.fulfilled((product, 1))
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    holder = await connect(autocommit=False)
    for table, column in [("orders", "id"), ("payments", "order_id"), ("sagas", "id")]:
        await holder.execute(f"select from {table} where {column} = %s for update", [held])
        assert await housekeep(shop) == (1 if table == "orders" else 0)
        await holder.rollback()
    assert (await rows_of(shop, free))["orders"] == 0
    assert await housekeep(shop) == 1


async def test_one_at_a_time(shop: Shop, connect: Connect) -> None:
    """While a session removes, another does nothing and doesn't wait."""
    await shop.fulfilled((await shop.product(on_hand=5), 1))
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    other = await connect(autocommit=False)
    await other.execute("select apply_retention('orders')")
    assert await housekeep(shop) == 0
    await other.rollback()
    assert await housekeep(shop) == 1


@pytest.mark.parametrize("kind", ["timed", "random"])
async def test_an_id_comes_once_for_ever(shop: Shop, kind: str) -> None:
    """The id of an order, refund, return or receipt that is gone can't be used for another."""
    product = await shop.product(on_hand=9)
    sku = await shop.value("select sku from products where id = %s", product)
    make = "select new_id()" if kind == "timed" else "select gen_random_uuid()"
    order, refund, come_back, receipt = new = [await shop.value(make) for _ in range(4)]
    await shop.order((product, 2), p_order_id=order)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.refund(order, 5, refund)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.take_back(order, (product, 1), return_id=come_back)
    receive = "select receive_stock(%s, %s, 1, %s)"
    await shop.run(receive, shop.lisbon, product, receipt)
    await shop.turn_clock(200 * DAY)
    other = await shop.fulfilled((product, 1))
    for each, days in [("orders", 30), ("movements", 30), ("payments", 180)]:
        await keep(shop, each, days)
        await housekeep(shop, each)
    assert await shop.values("select id from orders") == [other]
    assert await shop.values("select order_id from payments") == [other]
    for spent in new:
        with shop.refused("DP038"):
            await shop.order((product, 1), p_order_id=spent)
        with shop.refused("DP038"):
            await shop.refund(other, 1, spent)
        with shop.refused("DP038"):
            await shop.take_back(other, (product, 1), return_id=spent)
        with shop.refused("DP038"):
            await shop.run(receive, shop.lisbon, product, spent)
        with shop.refused("DP038"):
            await shop.run(
                "insert into stock_movements (correlation_id, warehouse_id, product_id,"
                " movement_type, quantity) values (%s, %s, %s, 'receive', 1)",
                *(spent, shop.lisbon, product),
            )
        line = {"sku": sku, "warehouse": "LIS", "movement_type": "receive", "quantity": 1}
        told = await shop.row(
            "select bad, results from import_rows('movements', jsonb_build_array(%s::jsonb), true)",
            json.dumps({**line, "correlation_id": str(spent), "line": 1}),
        )
        assert told["bad"] == 1
        assert "was used before" in str(told["results"])
    await shop.fulfilled((product, 1))
    await shop.run(receive, shop.lisbon, product, uuid4())


async def test_ids_that_tell_their_time_leave_nothing(shop: Shop) -> None:
    """Of a thousand ids made by new_id() one row is kept; one of another kind is kept itself."""
    product = await shop.product(on_hand=9)
    chosen, ahead = uuid4(), UUID("09000000-0000-7000-8000-000000000000")
    for order in (None, None, chosen, ahead):
        await shop.order((product, 1), **({"p_order_id": order} if order else {}))
        await shop.settle(await shop.advance(), APPROVED)
    last = await shop.value("select max(order_number) from orders")
    (first, second) = await shop.values(
        "select id from orders where order_number <= %s - 2 order by 1", last
    )
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    assert await housekeep(shop) == 4
    assert await shop.values("select id from spent_ids order by 1") == sorted([chosen, ahead])
    assert await shop.values("select id from spent_up_to") == [second]
    assert first < second
    await shop.fulfilled((product, 1))


async def test_a_return_stays_as_long_as_its_order(shop: Shop) -> None:
    """Where movements are kept for less time than orders, those of a return go with its order."""
    product = await shop.product(on_hand=5)
    order = await shop.fulfilled((product, 1))
    await shop.take_back(order)
    await shop.turn_clock(50 * DAY)
    await keep(shop, "movements", 40)
    await housekeep(shop, "movements")
    returned = "select quantity from stock_movements where reference_id = %s"
    assert await shop.values(returned, order) == [1]
    await keep(shop, "orders", 40)
    await housekeep(shop)
    await housekeep(shop, "movements")
    assert await shop.values(returned, order) == []
    assert await shop.audit() == []


async def test_payments_have_a_time_of_their_own(shop: Shop) -> None:
    """A payment goes with its refunds when its order is gone and its own time is over."""
    product = await shop.product(on_hand=9)
    order, other = await shop.fulfilled((product, 1)), await shop.fulfilled((product, 1))
    await shop.refund(order)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.turn_clock(100 * DAY)
    await keep(shop, "payments", 180)
    await keep(shop, "orders", 30)
    assert await housekeep(shop) == 2
    assert await housekeep(shop, "payments") == 0
    await shop.turn_clock(100 * DAY)
    kept = await shop.fulfilled((product, 1))
    assert await housekeep(shop, "payments", limit=1) == 2
    assert await shop.values("select order_id from payments") == [kept]
    assert await shop.values("select id from refunds") == []
    assert other
    assert await shop.audit() == []


async def test_cards_that_were_declined_go_with_their_payment(shop: Shop) -> None:
    """Not before: their keys are what the gateway knows them by."""
    product = await shop.product(on_hand=1)
    pay_by = await shop.value("select clock() + interval '1 hour'")
    order = await shop.order((product, 1), p_pay_by=pay_by, p_payment_token="tok_bad")
    await shop.settle(await shop.advance(), DECLINED)
    await shop.run("select pay_order(%s, 'tok_good')", order)
    await shop.settle(await shop.advance(), APPROVED)
    await keep(shop, "orders", 30)
    await shop.turn_clock(31 * DAY)
    assert await housekeep(shop) == 1
    assert await shop.value("select count(*) from payment_attempts") == 1
    await keep(shop, "payments", 180)
    await shop.turn_clock(181 * DAY)
    assert await housekeep(shop, "payments") == 1
    assert await shop.rows("select * from payment_attempts") == []


async def test_events_of_gateways_have_an_end(shop: Shop) -> None:
    """Old ones go; one that belongs to nothing stays until a person has seen it."""
    for event in ("a", "b", "c"):
        await shop.told(f"{uuid4()}:process_payment", APPROVED, event)
    await shop.run(
        "select ack_gateway_event('mock', 'a', 'ours'), ack_gateway_event('mock', 'c', 'too')"
    )
    await keep(shop, "gateway_events", 30)
    assert await housekeep(shop, "gateway_events") == 0
    with shop.refused("DP005"):
        await shop.run("delete from gateway_events where event_id = 'a'")
    await shop.turn_clock(31 * DAY)
    assert await housekeep(shop, "gateway_events", limit=1) == 2
    assert await shop.values("select event_id from gateway_events") == ["b"]


async def test_months_of_events_go_by_the_same_rule(shop: Shop) -> None:
    """Events have an age of their own: old months are dropped, and it is written down."""
    await shop.fulfilled((await shop.product(on_hand=2), 1))
    await shop.turn_clock(200 * DAY)
    await shop.rows("select ensure_event_partitions()")
    await keep(shop, "events", 90)
    assert await housekeep(shop, "events") >= 1
    assert await shop.value("select count(*) from saga_events") == 0
    assert await shop.values("select finding from audit") == []
    assert "retention" in await shop.values("select reason from action_log")
    assert await shop.value("select removed from retention where kind = 'events'") >= 1
    shop.audited = False  # what was dropped can't be rebuilt


async def test_a_month_waits_for_its_export(shop: Shop) -> None:
    """What is to be exported first goes once its month was, and not if it changed since."""
    product = await shop.product(on_hand=9)
    early = await shop.fulfilled((product, 1))
    month = await shop.value("select date_trunc('month', clock() at time zone 'UTC')::date")
    await shop.turn_clock(40 * DAY)
    late = await shop.fulfilled((product, 1))
    await shop.take_back(early)
    await shop.turn_clock(80 * DAY)
    await keep(shop, "orders", 30, export_first=True)
    assert await housekeep(shop) == 0
    async with shop.acting_as("service_role"):
        await shop.run("select record_export('orders', %s, 1)", month)
        with shop.refused("DP015"):
            await shop.run("select record_export('orders', date_trunc('month', clock())::date, 1)")
    assert await housekeep(shop) == 1
    assert await shop.values("select id from orders") == [late]


async def test_a_dry_run_says_how_much(shop: Shop) -> None:
    """By kind and month what would go, and then goes; what stays isn't in it."""
    product = await shop.product(on_hand=9)
    month = await shop.value("select date_trunc('month', clock() at time zone 'UTC')::date")
    for _ in range(2):
        await shop.fulfilled((product, 1))
    await unfinished(shop, product)
    await shop.told(f"{uuid4()}:process_payment", APPROVED, "a")
    await shop.run("select ack_gateway_event('mock', 'a', 'ours'), run_audit()")
    await shop.turn_clock(400 * DAY)
    await shop.run("select run_audit()")
    await shop.run("analyze")
    for kind, days in [
        ("orders", 30),
        ("movements", 30),
        ("gateway_events", 30),
        ("payments", 180),
    ]:
        await keep(shop, kind, days)
    async with shop.acting_as("darkpearl_reader"):
        due = await shop.rows("select * from retention_due()")
    expected = {"orders": 2, "movements": 1, "gateway_events": 1, "audit_runs": 1}
    assert {row["kind"]: row["row_count"] for row in due} == expected
    assert {row["month"] for row in due} == {month}
    assert all(row["bytes"] > 0 for row in due if row["kind"] != "audit_runs")
    for kind, count in expected.items():
        assert await housekeep(shop, kind) == count
    (payments,) = await shop.rows("select * from retention_due()")
    assert (payments["kind"], payments["row_count"]) == ("payments", 2)


async def test_batches_that_ended_long_ago_go(shop: Shop) -> None:
    """A batch goes in bites, its items first; one that hasn't ended stays, however old."""
    for number in range(25):
        await shop.told("none:of_ours", APPROVED, f"evt_{number}")
    start = "select batch_id from ack_gateway_events(%s, 'not ours', false)"
    old = await shop.value(start, '{"ids": ["evt_0", "evt_1", "evt_2", "evt_3"]}')
    await shop.run("select work_batches()")
    await shop.run(start, '{"ids": ["evt_4"]}')
    await shop.turn_clock(366 * DAY)
    due = await shop.rows("select kind, row_count from retention_due()")
    assert {"kind": "batches", "row_count": 1} in due
    async with shop.acting_as("darkpearl_listener"):
        bite = await shop.row("select * from apply_retention('batches', 3)")
    assert bite == {"removed": 0, "has_more": True}
    assert await shop.value("select count(*) from batch_items where batch_id = %s", old) == 1
    assert await housekeep(shop, "batches") == 1
    assert await shop.values("select finished_at from batches") == [None]
    assert await shop.value("select count(*) from batch_items") == 1


async def test_statistics_of_long_ago_go(shop: Shop) -> None:
    """Minutes older than is kept go, the oldest first, and younger ones stay."""
    while await shop.value("select fill_step_minutes(60)"):
        pass
    there = await shop.value("select count(*) from step_minutes")
    assert there >= 59
    assert await housekeep(shop, "step_minutes") == 0
    await shop.turn_clock(91 * DAY)
    await shop.run("select fill_step_minutes(60)")
    assert await housekeep(shop, "step_minutes") == there
    assert await shop.value("select count(*) from step_minutes") == 60


async def test_what_people_did_goes_when_it_is_too_old(shop: Shop) -> None:
    """For ever, unless somebody says how long; younger rows stay, and what was to be exported."""
    await shop.run("select pause_external_steps(0, 'long ago')")
    await shop.turn_clock(100 * DAY)
    await shop.run("select pause_external_steps(0, 'now')")
    assert await housekeep(shop, "action_log") == 0
    with shop.refused("DP005"):
        await shop.run("delete from action_log")
    keep = "update retention set keep_days = 70, export_first = %s where kind = 'action_log'"
    await shop.run(keep, "true")
    assert await housekeep(shop, "action_log") == 0
    await shop.run(keep, "false")
    due = await shop.rows("select kind, row_count from retention_due()")
    assert due == [{"kind": "action_log", "row_count": 1}]
    assert await housekeep(shop, "action_log") == 1
    reasons = await shop.values("select reason from action_log where action like 'pause%'")
    assert reasons == ["now"]
    with shop.refused("DP005"):
        await shop.run("delete from action_log")


async def test_less_than_sane_is_refused(shop: Shop) -> None:
    """Nobody has things go that may be asked for still, or that retention knows nothing of."""
    for kind, days in [("orders", 29), ("payments", 179), ("events", 61), ("movements", 0)]:
        with shop.refused("23514"):
            await keep(shop, kind, days)
    with shop.refused("DP005"):
        await shop.run("delete from retention")
    with shop.refused("DP010"):
        await shop.run("select apply_retention('everything')")
    for limit in (0, None):
        with shop.refused("DP015"):
            await shop.run("select apply_retention('orders', %s)", limit)


async def test_changes_are_written_down(shop: Shop) -> None:
    """Who says how long things are kept is in the log, with what it was before."""
    await keep(shop, "orders", 730)
    await keep(shop, "orders", 730)
    (noted,) = await shop.rows("select * from action_log")
    assert (noted["action"], noted["subject"]) == ("update retention", "orders")
    assert noted["detail"] == {"keep_days": [None, 730], "export_first": [False, False]}


GUARDED = [
    *("orders", "order_items", "payments", "refunds", "stock_movements", "saga_events"),
    *("saga_signals", "gateway_events"),
]


@pytest.mark.parametrize("table", GUARDED)
async def test_nobody_else_gets_past_the_guards(shop: Shop, table: str) -> None:
    """Whatever a session says of itself, history is removed by retention alone."""
    product = await shop.product(on_hand=9)
    order = await shop.fulfilled((product, 1))
    await shop.refund(order, 1)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.run(
        "insert into saga_signals (saga_id, warehouse_id, step_name, event_id, payload, taken_at)"
        " values (%s, %s, 'process_payment', 'e', '{}', clock())",
        *(order, shop.lisbon),
    )
    await shop.told(f"{order}:process_payment", APPROVED)
    old = await shop.fulfilled((product, 1))
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    await shop.run("set darkpearl.retention = 'on'")
    with shop.refused("DP005"):
        await shop.run(f"delete from {table}")
    assert await housekeep(shop) == 2
    assert old
    for role in ("service_role", "darkpearl_app", "darkpearl_listener", "darkpearl_reader"):
        async with shop.acting_as(role):
            for statement in (
                f"delete from {table}",
                "insert into spent_ids (id) values (new_id())",
                f"select remove_orders('{{{order}}}')",
                "select fold_movements('{1}', array[new_id()])",
            ):
                with shop.refused("42501"):
                    await shop.run(statement)


async def test_a_permit_is_of_one_transaction(shop: Shop) -> None:
    """An id that was written down as spent lets nothing go any more, once that has committed."""
    product = await shop.product(on_hand=9)
    order = await shop.order((product, 1), p_order_id=uuid4())
    await shop.settle(await shop.advance(), APPROVED)
    await shop.turn_clock(40 * DAY)
    await keep(shop, "orders", 30)
    await housekeep(shop)
    assert await shop.values("select id from spent_ids") == [order]
    with shop.refused("DP005"):
        await shop.run("delete from payments")


async def test_movements_become_nothing_but_balances(shop: Shop) -> None:
    """Not even a transaction that may remove a movement changes what was there after it."""
    await shop.product(on_hand=9)
    spend = "insert into spent_ids (id) select correlation_id from stock_movements"
    for change in ("available_after = 1", "quantity = 1", "created_at = now()"):
        with shop.refused("DP005"):
            async with shop.connection.transaction():
                await shop.run(spend)
                kind = "" if change == "quantity = 1" else "movement_type = 'balance', "
                await shop.run(f"update stock_movements set {kind}{change}")


def finding(rows: list[Row]) -> set[str]:
    """What an audit found."""
    return {row["finding"] for row in rows}


async def test_an_audit_of_what_changed(shop: Shop) -> None:
    """It finds what was broken since a moment, and nothing that lies before it."""
    product = await shop.product(on_hand=9)
    old = await shop.fulfilled((product, 1))
    await shop.turn_clock(DAY)
    since: datetime = await shop.value("select clock()")
    other = await shop.product(on_hand=9)
    new = await shop.fulfilled((other, 1))
    ask = "select * from audit_since(%s)"
    assert await shop.rows(ask, since) == []
    async with shop.unguarded():
        await shop.run("update orders set total_amount = 1")
        await shop.run("update inventory set quantity_available = 90")
        await shop.run(
            "update stock_movements set available_after = 7 where movement_type = 'receive'"
        )
    rows = await shop.rows(ask, since)
    assert finding(rows) >= {
        "order total is not the sum of its lines and adjustments",
        "inventory is not the sum of its ledger",
        "movement does not follow from the one before",
    }
    assert {row["subject"] for row in rows} == {new, other}
    whole = await shop.rows("select * from audit")
    assert {row["subject"] for row in whole} == {old, new, product, other}
    assert finding(rows) == finding(whole)


async def test_audits_are_kept(shop: Shop) -> None:
    """What an audit found is in audit_runs, whole or of what changed, with who ran it."""
    await shop.fulfilled((await shop.product(on_hand=9), 1))
    async with shop.acting_as("service_role"):
        await shop.run("select run_audit(clock() - interval '1 hour', 'a wrong count')")
    async with shop.unguarded():
        await shop.run("update inventory set quantity_available = 90")
    async with shop.acting_as("darkpearl_reader"):
        run = await shop.row("select * from run_audit()")
        runs = await shop.rows("select * from audit_runs order by id")
    assert [each["finding_count"] for each in runs] == [0, 1]
    assert [each["reason"] for each in runs] == ["a wrong count", None]
    assert [each["since"] is None for each in runs] == [False, True]
    assert run["findings"] == json.loads(json.dumps(runs[1]["findings"]))
    assert run["findings"][0]["finding"] == "inventory is not the sum of its ledger"
