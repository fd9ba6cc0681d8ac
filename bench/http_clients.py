"""Clients of the HTTP API that cost little themselves: keep-alive connections, no HTTP library."""

import asyncio
import contextlib
import functools
import json
import os
import random
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from typing import Any

from bench.harness import Shop
from bench.pgbench import Run
from darkpearl.api import tokens
from darkpearl.config import Settings

SECRET = "a secret of the benchmarks, and of nothing else"


@contextlib.asynccontextmanager
async def api(url: str, module: str = "darkpearl") -> AsyncIterator[tuple[int, Process]]:
    """`darkpearl api`, or another module's main, in a process of its own; its port, and it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "api"),
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("DARKPEARL")},
            "DARKPEARL_DATABASE_URL": url,
            "DARKPEARL_JWT_SECRET": SECRET,
            "DARKPEARL_PORT": str(port),
            "DARKPEARL_LOG_LEVEL": "warning",
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.1)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)


async def place_orders(
    target: Shop, *, clients: int, seconds: int, module: str = "darkpearl"
) -> Run:
    """Orders by HTTP, to an API of its own; see `drive`."""
    async with api(target.url, module) as (port, _):
        return await drive(target, port, clients, seconds)


async def drive(target: Shop, port: int, clients: int, seconds: int) -> Run:
    """Clients that POST two-line orders, each the next when the one before is answered."""
    warehouse = str(await target.value("select id from warehouses order by code limit 1"))
    rows = await target.connection.execute("select id from products order by sku limit 1000")
    products = [str(product) for (product,) in await rows.fetchall()]

    def order() -> bytes:
        items = [
            {"product_id": random.choice(products[:500]), "quantity": random.randint(1, 3)},
            {"product_id": random.choice(products[500:]), "quantity": 1},
        ]
        return _request("POST /orders", {"warehouse_id": warehouse, "items": items})

    began = time.monotonic()
    placed = sum(
        await asyncio.gather(*(_client(port, seconds, order, b" 201 ") for _ in range(clients)))
    )
    return Run(placed, placed / (time.monotonic() - began))


async def read(port: int, seconds: int) -> int:
    """A client that lists the newest orders of one status or another; how many lists it had."""

    def page() -> bytes:
        status = random.choice(("fulfilled", "pending", "cancelled"))
        return _request(f"GET /orders?limit=20&status={status}")

    return await _client(port, seconds, page, b" 200 ")


async def read_orders(target: Shop, port: int, clients: int, seconds: int, orders: int) -> float:
    """Clients that each read one order after the other, of so many; how many a second."""
    found = await target.connection.execute("select id from orders limit %s", [orders])
    ids = [order for (order,) in await found.fetchall()]

    def order() -> bytes:
        return _request(f"GET /orders/{random.choice(ids)}")

    began = time.monotonic()
    read = sum(
        await asyncio.gather(*(_client(port, seconds, order, b" 200 ") for _ in range(clients)))
    )
    return read / (time.monotonic() - began)


@functools.cache
def _token() -> str:
    return tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 3600)


def _request(what: str, body: dict[str, Any] | None = None) -> bytes:
    head = f"{what} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {_token()}\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    content = json.dumps(body).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _client(port: int, seconds: float, request: Callable[[], bytes], status: bytes) -> int:
    """One connection that asks again and again; how many answers it had, all of that status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    deadline = time.monotonic() + seconds
    answered = 0
    while time.monotonic() < deadline:
        writer.write(request())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if status not in head.split(b"\r\n")[0]:
            raise SystemExit(f"the API refused: {body.decode()}")
        answered += 1
    writer.close()
    return answered
