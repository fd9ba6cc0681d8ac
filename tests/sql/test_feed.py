"""routines/73_feed.sql: what happened, told to everybody else in one order."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, Row, Shop


async def follow(shop: Shop, after: int = 0, limit: int = 1000, *topics: str) -> list[Row]:
    """An application follows the feed."""
    async with shop.acting_as("darkpearl_app"):
        return await shop.rows(
            "select * from follow_feed(%s, %s, %s::feed_topic[])",
            after,
            limit,
            list(topics) or None,
        )


async def topics(shop: Shop, after: int = 0) -> list[str]:
    """What an application is told, by topic."""
    return [row["topic"] for row in await follow(shop, after)]


async def last_id(shop: Shop) -> int:
    """The last id that the feed has."""
    return max([row["id"] for row in await follow(shop)], default=0)


@pytest.mark.parametrize("capture", [False, True], ids=["at_payment", "at_fulfilment"])
async def test_an_order_that_goes_well_is_placed_paid_and_fulfilled(
    shop: Shop, *, capture: bool
) -> None:
    """Three rows by the order's id, each once, whichever way its money is taken."""
    if capture:
        await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product(on_hand=30), 1))
    requests = await shop.advance()
    while requests:
        requests = await shop.settle(requests, APPROVED)
    told = await follow(shop)
    assert [row["topic"] for row in told] == ["order.placed", "order.paid", "order.fulfilled"]
    number = await shop.value("select order_number from orders")
    for row in told:
        assert (row["order_id"], row["subject"], row["saga_id"]) == (order, order, order)
        assert (row["order_number"], row["warehouse_id"]) == (number, shop.lisbon)
    assert [row["id"] for row in told] == sorted(row["id"] for row in told)


async def test_each_parcel_is_told_once_as_it_leaves(shop: Shop) -> None:
    """One after another, with their ids, the last of them with the end of its order."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    order = await shop.order((product := await shop.product(on_hand=30), 3))
    await shop.settle(await shop.advance(), APPROVED)
    before = await last_id(shop)
    parcels = [await pack(shop, order, product, units) for units in (1, 2)]
    told = await follow(shop, before)
    assert [(row["topic"], row["shipment_id"], row["message"]) for row in told] == [
        ("order.shipped", parcels[0], None),
        ("order.fulfilled", None, None),
        ("order.shipped", parcels[1], None),
    ]
    for row in told:
        assert (row["order_id"], row["subject"], row["saga_id"]) == (order, order, order)


async def test_a_parcel_that_waits_for_the_money_is_told_later(shop: Shop) -> None:
    """Not as it is packed: as it leaves, with an id that nobody has gone past; or never."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    await shop.capture_at_fulfilment()
    product = await shop.product(on_hand=30)
    orders = [await shop.order((product, 3)) for _ in range(2)]
    await shop.settle(await shop.advance(), APPROVED)
    parcels = [await pack(shop, orders[0], product, 1) for _ in range(2)]
    await pack(shop, orders[1], product, 1)
    requests = {UUID(each["saga_id"]): each for each in await shop.advance()}
    before = await last_id(shop)
    assert await follow(shop, 0, 100, "order.shipped") == []
    await shop.settle([requests[orders[1]]], DECLINED)
    await shop.settle([requests[orders[0]]], APPROVED)
    told = await follow(shop, before, 100, "order.shipped")
    assert [(row["order_id"], row["shipment_id"]) for row in told] == [
        (orders[0], parcel) for parcel in sorted(parcels)
    ]


async def test_each_return_is_told_once(shop: Shop) -> None:
    """As goods come back, in parts, with its id; not again when it is repeated."""
    order = await shop.fulfilled((product := await shop.product(on_hand=30), 3))
    before = await last_id(shop)
    returns = [uuid4(), uuid4()]
    for return_id in (*returns, returns[0]):
        await shop.take_back(order, (product, 1), return_id=return_id)
    told = await follow(shop, before)
    assert [(row["topic"], row["return_id"], row["message"]) for row in told] == [
        ("order.returned", each, None) for each in returns
    ]
    assert {row["subject"] for row in told} == {order}


