"""Servers that can be killed and started again, and a shop on them.

For what is longer than a test. The servers keep what they have said to be committed; where they
keep it is memory, when there is room, so that the figures are the processors'.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import psutil
import psycopg
import pytest
from moving import listener, placed_as_they_should
from places import LOGICAL, Place, shops_at, write_passwords
from psycopg import AsyncConnection
from shop import PLACE_MANY

from darkpearl import cells, embedded, schema

SURE = {"synchronous_commit": "on", "full_page_writes": "on", "fsync": "on"}
SOON = {"wal_retrieve_retry_interval": "500ms"}
"""A cell that is back is heard of within the second, as far as that is the server's to say."""
SESSIONS = 4
PATIENCE_SECONDS = 300
STOCK = 10_000_000
RETRIED = {"DP053", "55P03", "40P01"}


class Machine(Place):
    """A server, and a cell on it."""

    def __init__(self, folder: Path, name: str) -> None:
        other = os.environ.get("DARKPEARL_TEST_BINARIES")
        self._binaries = Path(other) if other else None
        self._folder = folder / name
        self._folder.mkdir()
        self._folder.chmod(0o711)
        self._options = {**LOGICAL, **SURE, **SOON, "port": str(free_port())}
        self.start()
        super().__init__(self.server, name)

    def start(self) -> None:
        """Start it, where it was and at the port that it had."""
        self.server = embedded.start(self._folder, self._options, binaries=self._binaries)

    def kill(self) -> None:
        """End every process of it at once, by SIGKILL."""
        postmaster = psutil.Process(self.server.pid)
        doomed = [postmaster, *postmaster.children(recursive=True)]
        for each in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(doomed, timeout=10)

    async def kill_and_start(self) -> None:
        """A server that falls over, and comes back as soon as it can."""
        await asyncio.to_thread(self.kill)
        await asyncio.to_thread(self.start)


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def machines(*names: str) -> Iterator[list[Machine]]:
    """A server for each name, with an empty database on it; libpq knows the passwords."""
    roomy = shutil.disk_usage(embedded.MEMORY).free >= 2**30
    with (
        tempfile.TemporaryDirectory(dir=embedded.MEMORY if roomy else None) as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(home)
        folder.chmod(0o711)
        made: list[Machine] = []
        try:
            made += (Machine(folder, name) for name in names)
            write_passwords(folder / "pgpass", *made)
            patch.setenv("PGPASSFILE", str(folder / "pgpass"))
            patch.setenv("DARKPEARL_DATABASE_URL", made[0].url)
            yield made
        finally:
            for each in made:
                if running := embedded.running(each._folder):
                    embedded.stop(running)


@asynccontextmanager
async def shop_on(servers: list[Machine], *, home_url: str = "") -> AsyncIterator["Load"]:
    """Cells on the servers, a warehouse in each, a product that each has plenty of, listeners."""
    home, *others = servers
    for each in servers:
        await each.anew()
    await schema.migrate(home.url)
    for each in others:
        async for _ in cells.add(home.url, each.url, each.name, home_url=home_url):
            pass
    async with AsyncExitStack() as stack:
        shops = await stack.enter_async_context(shops_at(*servers))
        load = Load(servers, await shops[0].product())
        for number in range(1, len(servers) + 1):
            await load.new_warehouse(number)
        for each in servers:
            await stack.enter_async_context(listener(each.url))
        await load.listened_to()
        yield load


class Pace(NamedTuple):
    """Orders a second, and the time from when one falls due until it is placed."""

    placed: float
    sent: float
    p99_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.placed:.1f} placed and {self.sent:.1f} sent a second,"
            f" p99 {self.p99_seconds * 1000:.0f} ms"
        )


