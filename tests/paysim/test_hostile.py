"""A service that means harm: what it sends has bounds, in bytes and in time, and is no answer."""

import asyncio
import contextlib
import gzip
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest

from darkpearl.gateways import AnsweredError, GatewayPayment
from darkpearl.gateways.http import LONGEST_ANSWER_BYTES, GatewayError, HttpGateway

from .conftest import PATIENCE_SECONDS, call

LAST_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
MOST_MORE_BYTES = 20_000_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
APPROVED = b'{"outcome": "approved", "message": "'
BOMB = gzip.compress(APPROVED + bytes(300_000_000))

Sent = AsyncIterator[bytes]

ASK = """
import asyncio, json, re, sys
import msgspec
from darkpearl.gateways.http import HttpGateway
from darkpearl.gateways.stripe import StripeGateway
from darkpearl.listener.breaker import Breaker
from darkpearl.listener.calls import Calls, Request

ASKED = {
    "operation": "authorize", "idempotency_key": "o:process_payment",
    "payment_key": "o:process_payment", "amount": "10.00", "currency": "EUR", "token": "pm_card",
}

def most_bytes():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])

async def main():
    kind, url = sys.argv[1:]
    if kind == "stripe":
        gateway = StripeGateway("sk_test_of_nobody", api_base=url)
    else:
        gateway = HttpGateway(url, timeout_seconds=1)
    calls = Calls(gateway, Breaker(10), concurrency=1, timeout_seconds=2)
    running = asyncio.create_task(calls.run())
    before = most_bytes()
    calls.put(Request("o", 1, 1, 30, msgspec.Raw(json.dumps(ASKED).encode())))
    await calls.answered.wait()
    (told,) = calls.take_answers()
    print(json.dumps([msgspec.json.decode(told.answer), most_bytes() - before]))
    running.cancel()

asyncio.run(main())
"""
"""A listener's call of a gateway: prints the answer, and how much memory it took at most."""


async def bomb() -> Sent:
    """Three hundred kilobytes that are three hundred megabytes."""
    yield HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB


async def long_answer() -> Sent:
    """Two hundred megabytes."""
    yield HEAD + b"Content-Length: 200000000\r\n\r\n" + APPROVED
    for _ in range(200):
        yield b"x" * 1_000_000


async def endless_chunks() -> Sent:
    """An answer without a length or an end."""
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b"x" * 65_536 + b"\r\n"


async def slow_body() -> Sent:
    """An answer that is never silent and never done."""
    yield HEAD + b"Content-Length: 60000\r\n\r\n"
    while True:
        yield b" "
        await asyncio.sleep(0.05)


async def slow_head() -> Sent:
    """The same before the body."""
    yield HEAD + b"X: "
    while True:
        yield b"x"
        await asyncio.sleep(0.05)


async def endless_head() -> Sent:
    """Headers without an end."""
    yield HEAD
    while True:
        yield b"X-More: " + b"x" * 8000 + b"\r\n"


async def endless_interim() -> Sent:
    """Interim answers without an end."""
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n" * 100


async def trailers() -> Sent:
    """A whole answer, and trailers without an end."""
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n17\r\n" + b'{"outcome": "approved"}\r\n0\r\n'
    while True:
        yield b"X-More: " + b"x" * 8000 + b"\r\n"


async def redirects() -> Sent:
    """To itself."""
    yield b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /v1/payments\r\nContent-Length: 0\r\n\r\n"


async def nested() -> Sent:
    """Brackets within brackets."""
    yield HEAD + b"Content-Length: 60000\r\n\r\n" + b"[" * 60_000


@asynccontextmanager
async def serving(send: Callable[[], Sent]) -> AsyncIterator[str]:
    """The address of a service that answers each connection with that, whatever it is asked."""
    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            answering.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            async for part in send():
                writer.write(part)
                await writer.drain()
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for each in answering:
            each.cancel()
        await asyncio.gather(*answering)


OF_ANY_KIND = [bomb, long_answer, endless_chunks, slow_body, endless_head, redirects]
OF_ONE_KIND = [slow_head, endless_interim, trailers, nested]


@pytest.mark.parametrize(
    ("kind", "send"),
    [("http", each) for each in OF_ANY_KIND + OF_ONE_KIND]
    + [("stripe", each) for each in OF_ANY_KIND],
)
async def test_what_a_gateway_sends_has_bounds(kind: str, send: Callable[[], Sent]) -> None:
    """Whatever it is, the answer is unknown, in time, and costs less than 20 MB of memory."""
    async with serving(send) as url, asyncio.timeout(PATIENCE_SECONDS):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, kind, url, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await child.communicate()
    answer, more_bytes = json.loads(said)
    assert answer["outcome"] == "unknown"
    assert more_bytes < MOST_MORE_BYTES


@pytest.mark.parametrize(("more", "approved"), [(0, True), (1, False)])
async def test_an_answer_may_be_as_long_as_the_bound(more: int, *, approved: bool) -> None:
    """And not a byte longer."""

    async def body() -> Sent:
        yield b'{"outcome": "approved"}'.ljust(LONGEST_ANSWER_BYTES + more)

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body()))
    gateway = HttpGateway("http://paysim", transport=transport)
    if approved:
        assert await gateway.lookup(call("authorize", "p"))
        return
    with pytest.raises(AnsweredError, match="longer than 65536 bytes"):
        await gateway.lookup(call("authorize", "p"))


async def test_compressed_answers_are_not_asked_for(gateway: HttpGateway) -> None:
    """What is small on the wire is large in memory."""
    assert gateway._client.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("cursors", [["a", "a"], ["a", "b", "a"], ["x" * 1001]])
async def test_a_list_that_goes_round_in_circles_ends(cursors: list[str]) -> None:
    """A cursor that was followed before, or one that is too long, is no page."""
    left = list(cursors)

    def page(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"payments": [], "next": left.pop(0)})

    gateway = HttpGateway("http://paysim", transport=httpx.MockTransport(page))
    with pytest.raises(GatewayError):
        _: list[GatewayPayment] = [each async for each in gateway.payments(LAST_YEAR)]
    assert left == []