async def pack(shop: Shop, order: UUID, product: UUID, units: int) -> UUID:
    """Somebody packs units of an order; the parcel's id."""
    items = json.dumps([{"product_id": str(product), "quantity": units}])
    parcel: UUID = await shop.value("select id from ship_items(%s, %s)", order, items)
    return parcel


async def test_a_declined_order_has_failed_and_is_cancelled(shop: Shop) -> None:
    """The decline is told with its code, once, and then the end."""
    await shop.order((await shop.product(on_hand=30), 1))
    await shop.settle(await shop.advance(), DECLINED)
    await shop.advance()
    told = await follow(shop)
    assert [row["topic"] for row in told] == ["order.placed", "payment.failed", "order.cancelled"]
    assert told[1]["error_code"] == "DP014"


async def test_a_try_that_is_followed_by_another_is_no_failure(shop: Shop) -> None:
    """Only the end of the tries is told: by then nobody has answered."""
    await shop.give_up_after(0, "process_payment")
    await shop.order((await shop.product(on_hand=30), 1))
    await shop.advance()
    await shop.ask_again()
    assert await topics(shop) == ["order.placed", "payment.failed"]


async def test_an_order_without_stock_is_cancelled_without_a_failed_payment(shop: Shop) -> None:
    """What was refused before money was asked for has no failed payment."""
    await shop.order((await shop.product(on_hand=1), 5))
    await shop.advance()
    assert (await topics(shop))[-1] == "order.cancelled"
    assert "payment.failed" not in await topics(shop)


@pytest.mark.parametrize("answer", [APPROVED, DECLINED], ids=["approved", "declined"])
async def test_a_refund_is_settled_once(shop: Shop, answer: Row) -> None:
    """However it ended, with the refund's id and its order's."""
    order = await shop.fulfilled((await shop.product(on_hand=30), 1))
    before = await last_id(shop)
    refund = (await shop.refund(order))["id"]
    await shop.settle(await shop.advance(), answer)
    (told,) = await follow(shop, before)
    assert told["topic"] == ("refund.settled" if answer is APPROVED else told["topic"])
    assert (told["refund_id"], told["order_id"], told["subject"]) == (refund, order, order)


async def test_a_dispute_is_told(shop: Shop) -> None:
    """As it opens and as it closes."""
    order = await shop.fulfilled((await shop.product(on_hand=30), 1))
    before = await last_id(shop)
    key = (await shop.payment(order))["idempotency_key"]
    news = {"outcome": "disputed", "reference": "dp_1", "amount": "10", "currency": "USD"}
    for dispute in "open", "lost":
        await shop.told(key, news | {"dispute": dispute})
    assert await topics(shop, before) == ["payment.disputed", "payment.disputed"]


async def test_a_stuck_saga_is_told(shop: Shop) -> None:
    """With its order, for somebody has to look at it."""
    order = await shop.order((await shop.product(on_hand=30), 1))
    await shop.poison("reserve_stock", order, sqlstate="42883")
    await shop.advance()
    told = (await follow(shop))[-1]
    assert (told["topic"], told["order_id"]) == ("saga.stuck", order)


