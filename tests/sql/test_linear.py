"""Sets are linear: what a statement about many rows reads of a table, it reads for each of them.

Counted by the server itself, in pg_stat_xact_all_tables, per row of what was asked for, in three
databases: a new one, one that was analysed while it held ten rows of everything, and a large one.
All sizes are tried in one session, the smallest first, whose plans are kept for the others.

DARKPEARL_TEST_LINEAR says which sizes (`make linear`: up to 64,000), and DARKPEARL_TEST_ORDERS how
many orders make a database large.
"""

import json
import os
import time
from collections import Counter
from typing import Any

import pytest
from shop import APPROVED, DECLINED, UNKNOWN, Row, Shop

SIZES = [int(size) for size in os.environ.get("DARKPEARL_TEST_LINEAR", "200,800,2400").split(",")]
ORDERS = int(os.environ.get("DARKPEARL_TEST_ORDERS", "10000"))
FULL = "DARKPEARL_TEST_LINEAR" in os.environ
CALLS = [size for size in SIZES if size <= 4000] if FULL else [25, 75, 225]

MORE = 1.2
"""How much more may be read per row by the largest set than by the smallest."""
MOST = 24
"""Rows of one table that are read for one order or call, at the most."""

READ = """
    select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as n from pg_stat_xact_all_tables
    where schemaname = 'darkpearl' and seq_tup_read + coalesce(idx_tup_fetch, 0) > 0
"""


class Counted:
    """What each kind of work has read per row, by its name, its size and the table."""

    def __init__(self, shop: Shop, *but: str) -> None:
        self.shop = shop
        self.but = but
        self.reads: dict[str, dict[int, dict[str, float]]] = {}

    async def count(self, name: str, size: int, query: str, *parameters: Any) -> list[Row]:
        """Runs a query in a transaction of its own, and notes what that reads."""
        async with self.shop.connection.transaction():
            before = await self._read()
            rows = await self.shop.rows(query, *parameters)
            await self.shop.run("set constraints all immediate")
            read = await self._read() - before
        per_row = self.reads.setdefault(name, {}).setdefault(size, {})
        for table in read.keys() - set(self.but):
            per_row[table] = per_row.get(table, 0) + read[table] / size
        return rows

    async def _read(self) -> Counter[str]:
        """Rows read of each table. The server adds up over transactions until it has a moment."""
        return Counter({row["relname"]: row["n"] for row in await self.shop.rows(READ)})

    def superlinear(self) -> list[str]:
        """What is read more of per row, the more rows there are."""
        return [
            f"{name}: {table}, {read:.1f} rows for each of {size}"
            f" and {by_size[min(by_size)].get(table, 0):.1f} for each of {min(by_size)}"
            for name, by_size in self.reads.items()
            for size, tables in by_size.items()
            for table, read in tables.items()
            if read > MOST or read > MORE * by_size[min(by_size)].get(table, 0) + 0.1
        ]


@pytest.fixture(params=["new", "analysed while small", "large"])
async def counted(request: pytest.FixtureRequest, shop: Shop) -> Counted:
    """A shop in one of the three databases, of which nobody tells the planner more meanwhile."""
    await shop.run("set statement_timeout = 0")
    for table in await shop.values(
        "select oid::regclass from pg_class where relkind = 'r'"
        " and relnamespace = 'darkpearl'::regnamespace"
    ):
        await shop.run(f"alter table {table} set (autovacuum_enabled = off)")
    if request.param == "analysed while small":
        for _ in range(10):
            order = await shop.fulfilled((await shop.product(on_hand=9), 1))
            await shop.refund(order, 1)
            await shop.settle(await shop.advance(), APPROVED)
        await shop.run("vacuum analyze")
    elif request.param == "large":
        await fill(shop)
    return Counted(shop)


async def fill(shop: Shop) -> None:
    """Finished orders that the planner knows of, each of two lines."""
    await shop.run(
        "insert into products (sku, name) select n, n from generate_series(1, %s) as n",
        ORDERS // 10,
    )
    async with shop.unguarded():
        await shop.run(
            """
            with o as (
                insert into orders (warehouse_id, status, total_amount)
                select %s, 'fulfilled', 30 from generate_series(1, %s) returning id, warehouse_id
            ),
            s as (
                insert into sagas (id, warehouse_id, saga_type, plan_version, status, ready_at)
                select id, warehouse_id, 'order_fulfilment', 1, 'completed', null from o
            ),
            e as (
                insert into saga_events (saga_id, warehouse_id, event_type)
                select id, warehouse_id, 'saga_started' from o cross join generate_series(1, 5)
            ),
            p as (
                insert into payments (order_id, warehouse_id, currency, requested_amount,
                    idempotency_key)
                select id, warehouse_id, 'USD', 30, id from o
            ),
            r as (
                insert into refunds (order_id, warehouse_id, status, amount, currency)
                select id, warehouse_id, 'refunded', 1, 'USD' from o
            ),
            m as (
                insert into stock_movements (correlation_id, warehouse_id, product_id,
                    movement_type, quantity, available_after, reserved_after)
                select o.id, o.warehouse_id, p.id, 'reserve', 1, 1, 1
                from o inner join products as p on p.sku = (1 + random() * 100)::integer::text
            )
            insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)
            select o.id, o.warehouse_id, p.id, 1, 10
            from o inner join products as p on p.sku::integer <= 2
            """,
            shop.lisbon,
            ORDERS,
        )
        await shop.run(
            "insert into inventory (product_id, warehouse_id, quantity_available)"
            " select id, %s, 9 from products",
            shop.lisbon,
        )
    await shop.run("vacuum analyze")


