"""What commands ask of the database: to look, as whoever logs in; to act, as staff.

A command has no logic of its own: it calls a function, or selects from a view with filters.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import rich_click as click

from darkpearl import database, schema
from darkpearl.cli.where import running
from darkpearl.config import Settings
from darkpearl.errors import UnavailableError, problem_of

STAFF_ROLE = "service_role"
_OURS = "-c search_path=darkpearl"
_LOOKS = f"{_OURS} -c default_transaction_read_only=on -c statement_timeout=60s"

Row = dict[str, Any]


class Refusal(click.ClickException):
    """The database refuses what was asked for: as a wrong command."""

    exit_code = 2


class Session:
    """A connection, and statements whose rows have names."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, query: str, parameters: Sequence[Any] | Row | None = None) -> list[Row]:
        """Every row of a statement; none of one that returns nothing."""
        cursor = await self._connection.execute(query.encode(), parameters)
        if cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def first(self, query: str, *parameters: Any) -> Row | None:
        """The first row, if there is one."""
        return next(iter(await self.rows(query, parameters or None)), None)

    async def one(self, refusal: str, query: str, *parameters: Any) -> Row:
        """The first row.

        Raises:
            Refusal: in these words, if there is none.
        """
        found = await self.first(query, *parameters)
        if found is None:
            raise Refusal(refusal)
        return found


def looking(settings: Settings) -> contextlib.AbstractAsyncContextManager[Session]:
    """A session that only reads, with the rights of the login itself."""
    return _session(database.with_options(running(settings), _LOOKS))


def acting(settings: Settings) -> contextlib.AbstractAsyncContextManager[Session]:
    """A session of staff; what it does is written down with the name of the login."""
    return _session(database.with_options(running(settings), _OURS), f"set role {STAFF_ROLE}")


def finding(
    settings: Settings, query: str, parameters: Sequence[Any] | None = None
) -> Callable[[], Awaitable[list[Row]]]:
    """A look that finds what a statement does, in a session of its own each time."""

    async def look() -> list[Row]:
        async with looking(settings) as session:
            return await session.rows(query, parameters)

    return look


def act(settings: Settings, call: Callable[[Session], Awaitable[list[Row]]]) -> list[Row]:
    """What a call in a session of staff returns."""

    async def run() -> list[Row]:
        async with acting(settings) as session:
            return await call(session)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _session(url: str, begin: str = "") -> AsyncIterator[Session]:
    """A session, in which a statement comes before all others.

    Raises:
        Refusal: the database refuses what is asked for in the block, or this login.
        schema.SchemaError: it is away, busy, or something is wrong with it.
    """
    try:
        async with schema.connect(url) as connection:
            database.read_json_exactly(connection)
            if begin:
                await connection.execute(begin.encode())
            yield Session(connection)
    except schema.SchemaError as error:
        if is_refusal(error):
            raise Refusal(str(error)) from error
        raise


def is_refusal(error: schema.SchemaError) -> bool:
    """Whether the same would be refused again, for what it asks or who asks."""
    problem = problem_of(getattr(error.__cause__, "sqlstate", None) or "08000")
    return problem is not None and problem.kind is not UnavailableError


class Filters:
    """Conditions of a query; those without a value are left out."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self._values: list[Any] = []

    def add(self, condition: str, value: Any) -> "Filters":
        """Add a condition, unless its value is None, an empty tuple or False."""
        if value is not None and value != () and value is not False:
            self._conditions.append(condition)
            self._values += [list(value) if isinstance(value, tuple) else value] * condition.count(
                "%s"
            )
        return self

    def query(self, select: str, order: str, limit: int) -> tuple[str, list[Any]]:
        """The statement and its parameters."""
        where = f" where {' and '.join(self._conditions)}" if self._conditions else ""
        return f"{select}{where} order by {order} limit %s", [*self._values, limit]


async def order_id(session: Session, order: UUID | int) -> UUID:
    """The id of an order that may be named by its number, and of the saga that carries it.

    Raises:
        Refusal: no order has this number.
    """
    if isinstance(order, UUID):
        return order
    query = "select id from orders where order_number = %s"
    found = await session.one(f"there is no order {order}", query, order)
    return UUID(str(found["id"]))


async def warehouse_id(session: Session, name: str) -> UUID:
    """The id of a warehouse that may be named by its code.

    Raises:
        Refusal: there is none.
    """
    return await _id_of(session, "warehouses", "code", name)


async def product_id(session: Session, name: str) -> UUID:
    """The id of a product that may be named by its SKU.

    Raises:
        Refusal: there is none.
    """
    return await _id_of(session, "products", "sku", name)


async def _id_of(session: Session, table: str, column: str, name: str) -> UUID:
    found = await session.one(
        f"there is no {table.removesuffix('s')} {name}",
        f"select id from {table} where {column} = %s or id::text = %s limit 1",  # noqa: S608
        *(name, name.lower()),
    )
    return UUID(str(found["id"]))
