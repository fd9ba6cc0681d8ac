import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from darkpearl import database
from darkpearl.config import Settings
from darkpearl.gateways import Gateway
from darkpearl.gateways.mock import MockGateway
from darkpearl.listener import Listener
from darkpearl.serving import limits_of

DOOMED = Path(__file__).with_name("doomed_listener.py")


@pytest.fixture
def killed_listener(database_url: str) -> Callable[[str, Path], Awaitable[None]]:
    """Runs a listener that kills itself at a place, until it has; its calls are in the log."""
    url = database.as_role(database_url, "darkpearl_listener")

    async def run(place: str, log: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(DOOMED), url, place, str(log)
        )
        assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGKILL

    return run


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
