import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from darkpearl import database
from darkpearl.config import Settings
from darkpearl.gateways import Gateway
from darkpearl.gateways.mock import MockGateway
from darkpearl.listener import Listener
from darkpearl.serving import limits_of


@pytest.fixture
async def listening(database_url: str) -> AsyncIterator[Callable[..., Awaitable[Listener]]]:
    """Starts listeners in this process, under their role; stops them at the end."""
    url = database.as_role(database_url, "darkpearl_listener")

    @asynccontextmanager
    async def running(listener: Listener) -> AsyncIterator[None]:
        task = asyncio.create_task(listener.run())
        try:
            yield
        finally:
            listener.stop()
            await task

    async with AsyncExitStack() as stack:

        async def start(gateway: Gateway | None = None, **settings: Any) -> Listener:
            listener = Listener(url, gateway or MockGateway(), limits_of(Settings(**settings)))
            await stack.enter_async_context(running(listener))
            return listener

        yield start
