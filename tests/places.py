"""A database of one of several servers, for tests of cells."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from shop import Shop

from darkpearl import embedded, schema
from darkpearl.embedded import Server

LOGICAL = {"wal_level": "logical", "shared_buffers": "64MB", "max_replication_slots": "8"}


@contextmanager
def temporary(options: dict[str, str]) -> Iterator[Server]:
    """A server of the programs that all tests are run on."""
    other = os.environ.get("DARKPEARL_TEST_BINARIES")
    with embedded.temporary(Path(other) if other else None, options) as server:
        yield server


class Place:
    """A database of a server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        """With its password, which is nowhere kept."""
        return make_conninfo(self.server.url, dbname=self.name)

    async def anew(self) -> None:
        """Empty, and without what a test before has left on the server."""
        async with schema.connect(self.server.url) as connection:
            await connection.execute(f"drop database if exists {self.name} with (force)".encode())
            await connection.execute(f"create database {self.name} template template0".encode())

    async def forget(self) -> None:
        """No subscription and no slot is left: either keeps its database."""
        async with schema.connect(self.url) as there:
            await there.execute(
                "do $$ begin if exists (select from pg_subscription) then"
                " alter subscription darkpearl_catalogue disable;"
                " alter subscription darkpearl_catalogue set (slot_name = none);"
                " drop subscription darkpearl_catalogue; end if; end $$"
            )

    async def forget_slots(self) -> None:
        """The same of home."""
        async with schema.connect(self.url) as there:
            while True:
                left = await there.execute(
                    "select slot_name, pg_terminate_backend(active_pid) from pg_replication_slots"
                )
                names = [name for name, _ in await left.fetchall()]
                if not names:
                    return
                for name in names:
                    await asyncio.sleep(0)
                    await there.execute(
                        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                        " where slot_name = %s and not active",
                        [name],
                    )


def pgpass(url: str) -> str:
    """A line of a password file."""
    parts = conninfo_to_dict(url)
    server = ":".join(str(parts[each]) for each in ("host", "port"))
    return f"{server}:*:darkpearl:{parts['password']}"


def write_passwords(file: Path, *places: Place) -> None:
    """A password file for libpq, which is how commands find the passwords of other cells."""
    file.touch(0o600)
    file.write_text("".join(f"{pgpass(each.url)}\n" for each in places))


@asynccontextmanager
async def shops_at(*places: Place) -> AsyncIterator[list[Shop]]:
    """A superuser's connection to each; they speak of the same warehouses."""
    async with AsyncExitStack() as stack:
        shops = []
        for place in places:
            connection = await AsyncConnection.connect(
                place.url,
                autocommit=True,
                row_factory=dict_row,
                options="-c search_path=darkpearl -c statement_timeout=20s",
            )
            shops.append(Shop(await stack.enter_async_context(connection)))
            shops[-1].lisbon, shops[-1].rotterdam = shops[0].lisbon, shops[0].rotterdam
        yield shops


async def stocked(
    pair: tuple[Shop, Shop], until: Callable[..., Awaitable[None]], lisbon: int, rotterdam: int
) -> UUID:
    """A new product that both cells know, with so many units in the warehouse of each."""
    here, there = pair
    made = await here.product()

    async def is_known() -> bool:
        return bool(await there.values("select id from products where id = %s", made))

    await until(is_known)
    await here.receive(made, lisbon, here.lisbon)
    await there.receive(made, rotterdam, there.rotterdam)
    return made