class Load:
    """Orders to warehouses of several cells, whatever becomes of the cells."""

    def __init__(self, servers: list[Machine], product: UUID) -> None:
        self.servers = servers
        self.product = product
        self.cell_of: dict[UUID, int] = {}
        self.placed: dict[UUID, list[UUID]] = {}
        self.times: dict[UUID, list[tuple[float, float]]] = {}
        """Of each order, when it fell due and when it was placed, by time.monotonic()."""
        self.rate = 0.0
        self._stopping = False

    async def new_warehouse(self, cell: int) -> tuple[str, UUID]:
        """A warehouse of a cell, with stock: its code and its id."""
        code, warehouse = str(uuid4())[:8], uuid4()
        statement = "insert into warehouses (id, code, name, cell) values (%s, %s, 'W', %s)"
        await self.ask(1, statement, warehouse, code, cell)

        async def is_known() -> bool:
            query = (
                "select count(*) from warehouses as w, products as p where (w.id, p.id) = (%s, %s)"
            )
            return await self.value(cell, query, warehouse, self.product) == 1

        await until(is_known)
        await self.ask(cell, "select receive_stock(%s, %s, %s)", warehouse, self.product, STOCK)
        self.cell_of[warehouse] = cell
        self.placed[warehouse], self.times[warehouse] = [], []
        return code, warehouse

    async def begin_with(self, warehouse: UUID, orders: int) -> None:
        """So many orders of a warehouse, each as far as a listener comes without an answer."""
        for size in [1000] * (orders // 1000) + [orders % 1000]:
            found = await self.ask(
                self.cell_of[warehouse], PLACE_MANY, warehouse, size, self.product
            )
            self.placed[warehouse].extend(UUID(str(order)) for (order,) in found)
        await self.drained()

    async def listened_to(self) -> None:
        """Wait until there is a listener in each cell."""

        async def is_there() -> bool:
            query = "select count(*) from listener_activity where is_alive"
            return all([await self.value(n + 1, query) for n in range(len(self.servers))])

        await until(is_there)

    async def ask(self, cell: int, query: str, *values: object) -> list[tuple[object, ...]]:
        """What a cell answers, on a connection of its own, since any may be gone by now."""
        async with await self._connect(cell) as connection:
            cursor = await connection.execute(query.encode(), values or None)
            return await cursor.fetchall() if cursor.description else []

    async def value(self, cell: int, query: str, *values: object) -> object:
        """The only value of a query."""
        ((found,),) = await self.ask(cell, query, *values)
        return found

    async def _connect(self, cell: int) -> AsyncConnection[tuple[object, ...]]:
        return await AsyncConnection.connect(
            self.servers[cell - 1].url,
            autocommit=True,
            connect_timeout=5,
            options="-c search_path=darkpearl",
        )

    @asynccontextmanager
    async def orders(self, rate: float) -> AsyncIterator[None]:
        """Orders fall due, so many a second in each warehouse, for a block."""
        self.rate, self._stopping = rate, False
        async with asyncio.TaskGroup() as group:
            for warehouse in self.placed:
                for at in range(SESSIONS):
                    group.create_task(self._customer(warehouse, at / rate))
            try:
                yield
            finally:
                self._stopping = True

    async def _customer(self, warehouse: UUID, offset: float) -> None:
        """One session: an order each so often; refused or cut off, it tries the same again."""
        connection = None
        due = time.monotonic() + offset
        while not self._stopping:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            order = uuid4()
            while True:
                try:
                    if connection is None:
                        connection = await self._connect(self.cell_of[warehouse])
                    await connection.execute(
                        "select place_order(%s, jsonb_build_array(jsonb_build_object("
                        "'product_id', %s::uuid, 'quantity', 1)), p_order_id => %s)",
                        [warehouse, self.product, order],
                    )
                except psycopg.errors.UniqueViolation:
                    break  # it was placed, and the answer was lost
                except psycopg.Error as error:
                    if self._must_leave(warehouse, error) and connection is not None:
                        await connection.close()
                        connection = None
                    await asyncio.sleep(0.02)
                else:
                    break
            self.placed[warehouse].append(order)
            self.times[warehouse].append((due, time.monotonic()))
            due += SESSIONS / self.rate
        if connection is not None:
            await connection.close()

    def _must_leave(self, warehouse: UUID, error: psycopg.Error) -> bool:
        """Whether to connect anew, to the cell that is named; what doesn't pass by is raised."""
        if error.sqlstate == "DP050":
            named = str(error.diag.message_detail).split("of cell ")[1]
            self.cell_of[warehouse] = int(named.split()[0])
        elif not is_passing(error):
            raise error
        return error.sqlstate not in RETRIED

    async def sent(self, warehouse: UUID) -> int:
        """How many orders of a warehouse have been fulfilled, where it is."""
        query = "select count(*) from orders where warehouse_id = %s and status = 'fulfilled'"
        found = await self.value(self.cell_of[warehouse], query, warehouse)
        assert isinstance(found, int)
        return found

    async def measured(self, warehouse: UUID, seconds: float) -> "Pace":
        """What becomes of a warehouse's orders in the time from now on."""
        sent, began = await self.sent(warehouse), time.monotonic()
        await asyncio.sleep(seconds)
        took, sent = time.monotonic() - began, await self.sent(warehouse) - sent
        waits = [done - due for due, done in self.times[warehouse] if done > began]
        return Pace(len(waits) / took, sent / took, statistics.quantiles(waits, n=100)[98])

    def pause_seconds(self, warehouse: UUID) -> float:
        """The longest time without an order of a warehouse."""
        done = sorted(done for _, done in self.times[warehouse])
        return max(b - a for a, b in itertools.pairwise(done))

    async def drained(self) -> None:
        """Wait until every order has ended, wherever its warehouse is."""

        async def is_done() -> bool:
            for warehouse, cell in self.cell_of.items():
                query = (
                    "select count(*) from sagas where ready_at < 'infinity' and warehouse_id = %s"
                )
                if await self.value(cell, query, warehouse):
                    return False
            return True

        await until(is_done)

    async def check(self) -> None:
        """Each order is there once, ended, paid and sent once; all audits are empty."""
        async with shops_at(*self.servers) as shops:
            for warehouse, cell in self.cell_of.items():
                await placed_as_they_should(shops[cell - 1], warehouse, self.placed[warehouse])
                count = "select count(*) from orders where warehouse_id = %s"
                assert await shops[cell - 1].value(count, warehouse) == len(self.placed[warehouse])
                left = STOCK - await self.sent(warehouse)
                assert await shops[cell - 1].stock(self.product, warehouse) == (left, 0)
            for shop in shops:
                assert await shop.audit() == []


def is_passing(error: psycopg.Error) -> bool:
    """Whether the same may be asked again: a server that is gone, stops or starts, or is busy."""
    return not error.sqlstate or error.sqlstate in RETRIED or error.sqlstate[:2] in {"57", "08"}


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something; look again and again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await is_so():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.05)
