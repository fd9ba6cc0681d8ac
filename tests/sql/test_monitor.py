"""routines/86_monitor.sql: what the page shows, in looks that stay short in a large shop too."""

from collections import Counter
from typing import Any

import pytest
from shop import APPROVED, DECLINED, FIRST_NUMBER, Row, Shop

READ = """
    select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as n from pg_stat_xact_all_tables
    where schemaname = 'darkpearl' and seq_tup_read + coalesce(idx_tup_fetch, 0) > 0
"""
CROWD = 12_000
"""Orders of the crowd: more than any look goes through."""
STUCK = 1_500
NEWEST = 10_000
"""Rows of a table that a look goes through for what no index narrows."""
MOST = 2_000
"""Rows of a table that any look reads: pages of fifty, causes of some hundreds, what is stuck."""


async def see(shop: Shop, call: str, *parameters: Any) -> Any:
    """The document of a screen, as reports see it."""
    async with shop.acting_as("darkpearl_reader"):
        return await shop.value(f"select {call}", *parameters)


async def crowd(shop: Shop) -> None:
    """Finished orders of which each has what they all have; the last ones stuck, the first back."""
    async with shop.unguarded():
        await shop.run(
            """
            with o as (
                insert into orders (id, warehouse_id, status, total_amount, customer_id)
                select new_id(), %s, case n when 1 then 'cancelled' else 'fulfilled' end::order_status,
                    30, 'customer ' || n
                from generate_series(1, %s) as n
                returning id, warehouse_id, order_number
            ),
            s as (
                insert into sagas (id, warehouse_id, saga_type, plan_version, status, position, ready_at)
                select id, warehouse_id, 'order_fulfilment', 1,
                    case when order_number <= %s then 'completed' else 'stuck' end::saga_status, 2, null
                from o returning id, warehouse_id, status
            ),
            e as (
                insert into saga_events (saga_id, warehouse_id, event_type, step_name, error_code, message)
                select id, warehouse_id, t.event_type::saga_event_type, 'process_payment', 'DP017', 'no answer'
                from s cross join (
                    values ('saga_started'), ('step_failed'), ('step_completed'), ('saga_completed')
                ) as t (event_type)
                where t.event_type <> 'step_failed' or s.status = 'stuck'
            ),
            p as (
                insert into payments (order_id, warehouse_id, currency, requested_amount, idempotency_key)
                select id, warehouse_id, 'USD', 30, id from o
            ),
            a as (
                insert into action_log (actor, action, subject)
                select 'ada', 'retry_saga', id from o
            ),
            q as (
                insert into products (sku, name) select 'SKU-' || n, 'Pearl' from generate_series(1, 100) as n
                returning id
            ),
            i as (
                insert into inventory (product_id, warehouse_id, quantity_available)
                select q.id, w.id, 50 from q cross join warehouses as w
            )
            insert into stock_movements (
                correlation_id, warehouse_id, product_id, movement_type, quantity, available_after, reserved_after
            )
            select o.id, o.warehouse_id, k.id, 'reserve', 1, 50, 1
            from o cross join (select q.id from q limit 1) as k
            """,  # noqa: E501
            shop.lisbon,
            CROWD,
            FIRST_NUMBER - 1 + CROWD - STUCK,
        )
    unseen = "select relpages > relallvisible from pg_class where oid = 'sagas'::regclass"
    await shop.run("vacuum analyze")
    while await shop.value(unseen):  # autovacuum was at it, whose snapshot keeps rows from view
        await shop.run("vacuum sagas")


SHORT = (
    "monitor_state()",
    "monitor_overview()",
    "monitor_orders()",
    "monitor_orders(p_status => 'payment_processing')",
    "monitor_orders(p_trouble => 'dispute')",
    "monitor_orders(p_trouble => 'overdue')",
    "monitor_orders(p_search => 'customer 7')",
    "monitor_orders(p_search => 'SKU-7')",
    "monitor_orders(p_before => %(number)s)",
    "monitor_order(%(order)s)",
    "monitor_sagas()",
    "monitor_sagas(p_status => 'waiting')",
    "monitor_sagas(p_status => 'stuck')",
    "monitor_saga(%(order)s)",
    "monitor_stuck()",
    "monitor_stuck(p_error_code => 'DP018')",
    "monitor_stock()",
    "monitor_stock(p_show => 'all')",
    "monitor_stock(p_search => 'pearl')",
    "monitor_shelf(%(product)s, %(warehouse)s)",
    "monitor_listeners()",
    "monitor_activity()",
    "monitor_audits()",
    "monitor_subject('saga', %(order)s)",
)


