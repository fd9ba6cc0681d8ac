import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from places import Place
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from shop import Shop
from terminal import Done, Run, done

from darkpearl import cells, embedded, schema
from darkpearl.embedded import Server

LOGICAL = {"wal_level": "logical", "shared_buffers": "64MB", "max_replication_slots": "8"}


@contextmanager
def temporary(options: dict[str, str]) -> Iterator[Server]:
    """A server of the programs that all tests are run on."""
    other = os.environ.get("DARKPEARL_TEST_BINARIES")
    with embedded.temporary(Path(other) if other else None, options) as server:
        yield server


@pytest.fixture(scope="session")
def home_server() -> Iterator[Server]:
    """The server of home, which replicates."""
    with temporary(LOGICAL) as server:
        yield server


@pytest.fixture(scope="session")
def other_server() -> Iterator[Server]:
    """Another server, whose own wal_level doesn't matter."""
    with temporary({"shared_buffers": "64MB"}) as server:
        yield server


def pgpass(url: str) -> str:
    """A line of a password file."""
    parts = conninfo_to_dict(url)
    return (
        ":".join(str(parts[each]) for each in ("host", "port"))
        + f":*:darkpearl:{parts['password']}"
    )


@pytest.fixture(scope="module")
async def places(
    home_server: Server, other_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Place, Place]]:
    """Home, migrated and empty, and an empty database elsewhere; libpq knows the passwords."""
    home, north = Place(home_server, "home"), Place(other_server, "north")
    passwords = tmp_path_factory.mktemp("cells") / "pgpass"
    passwords.write_text("".join(f"{pgpass(each.url)}\n" for each in (home, north)))
    passwords.chmod(0o600)
    for each in (home, north):
        await each.anew()
    await schema.migrate(home.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(passwords))
        yield home, north
    await north.forget()
    await home.forget_slots()


@pytest.fixture(scope="module")
async def pair(places: tuple[Place, Place]) -> AsyncIterator[tuple[Shop, Shop]]:
    """Two cells: home, which has Lisbon, and cell 2, north, which has Rotterdam."""
    home, north = places
    async for _ in cells.add(home.url, north.url, "north"):
        pass
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
        here, there = shops
        there.lisbon, there.rotterdam = here.lisbon, here.rotterdam
        await here.run(
            "insert into warehouses (id, code, name, cell) values (%s, 'LIS', 'L', 1),"
            " (%s, 'RTM', 'R', 2)",
            *(here.lisbon, here.rotterdam),
        )
        yield here, there
        for shop in shops:
            assert await shop.audit() == []


@pytest.fixture
def run(places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command at home."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", places[0].url)

    async def command(*arguments: object) -> Done:
        return await asyncio.to_thread(done, arguments)

    return command
