"""A shop that is really run: PostgreSQL, an API, two listeners, a payment service, each a process.

What is used of it is what its users have: the API, the command line and the page. SQL is for who
makes trouble.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
from server import SECRET as TOKENS
from server import Process, answering, free_port
from terminal import Done, done

from darkpearl import embedded
from darkpearl.config import Settings

SECRET = "whsec_" + "x" * 32
LISBON = "11111111-1111-1111-1111-111111111111"
ROTTERDAM = "22222222-2222-2222-2222-222222222222"
MOUSE = "aaaa2222-2222-2222-2222-222222222222"
KEYBOARD = "aaaa3333-3333-3333-3333-333333333333"
"""Of the demo data."""
DISK_MEGABYTES = 500
PATIENCE_SECONDS = 90.0
"""Longer than a listener waits at most until it asks a gateway again."""
Json = dict[str, Any]


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Make a folder a disk of its own that can be full; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=711", "tmpfs", folder]
    mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=False)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no byte of a disk meanwhile."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 65_536)
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        assert not shutil.disk_usage(folder).free
        yield
    finally:
        ballast.unlink()


class Exercised:
    """The shop, its processes, and what a person asks of it.

    Args:
        server: its database, with the demo data.
        folder: for the books of the payment service.
        api: a client of its API, as staff.
    """

    def __init__(self, server: embedded.Server, folder: Path, api: httpx.AsyncClient) -> None:
        self.server = server
        self.api = api
        self._folder = folder
        self._gateway_port = free_port()
        self._processes = ExitStack()
        self.gateway: Process
        self.settings = {
            "DARKPEARL_DATABASE_URL": server.url,
            "DARKPEARL_HOME": str(server.home),
            "DARKPEARL_JWT_SECRET": TOKENS,
            "DARKPEARL_GATEWAY": "http",
            "DARKPEARL_GATEWAY_URL": f"http://127.0.0.1:{self._gateway_port}",
            "DARKPEARL_WEBHOOK_SECRET": SECRET,
            "DARKPEARL_PAYMENT_FAILURES": "2",
            "DARKPEARL_PAYMENT_TIMEOUT_SECONDS": "2",
        }

    def of_the_api(self) -> Settings:
        """What the API is to be started with."""
        more = {"DARKPEARL_HOST": "127.0.0.1", "DARKPEARL_PORT": "0"}
        return Settings.from_environment(self.settings | more)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The payment service and two listeners; whoever is left at the end is ended."""
        with self._processes:
            await self.start_gateway()
            for _ in range(2):
                self.start_listener()
            yield

    async def start_gateway(self, *options: str) -> None:
        """Start the payment service, with the books that it had."""
        books = str(self._folder / "paysim.db")
        command = ("paysim", "--port", str(self._gateway_port), "--ledger", books, *options)
        self.gateway = self._processes.enter_context(Process(*command))
        async with httpx.AsyncClient(base_url=self.settings["DARKPEARL_GATEWAY_URL"]) as client:
            await answering(client, "/v1/ledger")

    def start_listener(self, **settings: str) -> Process:
        """Start one more listener."""
        started = Process("listener", **(self.settings | settings))
        return self._processes.enter_context(started)

    async def run(self, *command: object) -> Done:
        """A command of darkpearl."""
        with self._environment():
            return await asyncio.to_thread(done, command)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        kept = {name: each for name, each in os.environ.items() if name.startswith("DARKPEARL")}
        os.environ.update(self.settings)
        try:
            yield
        finally:
            for name in self.settings:
                os.environ.pop(name, None)
            os.environ.update(kept)

    async def doctor(self, check: str) -> Json:
        """What the doctor says, in one line; of the database, while that can't be asked."""
        found = (await self.run("doctor", "--json", "--only", check)).rows
        return next((each for each in found if each["check"] == check), found[0])

    async def tells(self, metric: str, value: float) -> None:
        """Return once the metrics say so; an alert goes by them."""
        told: list[str] = []

        async def say_so() -> bool:
            page = (await self.api.get("/metrics")).text
            told[:] = [line for line in page.splitlines() if line.startswith(metric)]
            return any(float(line.rpartition(" ")[2]) >= value for line in told)

        await until(say_so, told)

    async def follow(self, mend: str, reason: str = "") -> None:
        """Run the command that the doctor names; where it leaves a reason open, with this one."""
        command = mend.rpartition("darkpearl ")[2].rstrip(".;").replace("…", "").split()
        ended = await self.run(*command, *([reason] if reason else []))
        assert ended.code == 0, ended

    async def order(self, product: str = MOUSE, warehouse: str = LISBON) -> str:
        """Order one of a product; the id."""
        items = [{"product_id": product, "quantity": 1}]
        body = {"warehouse_id": warehouse, "items": items}
        made = await self.api.post("/orders", json=body)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def become(self, status: str, *orders: str) -> None:
        """Return once all of them have the status."""
        statuses: list[str] = []

        async def have_it() -> bool:
            found = [(await self.api.get(f"/orders/{each}")).json() for each in orders]
            statuses[:] = [each["status"] for each in found]
            return {*statuses} == {status}

        await until(have_it, statuses)

    @contextmanager
    def session(self) -> Iterator["psycopg.Connection[Any]"]:
        """A session of who makes trouble."""
        options = "-c search_path=darkpearl"
        with psycopg.connect(
            self.server.url, autocommit=True, options=options, application_name="a console"
        ) as connection:
            yield connection


async def until(condition: Callable[[], Awaitable[object]], seen: object = "") -> None:
    """Look again and again, until it holds; what was seen instead is the failure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, f"it did not happen: {seen}"
        await asyncio.sleep(0.2)