async def test_low_stock_is_told_once_per_crossing(shop: Shop) -> None:
    """By what can be sold, at the reorder point and not again below it; refilled, once more."""
    product = await shop.product(on_hand=13)
    before = await last_id(shop)

    async def alerts() -> list[tuple[Any, ...]]:
        return [
            (row["product_id"], row["quantity_sellable"], row["reorder_point"])
            for row in await follow(shop, before, 100, "stock.low")
        ]

    await shop.order((product, 2))
    await shop.advance()
    assert await alerts() == []
    await shop.order((product, 1))
    await shop.advance()
    assert await alerts() == [(product, 10, 10)]
    await shop.run("select adjust_stock(%s, %s, -1)", shop.lisbon, product)
    assert len(await alerts()) == 1
    await shop.receive(product, 5)
    await shop.run("select adjust_stock(%s, %s, -7)", shop.lisbon, product)
    assert await alerts() == [(product, 10, 10), (product, 7, 10)]
    await shop.receive(product, 5)
    await shop.run("update inventory set reorder_point = 50 where product_id = %s", product)
    assert (await alerts())[2:] == [(product, 12, 50)]


async def test_a_shelf_that_was_never_full_is_not_told(shop: Shop) -> None:
    """A new shelf, and one that fills up, has crossed nothing."""
    await shop.product(on_hand=3)
    assert await topics(shop) == []


async def test_alerts_are_history(shop: Shop) -> None:
    """No alert is changed, whoever tries; only retention removes."""
    product = await shop.product(on_hand=11)
    await shop.run("select adjust_stock(%s, %s, -1)", shop.lisbon, product)
    for statement in "update stock_alerts set quantity_sellable = 0", "truncate stock_alerts":
        with shop.refused("DP005"):
            await shop.run(statement)
    await shop.run("update retention set keep_days = 7 where kind = 'stock_alerts'")
    await shop.turn_clock(8 * 86400)
    assert await shop.values("select kind from retention_due()") == ["stock_alerts"]
    assert await shop.row("select * from apply_retention('stock_alerts', 1)") == {
        "removed": 1,
        "has_more": True,
    }
    assert await shop.row("select * from apply_retention('stock_alerts', 1)") == {
        "removed": 0,
        "has_more": False,
    }


async def test_ids_that_nobody_has_are_leapt_over(shop: Shop) -> None:
    """A gap of a billion ids costs a few looks; what lies around it comes in order, in parts."""
    product = await shop.product(on_hand=5000)
    for _ in range(3):
        await shop.order((product, 1))
    await shop.run("select setval('saga_events_id_seq', 1000000000)")
    for _ in range(3):
        await shop.order((product, 1))
    found: list[int] = []
    while rows := await follow(shop, found[-1] if found else 0, 2):
        found += [row["id"] for row in rows]
    assert len(found) == 6
    assert found == sorted(found)
    assert found[-1] > 10**9


async def test_a_rare_topic_is_found_behind_much_else(shop: Shop) -> None:
    """Who follows one topic in SQL is told of it, however many looks lie between."""
    product = await shop.product(on_hand=500)
    for _ in range(120):
        await shop.order((product, 1))
    await shop.settle(await shop.advance(), APPROVED)
    assert await follow(shop, 0, 1, "order.cancelled") == []
    late = await shop.order((product, 1))
    await shop.settle(await shop.advance(), DECLINED)
    (told,) = await follow(shop, 0, 1, "order.cancelled")
    assert told["order_id"] == late


@pytest.mark.parametrize("table", ["saga_events", "stock_alerts"])
async def test_the_last_id_of_a_look_is_looked_at(shop: Shop, table: str) -> None:
    """What stands alone at the very end of a range, or of a leap, is told like any other."""
    product = await shop.product(on_hand=5)
    saga = await shop.order((product, 1))
    last = await last_id(shop)
    values = {
        "saga_events": (
            "saga_id, warehouse_id, event_type, step_name",
            "select %(saga)s::uuid, %(lisbon)s::uuid, 'saga_stuck'::saga_event_type, null",
        ),
        "stock_alerts": (
            "warehouse_id, product_id, quantity_sellable, reorder_point",
            "select %(lisbon)s::uuid, %(product)s::uuid, 1, 1",
        ),
    }
    columns, row = values[table]
    ids = [last + 100, last + 200, last + 700]
    async with shop.unguarded():
        await shop.connection.execute(
            f"insert into {table} (id, {columns}) overriding system value"
            f" select i, v.* from unnest(%(ids)s::bigint[]) as i, ({row}) as v".encode(),
            {"ids": ids, "saga": saga, "lisbon": shop.lisbon, "product": product},
        )
    found, after = [], last
    while after < last + 5000:
        part = await shop.row("select * from read_feed(%s, %s, null, 50)", after, last + 5000)
        found += [each["id"] for each in part["events"]]
        after = part["next"]
    assert found == ids


