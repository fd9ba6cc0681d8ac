"""awa: a job per order; its three transactions go on from the order's status.

As its documentation has it: its own storage, COPY for many jobs, one queue. The work goes through a
pool of asyncpg, as PgQueuer's does. It has no steps and no checkpoints.
"""

import asyncio
from dataclasses import dataclass

import asyncpg
import psycopg
import uvloop
from awa import AsyncClient, bridge

from bench.peers.steps import FULFIL, PAY, RESERVE, Gate, Peer, charge, main, numbered, pending

CHUNK = 1000
QUEUE = "orders"


@dataclass
class FulfilOrder:
    """What a job is about."""

    order: str


class AwaPeer(Peer):
    """One client: up to `concurrency` jobs at a time."""

    package = "awa-pg"

    def __init__(self, url: str, concurrency: int) -> None:
        super().__init__(url, concurrency)
        self.settings |= {"pool": concurrency, "driver": "asyncpg"}

    async def prepare(self) -> None:
        """Its schema, then jobs in batches."""
        orders = await pending(self.url)
        client = AsyncClient(self.url)
        await client.migrate()
        await client.install_queue_storage(schema="awa")
        for start in range(0, len(orders), CHUNK):
            jobs = [FulfilOrder(order) for order in orders[start : start + CHUNK]]
            await client.enqueue_many_copy(jobs, queue=QUEUE)
        await client.close()

    async def work(self, gate: Gate) -> None:
        """Run the client."""
        reserve, pay, fulfil = (
            numbered(each, "order", "reference") for each in (RESERVE, PAY, FULFIL)
        )
        client = AsyncClient(self.url)
        async with asyncpg.create_pool(
            self.url, min_size=self.concurrency, max_size=self.concurrency
        ) as pool:

            @client.task(FulfilOrder, queue=QUEUE)
            async def work_off(job: FulfilOrder) -> None:
                order = job.args.order  # type: ignore[attr-defined]
                async with pool.acquire() as business:
                    amount = await business.fetchval(reserve, order)
                    await business.execute(pay, order, await charge(order, amount))
                    await business.execute(fulfil, order)

            await gate()
            await client.start([(QUEUE, self.concurrency)])
            try:
                await asyncio.Event().wait()
            finally:
                await client.shutdown()

    async def submit(self, connection: psycopg.AsyncConnection, order: str) -> None:
        """In the transaction that places the order."""
        await bridge.insert_job(connection, FulfilOrder(order), queue=QUEUE)


main(AwaPeer, uvloop.run)
