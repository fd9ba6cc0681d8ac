"""`python -m bench [NAME …]`: runs benchmarks, prints a line of JSON and a table row for each."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import drain as drains
from bench import latency as latencies
from bench.harness import server, shop
from darkpearl import embedded

RESULTS = Path(".bench") / "results.jsonl"


async def drain(running: embedded.Server) -> AsyncIterator[dict[str, Any]]:
    """20,000 ready orders, one and two listeners."""
    for count, batch_size in ((1, 500), (2, 500), (1, 100)):
        async with shop(running) as target:
            yield await drains.drain(target, 20_000, count, batch_size)


async def latency(running: embedded.Server) -> AsyncIterator[dict[str, Any]]:
    """500 orders, one at a time."""
    async with shop(running) as target:
        yield await latencies.latency(target, 500)


BENCHES: dict[str, Callable[[embedded.Server], AsyncIterator[dict[str, Any]]]] = {
    "drain": drain,
    "latency": latency,
}


async def run(names: list[str]) -> None:
    """Run them one after another."""
    console = Console()
    with server() as running, RESULTS.open("a") as results:
        for name in names:
            console.print(f"[bold]{name}[/]: {BENCHES[name].__doc__}")
            async for figures in BENCHES[name](running):
                results.write(json.dumps(figures) + "\n")
                table = Table(box=None, pad_edge=False)
                for key in figures:
                    table.add_column(key.replace("_", " "), justify="right")
                table.add_row(*map(str, figures.values()))
                console.print(table)


chosen = sys.argv[1:] or list(BENCHES)
if unknown := set(chosen) - BENCHES.keys():
    sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
asyncio.run(run(chosen))
