"""Everything that a stranger can do, at once: `make siege`, which takes too long for `make test`.

Fifty customers order and look, at first alone, then beside hostile bodies, trailers, deep offsets,
counted lists, silent and unfinished requests, and all that a limit has to see. Their answers may
take longer then, but not much, and each of them gets one.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from server import SECRET, Process, answering, free_port
from shop import Shop
from test_strangers import CHUNKED, DESCRIPTORS, HOSTILE, TOKEN, head

from darkpearl.api import tokens
from darkpearl.config import VISITOR_RATE_LIMIT, Settings

SECONDS = float(os.environ.get("DARKPEARL_TEST_SIEGE_SECONDS", "60"))
QUIET_SECONDS = max(10.0, SECONDS / 4)
CUSTOMERS = 50
ROWS = 100_000
PAUSES = (0.2, 0.8)
WORST_RATIO = 5.0
LEAST_ATTACKS = 100.0
"""That a second ends, or it is no siege."""
SILENT = 320
UNFINISHED = 40
JSON = {"content-type": "application/json"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Seen:
    """What the customers have met."""

    times: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def p99(self) -> float:
        """Seconds that all but one answer of a hundred took at most."""
        return sorted(self.times)[int(len(self.times) * 0.99)]

    def __str__(self) -> str:
        return f"p99 {self.p99 * 1000:.1f} ms of {len(self.times)}: {dict(self.statuses)}"


async def customer(port: int, shop: Shop, seen: Seen, until: float) -> None:
    """Place an order, look at it and at a product, and think between."""
    token = tokens.mint(Settings(jwt_secret=SECRET), "authenticated", str(uuid4()), 3600)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"authorization": f"Bearer {token}"},
        timeout=30,
        verify=False,
    ) as client:

        async def ask(method: str, path: str, **more: Any) -> httpx.Response | None:
            await asyncio.sleep(random.uniform(*PAUSES))
            began = time.perf_counter()
            try:
                told = await client.request(method, path, **more)
            except httpx.TransportError as error:
                seen.statuses[type(error).__name__] += 1
                return None
            seen.times.append(time.perf_counter() - began)
            seen.statuses[str(told.status_code)] += 1
            return told

        product = str(shop.products[0])
        body = {
            "warehouse_id": str(shop.lisbon),
            "items": [{"product_id": product, "quantity": 1}],
        }
        while time.monotonic() < until:
            placed = await ask("POST", "/orders", json=body)
            if placed and placed.status_code == 201:
                await ask("GET", f"/orders/{placed.json()['id']}")
            await ask("GET", f"/products/{product}")


async def customers(port: int, shop: Shop, seconds: float) -> Seen:
    """All of them, for so long."""
    seen, until = Seen(), time.monotonic() + seconds
    await asyncio.gather(*(customer(port, shop, seen, until) for _ in range(CUSTOMERS)))
    return seen


def besiege(port: int, attacks: "Synchronized[int]") -> None:
    """Attack until killed, in a process of its own, and count the attacks that came to their end.

    Attackers have machines of their own. Here they get what the API and its customers leave, also
    where Linux shares the processors among sessions (autogroups) before processes.
    """
    os.setsid()
    os.nice(19)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")
    asyncio.run(_besiege(port, attacks))


async def _besiege(port: int, ended: "Synchronized[int]") -> None:
    async def held(said: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        await reader.read()
        writer.close()

    async def trailers() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("POST", "/orders", *CHUNKED, f"Authorization: Bearer {TOKEN}"))
        writer.write(b"2\r\n{}\r\n0\r\n")
        for _ in range(200):
            writer.write(b"X: " + b"x" * 1000 + b"\r\n")
            await writer.drain()
        writer.close()

    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=30, verify=False
    ) as client:

        def body(content: bytes, headers: dict[str, str]) -> Callable[[], Awaitable[Any]]:
            return lambda: client.post("/orders", content=content, headers={**JSON, **headers})

        def got(path: str, **headers: str) -> Callable[[], Awaitable[Any]]:
            return lambda: client.get(path, headers=headers)

        unfinished = head(
            "POST",
            "/orders",
            "Content-Length: 900000",
            CHUNKED[0],
            f"Authorization: Bearer {TOKEN}",
        )
        attacks: list[Callable[[], Awaitable[Any]]] = [
            *(body(content, {}) for content in HOSTILE.values()),
            *(body(content, BEARER) for content in HOSTILE.values()),
            trailers,
            *[got(f"/inventory?limit=1&offset={ROWS - 1}")] * 4,
            *[got(f"/inventory?limit=1&offset={ROWS - 1}", **BEARER)] * 4,
            *[got("/inventory?limit=1")] * 16,
            *[got("/health/ready")] * 4,
            got("/products?" + "&".join(f"{n:x}" for n in range(1500))),
            got("/nowhere"),
            got("/schema/openapi.json"),
            got("/schema/openapi.yaml"),
            got("/products", host="a:99999"),
            got("/products", authorization="Bearer x"),
            lambda: client.post("/payments/webhooks/mock", content=b"{}"),
            *[lambda: held(b"")] * SILENT,
            *[lambda: held(unfinished + b"[" * 500_000)] * UNFINISHED,
            *[lambda: held(head("POST", "/payments/webhooks/mock", "Content-Length: 9"))]
            * UNFINISHED,
        ]

        async def again(attack: Callable[[], Awaitable[Any]]) -> None:
            while True:
                with contextlib.suppress(httpx.TransportError, OSError):
                    await attack()
                ended.value += 1
                await asyncio.sleep(0.01)

        await asyncio.gather(*map(again, attacks))


async def test_customers_hardly_notice_a_siege(database_url: str, shop: Shop) -> None:
    """None of them gets a 5xx, and their p99 is at most five times that of quiet times."""
    await shop.product(on_hand=1_000_000)
    async with shop.unguarded():
        await shop.run(
            "insert into products (sku, name) select n, n from generate_series(1, %s) as n", ROWS
        )
        await shop.run(
            "insert into inventory (product_id, warehouse_id) select id, %s from products"
            " on conflict do nothing",
            shop.lisbon,
        )
    await shop.run("analyze")
    port = free_port()
    settings = {
        "DARKPEARL_DATABASE_URL": database_url,
        "DARKPEARL_PORT": str(port),
        "DARKPEARL_LOG_LEVEL": "error",
        "DARKPEARL_VISITOR_RATE_LIMIT_PER_MINUTE": str(VISITOR_RATE_LIMIT),
    }
    with Process("api", descriptors=DESCRIPTORS, **settings) as api:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await answering(client)
        await customers(port, shop, 2)
        quiet = await customers(port, shop, QUIET_SECONDS)
        processes = multiprocessing.get_context("spawn")
        attacks = processes.Value("q", 0)
        enemy = processes.Process(target=besiege, args=(port, attacks))
        enemy.start()
        try:
            besieged = await customers(port, shop, SECONDS)
            assert enemy.is_alive()
        finally:
            enemy.kill()
            enemy.join()
        ratio = besieged.p99 / quiet.p99
        rate = attacks.value / SECONDS
        sys.stderr.write(
            f"quiet:    {quiet}\nbesieged: {besieged}\n{ratio:.1f} x, {rate:.0f} attacks/s\n"
        )
        assert "Traceback" not in api.printed()
    assert besieged.statuses.keys() <= {"200", "201"}
    assert rate >= LEAST_ATTACKS
    assert ratio <= WORST_RATIO
