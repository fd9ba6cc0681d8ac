"""What each process takes for an order: processor time, memory, connections, disk."""

import asyncio
import os
import re
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil

from bench import http_clients
from bench.harness import Meter, Shop, listeners, shop, until_drained
from darkpearl import embedded

SECONDS = 10
CLIENTS = 16
MEGABYTE = 2**20
SENT = (
    "select coalesce(min(position), 0) >= pg_sequence_last_value('saga_events_id_seq')"
    " from webhook_endpoints"
)
SIZE = "select pg_database_size(current_database())"
BACKENDS = "select pid from pg_stat_activity where application_name ~ %s"
SESSIONS = {
    "API": "^darkpearl api",
    "listener": "^darkpearl (listener|bell|heartbeat|chores|retention)$",
    "webhooks": "^darkpearl webhooks$",
}
"""By the names of their applications."""


async def sizing(running: embedded.Server) -> list[dict[str, Any]]:
    """Orders by HTTP from 16 connections, fulfilled by one listener, told to one endpoint.

    Returns:
        A row per process: microseconds of processor time per order, resident memory in MB, and
        sessions, with the memory in MB that is a session's alone on average; of the server also
        bytes of WAL and on the disk, without what vacuum gives back.
    """
    async with shop(running) as target, _receiver() as url:
        await target.value("select id from create_webhook_endpoint(%s)", url)
        await target.settle_down()
        async with (
            listeners(target, 1) as (listener,),
            _webhooks(target) as webhooks,
            http_clients.api(target.url) as (port, api),
        ):
            await http_clients.drive(target, port, 4, 2)  # warm
            processes = {"API": api, "listener": listener, "webhooks": webhooks}
            before = {name: _cpu(each) for name, each in processes.items()}
            size = await target.value(SIZE)
            meter = Meter(target)
            await meter.begin()
            run = await http_clients.drive(target, port, CLIENTS, SECONDS)
            await until_drained(target)
            while not await target.value(SENT):
                await asyncio.sleep(0.1)
            await meter.end()
            rows = [
                {
                    "variant": name,
                    "cpu_us_per_order": round((_cpu(each) - before[name]) * 1e6 / run.transactions),
                    "rss_mb": round(psutil.Process(each.pid).memory_info().rss / MEGABYTE, 1),
                    **await _sessions(target, SESSIONS[name]),
                }
                for name, each in processes.items()
            ]
            grown = await target.value(SIZE) - size
        counted = await meter.per_order(run.transactions)
        await target.check()
    server = {
        "variant": "PostgreSQL",
        "orders": run.transactions,
        "orders_per_second": round(run.per_second),
        "cpu_us_per_order": counted["server_cpu_us_per_order"],
        "wal_bytes_per_order": counted["wal_bytes_per_order"],
        "disk_bytes_per_order": round(grown / run.transactions),
    }
    return [server, *rows]


async def _sessions(target: Shop, names: str) -> dict[str, Any]:
    """How many there are of an application, and what each has in memory for itself."""
    rows = await (await target.connection.execute(BACKENDS, [names])).fetchall()
    alone = [psutil.Process(pid).memory_full_info().uss / MEGABYTE for (pid,) in rows]
    return {"sessions": len(alone), "session_mb": round(sum(alone) / max(1, len(alone)), 1)}


@asynccontextmanager
async def _webhooks(target: Shop) -> AsyncIterator[Process]:
    """`darkpearl webhooks`, which may send to this machine."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "darkpearl", "webhooks"),
        env={
            **{name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")},
            "DARKPEARL_DATABASE_URL": target.url,
            "DARKPEARL_WEBHOOKS_TO_PRIVATE_ADDRESSES": "true",
        },
    )
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


@asynccontextmanager
async def _receiver() -> AsyncIterator[str]:
    """Takes every webhook; its address."""

    async def take(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                length = re.search(rb"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        except (EOFError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


def _cpu(process: Process) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)
