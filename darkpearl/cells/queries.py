"""What a query gives, for the commands that change cells."""

from typing import Any

from psycopg import AsyncConnection

HERE = "subdbid = (select oid from pg_database where datname = current_database())"
"""Subscriptions of this database: the server has a list of all."""
QUIETLY = (
    "set local log_statement = 'none'",
    "set local log_min_duration_statement = -1",
    "set local log_min_error_statement = 'panic'",
    "set local pg_stat_statements.track_utility = off",
)
"""What keeps the passwords of a transaction's statements out of logs and statistics."""


async def one(connection: AsyncConnection[Any], query: str, *values: Any) -> Any:
    """The first row of a query, or None."""
    return await (await connection.execute(query.encode(), values or None)).fetchone()


async def value(connection: AsyncConnection[Any], query: str, *values: Any) -> Any:
    """The first value of the first row of a query, or None."""
    row = await one(connection, query, *values)
    return row and row[0]


async def rows(connection: AsyncConnection[Any], query: str, *values: Any) -> list[Any]:
    """Every row of a query."""
    return list(await (await connection.execute(query.encode(), values or None)).fetchall())
