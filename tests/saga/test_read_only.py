"""A database that can't be written to: closed for a while, or a standby that takes over."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from psycopg import AsyncConnection
from server import SECRET, Process, answering, free_port

from darkpearl import embedded, schema
from darkpearl.api import tokens
from darkpearl.config import Settings

MEMORY = embedded.MEMORY if os.access(embedded.MEMORY, os.W_OK) else None
ORDER = {
    "warehouse_id": "11111111-1111-1111-1111-111111111111",
    "items": [{"product_id": "aaaa4444-4444-4444-4444-444444444444", "quantity": 1}],
}
FULFILLED = "select count(*) from darkpearl.orders where status = 'fulfilled'"
CLOSED = "the server can't be written to: default_transaction_read_only is on"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for servers of its own, in memory where there is some."""
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=MEMORY) as made:
        Path(made).chmod(0o711)  # for root's `nobody`
        yield Path(made)


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API at a port, for which it serves."""
    token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 600)
    headers = {"authorization": f"Bearer {token}"}
    address = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=30) as client:
        await answering(client, "/health/live")
        yield client


async def answered(client: httpx.AsyncClient, status: int) -> httpx.Response:
    """The first answer with this status to an order that is placed again and again.

    Whatever comes before it is 201 or 503.
    """
    async with asyncio.timeout(30):
        while (answer := await client.post("/orders", json=ORDER)).status_code != status:
            assert answer.status_code in {201, 503}
            await asyncio.sleep(0.05)
    return answer


async def fulfilled(address: str, wanted: int) -> None:
    """Return once so many orders are; at most for half a minute."""
    async with asyncio.timeout(30), schema.connect(address) as connection:
        done = 0
        while done < wanted:
            (done,) = await (await connection.execute(FULFILLED)).fetchone() or (0,)
            await asyncio.sleep(0.02)


async def close_for_writing(connection: AsyncConnection, *, closed: bool) -> None:
    """As who looks after the server does: for all sessions from their next transaction on."""
    await connection.execute("set default_transaction_read_only = off")
    await connection.execute(
        f"alter system set default_transaction_read_only = {'on' if closed else 'off'}".encode()
    )
    await connection.execute("select pg_reload_conf()")


def settings(url: str, port: int, metrics_port: int = 0) -> dict[str, str]:
    """The environment of the processes."""
    return {
        "DARKPEARL_DATABASE_URL": url,
        "DARKPEARL_PORT": str(port),
        "DARKPEARL_METRICS_PORT": str(metrics_port),
        "DARKPEARL_MOCK_APPROVAL_RATE": "1",
    }


def not_writable(answer: httpx.Response, why: str = "") -> None:
    """It is 503, says when to come again, and is a problem document."""
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert why in document.get("detail", "")
    assert why or document["code"] == "25006"


async def complains(listener: Process, times: int) -> str:
    """All that a listener has printed, once it has said so often that it can't write."""
    async with asyncio.timeout(30):
        said = ""
        while said.count(CLOSED) < times:
            await asyncio.sleep(0.05)
            said = listener.printed()
    return said


