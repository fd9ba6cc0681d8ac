"""`darkpearl top`, `listeners` and `--watch`: a system that works is seen again and again."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shop import Shop
from terminal import Run

from darkpearl import embedded, schema

LISTENS = (
    "select darkpearl.report_listener(darkpearl.new_id(), %s, 7, '0.2.0', 'mock', 'closed',"
    " 'idle', 0)"
)


@contextmanager
def watching(url: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that goes on, as a process of its own; stopped as by Ctrl-C, in a line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "darkpearl", *arguments],
        env={"DARKPEARL_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has it ignored, which is passed on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.splitlines()[-1:]) == (130, ["darkpearl: stopped"])


async def line(process: "subprocess.Popen[str]") -> str:
    """The next that it prints."""
    assert process.stdout
    return await asyncio.to_thread(process.stdout.readline)


async def test_one_look_at_all_of_it(shop: Shop, run: Run) -> None:
    """The queue by step, the listeners, the steps of the last minutes."""
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    await shop.order((shop.products[0], 1))
    async with shop.acting_as("darkpearl_listener"):
        await shop.run(LISTENS, "here")
    await shop.turn_clock(120)
    async with shop.acting_as("darkpearl_listener"):
        await shop.run("select fill_step_minutes(60)")
    found = (await run("top", "--once", "--json")).row
    assert found["health"]["ready"] == 1
    assert [queue["step_name"] for queue in found["queues"]] == ["reserve_stock"]
    assert [each["host"] for each in found["listeners"]] == ["here"]
    assert {each["step_name"] for each in found["steps"]} >= {"reserve_stock", "process_payment"}
    plain = (await run("top", "--once")).said
    for word in ("queues", "listeners", "reserve_stock", "here", "p99 ms"):
        assert word in plain
    listener = (await run("listeners", "--json")).row
    assert (listener["host"], listener["is_alive"]) == ("here", False)
    assert "here" in (await run("listeners")).said


async def test_what_is_watched_goes_on_until_it_is_stopped(shop: Shop, database_url: str) -> None:
    """A list is printed again with what is new, and Ctrl-C ends it in a line."""
    product = await shop.product(on_hand=2)
    first = await shop.fulfilled((product, 1))
    with watching(database_url, "orders", "list", "--json", "--watch", "0.1") as process:
        assert json.loads(await line(process))["id"] == str(first)
        second = await shop.fulfilled((product, 1))
        while json.loads(await line(process))["id"] != str(second):
            assert process.poll() is None


async def test_top_goes_on(database_url: str) -> None:
    """A look below the other, where there is no terminal."""
    with watching(database_url, "top", "--every", "0.1", "--json") as process:
        for _ in range(2):
            assert json.loads(await line(process))["health"]["ready"] == 0


async def test_what_is_watched_outlives_a_restart(home: Path) -> None:
    """While the database is away that is told, and what was seen last stays; then it goes on."""
    server = await asyncio.to_thread(embedded.start, home, embedded.UNSAFE)
    try:
        await schema.migrate(server.url)
        with watching(server.url, "listeners", "--watch", "0.1") as process:
            assert "host" in await line(process)
            await asyncio.to_thread(embedded.stop, server)
            assert process.stderr
            assert "connection" in await asyncio.to_thread(process.stderr.readline)
            again = {**embedded.UNSAFE, "port": str(server.port)}
            server = await asyncio.to_thread(embedded.start, home, again)
            async with schema.connect(server.url) as connection:
                await connection.execute(LISTENS.encode(), ["back"])
            while "back" not in await line(process):
                assert process.poll() is None
    finally:
        embedded.stop(server)
