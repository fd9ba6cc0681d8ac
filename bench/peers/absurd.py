"""Absurd: a task per order; each step's write and its checkpoint commit together.

As its documentation has it, work is spread over clients, each with a connection: so a step can run
inside a transaction on the connection that also writes its checkpoint. `concurrency` clients run in
one process; each takes a batch and works through it.
"""

import asyncio
import json

import psycopg
from absurd_sdk import AsyncAbsurd, AsyncTaskContext

from bench.peers.steps import FULFIL, PAY, RESERVE, Gate, Peer, charge, main

QUEUE = "orders"
BATCH_SIZE = 20
POLL_SECONDS = 0.02
SPAWN_ALL = """
select spawned.task_id
from (select id from orders where status = 'pending' order by order_number) as o,
    absurd.spawn_task(%s, 'fulfil', jsonb_build_object('order', o.id), '{}') as spawned
"""


class Absurd(Peer):
    """So many clients in one process. Its own tables must be there already."""

    package = "absurd-sdk"

    def __init__(self, url: str, concurrency: int) -> None:
        super().__init__(url, concurrency)
        self.settings |= {"batch_size": BATCH_SIZE, "poll_interval": POLL_SECONDS}

    async def prepare(self) -> None:
        """A queue, and a task for each order."""
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            await connection.execute("select absurd.create_queue(%s)", [QUEUE])
            await connection.execute(SPAWN_ALL, [QUEUE])

    async def work(self, gate: Gate) -> None:
        """Run the clients."""
        connections = [
            await psycopg.AsyncConnection.connect(self.url, autocommit=True)
            for _ in range(self.concurrency)
        ]
        await gate()
        await asyncio.gather(*(self._client(each) for each in connections))

    async def _client(self, connection: psycopg.AsyncConnection) -> None:
        client = AsyncAbsurd(connection, queue_name=QUEUE)

        @client.register_task("fulfil")
        async def fulfil(parameters: dict, context: AsyncTaskContext) -> None:
            order = {"order": parameters["order"]}

            async def step(name: str, statement: str, **more: str) -> str:
                async def write() -> str:
                    cursor = await connection.execute(statement, order | more)
                    ((amount,),) = await cursor.fetchall()
                    return amount

                async with connection.transaction():
                    return await context.step(name, write)

            amount = await step("reserve", RESERVE)
            await step("pay", PAY, reference=await charge(parameters["order"], amount))
            await step("fulfil", FULFIL)

        # One at a time: the connection is in a transaction while a task is in a step.
        await client.start_worker(concurrency=1, batch_size=BATCH_SIZE, poll_interval=POLL_SECONDS)

    async def submit(self, connection: psycopg.AsyncConnection, order: str) -> None:
        """In the transaction that places the order."""
        await connection.execute(
            "select absurd.spawn_task(%s, 'fulfil', %s, '{}')",
            [QUEUE, json.dumps({"order": order})],
        )


main(Absurd)