PLACE = """
    with o as (
        insert into orders (id, warehouse_id) select new_id(), %s from generate_series(1, %s)
        returning id, warehouse_id
    )
    insert into order_items (order_id, warehouse_id, product_id, quantity)
    select o.id, o.warehouse_id, p.id, 1
    from o cross join (select id from products where sku ~ '^P' limit 2) as p
"""


def answer(number: int, request: Row) -> Row:
    """Of all that a gateway can say, or not say: each time with a number of its own."""
    told: Row = [
        {"answer": APPROVED},
        {"answer": DECLINED},
        {"answer": UNKNOWN},
        {"answer": {"outcome": "pending", "deadline_seconds": 600 + number / 100}},
        {"answer": {"message": "not asked"}, "deferred_seconds": 1 + number / 100},
        {"answer": {**APPROVED, "amount": "1"}},
        {"answer": APPROVED, "lease_token": 99},
    ][number % 7]
    return {"saga_id": request["saga_id"], "lease_token": request["lease_token"], **told}


async def advance(counted: Counted, name: str, size: int) -> list[Row]:
    """The listener claims all there is; the requests it has to make."""
    requests: list[Row] = []
    while True:
        rows = await counted.count(name, size, "select * from advance(10000)")
        requests += [request for row in rows for request in row["requests"] or []]
        if not any(row["claimed"] for row in rows):
            return requests


async def settle(counted: Counted, name: str, size: int, answers: list[Row]) -> None:
    """The listener brings all answers by one call."""
    await counted.count(name, size, "select * from settle(%s)", json.dumps(answers))


async def test_orders_in_one_statement(counted: Counted) -> None:
    """Thousands of orders, their claims and their answers, each kind in one statement, are linear.

    So they are whatever was answered, on the way back, and when they are tried again. But for the
    catalogue, whose foreign key PostgreSQL checks by a plan of its own. The clock stands still, so
    that no lease runs out and no pause ends for part of them while the largest set takes seconds.
    """
    counted.but = ("products",)
    shop = counted.shop
    for number in 1, 2:
        await shop.product(sku=f"P{number}", on_hand=1_000_000)
    for size in SIZES:
        await shop.turn_clock(0)
        await counted.count("orders", size, PLACE, shop.lisbon, size)
        await shop.stop_clock()
        requests = await advance(counted, "first steps", size)
        assert len(requests) == size
        answers = [answer(number, request) for number, request in enumerate(requests)]
        await settle(counted, "answers", size, answers)
        for number in range(1, 6):
            await shop.run("update sagas set ready_at = created_at where ready_at is not null")
            requests = await advance(counted, f"steps after {number}", size)
            answers = [{**answer(0, request), "answer": APPROVED} for request in requests]
            await settle(counted, f"answers {number}", size, answers)
        assert set(await shop.statuses()) <= {"fulfilled", "cancelled"}
    assert "\n".join(counted.superlinear()) == ""


async def test_members_that_wait_for_different_times_are_one_group(shop: Shop) -> None:
    """Deadlines and pauses that differ from saga to saga don't take a batch apart.

    A plan is read once for each group, whatever there is in it.
    """
    product = await shop.product(on_hand=100)
    reads = {}
    for size in 10, 40:
        for _ in range(size):
            await shop.order((product, 1))
        requests = await shop.advance()
        counted = Counted(shop)
        for kind in 3, 4:
            answers = [answer(7 * n + kind, request) for n, request in enumerate(requests)]
            await settle(counted, f"{kind}", 1, answers[kind - 3 :: 2])
        reads[size] = [counted.reads[f"{kind}"][1]["saga_steps"] for kind in (3, 4)]
        waits = await shop.values("select ready_at from sagas where ready_at is not null")
        assert len(set(waits)) == len(waits) == size
        for _ in range(5):
            await shop.run("update sagas set ready_at = created_at where ready_at is not null")
            await shop.settle(await shop.advance(), APPROVED)
    assert reads[10] == reads[40]


PLACED = """
    create temp table placed on commit drop as
    select i.order_id, i.warehouse_id, i.id
    from order_items as i
    inner join orders as o on o.id = i.order_id and o.warehouse_id = i.warehouse_id
    where o.placed_in = pg_current_xact_id()
"""
WHAT_ORDERS_SAY = {
    "adjustments": "insert into order_adjustments (order_id, warehouse_id, item_id, kind, label,"
    " amount) select order_id, warehouse_id, id, 'discount', 'A', -1 from placed",
    "particulars": "insert into order_particulars (order_id, warehouse_id, email)"
    " select distinct order_id, warehouse_id, 'a@b.c' from placed",
    "changes": "select update_order(o.id, '{\"email\": null}')"
    " from (select distinct order_id from placed) as o (id)",
}


