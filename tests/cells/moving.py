"""A warehouse moves while orders come in: `make move`, longer than a test.

Orders fall due at a steady rate, to the warehouse that moves and to one that stays, whatever
becomes of the ones before; who is refused tries again, in the cell that is named. A listener works
in each cell. The command is killed, each time a little later, until one run comes to its end, or
left alone with KILLS=0. ORDERS says how many the warehouse has when it begins, RATE how many a
second each of the two gets.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID, uuid4

import psycopg
from places import Place
from psycopg import AsyncConnection
from shop import APPROVED, DECLINED, PLACE_MANY, Shop

Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
Moving = tuple[str, UUID, UUID]
"""The code of a warehouse at home, its id, and a product that it has much of."""
Third = tuple[str, str, Shop]
"""The name of a third cell, its address, and what is done in it."""
ORDERS = int(os.environ.get("DARKPEARL_TEST_MOVE_ORDERS", "20000"))
KILLS = int(os.environ.get("DARKPEARL_TEST_MOVE_KILLS", "1000"))
RATE = int(os.environ.get("DARKPEARL_TEST_MOVE_RATE", "100"))
STOCK = 1_000_000
SESSIONS = 6
PATIENCE_SECONDS = 120
PAUSE_SECONDS = 10
"""How long the warehouse may take no order, when the command is left alone."""
STEP_SECONDS = 0.2
"""So much later each kill comes than the one before."""


async def new_warehouse(pair: Pair, until: Until, units: int = 1000, cell: int = 1) -> Moving:
    """A warehouse, with stock if it is home's, and a product, of which the other cell knows."""
    here, there = pair
    here.audited = there.audited = True
    product = await here.product()
    code = str(uuid4())[:8]
    warehouse = await here.value(
        "insert into warehouses (code, name, cell) values (%s, 'M', %s) returning id", code, cell
    )
    if cell == 1:
        await here.receive(product, units, warehouse)
    await here.receive(product, STOCK, here.lisbon)

    async def is_known() -> bool:
        ids = await there.values("select id from warehouses union all select id from products")
        return warehouse in ids and product in ids

    await until(is_known)
    return code, warehouse, product


async def all_states(shop: Shop, warehouse: UUID, product: UUID) -> list[UUID]:
    """Orders of a warehouse that stand at every kind of place, twenty of each."""
    ids = []
    for kind in ("fulfilled", "cancelled", "waits", "new"):
        ids += [await shop.order((product, 1), warehouse=warehouse) for _ in range(20)]
        if kind != "new":
            requests = await shop.advance()
        if kind in ("fulfilled", "cancelled"):
            await shop.settle(requests, APPROVED if kind == "fulfilled" else DECLINED)
    await shop.refund(ids[0], 5)
    return ids


async def finished(shop: Shop) -> None:
    """All that waits is asked again and approved, until nothing moves any more."""
    for _ in range(4):
        await shop.settle(await shop.ask_again(), APPROVED)


async def nothing_is_left(pair: Pair) -> None:
    """Neither cell has anything of what a move takes."""
    for shop in pair:
        for query in (
            "select count(*) from pg_publication where pubname ^@ 'darkpearl_move'",
            "select count(*) from pg_subscription where subname ^@ 'darkpearl_move'",
            "select count(*) from pg_replication_slots where slot_name ^@ 'darkpearl_move'",
            "select count(*) from pg_class where relname = 'sagas' and relreplident = 'f'",
        ):
            assert await shop.value(query) == 0


async def check(pair: Pair, warehouse: UUID, product: UUID, orders: list[UUID]) -> None:
    """Every order is north's, ended and counted once; what home has of it is at rest."""
    here, there = pair
    await finished(there)
    await finished(here)
    statuses = await there.rows(
        "select status::text, count(*) from orders where id = any(%s) group by 1 order by 1", orders
    )
    assert statuses == [
        {"status": "cancelled", "count": 20},
        {"status": "fulfilled", "count": len(orders) - 20},
    ]
    assert await there.stock(product, warehouse) == (1000 - len(orders) + 20, 0)
    assert await there.audit() == []
    assert await here.audit() == []
    with here.refused("DP050"):
        await here.order((product, 1), warehouse=warehouse)
    with here.refused("DP050"):
        await here.cancel(orders[45])
    await nothing_is_left(pair)


