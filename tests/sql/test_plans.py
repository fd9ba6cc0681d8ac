"""The engine's plans: no statement of it reads a table that grows from end to end.

Counted by the server itself, in pg_stat_xact_all_tables: every scan and every row read, by every
statement, in whatever function it stands. Rows count too because a statement that may not scan the
table scans any index of it instead, and is as slow.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg.rows import dict_row
from shop import APPROVED, DECLINED, UNKNOWN, Row, Shop

GROWING = (
    "^(orders|order_items|payments|payment_tokens|refunds|products|inventory|stock_movements|sagas"
    "|saga_events(_.*)?)$"
)
ENGINE = (
    "insert into order",
    "set constraints",
    "advance(",
    "settle(",
    "place_order(",
    "cancel_order(",
    "refund_order(",
    "return_items(",
)
MANY = 1000
"""Rows of each table when it is full, at least. No call below is about more than a dozen sagas."""


class WatchedShop(Shop):
    """A shop that notes which tables a call of the engine reads from end to end."""

    read_whole: set[str]

    async def rows(self, query: str, *parameters: Any) -> list[Row]:
        """Calls of the engine are watched; all else is not."""
        if not any(call in query for call in ENGINE):
            return await super().rows(query, *parameters)
        async with self.connection.transaction():
            scans, reads = await self._counters()
            rows = await super().rows(query, *parameters)
            scans_after, reads_after = await self._counters()
        self.read_whole |= (scans_after - scans).keys()
        self.read_whole |= {table for table, n in (reads_after - reads).items() if n >= MANY}
        return rows

    run = rows

    async def _counters(self) -> tuple[Counter[str], Counter[str]]:
        rows = await super().rows(
            "select relname, seq_scan, seq_tup_read + coalesce(idx_tup_fetch, 0) as read"
            " from pg_stat_xact_all_tables where schemaname = 'darkpearl' and relname ~ %s",
            GROWING,
        )
        return (
            Counter({row["relname"]: row["seq_scan"] for row in rows}),
            Counter({row["relname"]: row["read"] for row in rows}),
        )

    async def wake(self) -> None:
        """Every backoff and every lease is over. The clock stays: to turn it drops all plans."""
        await self.rows("update sagas set ready_at = created_at where ready_at is not null")


@pytest.fixture
async def watched(shop: Shop, connect: Callable[..., Awaitable[Any]]) -> WatchedShop:
    """The same shop through a session of its own, whose plans are yet to be made."""
    watched = WatchedShop(await connect(row_factory=dict_row))
    watched.read_whole = set()
    watched.lisbon, watched.rotterdam = shop.lisbon, shop.rotterdam
    return watched


async def fill(shop: Shop) -> None:
    """Thousands of finished orders and refunds, of which the planner hears nothing."""
    await shop.run(
        "insert into products (sku, name, unit_price)"
        " select 'F' || n, 'Pearl', 10 from generate_series(1, %s) as n",
        MANY,
    )
    await shop.run("select receive_stock(%s, id, 1000) from products where sku ~ '^F'", shop.lisbon)
    await shop.run(
        """
        select place_order(%s, json_build_array(
            json_build_object('product_id', p.ids[1 + n %% %s], 'quantity', 1),
            json_build_object('product_id', p.ids[1 + (n + 7) %% %s], 'quantity', 2)
        )::jsonb)
        from generate_series(1, %s) as n,
            (select array_agg(id) as ids from products where sku ~ '^F') as p
        """,
        *(shop.lisbon, MANY, MANY, MANY),
    )
    while requests := await shop.advance(1000):
        await shop.settle(requests, APPROVED)
    await shop.run("select refund_order(id, 1) from orders where status = 'fulfilled'")
    while requests := await shop.advance(1000):
        await shop.settle(requests, APPROVED)


async def everything(shop: WatchedShop) -> None:
    """Fulfilment, retries, lost leases, refusals, voids, cancellations, shortage, refunds."""
    product, scarce = await shop.product(on_hand=100), await shop.product(on_hand=5)
    for _ in range(8):
        await shop.order((product, 1), (scarce, 1))
    cancelled = [await shop.order((product, 1)) for _ in range(4)]
    await shop.cancel(cancelled[0])

    requests = await shop.advance()
    await shop.cancel(cancelled[1])
    await shop.settle(requests[:1], APPROVED)
    await shop.settle(requests[1:4], UNKNOWN)
    await shop.settle(requests[4:6], DECLINED)
    for _ in range(2):
        await shop.wake()  # what is still out has lost its lease, and is asked for again
        requests = await shop.advance()
    await shop.settle(requests[:2], UNKNOWN)
    await shop.cancel(cancelled[2])
    await shop.settle(requests[2:], APPROVED)
    for _ in range(9):
        await shop.wake()
        await shop.settle(await shop.advance(), APPROVED)
    assert set(await shop.statuses()) == {"fulfilled", "cancelled"}

    order = await shop.fulfilled((product, 1))
    for answer in APPROVED, DECLINED:
        await shop.refund(order, 1)
        await shop.settle(await shop.advance(), answer)
    await shop.take_back(order)


@pytest.mark.parametrize("planned", ["while empty", "while small", "when full"])
async def test_nothing_that_grows_is_read_whole(
    shop: Shop, watched: WatchedShop, planned: str
) -> None:
    """Whichever path a saga takes, and whenever a session made its plans, indexes lead to rows."""
    if planned == "while small":
        await everything(watched)
    if planned != "when full":
        await shop.run("vacuum analyze")
        await everything(watched)
        watched.read_whole.clear()
    await fill(shop)
    if planned == "when full":
        await shop.run("vacuum analyze")  # which also has all sessions plan anew
    await everything(watched)
    assert watched.read_whole == set()


async def place(shop: WatchedShop, product: UUID) -> None:
    """Place an order as applications do, by plain inserts."""
    async with shop.connection.transaction():
        order = await shop.value(
            "insert into orders (warehouse_id) values (%s) returning id", shop.lisbon
        )
        await shop.run(
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " values (%s, %s, %s, 1)",
            order,
            shop.lisbon,
            product,
        )
        await shop.run("set constraints all immediate")


async def test_placing_an_order_reads_no_table_of_orders_whole(
    shop: Shop, watched: WatchedShop
) -> None:
    """However many orders came after a session planned its inserts, they stay look-ups.

    But for the catalogue, whose foreign key PostgreSQL checks by itself. No catalogue grows like
    this before its statistics do.
    """
    product = await shop.product()
    await shop.run("vacuum analyze")
    for _ in range(8):
        await place(watched, product)
    assert watched.read_whole - {"products"} == set()
    await fill(shop)
    await place(watched, product)
    assert watched.read_whole - {"products"} == set()


@pytest.mark.parametrize(
    ("without", "table"),
    [
        ("drop index sagas_ready_idx", "sagas"),
        ("alter table order_items drop constraint order_items_pkey", "order_items"),
        ("alter table orders drop constraint orders_pkey cascade", "orders"),
    ],
)
async def test_a_missing_index_would_show(
    shop: Shop, watched: WatchedShop, without: str, table: str
) -> None:
    """The count is no formality: it tells which table lacks an index."""
    await fill(shop)
    await shop.run("vacuum analyze")
    await shop.run(without)
    await everything(watched)
    assert table in watched.read_whole
