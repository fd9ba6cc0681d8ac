"""A database that is restarted under an API and a listener, each a process of its own."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest
from server import SECRET, Process, answering, free_port

from darkpearl import embedded, schema
from darkpearl.api import tokens
from darkpearl.config import Settings

CLIENTS = 8
MEMORY = embedded.MEMORY if os.access(embedded.MEMORY, os.W_OK) else None
ORDER = {
    "warehouse_id": "11111111-1111-1111-1111-111111111111",
    "items": [{"product_id": "aaaa4444-4444-4444-4444-444444444444", "quantity": 1}],
}


class Load:
    """Clients that place orders, one after the other, until they are to stop."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.answers: list[httpx.Response] = []
        self._client = client
        self._came = asyncio.Condition()
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._order()) for _ in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _order(self) -> None:
        while not self._stopping:
            answer = await self._client.post("/orders", json=ORDER)
            async with self._came:
                self.answers.append(answer)
                self._came.notify_all()

    async def next(self, wanted: int) -> list[httpx.Response]:
        """So many answers to requests that are sent from now on."""
        start = len(self.answers) + CLIENTS  # less those that are under way
        async with asyncio.timeout(30), self._came:
            await self._came.wait_for(lambda: len(self.answers) >= start + wanted)
        return self.answers[start:]


def statuses(answers: list[httpx.Response]) -> set[int]:
    """The answers' words."""
    return {each.status_code for each in answers}


async def fulfilled(address: str, wanted: int) -> None:
    """Return once so many orders are; at most for half a minute."""
    query = "select count(*) from darkpearl.orders where status = 'fulfilled'"
    async with asyncio.timeout(30), schema.connect(address) as connection:
        done = 0
        while done < wanted:
            cursor = await connection.execute(query)
            (done,) = await cursor.fetchone() or (0,)
            await asyncio.sleep(0.02)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for a server of its own, in memory where there is some."""
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=MEMORY) as folder:
        Path(folder).chmod(0o711)  # for root's `nobody`
        yield Path(folder)


async def test_a_restart_of_the_database_is_503_and_passes(home: Path) -> None:
    """Under load: 503 with Retry-After while it lasts, nothing but 2xx after, nothing restarted."""
    token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 600)
    port = free_port()
    server = await asyncio.to_thread(embedded.start, home, embedded.UNSAFE)
    again = {**embedded.UNSAFE, "port": str(server.port)}
    settings = {
        "DARKPEARL_DATABASE_URL": server.url,
        "DARKPEARL_PORT": str(port),
        "DARKPEARL_MOCK_APPROVAL_RATE": "1",
    }
    try:
        await schema.migrate(server.url)
        await schema.seed(server.url)
        with Process("api", **settings) as api, Process("listener", **settings) as listener:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"authorization": f"Bearer {token}"},
                timeout=30,
            ) as client:
                await answering(client)
                async with Load(client) as load:
                    assert statuses(await load.next(50)) == {201}
                    await asyncio.to_thread(embedded.stop, server)
                    lost = await load.next(1)
                    assert statuses(lost) == {503}
                    assert all(each.headers["retry-after"] == "1" for each in lost)
                    server = await asyncio.to_thread(embedded.start, home, again)
                    await answering(client)
                    assert statuses(await load.next(50)) == {201}
                assert statuses(load.answers) == {201, 503}
                placed = [each for each in load.answers if each.status_code == 201]
                await fulfilled(server.url, len(placed))
            assert api.runs()
            assert listener.runs()
    finally:
        embedded.stop(server)
