"""`python -m bench [NAME …] [--rounds N]`: see docs/performance.md for what each measures."""

import asyncio
import json
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import bare, shapes, versus
from bench import bell as bells
from bench import cells as several
from bench import drain as drains
from bench import end_to_end as ends
from bench import floor as floors
from bench import gateway as gateways
from bench import growth as growths
from bench import horizon as horizons
from bench import imports as importing
from bench import latency as latencies
from bench import open_loop as open_loops
from bench import routing as routes
from bench import sizing as sizes
from bench import soak as soaks
from bench.chart import chart
from bench.harness import server, shop
from bench.machine import machine
from bench.rounds import Variant, interleaved
from darkpearl import embedded

RESULTS = Path(".bench") / "results.jsonl"
Rows = AsyncIterator[dict[str, Any]]


async def drain(running: embedded.Server, options: Namespace) -> Rows:
    """20,000 ready orders: listeners, batch sizes."""

    async def one(listeners: int, batch_size: int) -> dict[str, Any]:
        async with shop(running) as target:
            return await drains.drain(target, 20_000, listeners, batch_size=batch_size)

    variants = {
        f"{listeners} x {batch_size}": partial(one, listeners, batch_size)
        for listeners, batch_size in ((1, 1000), (2, 1000), (1, 100), (1, 500), (2, 500), (1, 2000))
    }
    async for row in interleaved(options.rounds, variants, ["1 x 1000"]):
        yield row


async def latency(running: embedded.Server, options: Namespace) -> Rows:
    """500 orders, one at a time; after a longer rest; by Unix socket; what the machine takes."""

    async def one(orders: int, *, through_socket: bool = False, **how: Any) -> dict[str, Any]:
        async with shop(running, through_socket=through_socket) as target:
            return await latencies.latency(target, orders, **how)

    async def least() -> dict[str, Any]:
        async with shop(running) as target:
            return await latencies.least(target, 300)

    variants: dict[str, Variant] = {
        "idle": partial(one, 500),
        "idle for 50 ms": partial(one, 200, pause_seconds=0.05),
        "idle, Unix socket": partial(one, 300, through_socket=True),
        "least": least,
    }
    async for row in interleaved(options.rounds, variants):
        yield row


async def open_loop(running: embedded.Server, options: Namespace) -> Rows:
    """Orders that fall due at a given rate: from then to their fulfilment."""
    async for row in interleaved(options.rounds, open_loops.variants(running)):
        yield row


async def floor(running: embedded.Server, options: Namespace) -> Rows:
    """Order by order at 1 to 16 clients, against the drain; ratio to the best client count."""
    async for row in interleaved(options.rounds, *floors.variants(running)):
        yield row


async def end_to_end(running: embedded.Server, options: Namespace) -> Rows:
    """16 clients place orders while listeners work; ratio to the same without sagas."""
    async for row in interleaved(options.rounds, *ends.variants(running)):
        yield row


async def end_to_end_http(running: embedded.Server, options: Namespace) -> Rows:
    """16 clients POST orders; ratio to the same without sagas."""
    async for row in interleaved(options.rounds, *ends.http_variants(running)):
        yield row


async def http(running: embedded.Server, options: Namespace) -> Rows:
    """16 clients POST orders; ratio to a bare ASGI handler of the same statements."""
    async for row in interleaved(options.rounds, *bare.variants(running)):
        yield row


async def gateway(running: embedded.Server, options: Namespace) -> Rows:
    """A gateway that takes 50 ms: calls at once, and the share of what they could do at most."""
    async for row in interleaved(options.rounds, gateways.variants(running)):
        yield row


async def hot(running: embedded.Server, options: Namespace) -> Rows:
    """Every order wants one product; 30 % can't be served; ratio to the ordinary drain."""
    async for row in interleaved(options.rounds, *shapes.hot(running)):
        yield row


async def warehouses(running: embedded.Server, options: Namespace) -> Rows:
    """20,000 shelves in 1, 10, 1,000 warehouses; ratio to one."""
    async for row in interleaved(options.rounds, *shapes.warehouses(running)):
        yield row


async def bell(running: embedded.Server, options: Namespace) -> Rows:
    """Inserts by 1, 8, 32 producers; ratio to the same without a bell."""
    async with shop(running) as target:
        await target.connection.execute(bells.NOTIFY)
        for producers in bells.PRODUCERS:
            async for row in interleaved(options.rounds, *bells.variants(target, producers)):
                yield row
        await target.check()


async def cells(running: embedded.Server, options: Namespace) -> Rows:
    """20,000 ready orders in one cell, and half of them in each of two on this machine."""
    with several.servers() as servers:
        async for row in interleaved(options.rounds, *several.variants(running, *servers)):
            yield row


async def growth(running: embedded.Server, options: Namespace) -> Rows:
    """The drain beside finished orders (--finished); ratio to empty tables. Takes its time."""
    async with AsyncExitStack() as stack:
        grown = {}
        for orders in options.finished:
            target = await stack.enter_async_context(shop(running, stock=growths.STOCK))
            loaded = await growths.load(target, orders)
            yield {"variant": f"{orders:,} finished", "round": "load", **loaded}
            grown[orders] = target
        variants = growths.variants(running, grown)
        async for row in interleaved(options.rounds, variants, ["0 finished"]):
            yield row
        for target in grown.values():
            await target.check()


