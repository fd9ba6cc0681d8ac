"""PgQueuer: a job per order; its three transactions go on from the order's status.

As its documentation has it for throughput: asyncpg, a connection of its own for the queue and a
pool for the work, batches fit for short jobs, its autovacuum settings, uvloop. Its tables stay
durable. It has no steps and no checkpoints.
"""

from datetime import timedelta

import asyncpg
import psycopg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver, PsycopgDriver
from pgqueuer.models import Job

from bench.peers.steps import FULFIL, PAY, RESERVE, Gate, Peer, charge, main, numbered, pending

CHUNK = 1000


class PgQueuerPeer(Peer):
    """One queue manager: up to `concurrency` jobs at a time, taken half as many at once."""

    package = "pgqueuer"

    def __init__(self, url: str, concurrency: int) -> None:
        super().__init__(url, concurrency)
        self.settings |= {
            "batch_size": concurrency // 2,
            "pool": concurrency,
            "driver": "asyncpg",
            "durability": "durable",
            "autovac": True,
        }

    async def prepare(self) -> None:
        """Its schema, its autovacuum settings, then jobs in batches."""
        orders = await pending(self.url)
        connection = await asyncpg.connect(self.url)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        await queries.optimize_autovacuum()
        for start in range(0, len(orders), CHUNK):
            chunk = orders[start : start + CHUNK]
            await queries.enqueue(
                ["fulfil"] * len(chunk), [order.encode() for order in chunk], [0] * len(chunk)
            )
        await connection.close()

    async def work(self, gate: Gate) -> None:
        """Run the queue manager."""
        reserve, pay, fulfil = (
            numbered(each, "order", "reference") for each in (RESERVE, PAY, FULFIL)
        )
        connection = await asyncpg.connect(self.url)
        async with asyncpg.create_pool(
            self.url, min_size=self.concurrency, max_size=self.concurrency
        ) as pool:
            queuer = PgQueuer(AsyncpgDriver(connection))

            @queuer.entrypoint("fulfil")
            async def work_off(job: Job) -> None:
                order = (job.payload or b"").decode()
                async with pool.acquire() as business:
                    amount = await business.fetchval(reserve, order)
                    await business.execute(pay, order, await charge(order, amount))
                    await business.execute(fulfil, order)

            await gate()
            await queuer.run(
                batch_size=self.concurrency // 2,
                max_concurrent_tasks=self.concurrency,
                dequeue_timeout=timedelta(seconds=10),
            )

    async def submit(self, connection: psycopg.AsyncConnection, order: str) -> None:
        """In the transaction that places the order."""
        await Queries(PsycopgDriver(connection)).enqueue("fulfil", order.encode())


main(PgQueuerPeer, uvloop.run)