async def reads(shop: Shop) -> Counter[str]:
    """Rows read so far, by table; months of events are one."""
    read: Counter[str] = Counter()
    for row in await shop.rows(READ):
        name = "saga_events" if row["relname"].startswith("saga_events") else row["relname"]
        read[name] += row["n"]
    return read


async def what_is_rare_is_looked_for_piece_by_piece(shop: Shop) -> None:
    """A look that has gone through the newest and found nothing says where the next one begins."""
    seen = await see(shop, "monitor_orders(p_status => 'cancelled')")
    assert (seen["orders"], seen["next"]) == ([], {"before": FIRST_NUMBER + CROWD - NEWEST})
    seen = await see(
        shop, "monitor_orders(p_status => 'cancelled', p_before => %s)", seen["next"]["before"]
    )
    assert [each["order_number"] for each in seen["orders"]] == [FIRST_NUMBER]
    assert seen["next"] is None


async def test_a_look_reads_no_more_in_a_crowd(shop: Shop) -> None:
    """Each screen reads a bounded number of rows of any table, as reports and as staff."""
    await crowd(shop)
    found = await shop.row(
        "select o.id as order, p.id as product, o.warehouse_id as warehouse"
        " from orders as o, products as p where o.order_number = %s and p.sku = 'SKU-1'",
        FIRST_NUMBER + 5999,
    )
    literals = {name: f"'{each}'::uuid" for name, each in found.items()}
    literals["number"] = f"{FIRST_NUMBER + 5999}"
    await shop.run("set jit = off")
    wrong = []
    for role in ("darkpearl_reader", "service_role"):
        for call in SHORT:
            before = await reads(shop)
            async with shop.connection.transaction(), shop.acting_as(role):
                await shop.run(f"select {call % literals}")
                read = await reads(shop) - before
            wrong += [f"{call}: {n} of {table}" for table, n in read.items() if n > MOST]
    assert "\n".join(wrong) == ""
    await what_is_rare_is_looked_for_piece_by_piece(shop)


async def pages(shop: Shop, function: str, rows: str, key: str, **filters: Any) -> list[list[Any]]:
    """What each page of a list has, from the first to the last."""
    found: list[list[Any]] = []
    following: Row | None = {}
    while following is not None:
        given = {**filters, **following}
        named = ", ".join(f"{name} => %s" for name in given)
        seen = await see(shop, f"{function}({named})", *given.values())
        found.append([each[key] for each in seen[rows]])
        following = seen["next"] and {f"p_{name}": each for name, each in seen["next"].items()}
    return found


def all_of(found: list[list[Any]]) -> list[Any]:
    """The rows of all pages."""
    return [each for page in found for each in page]


async def test_pages_have_each_row_once(shop: Shop) -> None:
    """Lists go on where a page ends, filters or none."""
    product = await shop.product(on_hand=500)
    for n in range(120):
        await shop.order((product, 1), warehouse=shop.lisbon, p_customer_id=f"customer {n % 2}")
    await shop.settle(await shop.advance(), APPROVED)
    numbers = [FIRST_NUMBER + n for n in range(119, -1, -1)]
    of = ("monitor_orders", "orders", "order_number")
    assert await pages(shop, *of) == [numbers[:50], numbers[50:100], numbers[100:]]
    assert await pages(shop, *of, p_warehouse="LIS") == await pages(shop, *of)
    assert await pages(shop, *of, p_status="fulfilled") == await pages(shop, *of)
    assert all_of(await pages(shop, *of, p_search="customer 1")) == numbers[::2]
    assert await pages(shop, *of, p_warehouse="RTM") == [[]]
    sagas = await shop.values("select id::text from sagas order by id desc")
    for filters in ({}, {"p_status": "completed"}, {"p_saga_type": "order_fulfilment"}):
        found = await pages(shop, "monitor_sagas", "sagas", "id", **filters)
        assert all_of(found) == sagas
    moves = await pages(
        shop, "monitor_shelf", "movements", "id", p_product=product, p_warehouse=shop.lisbon
    )
    assert all_of(moves) == await shop.values("select id from stock_movements order by id desc")


