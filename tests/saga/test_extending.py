"""docs/extending.md is followed to the letter: what it tells to write works as it says."""

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest
from pages import ROOT, under
from psycopg.rows import dict_row
from shop import APPROVED, Shop

from darkpearl import schema
from darkpearl.cli.where import find_pg_dump
from darkpearl.config import Settings
from darkpearl.listener import calls
from darkpearl.serving import make_listener


def copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of sql/ that takes the place of the real one."""
    shutil.copytree(ROOT / "sql", folder / "sql")
    monkeypatch.setattr(schema, "folder", lambda: folder / "sql")
    return folder / "sql"


def append(path: Path, text: str) -> None:
    """Add to the end of a file, which may be new."""
    path.write_text((path.read_text() if path.exists() else "") + "\n" + text)


async def shop_as_described(connect: Callable[..., Awaitable[Any]]) -> Shop:
    """What tests/sql have as their shop, with its first warehouse."""
    shop = Shop(await connect(row_factory=dict_row))
    await shop.run("insert into warehouses (id, code, name) values (%s, 'L', 'L')", shop.lisbon)
    return shop


async def test_a_step_is_added_as_described(
    database_url: str,
    connect: Callable[..., Awaitable[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step of docs/extending.md migrates under running orders and passes its own test."""
    function, line = under("docs/extending.md", "Add a step")
    (test,) = under("docs/extending.md", "Add a step", "python")
    (approval, told) = under("docs/extending.md", "Wait for somebody")
    shop = await shop_as_described(connect)
    product = await shop.product(on_hand=9)
    before = await shop.order((product, 1))
    requests = await shop.advance()

    plans = copied(tmp_path, monkeypatch) / "routines" / "61_order_fulfilment.sql"
    code, declared, rest = plans.read_text().partition("-- The plans.")
    rest = rest.replace(
        "    step(\n        'process_payment'", f"{line}    step(\n        'process_payment'"
    )
    plans.write_text(code + function + declared + rest)
    await schema.migrate(database_url)
    assert await schema.drift(database_url, find_pg_dump()) == ""
    written: dict[str, Any] = {}
    exec(compile(test, "docs/extending.md", "exec"), written)
    await written["test_large_anonymous_orders_are_refused"](shop)
    await shop.settle(requests, APPROVED)
    assert await shop.order_status(before) == "fulfilled"

    plans.write_text(plans.read_text().replace(line, approval))
    await schema.migrate(database_url)
    waiting = await shop.order((product, 1))
    assert await shop.advance() == []
    assert (await shop.saga(waiting))["status"] == "waiting"
    number = await shop.value("select order_number from orders where id = %s", waiting)
    async with shop.acting_as("darkpearl_app"):
        signalled = told.replace("order_number = 1", f"order_number = {number}")
        assert await shop.value(signalled) == "applied"
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(waiting) == "fulfilled"
    assert await shop.rows("select * from audit") == []


async def test_a_saga_type_is_added_as_described(
    database_url: str,
    connect: Callable[..., Awaitable[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The saga type of docs/extending.md, put where it says, moves units or refuses them."""
    state, routines, access, request = under("docs/extending.md", "Add a saga type")
    folder = copied(tmp_path, monkeypatch)
    append(folder / "schema" / "70_restockings.sql", state)
    append(folder / "migrations" / "0002.restockings.sql", state)
    append(folder / "routines" / "65_restocking.sql", routines)
    append(folder / "routines" / "90_access.sql", access)
    await schema.migrate(database_url)
    await schema.seed(database_url)

    shop = Shop(await connect(row_factory=dict_row))
    async with shop.acting_as("service_role"):
        await shop.run(request)
        await shop.run(request.replace("40)", "4000000)"))
    assert await shop.advance() == []
    kept, refused = await shop.values("select id from restockings order by quantity")
    assert await shop.events(kept) == [
        "saga_started",
        "step_completed move_units",
        "saga_completed",
    ]
    assert (await shop.saga(refused))["status"] == "compensated"
    keyboards = UUID("aaaa3333-3333-3333-3333-333333333333")
    rotterdam = UUID("22222222-2222-2222-2222-222222222222")
    assert await shop.stock(keyboards, rotterdam) == (40, 0)
    assert await shop.rows("select * from audit") == []


class Carrier(BaseHTTPRequestHandler):
    """Sells each label once; fails the first time, and takes nothing heavy."""

    sold: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        self.asked.append(key)
        if self.asked.count(key) == 1:
            self.answer(500, "try again")
        elif asked["weight_grams"] > 30_000:
            self.answer(422, "too heavy")
        else:
            number = self.sold.setdefault(key, f"T{len(self.sold)}")
            self.answer(200, json.dumps({"tracking": number}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """The test needs no log."""


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Carrier]]:
    """A carrier on a port of its own, where CARRIER_URL says."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Carrier) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("CARRIER_URL", f"http://127.0.0.1:{server.server_port}")
        yield Carrier
        server.shutdown()
        thread.join()


async def test_an_operation_is_added_as_described(
    database_url: str,
    connect: Callable[..., Awaitable[Any]],
    carrier: type[Carrier],
    until: Callable[..., Awaitable[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The label of docs/extending.md is bought once, though the carrier failed at first.

    Meanwhile a listener that doesn't know the operation uses up no attempt of it.
    """
    state, routines = under("docs/extending.md", "Ask somebody outside")
    (code,) = under("docs/extending.md", "Ask somebody outside", "python")
    (setting,) = under("docs/extending.md", "Ask somebody outside", "ini")
    folder = copied(tmp_path, monkeypatch)
    append(folder / "schema" / "70_labels.sql", state)
    append(folder / "migrations" / "0002.labels.sql", state)
    append(folder / "routines" / "65_labels.sql", routines)
    await schema.migrate(database_url)
    (tmp_path / "labels.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(calls, "UNKNOWN_SECONDS", 0.1)
    shop = await shop_as_described(connect)
    await shop.run("update step_settings set backoff_seconds = 0.01")

    ended = "select status = 'compensated' from sagas where id = %s"
    insert = "insert into labels (warehouse_id, weight_grams) values (%s, %s) returning id"
    good, heavy = [await shop.value(insert, shop.lisbon, grams) for grams in (500, 50_000)]
    for operations in ("", setting.strip().removeprefix("DARKPEARL_OPERATIONS=")):
        worker = make_listener(Settings(operations=operations, poll_seconds=0.05), database_url)
        running = asyncio.create_task(worker.run())
        goal = "saga_completed" if operations else "step_deferred"

        async def reached(goal: str = goal) -> bool:
            return goal in [event.partition(" ")[0] for event in await shop.events(good)]

        try:
            await until(reached)
            if operations:
                await until(lambda: shop.value(ended, heavy))
        finally:
            worker.stop()
            await running
    tracking = "select tracking from labels where id = %s"
    assert await shop.value(tracking, good) == carrier.sold[f"{good}:buy_label"]
    attempts = await shop.values(
        "select attempt from saga_events where saga_id = %s and event_type = 'step_failed'", good
    )
    assert attempts == [1]
    assert await shop.value(tracking, heavy) is None
    assert await shop.rows("select * from audit") == []
