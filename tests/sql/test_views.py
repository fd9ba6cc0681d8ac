"""routines/80_views.sql: what DBAs read, and the audit that finds what can't be."""

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from shop import APPROVED, DECLINED, LONG, Shop

from darkpearl import schema

LogIn = Callable[[str], Awaitable[AsyncConnection[Any]]]


# What is broken behind the guards' back, and what the audit calls it. :fulfilled, :cancelled and
# :waiting stand for the ids of orders that are so.
TOTAL = "order total is not the sum of its lines and adjustments"
PLANTED = [
    ("inventory is not the sum of its ledger", "update inventory set quantity_available = 90"),
    ("inventory is not the sum of its ledger", "update inventory set quantity_reserved = 3"),
    (
        "movement does not follow from the one before",
        "delete from stock_movements where movement_type = 'receive'",
    ),
    (
        "movement does not follow from the one before",
        "update stock_movements set available_after = 1 where movement_type = 'receive'",
    ),
    (
        "movement does not follow from the one before",
        "update stock_movements set quantity = 1 where movement_type = 'receive'",
    ),
    ("movement names no inventory row", "delete from inventory"),
    (
        "reason of a movement that does not exist",
        (
            "insert into movement_reasons (correlation_id, product_id, warehouse_id, reason_code)"
            " select correlation_id, product_id, warehouse_id, 'lost' from stock_movements limit 1"
        ),
    ),
    (TOTAL, "update orders set total_amount = 1"),
    (TOTAL, "delete from order_items"),
    (TOTAL, "update order_adjustments set amount = 9"),
    ("adjustment has no order, or no line", "update order_adjustments set item_id = 0"),
    (
        "adjustment has no order, or no line",
        "update order_adjustments set order_id = gen_random_uuid()",
    ),
    ("particulars have no order", "update order_particulars set order_id = gen_random_uuid()"),
    (
        "metadata of a return that is not there",
        "update return_metadata set return_id = gen_random_uuid()",
    ),
    (
        "refund is not what its breakdown adds up to",
        'update refunds set breakdown = \'[{"item_id": 1, "amount": 0.5}]\'',
    ),
    ("line has no order", "delete from orders where id = :waiting"),
    (
        "grouped order does not exist",
        (
            "insert into grouped_orders (order_id, warehouse_id, group_id)"
            " select gen_random_uuid(), warehouse_id, id from orders limit 1"
        ),
    ),
    ("order has no saga", "delete from sagas where id = :fulfilled"),
    ("saga has no order", "delete from orders where id = :waiting"),
    ("order and saga disagree", "update orders set status = 'paid' where id = :fulfilled"),
    ("order and saga disagree", "update orders set status = 'pending' where id = :cancelled"),
    ("order and saga disagree", "update orders set status = 'fulfilled' where id = :waiting"),
    ("order and saga disagree", "update orders set status = 'cancelled' where id = :waiting"),
    (
        "ended order does not balance in the ledger",
        "delete from stock_movements where movement_type = 'fulfill'",
    ),
    (
        "ended order does not balance in the ledger",
        "delete from stock_movements where movement_type = 'release'",
    ),
    (
        "ended order does not balance in the ledger",
        "delete from stock_movements where correlation_id = :fulfilled",
    ),
    (
        "ended order does not balance in the ledger",
        "update order_items set quantity = 5 where order_id = :fulfilled",
    ),
    (
        "movement of a saga that does not exist",
        (
            "update stock_movements set correlation_id = gen_random_uuid()"
            " where movement_type = 'reserve'"
        ),
    ),
    ("payment has no order", "delete from orders where id = :cancelled"),
    ("order and payment disagree", "delete from payments where order_id = :fulfilled"),
    (
        "order and payment disagree",
        "update payments set captured_amount = 1 where order_id = :fulfilled",
    ),
    (
        "order and payment disagree",
        "update payments set refunded_amount = 2 where order_id = :fulfilled",
    ),
    (
        "order and payment disagree",
        (
            "with another_version as (insert into saga_steps select (jsonb_populate_record(t,"
            """ '{"plan_version": 99, "effect": "fulfill_unpaid"}')).* from saga_steps as t"""
            " where saga_type = 'order_fulfilment' and effect = 'fulfill')"
            " update payments set captured_amount = 1 where order_id = :fulfilled"
        ),
    ),
    (
        "order and payment disagree",
        (
            "update payments set authorized_amount = 5, captured_amount = 5"
            " where order_id = :cancelled"
        ),
    ),
    (
        "order and payment disagree",
        "update payments set status = 'requested' where order_id = :cancelled",
    ),
    (
        "dispute has no payment",
        (
            "insert into disputes (order_id, warehouse_id, reference, gateway, status, amount,"
            " currency) select new_id(), warehouse_id, 'dp_1', 'mock', 'open', 1, 'USD'"
            " from sagas where id = :waiting"
        ),
    ),
    (
        "earlier charge has no payment",
        (
            "insert into payment_attempts (order_id, warehouse_id, idempotency_key, status,"
            " ended_at) select order_id, warehouse_id, idempotency_key, 'declined', clock()"
            " from payments where order_id = :waiting"
        ),
    ),
    (
        "charge that was given up keeps its money",
        (
            "insert into payment_attempts (order_id, warehouse_id, idempotency_key, status,"
            " captured_amount, ended_at) select order_id, warehouse_id, idempotency_key || ':7',"
            " 'captured', 5, clock() from payments where order_id = :waiting"
        ),
    ),
    ("refund and saga disagree", "update refunds set status = 'declined'"),
    ("saga has no refund", "delete from refunds"),
    (
        "more came back than was sent",
        "update stock_movements set quantity = 3 where reference_id = :fulfilled",
    ),
    ("return and history disagree", "delete from saga_events where event_type = 'returned'"),
    (
        "more was shipped or taken out than was ordered",
        (
            "insert into shipment_items (shipment_id, order_id, warehouse_id, product_id, quantity)"
            " select new_id(), order_id, warehouse_id, product_id, 3 from order_items"
            " where order_id = :fulfilled"
        ),
    ),
    (
        "parcel has no shipment",
        (
            "insert into shipment_items (shipment_id, order_id, warehouse_id, product_id, quantity)"
            " select new_id(), order_id, warehouse_id, product_id, 1 from order_items"
            " where order_id = :waiting"
        ),
    ),
    (
        "shipment and order disagree",
        (
            "insert into shipments (order_id, warehouse_id)"
            " select id, warehouse_id from orders where id = :waiting"
        ),
    ),
    (
        "shipment and ledger disagree",
        (
            "with parcel as (insert into shipments (order_id, warehouse_id, shipped_at)"
            " select id, warehouse_id, clock() from orders where id = :fulfilled returning *)"
            " insert into shipment_items (shipment_id, order_id, warehouse_id, product_id,"
            " quantity) select p.id, p.order_id, p.warehouse_id, i.product_id, 1"
            " from parcel as p, order_items as i where i.order_id = p.order_id"
        ),
    ),
    ("event has no saga", "delete from sagas where id = :cancelled"),
    ("saga and its events disagree", "delete from saga_events where saga_id = :waiting"),
    (
        "saga and its events disagree",
        "delete from saga_events where event_type in ('saga_completed', 'saga_compensated')",
    ),
    (
        "saga and its events disagree",
        "update sagas set status = 'running' where id = :waiting",
    ),
    (
        "signal has no saga",
        (
            "insert into saga_signals (saga_id, warehouse_id, step_name, event_id, payload)"
            " select new_id(), warehouse_id, 'approval', 'e1', '{}' from sagas where id = :waiting"
        ),
    ),
    (
        "saga sleeps on its signal",
        (
            "insert into saga_signals (saga_id, warehouse_id, step_name, event_id, payload)"
            " select id, warehouse_id, 'process_payment', 'e1', '{}' from sagas where id = :waiting"
        ),
    ),
    (
        "stock of a product or a warehouse that does not exist",
        "delete from products where id in (select product_id from inventory)",
    ),
    ("warehouse of a cell that does not exist", "update warehouses set cell = 77"),
    (
        "saga of another cell's warehouse is at work",
        "update warehouses set cell = cell + 1 where id in (select warehouse_id from sagas)",
    ),
    (
        "webhook that failed is ahead of its endpoint",
        (
            "with made as (insert into webhook_endpoints (url, secret, position)"
            " values ('https://a.example', 'x', 0) returning id)"
            " insert into webhook_retries (endpoint_id, event_id, subject, body, attempts)"
            " select id, 1, id, '{}', 1 from made"
        ),
    ),
]
PLANTED_ELSEWHERE = {
    # test_shipments.py
    "more was shipped or taken out than was ordered",
    "parcel has no shipment",
    "shipment and ledger disagree",
    "shipment and history disagree",
    "shipment and order disagree",
    # test_held_orders.py
    "held order sleeps past its deadline",
    # test_webhook_endpoints.py
    "webhook that failed is ahead of its endpoint",
    # test_transfers.py
    "transfer is in transit without a living saga",
    "saga has no transfer",
    "transfer and ledger disagree",
    "arrival and ledger disagree",
    "transfer and arrival disagree",
}
"""Findings that the tests of what they are about look for."""