async def test_pages_of_shelves_have_each_once(shop: Shop) -> None:
    """By SKU and warehouse, a product in both on the edge of a page too."""
    await shop.shelves(70)
    async with shop.unguarded():
        await shop.run(
            "insert into inventory (product_id, warehouse_id) select id, %s from products"
            " where sku::integer %% 3 <> 0",
            shop.rotterdam,
        )
    names = await shop.values(
        "select p.sku || w.code from inventory as i inner join products as p on p.id = i.product_id"
        " inner join warehouses as w on w.id = i.warehouse_id order by p.sku, w.code"
    )
    found: list[str] = []
    following: Row | None = {"after": None, "after_warehouse": None}
    while following is not None:
        seen = await see(
            shop,
            "monitor_stock(p_show => 'all', p_after => %s, p_after_warehouse => %s)",
            following["after"],
            following["after_warehouse"],
        )
        found += [each["sku"] + each["warehouse_code"] for each in seen["shelves"]]
        following = seen["next"]
    assert found == names


async def test_stuck_sagas_are_found_by_their_cause(shop: Shop) -> None:
    """Those of one step and cause, and no others, with how many there are of each."""
    product = await shop.product(on_hand=9)
    stuck = []
    for state in ("P0001", "42703", "42703"):
        stuck.append(await shop.order((product, 1)))
        await shop.poison("reserve_stock", stuck[-1], sqlstate=state)
        await shop.advance()
        await shop.cure("reserve_stock")
    seen = await see(shop, "monitor_stuck()")
    assert [(each["error_code"], each["sagas"]) for each in seen["causes"]] == [
        ("42703", 2),
        ("P0001", 1),
    ]
    assert (seen["looked_at"], seen["total"], seen["next"]) == (3, 3, None)
    seen = await see(shop, "monitor_stuck(p_step => 'reserve_stock', p_error_code => '42703')")
    assert {each["id"] for each in seen["sagas"]} == {str(each) for each in stuck[1:]}


async def test_what_is_not_there_is_null(shop: Shop) -> None:
    """Nothing is made up of an id that nothing has."""
    for call in (
        "monitor_order(new_id())",
        "monitor_saga(new_id())",
        "monitor_batch(new_id())",
        "monitor_shelf(new_id(), new_id())",
    ):
        assert await see(shop, call) is None


async def test_the_first_of_a_dialog_is_what_there_is(shop: Shop) -> None:
    """What can be refunded, what lies on the shelf, and what is left to be sent."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    product = await shop.product("24.90", on_hand=10, sku="PEARL")
    order = await shop.order((product, 2))
    await shop.settle(await shop.advance(), APPROVED)
    subject = "select * from monitor_subject(%s, %s, %s)"
    parcel = await shop.row(subject, "parcel", order, None)
    assert parcel["lines"] == [{"product_id": str(product), "sku": "PEARL", "quantity": 2}]
    seen = await see(shop, "monitor_order(%s)", order)
    assert (seen["to_ship"], seen["refundable"]) == (True, 0)
    await shop.run("select ship_items(%s)", order)
    await shop.advance()
    payment = await shop.row(subject, "payment", order, None)
    assert payment["first"] == {"amount": "49.80"}
    shelf = await shop.row(subject, "shelf", product, shop.lisbon)
    assert shelf["first"]["expected"] == 8
    assert "damaged" in shelf["choices"]


@pytest.mark.parametrize("answer", [APPROVED, DECLINED])
async def test_a_step_tells_how_long_it_took_by_the_minute(shop: Shop, answer: Row) -> None:
    """Of the times it was done, be it 9 % too long; and nothing of the times it failed."""
    await shop.turn_clock(-240)
    await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    await shop.turn_clock(4)
    await shop.settle(requests, answer)
    await shop.turn_clock(236)
    await shop.run("select fill_step_minutes(60)")
    rows = await shop.rows(
        "select * from step_durations('process_payment', clock() - interval '10 minutes')"
    )
    assert len(rows) == (answer == APPROVED)
    for row in rows:
        assert row["events"] == 1
        assert 4 <= row["p50_seconds"] == row["p99_seconds"] < 4.6