async def horizon(running: embedded.Server, options: Namespace) -> Rows:
    """A snapshot held for --held orders: the last drained and alone beside the first; peers."""
    async for row in interleaved(options.rounds, horizons.variants(running, options.held)):
        yield row


async def imports(running: embedded.Server, options: Namespace) -> Rows:
    """A file of movements (--movements), and one INSERT of them; ratio to a plain COPY."""
    measured = importing.variants(running, options.movements)
    async for row in interleaved(options.rounds, *measured):
        yield row


async def peers(running: embedded.Server, options: Namespace) -> Rows:
    """Other engines at the same work; ratio to the best of them."""
    measured = versus.variants(running, options.absurd_sql, options.orders)
    async for row in interleaved(options.rounds, *measured):
        yield row


async def peers_latency(running: embedded.Server, options: Namespace) -> Rows:
    """300 orders one at a time: other engines, idle."""
    measured = versus.latency_variants(running, options.absurd_sql)
    async for row in interleaved(options.rounds, measured):
        yield row


async def soak(running: embedded.Server, options: Namespace) -> Rows:
    """The API and a listener under load (--minutes): fails when their memory isn't flat."""
    for row in await soaks.soak(running, options.minutes):
        yield row


async def routing(running: embedded.Server, options: Namespace) -> Rows:
    """POST /orders and GET /orders/{id} where there are 1 and 2 cells; ratio to one."""
    async with routes.variants(running) as pairs:
        for pair in pairs:
            async for row in interleaved(options.rounds, *pair):
                yield row


async def sizing(running: embedded.Server, options: Namespace) -> Rows:
    """What API, listener, webhooks and server take for an order by HTTP."""
    for number in range(options.rounds):
        for row in await sizes.sizing(running):
            yield {"round": number, **row}


BY_DEFAULT = (
    drain,
    latency,
    open_loop,
    floor,
    end_to_end,
    end_to_end_http,
    http,
    gateway,
    hot,
    warehouses,
    bell,
)
ALL = (*BY_DEFAULT, cells, growth, horizon, imports, peers, peers_latency, routing, sizing, soak)
BENCHES: dict[str, Callable[[embedded.Server, Namespace], Rows]] = {b.__name__: b for b in ALL}


UNSHOWN = ("bench", "settings")


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table; a column for every figure that any row has, most of them per order."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in UNSHOWN]
    table = Table(box=None, pad_edge=False)
    for key in keys:
        numeric = all(isinstance(row.get(key, 0), int | float) for row in rows)
        name = key.removesuffix("_per_order").replace("_", " ")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in keys))
    console.print(table)
    for variant, settings in {row["variant"]: row.get("settings") for row in rows}.items():
        if settings:
            console.print(f"{variant}: {settings}", markup=False, highlight=False)


async def run(names: list[str], options: Namespace) -> None:
    """Run them one after another."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with server() as running, RESULTS.open("a") as results:

        def record(row: dict[str, Any]) -> None:
            results.write(json.dumps({"run": started, **row}) + "\n")
            results.flush()

        facts = machine(running.url)
        record(facts)
        console.print(", ".join(f"{k} {v}" for k, v in facts.items() if k != "bench"))
        for name in names:
            console.print(f"[bold]{name}[/]: {BENCHES[name].__doc__}")
            rows = []
            async for row in BENCHES[name](running, options):
                rows.append({**row, "bench": name})
                record(rows[-1])
            show(console, rows)
            if not all(row.get("flat", True) for row in rows):
                raise SystemExit("memory isn't flat")


parser = ArgumentParser(prog="python -m bench", description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHES)}")
parser.add_argument("--rounds", type=int, default=3, help="rounds of what is interleaved")
parser.add_argument(
    "--finished", type=int, nargs="+", default=[1_000_000], help="orders for growth, one or more"
)
parser.add_argument("--movements", type=int, default=1_000_000, help="movements for imports")
parser.add_argument(
    "--held", type=int, default=200_000, help="orders for horizon, of which peers get a tenth"
)
parser.add_argument("--minutes", type=float, default=30, help="how long to soak")
parser.add_argument("--orders", type=int, default=3000, help="orders for each peer")
parser.add_argument(
    "--absurd-sql", type=Path, default=os.environ.get("ABSURD_SQL"), help="Absurd's tables"
)
parser.add_argument("--chart", action="store_true", help="only draw docs/performance.svg")
arguments = parser.parse_args()
if unknown := set(arguments.names) - BENCHES.keys():
    parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
if arguments.absurd_sql and not arguments.absurd_sql.is_file():
    parser.error(f"no such file: {arguments.absurd_sql}")
if arguments.chart:
    Console().print(f"wrote {chart(RESULTS)}")
else:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, with its server
    asyncio.run(run(arguments.names or [bench.__name__ for bench in BY_DEFAULT], arguments))
