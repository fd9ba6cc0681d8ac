"""The ground of every benchmark: a durable server, filled databases, listeners, honest counters.

Figures are of this machine and this moment; compare them only within one run. The server keeps its
data on disk with fsync and synchronous_commit on. After every round the audit must be empty.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from darkpearl import database, embedded, schema
from darkpearl.config import Settings
from darkpearl.listener import bell

HOME = Path(".bench")
BATCH_SIZE = Settings().batch_size
"""Of a listener, when nothing else is said."""
OPTIONS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
    "track_commit_timestamp": "on",
}


@contextlib.contextmanager
def server() -> Iterator[embedded.Server]:
    """A durable PostgreSQL of the benchmarks' own.

    Raises:
        EmbeddedError: other benchmarks run in this folder; figures of both would be worthless.
    """
    with embedded.serve(HOME, OPTIONS, exclusive=True) as running:
        yield running


LISTENING = """
select count(*) from pg_stat_activity
where datname = current_database() and application_name = %s
    and state = 'idle' and query like '%%take_idle_lock%%'
"""
REPORT = "report"
"""The application of a session that is to be there all the time."""
OTHERS = f"""
select exists (
    select from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend'
        and pid <> pg_backend_pid() and application_name <> '{REPORT}'
)
"""


@dataclass
class Shop:
    """A database with stock in it, and an open connection to it as its owner."""

    url: str
    connection: psycopg.AsyncConnection[Any]
    server_pid: int
    asked: int = 0
    """Statements of the benchmark's own, each a commit that is none of the system's."""

    async def value(self, query: str, *parameters: Any) -> Any:
        """The first column of the first row."""
        self.asked += 1
        row = await (await self.connection.execute(query.encode(), parameters)).fetchone()
        return row[0] if row else None

    async def fill(self, orders: int, *, products: int | None = None, lines: int = 2) -> None:
        """Place two-line orders, set-based, a thousand to a transaction, over random products.

        Args:
            orders: how many.
            products: among the first so many products; all when not given.
            lines: per order.
        """
        for start in range(0, orders, 1000):
            async with self.connection.transaction():
                await self.connection.execute(
                    """
                    create temp table placed on commit drop as
                    with w as (
                        select array_agg(id order by code) as ids from warehouses
                        where cell = this_cell()
                    )
                    select new_id() as id, w.ids[1 + floor(random() * cardinality(w.ids))::int]
                        as warehouse_id
                    from w, generate_series(1, %s)
                    """,
                    [min(1000, orders - start)],
                )
                await self.connection.execute(
                    "insert into orders (id, warehouse_id) select id, warehouse_id from placed"
                )
                await self.connection.execute(
                    """
                    with p as (
                        select array_agg(id order by sku) as ids
                        from (select * from products order by sku limit %s) as p
                    )
                    insert into order_items (order_id, warehouse_id, product_id, quantity)
                    select o.id, o.warehouse_id,
                        p.ids[1 + floor(random() * cardinality(p.ids))::int],
                        1 + floor(random() * 3)::int
                    from placed as o, p, generate_series(1, %s)
                    """,
                    [products, lines],
                )

    async def settle_down(self) -> None:
        """Leave no work of the preparation to be paid for during the measurement."""
        await self.connection.execute("vacuum analyze")
        await self.connection.execute("checkpoint")

    async def drained(self) -> bool:
        """Every saga has ended; asked in a way that is one look into an index."""
        return bool(
            await self.value(
                "select (select id from sagas where ready_at is not null order by ready_at limit 1)"
                " is null"
            )
        )

    async def check(self, *but: str) -> None:
        """Stop the benchmark if stock, ledger, payments, orders and events disagree anywhere.

        Args:
            but: findings that are expected, because the benchmark made it so.
        """
        await self.connection.execute("analyze")  # the audit's joins need to know what there is
        findings = await (
            await self.connection.execute(
                # Planned for a few rows it would take its time to find none.
                "with found as materialized (select * from audit where finding <> all(%s))"
                " select * from found limit 5",
                [list(but)],
            )
        ).fetchall()
        if findings:
            raise SystemExit(f"the audit is not empty: {findings}")


@contextlib.asynccontextmanager
async def shop(
    running: embedded.Server,
    *,
    warehouses: int = 1,
    products: int = 1000,
    stock: int = 1_000_000,
    through_socket: bool = False,
) -> AsyncIterator[Shop]:
    """A fresh database: every product stocked in every warehouse. By TCP unless said otherwise."""
    address = running.socket_url() if through_socket else running.url
    async with (
        schema.scratch_database(address) as url,
        await psycopg.AsyncConnection.connect(
            database.with_options(url, "-c search_path=darkpearl"), autocommit=True
        ) as connection,
    ):
        await schema.migrate(url)
        await connection.execute(
            "insert into warehouses (code, name)"
            " select to_char(n, 'FM0000'), 'W' from generate_series(1, %s) as n",
            [warehouses],
        )
        await connection.execute(
            "insert into products (sku, name, unit_price)"
            " select to_char(n, 'FM000000'), 'P', 10 from generate_series(1, %s) as n",
            [products],
        )
        await connection.execute(
            "select count(receive_stock(w.id, p.id, %s)) from warehouses as w, products as p",
            [stock],
        )
        yield Shop(url, connection, running.pid)


@contextlib.asynccontextmanager
async def listeners(target: Shop, count: int, **settings: Any) -> AsyncIterator[list[Process]]:
    """So many listener processes, connected and idle, ended in order.

    Args:
        target: whose sagas they work.
        count: how many.
        settings: of theirs, by name without the prefix.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DARKPEARL")},
        "DARKPEARL_DATABASE_URL": target.url,
        "DARKPEARL_MOCK_APPROVAL_RATE": "1",
        **{f"DARKPEARL_{name.upper()}": str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "darkpearl", "listener"]
    started = [
        await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(count)
    ]
    try:
        while await target.value(LISTENING, bell.NAME) < count:
            if any(process.returncode is not None for process in started):
                raise SystemExit("a listener ended before it listened")
            await asyncio.sleep(0.05)
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in started:
            await asyncio.wait_for(process.wait(), 30)