async def test_a_look_that_finds_nothing_says_where_to_go_on(shop: Shop) -> None:
    """A topic that is rare isn't looked for from the same place again."""
    await shop.order((await shop.product(on_hand=30), 1))
    last = (await shop.row("select * from look_for_horizon()"))["horizon"]
    part = await shop.row("select * from read_feed(0, %s, '{stock.low}', 10)", last)
    assert (part["events"], part["next"]) == ([], last)


async def test_the_feed_is_found_without_reading_all_history(shop: Shop) -> None:
    """Of a large history the pages of the next ids are read, whatever the planner knows of it."""
    await shop.run(
        "insert into sagas (id, warehouse_id, saga_type, plan_version, status, ready_at)"
        " values (%s, %s, 'refund', 1, 'completed', null)",
        saga := uuid4(),
        shop.lisbon,
    )
    await shop.run(
        "insert into saga_events (saga_id, warehouse_id, event_type, step_name)"
        " select %s, %s, 'step_waiting', 'refund_payment' from generate_series(1, 200000)",
        saga,
        shop.lisbon,
    )
    shop.audited = False
    await shop.run(
        "select brin_summarize_new_values(indexrelid) from pg_index as i"
        " inner join pg_inherits as h on h.inhrelid = i.indrelid"
        " inner join pg_class as c on c.oid = i.indexrelid"
        " inner join pg_am as a on a.oid = c.relam and a.amname = 'brin'"
        " where h.inhparent = 'saga_events'::regclass"
    )
    before = await blocks(shop)
    await shop.run("select read_feed(100000, 101000, null, 100)")
    assert await blocks(shop) - before < 1200


async def blocks(shop: Shop) -> int:
    """Pages of history and its indexes that this session has read so far."""
    await shop.run("select pg_stat_force_next_flush()")
    return await shop.value(
        "select sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint"
        " from pg_statio_user_tables where relname like 'saga_events%%'"
    )


async def test_who_cannot_see_what_commits_is_refused(shop: Shop) -> None:
    """A transaction with a snapshot of its own would take what it can't see for nothing."""
    for level in "repeatable read", "serializable":
        await shop.run(f"begin isolation level {level}")
        with shop.refused("DP042"):
            await shop.run("select follow_feed()")
        await shop.run("rollback")


@pytest.mark.parametrize("arguments", ["-1", "0, 0", "0, 10001", "0, 1, null, 61", "null"])
async def test_what_makes_no_sense_is_refused(shop: Shop, arguments: str) -> None:
    """Ids from 0 on, some rows, a patience that ends."""
    with shop.refused("DP015"):
        await shop.run(f"select follow_feed({arguments})")


async def test_the_view_and_the_cursor_agree(shop: Shop) -> None:
    """With nobody at work the view has what a follower is told, in parts of any size."""
    product = await shop.product(on_hand=100)
    for _ in range(5):
        await shop.fulfilled((product, 1))
    whole = await shop.rows("select * from feed order by id")
    found: list[Row] = []
    while rows := await follow(shop, found[-1]["id"] if found else 0, 4):
        found += rows
    assert json.dumps(found, default=str) == json.dumps(whole, default=str)


async def test_customers_do_not_read_the_feed(shop: Shop) -> None:
    """It tells of everybody's orders."""
    async with shop.acting_as("authenticated"):
        for statement in "select * from feed", "select follow_feed()":
            with shop.refused("42501"):
                await shop.run(statement)
