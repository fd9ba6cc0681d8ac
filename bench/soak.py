"""Memory over a long time: the API and a listener, while clients place orders and list them."""

import asyncio
import time
from statistics import fmean, linear_regression
from typing import Any

import psutil

from bench import http_clients
from bench.harness import listeners, shop, until_drained
from darkpearl import embedded

CLIENTS = 8
SAMPLE_SECONDS = 1.0
MEGABYTE = 2**20
GROWTH_SHARE, GROWTH_MB = 0.02, 2.0
"""Between the second third and the last; more than both is no longer flat."""

Samples = list[tuple[float, float]]


async def soak(running: embedded.Server, minutes: float) -> list[dict[str, Any]]:
    """Place orders for so long, and list them.

    Returns:
        A row per process: its resident memory in MB and whether that stayed flat.
    """
    async with shop(running) as target:
        async with listeners(target, 1) as (listener,):
            async with http_clients.api(target.url) as (port, server):
                samplers = {"listener": Sampler(listener.pid), "API": Sampler(server.pid)}
                sampling = [asyncio.create_task(each.run()) for each in samplers.values()]
                seconds = round(minutes * 60)
                reading = asyncio.create_task(http_clients.read(port, seconds))
                run = await http_clients.drive(target, port, CLIENTS, seconds)
                lists = await reading
                for task in sampling:
                    task.cancel()
            await until_drained(target)
        await target.check()
    return [
        {
            "variant": name,
            "orders": run.transactions,
            "lists": lists,
            "minutes": minutes,
            **memory(each.samples),
        }
        for name, each in samplers.items()
    ]


class Sampler:
    """Samples the memory of a process until told to stop."""

    def __init__(self, pid: int) -> None:
        self.samples: Samples = []
        self._process = psutil.Process(pid)

    async def run(self) -> None:
        """Take a sample now and then."""
        while True:
            rss = self._process.memory_info().rss / MEGABYTE
            self.samples.append((time.monotonic(), rss))
            await asyncio.sleep(SAMPLE_SECONDS)


def memory(samples: Samples) -> dict[str, Any]:
    """The growth by samples of (seconds, MB), without the first third: there the process fills."""
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    before, after = (fmean(mb for _, mb in part) for part in (middle, last))
    slope = linear_regression(*zip(*samples[third:], strict=True)).slope
    return {
        "rss_mb_start": round(samples[0][1], 1),
        "rss_mb_middle": round(before, 1),
        "rss_mb_last": round(after, 1),
        "rss_mb_per_hour": round(slope * 3600, 2),
        "flat": after - before < max(GROWTH_MB, GROWTH_SHARE * before),
    }