SEEDS_QUERY = (
    b"select se.*, s.status as saga_status from saga_events se"
    b" join sagas s on se.saga_id = s.id order by se.created_at"
)


@pytest.fixture
async def orders(shop: Shop) -> dict[str, UUID]:
    """One fulfilled, returned and partly refunded, one cancelled, one that waits."""
    product = await shop.product(on_hand=10)
    fulfilled = await shop.order(
        (product, 2),
        p_particulars='{"reference": "W-1"}',
        p_adjustments='[{"kind": "shipping", "label": "Post", "amount": 5}]',
    )
    await shop.settle(await shop.advance(), APPROVED)
    await shop.run("select refund_order(%s, 1)", fulfilled)
    await shop.settle(await shop.advance(), APPROVED)
    await shop.run(
        "select describe_return((select correlation_id from return_items(%s)), '{\"rma\": 7}')",
        fulfilled,
    )
    cancelled = await shop.order((product, 1))
    await shop.settle(await shop.advance(), DECLINED)
    waiting = await shop.order((product, 1))
    await shop.advance()
    return {"fulfilled": fulfilled, "cancelled": cancelled, "waiting": waiting}


@pytest.mark.parametrize(("finding", "plant"), PLANTED)
async def test_the_audit_finds_it(
    shop: Shop, orders: dict[str, UUID], finding: str, plant: str
) -> None:
    """A contradiction that got in behind the guards' back is named."""
    assert await shop.rows("select * from audit") == []
    async with shop.unguarded():
        for name, order in orders.items():
            plant = plant.replace(f":{name}", f"'{order}'")
        await shop.run(plant)
    found = await shop.rows("select * from audit")
    assert finding in {row["finding"] for row in found}
    assert all(row["subject"] and row["detail"] for row in found)


