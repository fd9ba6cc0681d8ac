"""A pipeline that is sent in one piece.

The driver's own sends each statement by itself, and the server wakes up and goes to sleep for each;
its BEGIN and COMMIT have cursors that nobody needs. This one differs in three steps that the driver
takes inwardly; a test counts segments on the wire.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.generators import send


class Pipeline(psycopg.AsyncPipeline):
    """Statements executed on its connection wait until one's rows are fetched, or for the end."""

    def enqueue(self, command: bytes) -> None:
        """Execute a command that has no parameters and no rows, without a cursor."""
        self.command_queue.append(partial(self.pgconn.send_query_params, command, None))
        self.result_queue.append(None)

    def _communicate_gen(self) -> PQGen[None]:
        """Called after each statement."""
        yield from ()

    def _fetch_gen(self, *, flush: bool) -> PQGen[None]:
        """Called before results are read; `flush` when nothing else asks the server for them."""
        while self.command_queue:
            self.command_queue.popleft()()
        if not flush:
            yield from send(self.pgconn)
        yield from super()._fetch_gen(flush=flush)

    def _exit_gen(self) -> PQGen[None]:
        """Called at the end. The driver's own asks once more after a Sync, which has asked."""
        yield from self._sync_gen()


@asynccontextmanager
async def pipeline(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[Pipeline]:
    """As the method of a connection.

    Raises:
        psycopg.Error: what the first statement that failed says; at the end, or on fetching.
    """
    ours = connection._pipeline = Pipeline(connection)  # noqa: SLF001 - which its method takes
    try:
        async with connection.pipeline():
            yield ours
    except psycopg.errors.ReadOnlySqlTransaction:
        if connection.info.parameter_status("in_hot_standby") == "on":
            await connection.close()  # the next may find the server that can be written to
        raise
