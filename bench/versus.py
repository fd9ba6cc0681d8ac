"""DarkPearl and other engines at the same work: the same tables, server, gateway and orders.

Each peer has a virtual environment in .bench/peers, made when it is first measured. It works on
DarkPearl's own tables, minus what is DarkPearl's: orders start no sagas, and the guards (triggers,
row security) are off for it. Its orders, payments, stock and ledger are audited all the same.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict
from rich.console import Console

from bench.drain import drain
from bench.harness import HOME, Meter, Shop, shop
from bench.latency import commit_latency, latency
from bench.peers.steps import PAUSE_SECONDS
from bench.rounds import Variant
from darkpearl import embedded

ROOT = Path(__file__).parents[1]
_console = Console()
TABLES = ("orders", "order_items", "inventory", "payments", "stock_movements")
SAGALESS = ("order has no saga", "movement of a saga that does not exist")
"""The audit's findings in orders that another engine has fulfilled."""
UNPAID = """
select count(*) from orders as o left join payments as p on p.order_id = o.id
where o.status <> 'fulfilled' or p.captured_amount is distinct from o.total_amount
"""
LISTENERS = (1, 2)
LATENCY_ORDERS = 300
LONGEST_SECONDS = 600


@dataclass(frozen=True)
class Peer:
    """An engine and how it is run at its best here.

    Attributes:
        script: its module in bench.peers.
        requirements: what pip installs for it.
        shapes: processes x orders at a time in each: the best of one process, the best of all.
    """

    script: str
    requirements: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    def install(self) -> str:
        """Make its virtual environment if it isn't there; the interpreter in it."""
        home = HOME.resolve() / "peers" / self.script
        wanted = "\n".join(
            sorted((*self.requirements, "msgspec>=0.19", "psycopg[binary,pool]>=3.3"))
        )
        installed = home / "installed.txt"
        python = home / "bin" / "python"
        if not installed.exists() or installed.read_text() != wanted:
            _install(home, python, wanted.splitlines())
            installed.write_text(wanted)
        return str(python)

    def command(self, *arguments: str) -> dict[str, Any]:
        """Arguments of subprocess.Popen that run its script."""
        names = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {
            "args": [self.install(), "-m", f"bench.peers.{self.script}", *arguments],
            "cwd": ROOT,
            "env": names | {"PYTHONDONTWRITEBYTECODE": "1"},
        }


PEERS = {
    "DBOS": Peer("dbos", ("dbos>=3.4,<4",), ((1, 50), (2, 50))),
    "Procrastinate": Peer("procrastinate", ("procrastinate>=3.10,<4",), ((1, 16), (2, 16))),
    "PgQueuer": Peer("pgqueuer", ("pgqueuer[asyncpg]>=1.6,<2",), ((1, 64), (2, 48))),
    "Absurd": Peer("absurd", ("absurd-sdk>=0.5,<1",), ((1, 8), (2, 4))),
}


def url_of(target: Shop) -> str:
    """Its address as a URL: not every driver reads another form."""
    parts = {name: quote(str(value)) for name, value in conninfo_to_dict(target.url).items()}
    name, password = parts["user"], parts.get("password", "")
    return f"postgresql://{name}:{password}@{parts['host']}:{parts['port']}/{parts['dbname']}"


def _install(home: Path, python: Path, requirements: list[str]) -> None:
    _console.print(f"installing into {home}, once: {', '.join(requirements)}", markup=False)
    if uv := shutil.which("uv"):
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, home]
        install = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        make = [sys.executable, "-m", "venv", "--clear", home]
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (make, [*install, *requirements]):
        if done := subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{home.name} can't be installed (exit {done})")


async def prepare(target: Shop, peer: Peer, schema: str | None, orders: int) -> None:
    """The tables without what is DarkPearl's, orders in them, the engine's own tables and jobs."""
    execute = target.connection.execute
    await execute("alter table orders disable trigger orders_start_sagas")
    await target.fill(orders)
    for table in TABLES:
        await execute(f"alter table {table} disable trigger user".encode())
    name = target.connection.info.dbname
    await execute(f'alter database "{name}" set search_path = public, darkpearl'.encode())
    if schema:
        await execute(schema.encode())
        await execute("set search_path = darkpearl")
    prepared = await asyncio.to_thread(
        subprocess.run, **peer.command("prepare", url_of(target)), check=False
    )
    if prepared.returncode:
        raise SystemExit(f"{peer.script} can't be prepared (exit {prepared.returncode})")
    await target.settle_down()