async def takes(shop: Shop, warehouse: UUID, product: UUID, orders: list[UUID]) -> bool:
    """Whether a cell takes an order for a warehouse, which is noted."""
    try:
        orders.append(await shop.order((product, 1), warehouse=warehouse))
    except psycopg.Error as error:
        if error.sqlstate not in {"DP050", "DP053"}:
            raise
        return False
    return True


async def known(third: Third, moving: Moving, until: Until) -> None:
    """The third cell has heard of a warehouse and its product."""

    async def is_known() -> bool:
        query = (
            "select count(*) from products, warehouses as w where products.id = %s and w.id = %s"
        )
        return bool(await third[2].value(query, moving[2], moving[1]))

    await until(is_known)


async def settled(pair: Pair, moving: Moving, orders: list[UUID]) -> None:
    """All orders end in the first of two cells, and both audits are empty."""
    here, _ = pair
    _, warehouse, product = moving
    await finished(here)
    assert await here.value(
        "select count(*) from orders where id = any(%s) and status in ('fulfilled', 'cancelled')",
        orders,
    ) == len(orders)
    sent = await here.value(
        "select count(distinct correlation_id) from stock_movements"
        " where warehouse_id = %s and movement_type = 'fulfill'",
        warehouse,
    )
    assert await here.stock(product, warehouse) == (1000 - sent, 0)
    for shop in pair:
        assert await shop.audit() == []


class Load:
    """Orders to a warehouse that moves and to one that stays, and who works them off."""

    def __init__(
        self, pair: Pair, places: tuple[Place, Place], moving: Moving, *, rate: int
    ) -> None:
        self.pair = pair
        self.places = places
        _, self.warehouse, self.product = moving
        self.rate = rate
        self.placed: dict[UUID, list[UUID]] = {self.warehouse: [], pair[0].lisbon: []}
        self.times: list[float] = []
        self._moved = False
        self._stopping = False
        self._failed: list[BaseException] = []

    async def begin_with(self, orders: int) -> None:
        """So many orders of the warehouse, each as far as a listener comes without an answer."""
        placed = await self.pair[0].values(PLACE_MANY, self.warehouse, orders, self.product)
        self.placed[self.warehouse].extend(placed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Orders come, and listeners work, for a block and a moment longer."""
        async with AsyncExitStack() as stack:
            for place in self.places:
                await stack.enter_async_context(listener(place.url))
            tasks = [
                asyncio.create_task(self._place(warehouse, at))
                for warehouse in self.placed
                for at in range(SESSIONS)
            ]
            await asyncio.sleep(1)
            yield
            await asyncio.sleep(1)
            self._stopping = True
            await asyncio.gather(*tasks)
            await self._drained()

    async def _place(self, warehouse: UUID, at: int) -> None:
        """One session's orders: one falls due each so often."""
        async with AsyncExitStack() as stack:
            here, there = [
                await stack.enter_async_context(
                    await AsyncConnection.connect(
                        place.url, autocommit=True, options="-c search_path=darkpearl"
                    )
                )
                for place in self.places
            ]
            due = time.monotonic() + at / self.rate
            while not self._stopping:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += SESSIONS / self.rate
                order, cell = uuid4(), here
                if warehouse == self.warehouse and self._moved:
                    cell = there
                while True:
                    try:
                        await cell.execute(
                            "select place_order(%s, jsonb_build_array(jsonb_build_object("
                            "'product_id', %s::uuid, 'quantity', 1)), p_order_id => %s)",
                            [warehouse, self.product, order],
                        )
                    except psycopg.Error as error:
                        if error.sqlstate == "DP050" and cell is here:
                            self._moved, cell = True, there
                        elif error.sqlstate not in {"DP050", "DP053", "55P03", "40P01"}:
                            raise
                        await asyncio.sleep(0.02)
                    else:
                        break
                self.placed[warehouse].append(order)
                if warehouse == self.warehouse:
                    self.times.append(time.monotonic())

    async def _drained(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        query = "select count(*) from sagas where ready_at < 'infinity' and warehouse_id = any(%s)"
        mine = list(self.placed)
        while any([await shop.value(query, mine) for shop in self.pair]):
            assert time.monotonic() < deadline, "orders don't end"
            await asyncio.sleep(0.2)

    @property
    def pause_seconds(self) -> float:
        """The longest time without an order of the warehouse."""
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))

    async def check(self) -> None:
        """Each order that was placed is there, ended, paid and sent once; both audits are empty."""
        here, there = self.pair
        for shop, warehouse in ((there, self.warehouse), (here, here.lisbon)):
            await placed_as_they_should(shop, warehouse, self.placed[warehouse])
        count = "select count(*) from orders where warehouse_id = %s"
        assert await there.value(count, self.warehouse) == len(self.placed[self.warehouse])
        for shop in self.pair:
            assert await shop.audit() == []


