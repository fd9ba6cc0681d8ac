"""routines/84_timeline.sql: all that happened to an order, as one sequence."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from shop import APPROVED, DECLINED, Row, Shop


async def timeline(shop: Shop, subject: UUID) -> list[Row]:
    """The timeline of an order or a saga, as staff read it."""
    async with shop.acting_as("service_role"):
        return await shop.rows("select * from saga_timeline(%s)", subject)


def told(rows: list[Row], kind: str) -> list[str]:
    """What happened of a kind, in order."""
    return [row["what"] for row in rows if row["kind"] == kind]


async def refunded(shop: Shop) -> tuple[UUID, UUID]:
    """An order that was sent, came back, and was refunded, with a dispute; and its refund."""
    product = await shop.product(on_hand=2)
    order = await shop.fulfilled((product, 2))
    await shop.take_back(order, (product, 1))
    refund = (await shop.refund(order, 10))["id"]
    await shop.settle(await shop.advance(), APPROVED)
    dispute = {
        "outcome": "disputed", "dispute": "open", "reference": "dp_1", "amount": "10",
    }  # fmt: skip
    assert await shop.told(f"{order}:process_payment", dispute, "evt_1") == "applied"
    return order, refund


async def test_everything_is_one_sequence(shop: Shop) -> None:
    """Events, money, goods, webhooks: each is there, in the order of time, from either id."""
    order, refund = await refunded(shop)
    rows = await timeline(shop, order)
    assert rows == await timeline(shop, refund)
    times = [row["happened_at"] for row in rows]
    assert times == sorted(times)
    events = told(rows, "event")
    assert events.count("saga_started") == events.count("saga_completed") == 2
    assert events[-1] == "reported"
    assert told(rows, "movement") == ["reserve", "fulfill", "receive"]
    assert told(rows, "payment") == ["captured"]
    assert told(rows, "refund") == ["refunded"]
    assert told(rows, "dispute") == ["open"]
    assert told(rows, "gateway event") == ["applied"]
    (started,) = [
        row for row in rows if row["what"] == "saga_started" and "saga_id" in row["detail"]
    ]
    assert started["detail"]["saga_id"] == str(refund)


async def test_what_people_did_is_there(shop: Shop) -> None:
    """An operator's action is in it with who and why, and so is a webhook that fails."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order, sqlstate="P0001")
    await shop.advance()
    await shop.cure("reserve_stock")
    await shop.run("select retry_saga(%s, 'disk replaced')", order)
    event = await shop.event(order, "saga_stuck")
    await shop.run("select create_webhook_endpoint('https://example.org/', null)")
    await shop.run(
        "insert into webhook_retries (endpoint_id, event_id, subject, body, attempts, last_error)"
        " select id, %s, %s, '{}', 3, 'HTTP 500' from webhook_endpoints",
        event["id"],
        order,
    )
    await shop.run("update webhook_endpoints set position = %s", event["id"])
    rows = await timeline(shop, order)
    (action,) = [row for row in rows if row["kind"] == "action"]
    assert (action["what"], action["detail"]["reason"]) == ("retry_saga", "disk replaced")
    assert action["actor"] == await shop.value("select session_user")
    (webhook,) = [row for row in rows if row["kind"] == "webhook"]
    assert (webhook["what"], webhook["detail"]["last_error"]) == ("failing", "HTTP 500")


async def test_a_webhook_of_another_order_is_not_in_it(shop: Shop) -> None:
    """Events that came from another cell have numbers that webhooks here have, too."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    event = await shop.event(order, "saga_started")
    await shop.run("select create_webhook_endpoint('https://example.org/', null)")
    await shop.run(
        "insert into webhook_retries (endpoint_id, event_id, subject, body, attempts)"
        " select id, %s, new_id(), '{}', 3 from webhook_endpoints",
        event["id"],
    )
    assert "webhook" not in {row["kind"] for row in await timeline(shop, order)}


async def test_nothing_is_known_of_what_isnt_there(shop: Shop) -> None:
    """An id that is nobody's has no timeline."""
    assert await timeline(shop, uuid4()) == []


async def test_customers_have_their_own(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """A customer reads of their order what is theirs to know, and of another's nothing."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1), p_customer_id="alice")
    await shop.settle(
        await shop.advance(), {**DECLINED, "code": "fraudulent", "message": "on the black list"}
    )
    await shop.told(f"{order}:process_payment", DECLINED)
    rows = await as_customer("alice", "select * from saga_timeline(%s)", order)
    assert {row["kind"] for row in rows} == {"event", "payment"}
    said = json.dumps([row["detail"] for row in rows])
    assert "black list" not in said
    assert "fraudulent" not in said
    assert "payment declined" in said
    assert "card_declined" in said
    assert await as_customer("bob", "select * from saga_timeline(%s)", order) == []


async def test_who_may_not_read_a_part_isnt_told_it(shop: Shop) -> None:
    """Applications, who may not read what gateways told and people did, are not told it here."""
    order, _ = await refunded(shop)
    await shop.run("select note_action('test', %s, 'a reason', null)", str(order))
    async with shop.acting_as("darkpearl_app"):
        rows = await shop.rows("select * from saga_timeline(%s)", order)
    kinds = {row["kind"] for row in rows}
    assert kinds == {"event", "payment", "refund", "dispute", "movement"}


async def test_it_reads_no_more_than_is_the_orders(shop: Shop) -> None:
    """Each part is a look-up by an index: no table is read whole."""
    order, _ = await refunded(shop)
    await shop.run("set enable_seqscan = off")
    async with shop.connection.transaction():
        await shop.run("select * from saga_timeline(%s)", order)
        read = await shop.rows(
            "select relname from pg_stat_xact_user_tables where seq_scan > 0"
            " and relname in ('gateway_events', 'action_log', 'stock_movements', 'refunds',"
            " 'payments', 'disputes', 'shipments', 'webhook_retries', 'orders')"
        )
    assert read == []
