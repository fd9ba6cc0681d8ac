"""A new release while orders come in: `make rolling`.

Two releases are made of this checkout: the new one has another version, and a step more in the plan
of an order. Orders fall due at a steady rate, whatever becomes of the ones before: most by SQL, one
in ten by HTTP, sent again under its idempotency key when it fails. Meanwhile the database is
migrated, listeners are replaced one by one, one of them by SIGKILL, and then the APIs. What was
placed has to have ended once, with the gateway's books as ours.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from releases import as_it_is, insert, make_release
from server import SECRET, Process, free_port
from storm import Storm, disagreement

import darkpearl
from darkpearl import embedded
from darkpearl.api import tokens
from darkpearl.config import Settings
from darkpearl.gateways.http import HttpGateway

RATE = int(os.environ.get("DARKPEARL_TEST_ROLLING_RATE", "300"))
SECONDS = int(os.environ.get("DARKPEARL_TEST_ROLLING_SECONDS", "60"))
LISTENERS, APIS = 3, 2
BY_HTTP = 10
"""Of so many orders one comes by HTTP."""
SESSIONS = 24
"""Of the application that places the others."""
PATIENCE_SECONDS = 120
OLD, NEW = "0.1.0", "9.9.9"


class Release:
    """A package of its own, with its SQL in it."""

    def __init__(self, folder: Path, version: str, change: Any) -> None:
        self.version = version
        package = folder / version / "darkpearl"
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(darkpearl.__file__).parent, package, ignore=without)
        make_release(package / "sql", change)
        told = package / "__init__.py"
        told.write_text(
            re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', told.read_text())
        )
        self.path = {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}

    def start(self, *command: str, **settings: str) -> Process:
        """A command of it as a process."""
        return Process(*command, **self.path, DARKPEARL_LOG_LEVEL="error", **settings)

    async def migrate(self, url: str) -> None:
        """Bring the database to it, as often as it is told to try again."""
        while True:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "darkpearl", "db", "migrate"),
                env={**os.environ, **self.path, "DARKPEARL_DATABASE_URL": url},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            _, errors = await process.communicate()
            if process.returncode == 0:
                return
            assert b"try again" in errors, errors.decode()
            print(f"{time.strftime('%X')} {errors.decode().strip()}", flush=True)  # noqa: T201


class Customers:
    """Orders that fall due at a steady rate, each sent until it is answered.

    Attributes:
        ports: of the APIs that a proxy would send to.
        due: when each order was to be placed, by its id.
        answered: seconds from then to the answer, by its id.
        again: how often a request was sent again, by why.
        enough: tells them to stop.
    """

    def __init__(self, storm: Storm, warehouse: str, products: list[str]) -> None:
        self._storm, self._warehouse = storm, warehouse
        self.ports: list[int] = []
        self.due: dict[UUID, float] = {}
        self.answered: dict[UUID, float] = {}
        self.again: Counter[str] = Counter()
        self.enough = asyncio.Event()
        self._items = itertools.cycle(
            [{"product_id": one, "quantity": 1}, {"product_id": other, "quantity": 2}]
            for one, other in zip(products, [*products[7:], *products[:7]], strict=True)
        )
        self._pool = asyncio.Semaphore(SESSIONS)
        self._sessions: list[psycopg.AsyncConnection[Any]] = []
        self._stack = contextlib.AsyncExitStack()
        self._turns = itertools.count()
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}
        self._token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 3600)

    async def order(self) -> None:
        """Place orders until there are enough, and see the last of them answered."""
        began = time.time()
        async with asyncio.TaskGroup() as customers:
            for n in itertools.count():
                due = began + n / RATE
                if (early := due - time.time()) > 0:
                    await asyncio.sleep(early)
                if self.enough.is_set():
                    return
                place = self._by_sql if n % BY_HTTP else self._by_http
                customers.create_task(place(due, next(self._items)))

    async def _by_sql(self, due: float, items: list[dict[str, Any]]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), self._pool:
            session = (
                self._sessions.pop()
                if self._sessions
                else await self._stack.enter_async_context(self._storm.session("darkpearl_app"))
            )
            cursor = await session.execute(
                "select id from place_order(%s, %s)", [self._warehouse, json.dumps(items)]
            )
            row = await cursor.fetchone()
            assert row
            self._sessions.append(session)
        self._done(row["id"], due)

    def _done(self, order: UUID, due: float) -> None:
        assert order not in self.due, "two requests have one order"
        self.due[order], self.answered[order] = due, time.time() - due

    async def _by_http(self, due: float, items: list[dict[str, Any]]) -> None:
        key, body = str(uuid4()), json.dumps({"warehouse_id": self._warehouse, "items": items})
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                port = self.ports[next(self._turns) % len(self.ports)]
                try:
                    status, answer = await self._post(port, key, body)
                except (OSError, EOFError) as error:
                    self.again[type(error).__name__] += 1
                else:
                    if status == 201:
                        break
                    assert status == 503, answer
                    self.again["503"] += 1
                await asyncio.sleep(0.02)
        self._done(UUID(json.loads(answer)["id"]), due)

    async def _post(self, port: int, key: str, body: str) -> tuple[int, bytes]:
        idle = self._idle.setdefault(port, [])
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                f"POST /orders HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {self._token}\r\n"
                f"Idempotency-Key: {key}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            answer = await reader.readexactly(int(head.split(b"content-length:")[1].split()[0]))
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            idle.append((reader, writer))
        return int(head.split()[1]), answer

    async def close(self) -> None:
        """Hang up."""
        await self._stack.aclose()
        for _, writer in itertools.chain.from_iterable(self._idle.values()):
            writer.close()


@pytest.fixture
async def storm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Storm]:
    """A durable server, empty."""
    home = tmp_path_factory.mktemp("rolling")
    with embedded.serve(home, exclusive=True, say=lambda _: None) as server:
        yield Storm(home, server)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Look again and again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what others do is looked at
            await asyncio.sleep(0.1)


async def filled(storm: Storm) -> Customers:
    """A warehouse full of goods, and who wants some."""
    await storm.rows("insert into warehouses (code, name) values ('A', 'A')")
    await storm.rows(
        "insert into products (sku, name, unit_price)"
        " select 'R' || n, 'P', 9.99 + n from generate_series(1, 200) as n"
    )
    await storm.rows("select receive_stock(w.id, p.id, 100000) from warehouses w, products p")
    products = [str(row["id"]) for row in await storm.rows("select id from products")]
    return Customers(storm, str(await storm.value("select id from warehouses")), products)


class Deployment:
    """What runs, and what is done to it in turn.

    Attributes:
        marks: what began when, by the clock of this machine.
    """

    def __init__(self, storm: Storm, customers: Customers, stack: contextlib.ExitStack) -> None:
        self.storm = storm
        self.customers = customers
        self.marks: list[tuple[float, str]] = []
        self._stack = stack
        self._listeners: list[Process] = []
        self._apis: list[tuple[Process, int]] = []
        self._settings = {
            "DARKPEARL_DATABASE_URL": storm.server.url,
            "DARKPEARL_GATEWAY": "http",
            "DARKPEARL_GATEWAY_URL": "",
        }

    async def gateway(self, release: Release, ledger: Path) -> str:
        """A payment service; its address."""
        port = free_port()
        options = ("--port", str(port), "--ledger", str(ledger), "--latency-ms=50")
        self._stack.enter_context(release.start("paysim", *options, "--decline-rate=0.05"))
        self._settings["DARKPEARL_GATEWAY_URL"] = f"http://127.0.0.1:{port}"
        return self._settings["DARKPEARL_GATEWAY_URL"]

    async def listener(self, release: Release) -> None:
        """One more, at work."""
        alive = "select count(*) from listener_activity where is_alive and version = %s"
        before = await self.storm.value(alive, release.version)
        process = self._stack.enter_context(release.start("listener", **self._settings))
        self._listeners.append(process)

        async def is_there() -> bool:
            assert process.runs(), process.printed()
            return await self.storm.value(alive, release.version) > before

        await until(is_there)

    async def api(self, release: Release) -> None:
        """One more, to which customers are sent."""
        port = free_port()
        settings = {**self._settings, "DARKPEARL_PORT": str(port)}
        process = self._stack.enter_context(release.start("api", **settings))

        async def answers() -> bool:
            assert process.runs(), process.printed()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True
            return False

        await until(answers)
        self._apis.append((process, port))
        self.customers.ports.append(port)

    async def replace_listeners(self, release: Release) -> None:
        """One by one: a new one first, then an old one goes, the second by SIGKILL."""
        for at, old in enumerate(self._listeners[:LISTENERS]):
            await self.listener(release)
            how = signal.SIGKILL if at == 1 else signal.SIGTERM
            code = await asyncio.to_thread(old.stop, how)
            assert code == (-how if how == signal.SIGKILL else 0), old.printed()

    async def replace_apis(self, release: Release) -> None:
        """One by one: nobody is told before that the old one goes."""
        for old, port in self._apis[:APIS]:
            await self.api(release)
            assert await asyncio.to_thread(old.stop) == 0, old.printed()
            self.customers.ports.remove(port)


async def rolled_out(deployment: Deployment, new: Release) -> None:
    """In the order of docs/operations.md, a fifth of the time or more each, while orders come."""
    ordering = asyncio.create_task(deployment.customers.order())

    async def part(what: str, doing: Awaitable[None] | None = None) -> None:
        print(f"{time.strftime('%X')} {what}", flush=True)  # noqa: T201
        deployment.marks.append((time.time(), what))
        if doing:
            await doing
        while time.time() < deployment.marks[-1][0] + SECONDS / 5:
            assert not ordering.done(), ordering.exception()
            await asyncio.sleep(0.05)

    await part("old release")
    await part("db migrate", new.migrate(deployment.storm.server.url))
    await part("listeners", deployment.replace_listeners(new))
    await part("APIs", deployment.replace_apis(new))
    await part("new release")
    deployment.customers.enough.set()
    await ordering


async def test_a_release_is_rolled_out_under_load(storm: Storm, tmp_path: Path) -> None:
    """Old and new work side by side: no order is lost, none is done twice, and the books agree."""
    began = datetime.now(UTC)
    old, new = Release(tmp_path, OLD, as_it_is), Release(tmp_path, NEW, insert)
    await old.migrate(storm.server.url)
    customers = await filled(storm)
    with contextlib.ExitStack() as stack:
        deployment = Deployment(storm, customers, stack)
        url = await deployment.gateway(old, tmp_path / "paysim.db")
        for _ in range(LISTENERS):
            await deployment.listener(old)
        for _ in range(APIS):
            await deployment.api(old)
        await rolled_out(deployment, new)
        await customers.close()

        async def all_ended() -> bool:
            return not await storm.value("select count(*) from sagas where ready_at is not null")

        await until(all_ended)
        gateway = HttpGateway(url)
        theirs = {each.payment_key: each async for each in gateway.payments(began)}
        await gateway.close()

    rows = await storm.rows(
        "select p.*, o.id, o.status::text, o.total_amount"
        " from orders as o left join payments as p on p.order_id = o.id"
    )
    print(f"\n{dict(Counter(row['status'] for row in rows))}; sent again: {customers.again}")  # noqa: T201
    print(await figures(storm, deployment))  # noqa: T201
    assert {row["id"] for row in rows} == customers.due.keys()
    assert len(rows) >= RATE * SECONDS
    for row in rows:
        wrong = disagreement(row, theirs.pop(row["idempotency_key"], None))
        assert not wrong, (wrong, row, await storm.story(row["id"]))
    assert theirs == {}, "a charge that nobody here knows of"
    assert await storm.rows("select * from audit") == []
    await both_plans_ended(storm)


async def both_plans_ended(storm: Storm) -> None:
    """Sagas of the plan before the release ended by it, some of them after it was replaced."""
    versions = await storm.rows(
        "select plan_version as version, count(*) as sagas, min(created_at) as first,"
        " max(updated_at) as last, bool_and(status in ('completed', 'compensated')) as ended"
        " from sagas group by 1 order by 1"
    )
    assert [row["version"] for row in versions] == [1, 2]
    assert all(row["ended"] for row in versions)
    assert versions[0]["last"] > versions[1]["first"], "the plans didn't overlap"


async def figures(storm: Storm, deployment: Deployment) -> str:
    """Milliseconds from when an order was due to its answer and to its end, by part."""
    ends = {
        row["saga_id"]: row["at"]
        for row in await storm.rows(
            "select saga_id, extract(epoch from max(created_at))::float8 as at from saga_events"
            " where event_type in ('saga_completed', 'saga_compensated') group by 1"
        )
    }
    customers = deployment.customers
    lines = ["part          orders   answer p50     p99     max   ended p50     p99     max"]
    for (start, what), (end, _) in zip(
        deployment.marks, [*deployment.marks[1:], (float("inf"), "")], strict=True
    ):
        some = [order for order, due in customers.due.items() if start <= due < end]
        told = f"{what:12} {len(some):7}"
        for taken in (
            [customers.answered[order] for order in some],
            [ends[order] - customers.due[order] for order in some],
        ):
            cuts = statistics.quantiles(taken, n=100)
            shown = (cuts[49], cuts[98], max(taken))
            told += "   " + "".join(f"{1000 * each:8.0f}" for each in shown)
        lines.append(told)
    return "\n".join(lines)
