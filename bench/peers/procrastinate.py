"""Procrastinate: a job per order; its three transactions go on from the order's status.

As its documentation has it for throughput: asynchronous tasks, many at a time, a connection for
each, LISTEN on, jobs deleted when they are done. It has no steps and no checkpoints.
"""

import logging

import procrastinate
import psycopg
from psycopg_pool import AsyncConnectionPool

from bench.peers.steps import FULFIL, PAY, RESERVE, Gate, Peer, charge, main, pending

CHUNK = 1000

logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it minds that this is a script


class Procrastinate(Peer):
    """One worker: `concurrency` orders at a time."""

    package = "procrastinate"

    def __init__(self, url: str, concurrency: int) -> None:
        super().__init__(url, concurrency)
        self.settings |= {"listen_notify": True, "delete_jobs": "successful"}
        self.settings["pool"] = concurrency + 4
        self.pool = AsyncConnectionPool(
            url, min_size=concurrency, max_size=concurrency, open=False, kwargs={"autocommit": True}
        )
        self.app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=url, max_size=concurrency + 4)
        )
        self.fulfil = self.app.task(name="fulfil")(self._fulfil)

    async def _fulfil(self, order: str) -> None:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(RESERVE, {"order": order})
            ((amount,),) = await cursor.fetchall()
            reference = await charge(order, amount)
            await connection.execute(PAY, {"order": order, "reference": reference})
            await connection.execute(FULFIL, {"order": order})

    async def prepare(self) -> None:
        """Its schema, then jobs in batches."""
        orders = await pending(self.url)
        async with self.app.open_async():
            await self.app.schema_manager.apply_schema_async()
            for start in range(0, len(orders), CHUNK):
                await self.fulfil.batch_defer_async(
                    *({"order": order} for order in orders[start : start + CHUNK])
                )

    async def work(self, gate: Gate) -> None:
        """Run the worker."""
        async with self.pool, self.app.open_async():
            await gate()
            await self.app.run_worker_async(
                concurrency=self.concurrency,
                listen_notify=True,
                delete_jobs="successful",
                shutdown_graceful_timeout=5,
            )

    async def submit(self, connection: psycopg.AsyncConnection, order: str) -> None:
        """In the transaction that places the order."""
        await self.fulfil.configure(connection=connection).defer_async(order=order)


main(Procrastinate)
