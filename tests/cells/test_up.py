"""What `up` runs for other cells: taken up when they come, and no trouble of the others'."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from places import Place
from shop import Shop

from darkpearl import schema, serving
from darkpearl.cells.joining import without_secrets
from darkpearl.cli import elsewhere
from darkpearl.cli.elsewhere import Elsewhere
from darkpearl.config import Settings

Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
APPROVES = Settings(mock_approval_rate=1.0, poll_seconds=0.1)


@asynccontextmanager
async def running(
    places: Places, monkeypatch: pytest.MonkeyPatch, settings: Settings = APPROVES
) -> AsyncIterator[None]:
    """The services of other cells, looked for ten times a second."""
    monkeypatch.setattr(elsewhere, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(elsewhere, "AGAIN_SECONDS", 0.1)
    url = without_secrets(places[0].url)
    service = Elsewhere(url, url, lambda login: [serving.listener_service(settings, login)])
    task = asyncio.create_task(service.service().run())
    try:
        yield
    finally:
        service.stop()
        await asyncio.wait_for(task, 10)


@asynccontextmanager
async def away(places: Places) -> AsyncIterator[None]:
    """North lets nobody in, and has thrown everybody out."""
    home, _ = places
    north = Place(places[1].server, "postgres")
    async with schema.connect(north.url) as connection:
        await connection.execute("alter database north allow_connections false")
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'north'"
            " and application_name ^@ 'darkpearl listener'"
        )
    assert home
    try:
        yield
    finally:
        async with schema.connect(north.url) as connection:
            await connection.execute("alter database north allow_connections true")


async def stocked(pair: Pair, until: Until) -> tuple[object, Shop]:
    """A product in Rotterdam."""
    here, there = pair
    product = await here.product()

    async def is_known() -> bool:
        return await there.value("select count(*) from products where id = %s", product) == 1

    await until(is_known)
    await there.receive(product, 100, there.rotterdam)
    return product, there


async def test_a_cell_has_its_listener(
    pair: Pair, places: Places, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From when it is known until it is removed, and again; away meanwhile, it is waited for."""
    here, _ = pair
    product, there = await stocked(pair, until)

    async def is_fulfilled() -> bool:
        return await there.order_status(order) == "fulfilled"

    async def listeners() -> int:
        return await there.value(
            "select count(distinct application_name) from pg_stat_activity"
            " where datname = current_database() and application_name ^@ 'darkpearl listener'"
        )

    await here.run("update cells set removed_at = clock() where number = 2")
    async with running(places, monkeypatch):
        order = await there.order((product, 1), warehouse=there.rotterdam)
        await here.run("update cells set removed_at = null where number = 2")
        await until(is_fulfilled)
        assert await listeners()
        async with away(places):
            order = await there.order((product, 1), warehouse=there.rotterdam)
        await until(is_fulfilled)
        await here.run("update cells set removed_at = clock() where number = 2")

        async def nobody() -> bool:
            return await listeners() == 0

        await until(nobody)
        await here.run("update cells set removed_at = null where number = 2")
        order = await there.order((product, 1), warehouse=there.rotterdam)
        await until(is_fulfilled)
    await until(nobody)


async def test_a_cell_that_is_away_at_the_start_is_waited_for(
    pair: Pair, places: Places, until: Until, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is told, and taken up when it is there; another release is told, too."""
    product, there = await stocked(pair, until)
    order = await there.order((product, 1), warehouse=there.rotterdam)
    await there.run(
        "insert into darkpearl_migrations._yoyo_migration (migration_hash, migration_id)"
        " values ('x', '9999.of-tomorrow')"
    )

    async def is_told() -> bool:
        return "waited for" in caplog.text

    async def is_fulfilled() -> bool:
        return await there.order_status(order) == "fulfilled"

    try:
        with caplog.at_level(logging.INFO):
            async with away(places), running(places, monkeypatch):
                await until(is_told)
                async with schema.connect(Place(places[1].server, "postgres").url) as connection:
                    await connection.execute("alter database north allow_connections true")
                await until(is_fulfilled)

                async def of_tomorrow() -> bool:
                    return "newer release, with 9999.of-tomorrow" in caplog.text

                await until(of_tomorrow)
        assert "ERROR" not in {each.levelname for each in caplog.records}  # cells are first
    finally:
        await there.run(
            "delete from darkpearl_migrations._yoyo_migration"
            " where migration_id = '9999.of-tomorrow'"
        )


async def test_a_cell_that_never_came_keeps_nobody_from_ending(
    pair: Pair, places: Places, until: Until, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Told to stop while it is still waited for, nothing is left that the process waits for."""
    assert pair

    async def refused(_url: str) -> None:
        raise schema.SchemaError("nobody is there")

    async def is_told() -> bool:
        return "waited for" in caplog.text

    monkeypatch.setattr(elsewhere.schema, "status", refused)
    with caplog.at_level(logging.INFO):
        async with running(places, monkeypatch):
            await until(is_told)

    async def has_ended() -> bool:
        return not any("_check_release" in repr(each) for each in asyncio.all_tasks())

    await until(has_ended)


async def test_one_process_serves_all_cells(
    pair: Pair, places: Places, until: Until, tmp_path: Path
) -> None:
    """Orders of both end, with nothing else started; a signal ends it in order."""
    here, there = pair
    product, _ = await stocked(pair, until)
    await here.receive(product, 10)
    orders = [
        (here, await here.order((product, 1))),
        (there, await there.order((product, 1), warehouse=there.rotterdam)),
    ]
    kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
    settings = {
        "DARKPEARL_DATABASE_URL": without_secrets(places[0].url),
        "DARKPEARL_MOCK_APPROVAL_RATE": "1",
        "DARKPEARL_HOME": str(tmp_path),
        "DARKPEARL_PORT": "0",
    }
    log = tmp_path / "log"
    with log.open("w") as written:
        up = subprocess.Popen(  # noqa: ASYNC220 - it is not waited for here
            [sys.executable, "-m", "darkpearl", "up"],
            env=kept | settings, stdout=written, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:

        async def are_fulfilled() -> bool:
            assert up.poll() is None, log.read_text()
            return all([await shop.order_status(order) == "fulfilled" for shop, order in orders])

        await until(are_fulfilled)
        up.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(up.wait, 20) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert "cell north" in log.read_text()
    finally:
        up.kill()
