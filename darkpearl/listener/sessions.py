"""The sessions of one client that knows beforehand what it will ask.

Its statements are prepared when it connects and asked without a cursor, whose conversions are most
of the work that a small statement is for its client; and one can begin before anybody has the time
to wait for its rows.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Self

import psycopg
from psycopg import generators
from psycopg.rows import tuple_row

from darkpearl import database

Rows = list[tuple[bytes | None, ...]]
"""Values as PostgreSQL writes them."""
Begun = Callable[[], Awaitable[Rows]]
"""A statement that has begun: gives its rows, or raises psycopg.Error when it failed."""


class Sessions:
    """A few connections, each used by one caller at a time.

    The one that was used last comes first: its memory is in the processor's caches still.
    """

    def __init__(self, connections: list[database.Connection]) -> None:
        self._free = connections

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, name: str, statements: Mapping[str, str], *, count: int
    ) -> AsyncIterator[Self]:
        """Connect and prepare.

        Args:
            url: where to; directly, since a pooler loses what is prepared.
            name: what `pg_stat_activity` shows as the application.
            statements: by name, with parameters $1, $2 …
            count: of connections: so many calls are made at once.
        """
        async with contextlib.AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(database.connect(url, name)) for _ in range(count)
            ]
            for connection in connections:
                for statement, query in statements.items():
                    await connection.execute(f"prepare {statement} as {query}".encode())
            yield cls(connections)

    def begin(self, statement: str, *parameters: bytes) -> Begun:
        """Have a prepared statement begin, and return at once.

        Returns:
            A function that waits for its rows, to be called once.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        connection = self._free[-1]
        connection.pgconn.send_query_prepared(statement.encode(), parameters)
        connection.pgconn.flush()  # as much as goes at once; _rows() sees to the rest
        return partial(self._rows, self._free.pop())

    async def call(self, statement: str, *parameters: bytes) -> Rows:
        """The rows of a prepared statement.

        Raises:
            psycopg.Error: it failed, or the connection is lost.
        """
        return await self.begin(statement, *parameters)()

    async def fetch(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of any statement, in Python's types.

        Raises:
            psycopg.Error: it failed, or the connection is lost.
        """
        connection = self._free.pop()
        try:
            cursor = connection.cursor(row_factory=tuple_row)
            await cursor.execute(query.encode(), parameters)
            return await cursor.fetchall()
        finally:
            self._free.append(connection)

    async def _rows(self, connection: database.Connection) -> Rows:
        try:
            (result,) = await connection.wait(generators.execute(connection.pgconn))
        finally:
            self._free.append(connection)
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        columns = range(result.nfields)
        return [tuple(result.get_value(n, i) for i in columns) for n in range(result.ntuples)]


async def all_of(*calls: Awaitable[Any]) -> None:
    """Run calls of the database to their ends, then raise the first failure.

    None is cancelled for another's failure: what it may have committed must be heard.
    """
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
