import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from shop import Row, Shop

from darkpearl import schema


@pytest.fixture
async def log_in(
    database_url: str, connect: Callable[..., Awaitable[Any]], shop: Shop
) -> Callable[[str], Awaitable[AsyncConnection[Row]]]:
    """Opens a connection under the login of a role, with nothing but what the role brings.

    A clone of the template has lost the settings that roles have per database: migrate anew.
    """
    await schema.migrate(database_url)

    async def log_in_as(role: str) -> AsyncConnection[Row]:
        await shop.run(f"alter role {role} password 'secret'")
        return await connect(user=role, password="secret", options="", row_factory=dict_row)

    return log_in_as


@pytest.fixture
async def as_customer(
    log_in: Callable[[str], Awaitable[AsyncConnection[Row]]],
) -> Callable[..., Awaitable[list[Any]]]:
    """Runs a statement as the API does for a customer: role and claims in a transaction."""
    connection = await log_in("darkpearl_api")

    async def run(customer: str | None, query: str, *parameters: Any) -> list[Any]:
        async with connection.transaction():
            await connection.execute("set local role authenticated")
            if customer:
                await connection.execute(
                    "select set_config('request.jwt.claims', %s, true)",
                    [json.dumps({"sub": customer})],
                )
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    return run
