import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from places import LOGICAL, Place, shops_at, temporary, write_passwords
from shop import Shop
from terminal import Done, Run, done

from darkpearl import cells, schema
from darkpearl.embedded import Server


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


@pytest.fixture(scope="module")
async def places(
    home_server: Server, other_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Place, Place]]:
    """Home, migrated and empty, and an empty database elsewhere; libpq knows the passwords."""
    home, north = Place(home_server, "home"), Place(other_server, "north")
    passwords = tmp_path_factory.mktemp("cells") / "pgpass"
    write_passwords(passwords, home, north)
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
    async with shops_at(home, north) as (here, there):
        await here.run(
            "insert into warehouses (id, code, name, cell) values (%s, 'LIS', 'L', 1),"
            " (%s, 'RTM', 'R', 2)",
            *(here.lisbon, here.rotterdam),
        )
        yield here, there
        for shop in (here, there):
            assert await shop.audit() == []


@pytest.fixture
def run(places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command at home."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", places[0].url)

    async def command(*arguments: object) -> Done:
        return await asyncio.to_thread(done, arguments)

    return command
