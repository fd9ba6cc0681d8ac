"""A shop, receivers that do what a test says, and the service that sends."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from receiving import Answer, Receiver
from shop import Shop

from darkpearl.database import as_role
from darkpearl.webhooks import Webhooks


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
