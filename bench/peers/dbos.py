"""DBOS Transact: a workflow per order; a datasource commits a step's write with its checkpoint.

As its documentation has it: the workflow's id is the order's, the queue's worker_concurrency keeps
two executors from claiming each other's share, read committed where that is enough, and an idle
worker is given an order directly, without the queue. Threads did better here than coroutines.
"""

import asyncio

import psycopg
from dbos import DBOS, DBOSClient, SetWorkflowID, SQLAlchemyDatasource

from bench.peers.steps import FULFIL, PAY, RESERVE, Gate, Peer, charge_now, main, pending

QUEUE = "orders"
NAME = "bench"
VERSION = "1"
POLL_SECONDS = 0.05
POOL = 20
THREADS = 16


class Dbos(Peer):
    """One executor: `concurrency` workflows of the queue at a time."""

    package = "dbos"
    joins = False

    def __init__(self, url: str, concurrency: int) -> None:
        super().__init__(url, concurrency)
        self.settings |= {
            "polling_interval_sec": POLL_SECONDS,
            "isolation_level": "READ COMMITTED",
            "max_executor_threads": THREADS,
            "sys_db_pool_size": POOL,
            "datasource pool": POOL,
        }

    async def prepare(self) -> None:
        """Its schema and queue; then a workflow for each order, held back until work begins."""
        await self._launch()
        DBOS.destroy()
        client = DBOSClient(system_database_url=self.url)
        options = {
            "queue_name": QUEUE,
            "workflow_name": "fulfil",
            "app_version": VERSION,
            "application_name": NAME,
        }
        for order in await pending(self.url):
            client.enqueue({**options, "workflow_id": order}, order)
        client.destroy()
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.execute("update dbos.workflow_status set status = 'HELD'")

    async def _launch(self) -> None:
        DBOS(
            config={
                "name": NAME,
                "system_database_url": self.url,
                "application_version": VERSION,
                "sys_db_pool_size": POOL,
                "max_executor_threads": THREADS,
                "log_level": "WARNING",
            }
        )
        source = SQLAlchemyDatasource.create(
            self.url, engine_kwargs={"pool_size": POOL, "max_overflow": 0}
        )

        def write(statement: str, **parameters: str) -> str:
            result = source.sql_session().connection().exec_driver_sql(statement, parameters)
            return result.scalar_one()

        @source.transaction(isolation_level="READ COMMITTED")
        def reserve(order: str) -> str:
            return write(RESERVE, order=order)

        @source.transaction(isolation_level="READ COMMITTED")
        def pay(order: str, reference: str) -> None:
            write(PAY, order=order, reference=reference)

        @source.transaction(isolation_level="READ COMMITTED")
        def ship(order: str) -> None:
            write(FULFIL, order=order)

        @DBOS.workflow(name="fulfil")
        def fulfil(order: str) -> None:
            amount = reserve(order)
            pay(order, charge_now(order, amount))
            ship(order)

        self.fulfil = fulfil
        DBOS.launch()

    async def work(self, gate: Gate) -> None:
        """Launch the executor; what is held back is let go."""
        await self._launch()
        await DBOS.register_queue_async(
            QUEUE, worker_concurrency=self.concurrency, polling_interval_sec=POLL_SECONDS
        )
        await gate()
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(
                "update dbos.workflow_status set status = 'ENQUEUED' where status = 'HELD'"
            )
        await asyncio.Event().wait()

    async def submit(self, connection: psycopg.AsyncConnection, order: str) -> None:  # noqa: ARG002
        """Started where it is placed: no queue, no polling."""
        with SetWorkflowID(order):
            await asyncio.to_thread(DBOS.start_workflow, self.fulfil, order)


main(Dbos)