async def test_the_audit_holds_nothing_against_another(shop: Shop) -> None:
    """Orders in every state, of other products and amounts, side by side: each balances alone."""
    one, other = await shop.product("10", on_hand=50), await shop.product("7", on_hand=50)
    await shop.receive(one, 9, shop.rotterdam)
    lines = [(one, 1), (one, 2), (other, 3)]
    for line in lines:
        await shop.order(line, (other, 1), warehouse=shop.lisbon)
        await shop.order((one, 1), warehouse=shop.rotterdam)
        assert await shop.audit() == []
        declined = await shop.order(line)
        requests = await shop.advance()
        asked = [each for each in requests if each["saga_id"] == str(declined)]
        await shop.settle(asked, DECLINED)
        assert await shop.audit() == []
        assert await shop.told(f"{declined}:process_payment", APPROVED) == "applied"
        fulfilled = await shop.fulfilled(line)
        await shop.refund(fulfilled, line[1])
        await shop.take_back(fulfilled)
        assert await shop.audit() == []
    while requests := await shop.ask_again() or await shop.ask_again():
        assert await shop.audit() == []
        await shop.settle(requests, APPROVED)
    assert set(await shop.statuses()) == {"fulfilled", "cancelled"}


async def test_an_empty_shelf_may_go(shop: Shop) -> None:
    """Once all of it is sold, moved or counted away, the audit misses nothing but what is there."""
    product = await shop.product(on_hand=9)
    await shop.fulfilled((product, 4))
    await shop.run("select transfer_stock(%s, %s, %s, 3)", shop.lisbon, shop.rotterdam, product)
    await shop.run("select adjust_stock(%s, %s, -2)", shop.lisbon, product)
    await shop.run("delete from inventory where warehouse_id = %s", shop.lisbon)
    assert await shop.audit() == []


def test_every_finding_is_tried() -> None:
    """Each rule of the audit is shown to find something."""
    (file,) = (each for each in schema.files("routines") if each.stem == "83_audit")
    audit = file.read_text().partition("view audit_rules")[2]
    rules = set(re.findall(r"^select '((?:[^']|'')+)'", audit, re.MULTILINE))
    rules = {rule.replace("''", "'") for rule in rules}
    assert rules == {finding for finding, _ in PLANTED} | PLANTED_ELSEWHERE