async def test_what_orders_say_in_one_statement(counted: Counted) -> None:
    """What thousands of orders cost and are for is written, and changed, in proportion."""
    shop = counted.shop
    for number in 1, 2:
        await shop.product(sku=f"P{number}", on_hand=1_000_000)
    for size in SIZES:
        async with shop.connection.transaction():
            await shop.run(PLACE, shop.lisbon, size)
            await shop.run(PLACED)
            for name, statement in WHAT_ORDERS_SAY.items():
                await counted.count(name, size, statement)
    assert counted.superlinear() == []


ITEM = "json_build_array(json_build_object('{}', {}, 'quantity', {}))::jsonb"
GOODS = (
    "receive_stock({lisbon}, id, 50)",
    "adjust_stock({lisbon}, id, -1)",
    "count_stock({lisbon}, id, 40)",
    "transfer_stock({lisbon}, {rotterdam}, id, 1)",
    "stock_at({lisbon}, id, now())",
    "place_order({lisbon}, {sku})",
    "place_order({lisbon}, {product})",
)
ORDERED = (
    "return_items(id, {part})",
    "return_items(id)",
    "refund_order(id, 1)",
    "record_manual_refund(id, 1, 'cash')",
    "cancel_order(id)",
)


async def test_calls_of_stock_functions(counted: Counted) -> None:
    """The thousandth call in a transaction reads what the first did, of products that are new.

    However small everything was when the session planned what is in the functions.
    """
    shop = counted.shop
    words = {
        "lisbon": f"'{shop.lisbon}'::uuid",
        "rotterdam": f"'{shop.rotterdam}'::uuid",
        "sku": ITEM.format("sku", "sku", 2),
        "product": ITEM.format("product_id", "id", 2),
        "part": ITEM.format("sku", "sku", 1),
    }
    await shop.run("create temp table goods (id uuid, sku text)")
    await shop.run("create temp table bought (id uuid, sku text)")
    for size in CALLS:
        await shop.run("truncate goods, bought")
        await shop.run(
            "with new as (insert into products (sku, name, unit_price)"
            " select concat(%s::text, '-', n), 'Pearl', 10 from generate_series(1, %s) as n"
            " returning id, sku) insert into goods select * from new",
            *(f"C{size}", size),
        )
        for call in GOODS:
            await counted.count(call, size, f"select {call.format(**words)} from goods")
        requests = await shop.advance(10000)
        assert len(requests) == 2 * size
        await shop.settle(requests[:size], APPROVED)
        await shop.run(
            "insert into bought select o.id, g.sku from orders as o"
            " inner join order_items as i on i.order_id = o.id inner join goods as g"
            " on g.id = i.product_id where o.status = 'fulfilled'"
        )
        assert await shop.value("select count(*) from bought") == size
        for call in ORDERED[:-1]:
            await counted.count(call, size, f"select {call.format(**words)} from bought")
        await shop.run("truncate bought")
        await shop.run(
            "insert into bought select id from sagas where status = 'waiting' limit %s", size
        )
        await counted.count(ORDERED[-1], size, f"select {ORDERED[-1]} from bought")
        await shop.settle(requests[size:], APPROVED)
        while requests := await shop.advance(10000):
            await shop.settle(requests, APPROVED)
    assert "\n".join(counted.superlinear()) == ""


async def test_functions_that_begin_a_call_dont_scan_what_grows(shop: Shop) -> None:
    """What runs in a session of others' says itself how it reads, for its plans stay.

    A function that is called by these goes by their settings.
    """
    grows = (
        "orders|order_items|order_adjustments|order_particulars|payments|payment_tokens|refunds|products|inventory|stock_movements"
        "|sagas|saga_events|saga_signals|gateway_events|disputes|idempotency_keys"
    )
    careless = await shop.values(
        "select proname::text from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " and (prosecdef or prorettype = 'trigger'::regtype)"
        " and pg_get_functiondef(oid) ~ %s"
        " and 'enable_seqscan=off' <> all (coalesce(proconfig, '{}'))",
        rf"(from|join|update|into)\s+({grows})\M",
    )
    assert careless == []


@pytest.mark.skipif(not FULL, reason="takes a while: make linear")
async def test_the_largest_statement_is_half_as_fast_as_the_smallest(counted: Counted) -> None:
    """Orders per second in one statement, the largest set beside the smallest, in one run."""
    shop = counted.shop
    for number in 1, 2:
        await shop.product(sku=f"P{number}", on_hand=1_000_000)
    seconds = {}
    for size in sorted({SIZES[0], SIZES[-1]}):
        tries = []
        for _ in range(3):
            begun = time.perf_counter()
            await shop.run(PLACE, shop.lisbon, size)
            tries.append((time.perf_counter() - begun) / size)
        seconds[size] = min(tries)
    assert seconds[SIZES[-1]] <= 2 * seconds[SIZES[0]], seconds
