"""What becomes of orders when a server of several dies, or the network between them: `make cells`.

Longer than a test. Orders fall due at a steady rate in a warehouse of each cell, RATE a second
each, whatever becomes of the ones before; who is refused or cut off asks for the same again. A
listener works in each cell. A warehouse that moves has ORDERS when it begins. Servers end by
SIGKILL, all of their processes at once.
"""

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from machines import Load, Machine, machines, shop_on, until
from network import Road
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from darkpearl import cells, schema

SECONDS = int(os.environ.get("DARKPEARL_TEST_OUTAGE_SECONDS", "60"))
CUT_SECONDS = max(SECONDS, 30)
"""It takes 22 seconds until a network that is cut is told."""
ORDERS = int(os.environ.get("DARKPEARL_TEST_OUTAGE_ORDERS", "20000"))
RATE = int(os.environ.get("DARKPEARL_TEST_OUTAGE_RATE", "100"))
EVERY = int(os.environ.get("DARKPEARL_TEST_OUTAGE_EVERY", "2"))
"""A server is killed at every so manieth statement of a move, each time further on."""
MOST_RUNS = 100
SAME_RATE = 0.95
"""How much of its rate the cell that stays may be seen to keep, at least: the rest is the clock."""


def say(line: str) -> None:
    """A figure, for who runs it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Doom:
    """Kills a server at some statement of a command, and has it started again."""

    def __init__(self, victim: Machine, at: int) -> None:
        self.victim = victim
        self.left = at

    @contextmanager
    def waiting(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """For a block; statements of others don't count."""
        execute = AsyncConnection.execute

        async def counted(this: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            done = await execute(this, query, *arguments, **options)
            if this.info.get_parameters().get("application_name") == "darkpearl schema":
                self.left -= 1
                if self.left == 0:
                    await self.victim.kill_and_start()
            return done

        with patch.context() as inner:
            inner.setattr(AsyncConnection, "execute", counted)
            yield

    @property
    def has_come(self) -> bool:
        """Whether the server was killed."""
        return self.left <= 0


async def moved_past(load: Load, victim: Machine, code: str, patch: pytest.MonkeyPatch) -> int:
    """Have a warehouse of south's moved to north, a server killed at every stage; how often."""
    home, south, _ = load.servers
    for kills, at in enumerate(itertools.count(1, EVERY)):
        assert kills < MOST_RUNS
        doom = Doom(victim, at)
        with doom.waiting(patch):
            try:
                async for _ in cells.move(home.url, code, "north", source_url=south.url):
                    pass
            except (schema.SchemaError, cells.CellError):
                assert doom.has_come
                continue
        if not doom.has_come:
            return kills
    raise AssertionError


async def test_each_server_dies_at_every_stage_of_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source, the target, home: whichever dies and whenever, the move run again moves all."""
    with machines("home", "south", "north") as servers:
        async with shop_on(servers) as load:
            for victim in servers:
                code, warehouse = await load.new_warehouse(2)
                await load.begin_with(warehouse, ORDERS)
                async with load.orders(RATE):
                    await asyncio.sleep(1)
                    kills = await moved_past(load, victim, code, monkeypatch)
                    await asyncio.sleep(1)
                assert load.cell_of[warehouse] == 3
                say(
                    f"{victim.name} killed {kills} times while a warehouse moved from south to"
                    f" north with {ORDERS} orders: {len(load.times[warehouse])} of it meanwhile,"
                    f" the longest pause {load.pause_seconds(warehouse):.1f} s"
                )
                assert kills > 4
            await load.drained()
            await load.check()


async def test_a_cell_dies_and_the_others_orders_go_on() -> None:
    """While north is dead, or home, the other takes and sends as many as before; then all ends."""
    with machines("home", "north") as servers:
        async with shop_on(servers) as load:
            mine = list(load.placed)
            for victim, survivor in ((1, 0), (0, 1)):
                async with load.orders(RATE):
                    await asyncio.sleep(3)
                    before = await load.measured(mine[survivor], SECONDS / 3)
                    await asyncio.to_thread(servers[victim].kill)
                    during = await load.measured(mine[survivor], SECONDS / 3)
                    await asyncio.to_thread(servers[victim].start)
                    after = await load.measured(mine[survivor], SECONDS / 3)
                await load.drained()
                ratio = during.sent / before.sent
                say(
                    f"{servers[victim].name} dies; {servers[survivor].name}: {before} before;"
                    f" {during} while it is dead; {after} when it is back; ratio {ratio:.2f}"
                )
                assert during.placed >= SAME_RATE * before.placed
                assert ratio >= SAME_RATE
            await load.check()


async def test_a_network_is_cut_between_two_cells() -> None:
    """North sells by what it knows, all the while, and knows the rest soon after."""
    with machines("home", "north") as servers:
        home, _ = servers
        async with Road("127.0.0.1", home.server.port) as road:
            home_url = make_conninfo(home.url, host="127.0.0.1", port=road.port)
            async with shop_on(servers, home_url=home_url) as load:
                async with load.orders(RATE):
                    await asyncio.sleep(3)
                    road.swallow()
                    cut_at = time.monotonic()
                    price = "update products set unit_price = 12 where id = %s"
                    await load.ask(1, price, load.product)
                    changed = await load.value(1, "select clock()")
                    late = uuid4()
                    await load.ask(
                        1,
                        "insert into warehouses (id, code, name, cell) values (%s, 'LATE', 'L', 2)",
                        late,
                    )
                    told_after = 0.0
                    while (cut_for := time.monotonic() - cut_at) < CUT_SECONDS:
                        _, state = await cells.states(home.url)
                        if state["trouble"] and not told_after:
                            told_after = cut_for
                            say(
                                f"after {cut_for:.1f} s cells status says: {state['trouble']};"
                                f" lag_seconds {state['lag_seconds']:.1f}"
                            )
                            assert state["lag_seconds"] > cut_for / 2
                        await asyncio.sleep(1)
                    say(f"after {cut_for:.0f} s home keeps {state['kept_bytes']} bytes for it")
                    assert told_after
                    with pytest.raises(psycopg.Error) as refused:
                        await load.ask(2, "select receive_stock(%s, %s, 1)", late, load.product)
                    assert refused.value.sqlstate == "DP010"
                    healed = await load.value(2, "select clock()")
                    await road.restore()
                    healed_at = time.monotonic()

                    async def has_caught_up() -> bool:
                        query = "select unit_price from products where id = %s"
                        known = await load.value(
                            2, "select count(*) from warehouses where id = %s", late
                        )
                        return known == 1 and await load.value(2, query, load.product) == 12

                    await until(has_caught_up)
                    caught = await load.value(2, "select clock()")
                    say(f"the catalogue is there {time.monotonic() - healed_at:.1f} s after")
                    await asyncio.sleep(3)
                await load.drained()
                await load.check()
                sold = "select count(*) from orders where total_amount {} and created_at {} %s"
                assert await load.value(1, sold.format("<> 12", ">"), changed) == 0
                assert await load.value(2, sold.format("<> 10", "<"), healed) == 0
                assert await load.value(2, sold.format("<> 12", ">"), caught) == 0
                cheap = await load.value(2, sold.format("= 10", ">"), changed)
                say(f"{cheap} orders of north went by the price that it knew")
                assert isinstance(cheap, int)
                assert cheap >= RATE * CUT_SECONDS * SAME_RATE