async def test_orders_are_overseen(shop: Shop, orders: dict[str, UUID]) -> None:
    """order_overview shows each order with its warehouse, payment, saga and step."""
    rows = {row["id"]: row for row in await shop.rows("select * from order_overview")}
    told = {
        name: [rows[order][column] for column in ("status", "payment_status", "saga_status")]
        for name, order in orders.items()
    }
    assert told == {
        "fulfilled": ["fulfilled", "captured", "completed"],
        "cancelled": ["cancelled", "declined", "compensated"],
        "waiting": ["payment_processing", "requested", "waiting"],
    }
    waiting = rows[orders["waiting"]]
    assert (waiting["warehouse"], waiting["saga_step"]) == ("LIS", "process_payment")


async def test_sagas_are_overseen(shop: Shop, orders: dict[str, UUID]) -> None:
    """saga_overview shows where each saga stands, its last failure and when it ended."""
    rows = {row["id"]: row for row in await shop.rows("select * from saga_overview")}
    waiting, cancelled = rows[orders["waiting"]], rows[orders["cancelled"]]
    assert (waiting["current_step"], waiting["attempts"]) == ("process_payment", 1)
    assert waiting["completed_at"] is None
    assert waiting["ready_at"] is not None
    assert cancelled["last_error_code"] == "DP014"
    assert cancelled["last_error"] == "payment declined: card_declined"
    assert cancelled["completed_at"] == cancelled["updated_at"]
    assert rows[orders["fulfilled"]]["completed_at"] is not None
    assert len(rows) == 4, "three orders and a refund"


async def test_a_saga_turning_back_shows_its_undo(shop: Shop) -> None:
    """While it compensates, the current step of a saga is the undo, also when that has failed."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("release_stock", order)
    await shop.settle(await shop.advance(), DECLINED)
    await shop.advance()
    assert (await shop.events(order))[-1] == "step_failed release_stock"
    row = await shop.row("select * from saga_overview")
    assert (row["status"], row["current_step"]) == ("compensating", "release_stock")


async def test_what_is_stuck_on_its_way_on_shows_its_step(shop: Shop) -> None:
    """A saga that never turned back is stuck at a step, not at what would undo it."""
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    refund = (await shop.refund(order))["id"]
    await shop.settle(await shop.advance(), APPROVED | {"amount": "1.00"})
    row = await shop.row("select status, current_step from saga_overview where id = %s", refund)
    assert row == {"status": "stuck", "current_step": "refund_payment"}


async def test_the_queue_in_one_row(shop: Shop, orders: dict[str, UUID]) -> None:
    """engine_health counts what is ready, since when, what waits and what backs off.

    What waits for an answer is ready when its lease has run out.
    """
    assert orders
    health = await shop.row("select * from engine_health")
    assert (health["ready"], health["waiting"], health["backing_off"]) == (0, 1, 0)
    assert health["oldest_ready_seconds"] == 0
    product = await shop.product(on_hand=2)
    order = await shop.order((product, 1))
    await shop.poison("reserve_stock", order)
    await shop.advance()
    await shop.order((product, 1))
    health = await shop.row("select * from engine_health")
    assert (health["ready"], health["waiting"], health["backing_off"]) == (1, 1, 1)
    await shop.turn_clock(20)
    health = await shop.row("select * from engine_health")
    assert (health["ready"], health["waiting"], health["backing_off"]) == (2, 1, 0)
    assert 20 <= health["oldest_ready_seconds"] < 25
    assert health["stuck"] == 0
    await shop.turn_clock(LONG)
    health = await shop.row("select * from engine_health")
    assert (health["ready"], health["waiting"], health["backing_off"]) == (3, 0, 0)


@pytest.mark.parametrize("role", ["darkpearl_app", "darkpearl_reader", "service_role"])
async def test_the_plain_query_works_as_written(
    shop: Shop, orders: dict[str, UUID], log_in: LogIn, role: str
) -> None:
    """Every role that reads events does so with no schema named and nothing set."""
    connection = await log_in("darkpearl_api" if role == "service_role" else role)
    if role == "service_role":
        await connection.execute("set role service_role")
    rows = await (await connection.execute(SEEDS_QUERY)).fetchall()
    assert len(rows) == await shop.value("select count(*) from saga_events") > 10
    assert {row["saga_status"] for row in rows} == {"completed", "compensated", "waiting"}
    assert {row["saga_id"] for row in rows} > set(orders.values())
    assert [row["created_at"] for row in rows] == sorted(row["created_at"] for row in rows)
