"""A database of one of several servers, for tests of cells."""

import asyncio

from psycopg.conninfo import make_conninfo

from darkpearl import schema
from darkpearl.embedded import Server


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
