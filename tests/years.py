"""Years of a shop with the clock turned: it orders, housekeeping removes, and the books agree."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from shop import APPROVED, DECLINED, Shop

DAY = 86400
MONTH_DAYS = 30
KEEP = {"orders": 60, "movements": 90, "payments": 180, "gateway_events": 30, "events": 62}
BATCH = 1000
SIZE = """
    select sum(pg_total_relation_size(c.oid))::bigint
    from pg_class as c
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p')
"""
PLACE = """
    with placed as (
        insert into orders (warehouse_id)
        select %s from generate_series(1, %s)
        returning id, warehouse_id
    )
    insert into order_items (order_id, warehouse_id, product_id, quantity)
    select p.id, p.warehouse_id, l.products[1 + (2 * p.n + k) %% cardinality(l.products)], 1
    from (select *, row_number() over () as n from placed) as p
    cross join (select %s::uuid[] as products) as l
    cross join generate_series(0, 1) as k
"""


@dataclass
class Month:
    """What stood at the end of a month, when housekeeping was done.

    Attributes:
        bytes: of all tables and indexes.
        orders: rows that are left.
        findings: of the audit of everything.
    """

    bytes: int
    orders: int
    findings: list[Any]


@dataclass
class Years:
    """A shop whose days are made to pass.

    Attributes:
        shop: an empty one.
        orders: a day.
        step_days: days that pass at once; the orders of all of them come at the end.
        products: on its shelves.
    """

    shop: Shop
    orders: int
    step_days: int = 1
    products: list[UUID] = field(default_factory=list)
    seen: dict[Any, dict[UUID, tuple[int, int]]] = field(default_factory=dict)

    async def open(self, products: int) -> None:
        """So many products, and the rules of retention. What reads all of years takes its time."""
        await self.shop.run("set statement_timeout = 0")
        self.products = [await self.shop.product() for _ in range(products)]
        for kind, days in KEEP.items():
            await self.shop.run("update retention set keep_days = %s where kind = %s", days, kind)

    async def month(self) -> Month:
        """A month passes, day by day; then housekeeping does what it does."""
        await self.shop.rows("select ensure_event_partitions()")
        for _ in range(MONTH_DAYS // self.step_days):
            await self._day()
        await self._note_stock()
        async with self.shop.acting_as("darkpearl_listener"):
            for kind in await self.shop.values("select retention_to_do(true)"):
                while await self._bite(kind):
                    pass
        await self.shop.run("vacuum analyze")
        return Month(
            await self.shop.value(SIZE),
            await self.shop.value("select count(*) from orders"),
            await self.shop.rows("select * from audit"),
        )

    async def _bite(self, kind: str) -> bool:
        """As much as housekeeping removes at once; what is locked waits for the next."""
        try:
            return await self.shop.value("select has_more from apply_retention(%s)", kind)
        except psycopg.errors.LockNotAvailable:
            return True

    async def _day(self) -> None:
        """Goods arrive, customers order, some are declined, refunded or bring things back."""
        count = self.orders * self.step_days
        await self.shop.turn_clock(self.step_days * DAY)
        await self.shop.run(
            "select receive_stock(%s, p, %s) from unnest(%s::uuid[]) as p",
            *(self.shop.lisbon, 4 * count // len(self.products) + 1, self.products),
        )
        for start in range(0, count, BATCH):
            number = min(BATCH, count - start)
            await self.shop.run(PLACE, self.shop.lisbon, number, self.products)
            while requests := await self.shop.advance(BATCH):
                await self.shop.settle(requests[::10], DECLINED)
                await self.shop.settle([r for n, r in enumerate(requests) if n % 10], APPROVED)
        order = (
            "select id from orders where status = 'fulfilled' order by order_number desc limit 1"
        )
        latest = await self.shop.value(order)
        await self.shop.run("select refund_order(%s, 5)", latest)
        await self.shop.settle(await self.shop.advance(), APPROVED)
        await self.shop.run("select return_items(%s)", latest)

    async def _note_stock(self) -> None:
        """Keep in mind what is on the shelves now."""
        rows = await self.shop.rows(
            "select product_id, quantity_available, quantity_reserved from inventory"
        )
        moment = await self.shop.value("select clock()")
        self.seen[moment] = {
            row["product_id"]: (row["quantity_available"], row["quantity_reserved"]) for row in rows
        }

    async def compare_stock(self) -> int:
        """Every day of which the ledger still tells is as it was; how many those are."""
        kept = await self.shop.value(
            "select max(removed_before) from retention where kind in ('orders', 'movements')"
        )
        days = [moment for moment in self.seen if kept is None or moment >= kept]
        for moment in days:
            rows = await self.shop.rows(
                "select p as id, s.* from unnest(%s::uuid[]) as p"
                " cross join lateral stock_at(%s, p, %s) as s",
                *(self.products, self.shop.lisbon, moment),
            )
            told = {
                row["id"]: (row["quantity_available"], row["quantity_reserved"]) for row in rows
            }
            assert told == self.seen[moment], moment
        return len(days)
