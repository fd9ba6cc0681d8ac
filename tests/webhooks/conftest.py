"""A shop, receivers that do what a test says, and the service that sends."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
from shop import Shop
from standardwebhooks import Webhook

from darkpearl.database import as_role
from darkpearl.webhooks import Webhooks

Json = dict[str, Any]
Answer = Callable[[Json], Awaitable[int | bytes]]
"""What a receiver does with an event: a status, or an answer word for word; b"" hangs up."""


class Receiver:
    """An HTTP server that takes webhooks, and verifies each by the library."""

    def __init__(self) -> None:
        self.secret = ""
        self.events: list[Json] = []
        """Those that it answered with 2xx, in order."""
        self.taken: set[int] = set()
        """Their ids."""
        self.tried: list[int] = []
        """Ids of all that came."""
        self.signatures = 0
        """Of what came last."""
        self.answer: Answer | None = None
        self.port = 0
        self._came = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?shop=1"

    @property
    def ids(self) -> list[int]:
        return [each["data"]["id"] for each in self.events]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """It is gone: who connects is refused."""
        assert self._server
        self._server.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition holds, looked at whenever an event has come."""
        while not condition():
            self._came.clear()
            await self._came.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                assert head[0] == "POST /hook?shop=1 HTTP/1.1"
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                assert headers["host"].endswith(f":{self.port}")
                raw = [line for line in head if line.lower().startswith("webhook-signature: ")]
                headers["webhook-signature"] = raw[0].split(": ", 1)[1]
                body = await reader.readexactly(int(headers["content-length"]))
                Webhook(self.secret).verify(body, headers)
                event: Json = json.loads(body)
                cell = f"@{event['data']['cell']}" if "cell" in event["data"] else ""
                assert headers["webhook-id"] == f"event-{event['data']['id']}{cell}"
                self.signatures = len(headers["webhook-signature"].split())
                self.tried.append(event["data"]["id"])
                status = await self.answer(event) if self.answer else 204
                if status == b"":
                    break
                if isinstance(status, int):
                    if 200 <= status < 300:
                        self.events.append(event)
                        self.taken.add(event["data"]["id"])
                        self._came.set()
                    status = f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode()
                writer.write(status)
        writer.close()


@pytest.fixture
async def receivers(shop: Shop) -> AsyncIterator[Callable[..., Awaitable[Receiver]]]:
    """Makes receivers, each with its endpoint."""
    async with AsyncExitStack() as stack:

        async def make(answer: Answer | None = None, topics: str | None = None) -> Receiver:
            receiver = Receiver()
            receiver.answer = answer
            await receiver.start()
            stack.push_async_callback(receiver.stop)
            made = await shop.row(
                "select * from create_webhook_endpoint(%s, %s)", receiver.url, topics
            )
            receiver.secret = made["secret"]
            return receiver

        yield make


@pytest.fixture
async def sending(database_url: str) -> Callable[..., Any]:
    """Runs the service for a block."""

    @asynccontextmanager
    async def run(
        *, to_private: bool = True, timeout_seconds: float = 10
    ) -> AsyncIterator[Webhooks]:
        service = Webhooks(
            as_role(database_url, "darkpearl_listener"),
            to_private=to_private,
            timeout_seconds=timeout_seconds,
            shutdown_seconds=1,
        )
        task = asyncio.create_task(service.run())
        try:
            yield service
        finally:
            service.stop()
            await task

    return run


@pytest.fixture
async def start(database_url: str) -> Callable[[], Awaitable[asyncio.subprocess.Process]]:
    """Starts `darkpearl webhooks`, a process of its own."""
    kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL_")}
    settings = {
        "DARKPEARL_DATABASE_URL": database_url,
        "DARKPEARL_WEBHOOKS_TO_PRIVATE_ADDRESSES": "true",
    }

    async def run() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "darkpearl", "webhooks"), env=kept | settings
        )

    return run


@pytest.fixture
async def orders(shop: Shop) -> Callable[[int], Awaitable[list[UUID]]]:
    """Places so many orders, which are placed, paid and fulfilled."""
    product = await shop.product(on_hand=1_000_000)

    async def place(count: int = 1) -> list[UUID]:
        return [await shop.fulfilled((product, 1)) for _ in range(count)]

    return place