async def audit(target: Shop) -> None:
    """Stop the benchmark if the books of another engine's orders disagree, or one isn't done."""
    await target.check(*SAGALESS)
    if wrong := await target.value(UNPAID):
        raise SystemExit(f"{wrong} orders are not fulfilled and paid")


@contextlib.contextmanager
def workers_of(peer: Peer, url: str, processes: int, concurrency: int) -> Iterator[list[Any]]:
    """Processes that are connected and wait for a line."""
    started = [
        subprocess.Popen(
            **peer.command("work", url, str(concurrency)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


async def _drain(
    running: embedded.Server,
    peer: Peer,
    schema: str | None,
    orders: int,
    processes: int,
    concurrency: int,
) -> dict[str, Any]:
    async with shop(running) as target:
        await prepare(target, peer, schema, orders)
        with workers_of(peer, url_of(target), processes, concurrency) as workers:
            hellos = [await asyncio.to_thread(worker.stdout.readline) for worker in workers]
            if not all(hellos):
                raise SystemExit(f"{peer.script} ended before it began")
            meter = Meter(target, workers)
            await meter.begin()
            for worker in workers:
                worker.stdin.write("\n")
                worker.stdin.flush()
            await _until_fulfilled(target, workers)
            await meter.end()
        figures = await meter.per_order(orders)
        await audit(target)
    return {**figures, **told(hellos[0])}


async def _until_fulfilled(target: Shop, workers: list[Any]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while await target.value("select exists (select from orders where status <> 'fulfilled')"):
        if any(worker.poll() is not None for worker in workers):
            raise SystemExit("a worker ended before all orders were fulfilled")
        if time.monotonic() > deadline:
            raise SystemExit(f"orders are still not fulfilled after {LONGEST_SECONDS} s")
        await asyncio.sleep(0.05)


def told(hello: str) -> dict[str, str]:
    """The version and the settings that a worker says hello with."""
    words = json.loads(hello)
    settings = ", ".join(f"{name} {value}" for name, value in words["settings"].items())
    return {"settings": f"{words['version']}, {settings}"}


async def _latency(running: embedded.Server, peer: Peer, schema: str | None) -> dict[str, Any]:
    async with shop(running) as target:
        await prepare(target, peer, schema, 0)
        run = await asyncio.to_thread(
            subprocess.run,
            **peer.command("latency", url_of(target), str(LATENCY_ORDERS)),
            check=False,
        )
        if run.returncode:
            raise SystemExit(f"{peer.script} failed (exit {run.returncode})")
        await audit(target)
        return await commit_latency(target)


def _present(absurd_sql: Path | None) -> dict[str, tuple[Peer, str | None]]:
    """The peers that can be measured, each with the SQL of its tables where it brings none."""
    present: dict[str, tuple[Peer, str | None]] = {
        name: (peer, None) for name, peer in PEERS.items()
    }
    if absurd_sql:
        present["Absurd"] = (PEERS["Absurd"], absurd_sql.read_text())
    else:
        del present["Absurd"]
        _console.print(
            "Absurd is left out: its package lacks its tables; say where they are with"
            " --absurd-sql absurd.sql or ABSURD_SQL"
        )
    for peer, _ in present.values():
        peer.install()  # before anything is measured
    return present


def variants(
    running: embedded.Server, absurd_sql: Path | None, orders: int
) -> tuple[dict[str, Variant], list[str]]:
    """Each peer with one process and with its best number of them; DarkPearl with as many."""
    peers: dict[str, Variant] = {
        f"{name}, {processes} x {concurrency}": partial(
            _drain, running, peer, schema, orders, processes, concurrency
        )
        for name, (peer, schema) in _present(absurd_sql).items()
        for processes, concurrency in peer.shapes
    }

    async def ours(listeners: int) -> dict[str, Any]:
        async with shop(running) as target:
            return await drain(target, 20_000, listeners)

    listeners = {f"DarkPearl, {n} listener{'s' * (n > 1)}": partial(ours, n) for n in LISTENERS}
    return {**peers, **listeners}, list(peers)


def latency_variants(running: embedded.Server, absurd_sql: Path | None) -> dict[str, Variant]:
    """One idle worker of each, after the same rest; DarkPearl's is the listener."""

    async def ours() -> dict[str, Any]:
        async with shop(running) as target:
            return await latency(target, LATENCY_ORDERS, pause_seconds=PAUSE_SECONDS)

    return {
        "DarkPearl": ours,
        **{
            name: partial(_latency, running, peer, schema)
            for name, (peer, schema) in _present(absurd_sql).items()
        },
    }