async def placed_as_they_should(shop: Shop, warehouse: UUID, orders: list[UUID]) -> None:
    """Each of the orders is there, ended, paid for and sent once."""
    assert len(set(orders)) == len(orders)
    found = await shop.row(
        "select count(*), count(*) filter (where o.status = 'fulfilled') as sent, count(*)"
        " filter (where o.status not in ('fulfilled', 'cancelled')) as open, count(*)"
        " filter (where p.captured_amount > 0) as paid"
        " from orders as o left join payments as p on p.order_id = o.id"
        " where o.id = any(%s)",
        orders,
    )
    assert found["count"] == len(orders)
    assert found["open"] == 0
    assert found["sent"] == found["paid"]
    moved = await shop.row(
        "select count(*) as rows from stock_movements where movement_type = 'fulfill' and"
        " warehouse_id = %s and correlation_id = any(%s)",
        *(warehouse, orders),
    )
    assert moved["rows"] == found["sent"]


@asynccontextmanager
async def listener(url: str) -> AsyncIterator[None]:
    """`darkpearl listener` at an address, with the mock gateway."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "darkpearl", "listener"),
        env=os.environ | {"DARKPEARL_DATABASE_URL": url, "DARKPEARL_GATEWAY": "mock"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def test_a_warehouse_moves_under_load(
    pair: Pair, places: tuple[Place, Place], until: Until
) -> None:
    """Killed over and over, the command moves it all the same: none lost, a pause of seconds."""
    moving = await new_warehouse(pair, until, STOCK)
    load = Load(pair, places, moving, rate=RATE)
    async with listener(places[0].url):
        for _ in range(0, ORDERS, 1000):
            await load.begin_with(min(1000, ORDERS))
        await load._drained()
    kills, ended = 0, False
    async with load.running():
        while not ended:
            command = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "darkpearl", "cells", "move-warehouse", moving[0]),
                *("--to", "north", "--yes"),
                env=os.environ | {"DARKPEARL_DATABASE_URL": places[0].url},
            )
            patience = STEP_SECONDS * (kills + 1) if kills < KILLS else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(command.wait(), patience)
            if command.returncode is None:
                command.send_signal(signal.SIGKILL)
                await command.wait()
                kills += 1
            else:
                assert command.returncode == 0
                ended = True
    await load.check()
    sys.stdout.write(
        f"\n{ORDERS} orders and {RATE} a second, {len(load.times)} of them while it moved:"
        f" {kills} kills, the longest pause {load.pause_seconds:.1f} s\n"
    )
    if not kills:
        assert load.pause_seconds < PAUSE_SECONDS