async def test_a_server_that_is_closed_for_writing(folder: Path) -> None:
    """Reading goes on, orders are 503, nobody is ready; the listener backs off and says why.

    All of it goes on by itself when the server can be written to again.
    """
    port, metrics_port = free_port(), free_port()
    server = await asyncio.to_thread(embedded.start, folder, embedded.UNSAFE)
    try:
        await schema.migrate(server.url)
        await schema.seed(server.url)
        environment = settings(server.url, port, metrics_port)
        with Process("api", **environment) as api, Process("listener", **environment) as listener:
            async with calling(port) as client, schema.connect(server.url) as owner:
                await answering(client)
                await answered(client, 201)
                await fulfilled(server.url, 1)
                await close_for_writing(owner, closed=True)
                not_writable(await answered(client, 503))
                assert (await client.get("/orders")).json()["count"] >= 1
                ready = await client.get("/health/ready")
                not_writable(ready, "can't be written to: default_transaction_read_only is on")
                said = await complains(listener, times=5)
                page = (await client.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
                (outages,) = re.findall(r'_outages_total\{sqlstate="25006"\} (\S+)', page)
                assert 5 <= float(outages) < 20
                migrate = await asyncio.to_thread(run, "db", "migrate", **environment)
                assert migrate == (2, f"darkpearl: {CLOSED}\n")
                await close_for_writing(owner, closed=False)
                await answered(client, 201)
                await answering(client)
                orders = (await client.get("/orders")).json()["count"]
                await fulfilled(server.url, orders)
            assert api.runs()
            assert listener.runs()
            waits = re.findall(r"trying again in ([0-9.]+) s", said)
            assert max(map(float, waits)) > 0.8, "it comes less and less often"
    finally:
        embedded.stop(server)


def run(*command: str, **environment: str) -> tuple[int, str]:
    """The exit code of a command, and what it says of its failure."""
    kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
    done = subprocess.run(
        [sys.executable, "-m", "darkpearl", *command],
        env={**kept, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@contextmanager
def primary_and_standby(folder: Path) -> Iterator[tuple[embedded.Server, embedded.Server]]:
    """A server with a shop in it, and another that follows it."""
    home, other = folder / "primary", folder / "standby"
    ports = [str(free_port()), str(free_port())]
    primary = embedded.start(home, {**embedded.UNSAFE, "port": ports[0]})
    other.mkdir(mode=0o711)
    shutil.copy(home / "password", other)
    embedded.stop(primary)
    subprocess.run(["cp", "-a", primary.data, other / "data"], check=True)  # with its owners
    (other / "data" / "standby.signal").touch()
    primary = embedded.start(home, {**embedded.UNSAFE, "port": ports[0]})
    with (primary.data / "pg_hba.conf").open("a") as rules:
        rules.write("host replication all 127.0.0.1/32 scram-sha-256\n")
    os.kill(primary.pid, signal.SIGHUP)
    follow = {**embedded.UNSAFE, "port": ports[1], "primary_conninfo": primary.url}
    standby = embedded.start(other, follow)
    try:
        yield primary, standby
    finally:
        for server in (primary, standby):
            embedded.stop(server)


def either(*servers: embedded.Server) -> str:
    """The address of whichever can be written to."""
    password = (servers[0].home / "password").read_text()
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://darkpearl:{password}@{hosts}/darkpearl?target_session_attrs=read-write"


async def test_a_standby_takes_over(folder: Path) -> None:
    """Who knows both servers goes on with the one that was promoted; nothing is started anew.

    An API that knows the standby alone reads from it, isn't ready, and takes orders once it is
    promoted.
    """
    port, reading_port = free_port(), free_port()
    with primary_and_standby(folder) as (primary, standby):
        url = either(standby, primary)
        await schema.migrate(url)
        await schema.seed(url)
        with pytest.raises(schema.ReadOnlyError, match="can't be written to: it is a standby"):
            await schema.migrate(standby.url)
        environment = settings(url, port)
        with (
            Process("api", **environment) as api,
            Process("listener", **environment) as listener,
            Process("api", **settings(standby.url, reading_port)),
        ):
            async with calling(port) as client, calling(reading_port) as reader:
                await answered(client, 201)
                await fulfilled(primary.url, 1)
                await fulfilled(standby.url, 1)
                not_writable(await reader.post("/orders", json=ORDER))
                not_writable(await reader.get("/health/ready"), "it is a standby")
                assert (await reader.get("/orders")).json()["count"] == 1
                embedded.stop(primary)
                assert (await client.post("/orders", json=ORDER)).status_code == 503
                async with schema.connect(standby.url) as owner:
                    await owner.execute("select pg_promote()")
                await answered(client, 201)
                await answering(client)
                await answered(reader, 201)
                await answering(reader)
                await fulfilled(standby.url, 3)
            assert api.runs()
            assert listener.runs()
