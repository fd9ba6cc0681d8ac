"""Payment simulators: in this process, behind a socket of it, and as processes of their own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkpearl import serving
from darkpearl.config import Settings
from darkpearl.gateways import Call, Operation
from darkpearl.gateways.http import HttpGateway
from darkpearl.paysim.app import create_app
from darkpearl.paysim.faults import Behaviour, with_faults
from darkpearl.paysim.ledger import Ledger
from darkpearl.paysim.webhooks import Webhooks

SECRET = "whsec"
PATIENCE_SECONDS = 20

Start = Callable[..., AbstractAsyncContextManager[HttpGateway]]
Handler = Callable[[httpx.Request], Any]


def call(operation: Operation, key: str, amount: str = "10.00", **more: Any) -> Call:
    """A call about payment `p`, in euros unless it says otherwise."""
    about = {"payment_key": key if operation == "authorize" else "p", "currency": "EUR", **more}
    return Call(operation=operation, idempotency_key=key, amount=Decimal(amount), **about)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The address of an ASGI application on a socket of this process."""
    with serving.bound_socket("127.0.0.1", 0, "nothing") as taken:
        service = serving.paysim_service(Settings(shutdown_seconds=1), app, taken)
        taken.listen()
        running = asyncio.ensure_future(service.run())
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            service.stop()
            await running


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs a simulator on one file, with a client of it for as long as the context lasts.

    Named arguments are its behaviour; `heard` answers its webhooks, which are signed with `secret`;
    `socket` puts it behind one.
    """

    @asynccontextmanager
    async def run(
        *,
        heard: Handler | None = None,
        secret: str | None = SECRET,
        socket: bool = False,
        **how: Any,
    ) -> AsyncIterator[HttpGateway]:
        behaviour, ledger = Behaviour(**how), Ledger(tmp_path / "paysim.db")
        webhooks = None
        if heard:
            mock = httpx.MockTransport(heard)
            webhooks = Webhooks(ledger, behaviour, "http://shop/hook", secret, mock)
        inner = create_app(ledger, behaviour, webhooks, token="sesame")
        app: Any = with_faults(inner, behaviour)
        async with AsyncExitStack() as stack:
            if socket:
                url, transport = await stack.enter_async_context(served(app)), None
            else:
                await stack.enter_async_context(inner.lifespan())
                url, transport = "http://paysim", httpx.ASGITransport(app)
            gateway = HttpGateway(
                url, token="sesame", webhook_secret=SECRET, concurrency=32, transport=transport
            )
            stack.push_async_callback(gateway.close)
            yield gateway

    return run


@pytest.fixture
async def gateway(start: Start) -> AsyncIterator[HttpGateway]:
    """A simulator that behaves."""
    async with start() as gateway:
        yield gateway