@dataclass
class Meter:
    """Counters of the server and of client processes, between `begin` and `end`.

    Read them with `per_order` when the clients are gone: what a session has committed and written
    it tells the server's statistics now and then, and at its end.
    """

    shop: Shop
    clients: list[Process] = field(default_factory=list)

    async def begin(self) -> None:
        """Read all counters."""
        self._counted_before = await self._counted()
        self._before = await self._read()

    async def end(self) -> None:
        """The work is done: stop the clock, and read what doesn't wait."""
        self._after = await self._read()

    async def per_order(self, orders: int, *, counted: int | None = None) -> dict[str, float]:
        """The differences, per order.

        Args:
            orders: done between `begin` and `end`.
            counted: done between `begin` and now, when these are more.
        """
        while await self.shop.value(OTHERS):
            await asyncio.sleep(0.05)
        seconds, wal, server_cpu, client_cpu = (
            b - a for a, b in zip(self._before, self._after, strict=True)
        )
        commits, rows = (
            b - a for a, b in zip(self._counted_before, await self._counted(), strict=True)
        )
        return {
            "orders": orders,
            "seconds": round(seconds, 3),
            "orders_per_second": round(orders / seconds),
            "commits_per_order": round(commits / (counted or orders), 5),
            "rows_per_order": round(rows / (counted or orders), 2),
            "wal_bytes_per_order": round(wal / orders),
            "server_cpu_us_per_order": round(server_cpu / orders * 1e6, 1),
            "client_cpu_us_per_order": round(client_cpu / orders * 1e6, 1),
        }

    async def _counted(self) -> tuple[int, int]:
        """Commits, and rows inserted, updated and deleted, but for the benchmark's commits."""
        await self.shop.connection.execute("select pg_stat_force_next_flush()")
        commits = await self.shop.value(
            "select xact_commit from pg_stat_database where datname = current_database()"
        )
        rows = await self.shop.value(
            "select sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables"
        )
        return commits - self.shop.asked, rows

    async def _read(self) -> tuple[float, ...]:
        wal = await self.shop.value("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
        postmaster = psutil.Process(self.shop.server_pid)
        server_cpu = sum(map(_cpu, [postmaster, *postmaster.children(recursive=True)]))
        # Of backends that have ended, the postmaster keeps the account.
        server_cpu += sum(postmaster.cpu_times()[2:4])
        client_cpu = sum(_cpu(psutil.Process(process.pid)) for process in self.clients)
        return time.monotonic(), float(wal), server_cpu, client_cpu


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


async def until_drained(target: Shop) -> None:
    """Wait until every saga has ended."""
    while not await target.drained():
        await asyncio.sleep(0.01)
