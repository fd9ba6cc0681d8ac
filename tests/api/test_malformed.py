"""Bytes that aren't HTTP, aren't JSON or never end, sent to a real server over sockets."""

import asyncio
import contextlib
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from server import SECRET, Process, answering, free_port

from darkpearl.api import tokens
from darkpearl.config import Settings
from darkpearl.connections import LARGEST_HEAD_BYTES

REQUESTS = 10_000
PER_CONNECTION = 20
AT_ONCE = 40
SLOW = 50
SECONDS = 0.2
"""How long an answer to what is broken is waited for: what seems unfinished gets none."""

JSON = b"Content-Type: application/json\r\n"


def post(body: bytes, headers: bytes = JSON) -> bytes:
    """A well-formed request with a body."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /orders HTTP/1.1\r\nHost: x\r\n" + headers + length + b"\r\n" + body


def get(target: bytes, headers: bytes = b"") -> bytes:
    """A request without a body."""
    return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"


CHUNKED = b"POST /orders HTTP/1.1\r\nHost: x\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED: list[Callable[[random.Random], bytes]] = [
    lambda r: post(r.randbytes(r.randrange(1, 200))),
    lambda r: post(b"[" * r.randrange(1, 5000)),
    lambda _: post(b'{"items": "\xff\xfe"}'),
    lambda _: post(b'{"items": 1e999999, "id": "\\ud800"}'),
    lambda r: post(b"{}", b"Content-Type: " + r.randbytes(4).hex().encode() + b"\r\n"),
    lambda _: post(b"{}", JSON + b"Content-Encoding: gzip\r\n"),
    lambda r: post(
        b"{}", JSON + b"Authorization: Bearer " + r.randbytes(200).hex().encode() + b"\r\n"
    ),
    lambda r: get(b"/orders/" + r.randbytes(30).hex().encode()),
    lambda r: get(b"/products?search=%ff%00%c3%28&limit=" + str(r.randrange(-9, 0)).encode()),
    lambda _: get(b"/products?" + b"&".join(b"a%d=1" % n for n in range(200))),
    lambda _: get(b"/%2e%2e/%2e%2e/etc/passwd"),
    lambda _: get(b"/products", b"X-Request-ID: a b\r\nIf-None-Match: ,,\r\n"),
]
"""HTTP all right: the connection goes on."""
BROKEN: list[Callable[[random.Random], bytes]] = [
    lambda r: r.randbytes(r.randrange(1, 2000)),
    lambda _: b"GET / HTTP/9.9\r\n\r\n",
    lambda _: b"\r\n\r\n\r\n",
    lambda _: get(b"/products", b"X-Request-ID: \x01\x02\r\n"),
    lambda _: get(b"/" + b"a" * 100_000),
    lambda _: get(b"/products", b"X: " + b"b" * 200_000 + b"\r\n"),
    lambda _: get(b"/products", b"".join(b"H%d: 1\r\n" % n for n in range(2000))),
    lambda _: CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    lambda _: CHUNKED + b"ffffffffffffffff\r\n{}",
    lambda _: CHUNKED + b"2;" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
    lambda _: post(b"{}", JSON + b"Content-Length: 99999999999999999999\r\n"),
    lambda _: post(b"{}", JSON + b"Content-Length: -1\r\n"),
    lambda _: b"GET / HTTP/1.1\r\nHost x\r\n bad\r\n\r\n",
]
"""The connection is of no use after these."""


async def abuse(port: int, seed: int) -> list[bytes]:
    """Send a connection's worth, one after the other; the statuses that came back."""
    chance = random.Random(seed)
    told = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        for _ in range(PER_CONNECTION - 1):
            writer.write(chance.choice(REFUSED)(chance))
            head = await reader.readuntil(b"\r\n\r\n")
            told.append(head.split()[1])
            length = head.lower().partition(b"content-length: ")[2].split()[0]
            await reader.readexactly(int(length))
        async with asyncio.timeout(SECONDS):
            writer.write(chance.choice(BROKEN)(chance))
            told.append((await reader.readuntil(b"\r\n")).split()[1])
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()
    return told


async def usual_seconds(client: httpx.AsyncClient) -> float:
    """How long an answer takes: the median of many."""
    times = []
    for _ in range(30):
        began = time.perf_counter()
        assert (await client.get("/products")).status_code == 200
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def test_ten_thousand_malformed_requests_change_nothing(database_url: str) -> None:
    """None gets a 500, and then the service answers in the usual time, slow senders and all."""
    port = free_port()
    settings = {
        "DARKPEARL_DATABASE_URL": database_url,
        "DARKPEARL_PORT": str(port),
        "DARKPEARL_LOG_LEVEL": "warning",
    }
    address = f"http://127.0.0.1:{port}"
    with Process("api", **settings) as api, contextlib.ExitStack() as stack:
        async with httpx.AsyncClient(base_url=address) as client:
            await answering(client)
            usual = await usual_seconds(client)
            for _ in range(SLOW):
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                slow.sendall(b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Le")
            room = asyncio.Semaphore(AT_ONCE)

            async def one(seed: int) -> list[bytes]:
                async with room:
                    return await abuse(port, seed)

            told = await asyncio.gather(*map(one, range(REQUESTS // PER_CONNECTION)))
            statuses = Counter(status[:1] for each in told for status in each)
            assert statuses[b"4"] > REQUESTS * 0.8
            assert statuses.keys() <= {b"2", b"4"}
            assert await usual_seconds(client) < 3 * usual + 0.02
        assert api.runs()
        assert "Traceback" not in api.printed()


async def test_a_head_without_end_is_cut_off(database_url: str) -> None:
    """Headers on and on are refused at a limit, also when they come in small pieces."""
    port = free_port()
    settings = {"DARKPEARL_DATABASE_URL": database_url, "DARKPEARL_PORT": str(port)}
    with Process("api", **settings):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await answering(client)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"GET /products HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"x" * 95 + b"\r\n") * 700
        async with asyncio.timeout(10):
            for start in range(0, LARGEST_HEAD_BYTES + 1, 97):
                writer.write(head[start : min(start + 97, LARGEST_HEAD_BYTES + 1)])
                await writer.drain()
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("known", [True, False])
async def test_a_request_right_behind_a_large_one_is_served(
    database_url: str, *, known: bool
) -> None:
    """A head is counted by its own bytes alone, not those of the body that came before it.

    Whether that was read or refused unread.
    """
    token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 60)
    headers = JSON + (f"Authorization: Bearer {token}\r\n".encode() if known else b"")
    port = free_port()
    settings = {"DARKPEARL_DATABASE_URL": database_url, "DARKPEARL_PORT": str(port)}
    with Process("api", **settings):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await answering(client)
        start, end = b"GET /products HTTP/1.1\r\nHost: x\r\n", b"Connection: close\r\n\r\n"
        for _ in range(30):  # what arrives in one piece is the kernel's to say
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(10):
                writer.write(post(b"[" * 2 * LARGEST_HEAD_BYTES, headers) + start)
                refused = await reader.readuntil(b"\r\n")
                writer.write(end)
                rest = await reader.read()
            writer.close()
            assert refused.startswith(b"HTTP/1.1 400 " if known else b"HTTP/1.1 401 ")
            assert b"HTTP/1.1 200 " in rest
