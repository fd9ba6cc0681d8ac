import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from moving import Moving, Third, new_warehouse, nothing_is_left
from network import Road
from places import LOGICAL, Place, pgpass, shops_at, stocked, temporary, write_passwords
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from server import SECRET, served
from shop import Shop
from terminal import Done, Run, done

from darkpearl import cells, schema
from darkpearl.api.tokens import Role, mint
from darkpearl.cells.joining import without_secrets
from darkpearl.config import Settings
from darkpearl.embedded import Server

Client = Callable[..., httpx.AsyncClient]
Serve = Callable[..., Client]
Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]


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


def remember(url: str) -> None:
    """Have libpq know the password of one address more."""
    passwords = Path(os.environ["PGPASSFILE"])
    passwords.write_text(f"{passwords.read_text()}{pgpass(url)}\n")


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


@pytest.fixture
async def north(places: tuple[Place, Place]) -> AsyncIterator[Place]:
    """An empty database on the other server, whatever the test before has left."""
    _, north = places
    yield north
    await north.forget()
    await north.anew()


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
async def moving(pair: Pair, until: Until) -> Moving:
    """A warehouse of home that is about to move, of which north knows; and a product."""
    return await new_warehouse(pair, until)


@pytest.fixture
async def third(pair: Pair, places: Places) -> AsyncIterator[Third]:
    """A third cell, on home's server, so that warehouses may leave it again."""
    home, _ = places
    place = Place(home.server, "beside")
    await place.anew()
    name = f"c{uuid4().hex[:8]}"
    async for _ in cells.add(home.url, place.url, name):
        pass
    async with await AsyncConnection.connect(
        place.url, autocommit=True, row_factory=dict_row, options="-c search_path=darkpearl"
    ) as connection:
        yield name, place.url, Shop(connection)
    await cells.remove(home.url, name)
    await nothing_is_left(pair)


@asynccontextmanager
async def road_to(place: Place) -> AsyncIterator[Road]:
    """A way to a database, of which libpq knows the password too."""
    parts = conninfo_to_dict(place.url)
    async with Road(str(parts["host"]), int(parts["port"] or 5432)) as road:
        remember(make_conninfo(place.url, port=str(road.port)))
        yield road


@pytest.fixture(scope="module")
async def home_road(
    pair: tuple[Shop, Shop],  # noqa: ARG001 - once passwords are known
    places: tuple[Place, Place],
) -> AsyncIterator[Road]:
    """The way that the APIs take to home, which can be cut off."""
    async with road_to(places[0]) as road:
        yield road


@pytest.fixture(scope="module")
async def road(pair: tuple[Shop, Shop], places: tuple[Place, Place]) -> AsyncIterator[Road]:
    """The way that everybody takes to north, which can be cut off."""
    here, _ = pair
    _, north = places
    async with road_to(north) as road:
        url = make_conninfo(without_secrets(north.url), port=str(road.port))
        await here.run("update cells set url = %s where number = 2", url)
        yield road


@pytest.fixture(scope="module")
async def serve(road: Road) -> AsyncIterator[Serve]:  # noqa: ARG001 - by which it goes
    """Serves an API at the address of a cell; gives what makes clients of it."""
    async with AsyncExitStack() as stack:

        def start(place: Place, port: int | None = None, **more: Any) -> Client:
            settings = Settings(port=0, pool_size=8, jwt_secret=SECRET, **more)
            url = make_conninfo(without_secrets(place.url), **({"port": port} if port else {}))
            address = stack.enter_context(served(url, settings))

            def client(
                role: Role | None = "service_role", subject: object = None
            ) -> httpx.AsyncClient:
                headers = {}
                if role:
                    name = str(subject) if subject else None
                    token = mint(Settings(jwt_secret=SECRET), role, name, 600)
                    headers["Authorization"] = f"Bearer {token}"
                made = httpx.AsyncClient(
                    base_url=f"http://{address[0]}:{address[1]}", headers=headers, timeout=20
                )
                stack.push_async_callback(made.aclose)
                return made

            return client

        yield start


@pytest.fixture(scope="module")
def client(serve: Serve, places: tuple[Place, Place], home_road: Road) -> Client:
    """Makes clients of an API that was given home's address."""
    return serve(places[0], home_road.port)


@pytest.fixture(scope="module")
def api(client: Client) -> httpx.AsyncClient:
    """One of them, of staff."""
    return client()


@pytest.fixture
def run(places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command at home."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", places[0].url)

    async def command(*arguments: object) -> Done:
        return await asyncio.to_thread(done, arguments)

    return command


@pytest.fixture
async def product(pair: tuple[Shop, Shop], until: Callable[..., Awaitable[None]]) -> UUID:
    """A product that both cells know, of which either warehouse has 100."""
    return await stocked(pair, until, 100, 100)
