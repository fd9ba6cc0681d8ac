"""An order's progress as server-sent events. The ASGI side is driven by hand: clients buffer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args
from uuid import UUID, uuid4

import httpx
import pytest
from litestar import Litestar
from shop import Shop

from darkpearl.api import events
from darkpearl.api.limits import Shares
from darkpearl.models.sagas import SagaEventType, SagaStatus

HISTORY = [
    "saga_started",
    "step_completed",
    "step_waiting",
    "step_completed",
    "step_completed",
    "saga_completed",
]
RunSagas = Callable[..., Awaitable[None]]


class Stream:
    """A client that reads as the server sends."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._text = ""

    async def receive(self) -> dict[str, Any]:
        """The server hears: an empty body, then that the client is gone."""
        if not hasattr(self, "_asked"):
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """The server's messages."""
        await self._sent.put(message)

    async def start(self) -> dict[str, Any]:
        """Status and headers."""
        async with asyncio.timeout(5):
            return await self._sent.get()

    async def block(self) -> str:
        """The next block, up to its empty line; '' at the end of the stream."""
        async with asyncio.timeout(5):
            while "\r\n\r\n" not in self._text:
                message = await self._sent.get()
                self._text += message.get("body", b"").decode()
                if not message.get("more_body"):
                    assert self._text == ""
                    return ""
        block, _, self._text = self._text.partition("\r\n\r\n")
        return block

    async def event(self) -> tuple[int, str]:
        """The id and type of the next event."""
        fields = dict(line.split(": ", 1) for line in (await self.block()).split("\r\n"))
        assert fields.keys() == {"id", "event", "data"}
        return int(fields["id"]), fields["event"]


@pytest.fixture
def follow(app: Litestar, api: httpx.AsyncClient) -> Callable[..., Any]:
    """A client that follows an order until its block ends."""

    @asynccontextmanager
    async def connected(order: UUID, last_event_id: int | None = None) -> AsyncIterator[Stream]:
        stream = Stream()
        headers = [(b"authorization", api.headers["authorization"].encode())]
        headers += [(b"last-event-id", str(last_event_id).encode())] if last_event_id else []
        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/orders/{order}/events",
            "raw_path": f"/orders/{order}/events".encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("api", 80),
            "client": ("test", 1),
            "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "extensions": {},
            "state": {},
        }
        task = asyncio.ensure_future(app(scope, stream.receive, stream.send))  # type: ignore[arg-type]
        try:
            yield stream
        finally:
            stream.gone.set()
            async with asyncio.timeout(5):
                await asyncio.wait([task])
            task.result()

    return connected


async def test_history_comes_first_then_each_event_as_it_is_committed(
    shop: Any, follow: Callable[..., Any], run_sagas: RunSagas
) -> None:
    """A client that connects midway misses nothing, and the end of the saga ends the stream."""
    order = await shop.order((shop.products[0], 1))
    await run_sagas(None)
    async with follow(order) as stream:
        assert (await stream.start())["status"] == 200
        seen = [await stream.event() for _ in range(3)]
        assert [kind for _, kind in seen] == HISTORY[:3]
        await shop.run("update sagas set ready_at = clock() - interval '1 second'")
        await shop.cancel(order)
        assert (await stream.event())[1] == "cancelled"


async def test_the_stream_ends_with_the_saga(
    shop: Any, follow: Callable[..., Any], run_sagas: RunSagas
) -> None:
    """Events arrive once each in order, and the last one closes it."""
    order = await shop.order((shop.products[0], 1))
    async with follow(order) as stream:
        await stream.start()
        seen = [await stream.event()]
        await run_sagas()
        seen += [await stream.event() for _ in range(5)]
        assert [kind for _, kind in seen] == HISTORY
        assert sorted(set(seen)) == seen
        assert await stream.block() == ""


async def test_a_client_goes_on_where_it_was(
    shop: Any, follow: Callable[..., Any], run_sagas: RunSagas
) -> None:
    """Last-Event-ID leaves out what was seen; after the end it gets 204 and stays away."""
    order = await shop.order((shop.products[0], 1))
    await run_sagas()
    async with follow(order) as stream:
        await stream.start()
        every = [await stream.event() for _ in HISTORY]
    async with follow(order, last_event_id=every[3][0]) as stream:
        await stream.start()
        assert [await stream.event(), await stream.event()] == every[4:]
        assert await stream.block() == ""
    async with follow(order, last_event_id=every[-1][0]) as stream:
        assert (await stream.start())["status"] == 204
    async with follow(order, 10**30) as stream:  # more than any event's
        assert (await stream.start())["status"] == 204


async def test_a_long_history_comes_whole(
    shop: Any, follow: Callable[..., Any], run_sagas: RunSagas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More events than one look reads are read by the next looks."""
    monkeypatch.setattr(events, "BATCH", 2)
    order = await shop.order((shop.products[0], 1))
    await run_sagas()
    async with follow(order) as stream:
        await stream.start()
        assert [(await stream.event())[1] for _ in HISTORY] == HISTORY
        assert await stream.block() == ""


async def test_silence_is_filled_with_pings(
    shop: Any, follow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment keeps proxies from closing a stream on which nothing happens."""
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(events, "PING_SECONDS", 0.02)
    order = await shop.order((shop.products[0], 1))
    async with follow(order) as stream:
        await stream.start()
        await stream.event()
        assert await stream.block() == ": ping"


async def test_a_client_that_leaves_ends_its_stream(
    app: Litestar, shop: Any, follow: Callable[..., Any]
) -> None:
    """Nothing polls for nobody."""
    order = await shop.order((shop.products[0], 1))
    async with follow(order) as stream:
        await stream.start()
        await stream.event()
        assert len(app.state.streams) == 1
    assert len(app.state.streams) == 0


async def test_a_stopping_server_ends_its_streams(
    app: Litestar, shop: Any, follow: Callable[..., Any]
) -> None:
    """An open stream doesn't keep the process alive."""
    order = await shop.order((shop.products[0], 1))
    async with follow(order) as stream:
        await stream.start()
        await stream.event()
        app.state.stopping.set()
        assert await stream.block() == ""


async def test_a_stream_holds_no_connection(
    app: Litestar, shop: Any, follow: Callable[..., Any], api: httpx.AsyncClient
) -> None:
    """More streams than the pool has connections leave room for requests."""
    orders = [await shop.order((shop.products[0], 1)) for _ in range(10)]
    async with asyncio.TaskGroup() as group:
        done = asyncio.Event()
        ready = asyncio.Semaphore(0)

        async def watch(order: UUID) -> None:
            async with follow(order) as stream:
                await stream.start()
                await stream.event()
                ready.release()
                await done.wait()

        for order in orders:
            group.create_task(watch(order))
        for _ in orders:
            await ready.acquire()
        assert len(app.state.streams) == 10
        assert (await api.get("/orders")).json()["count"] == 10
        done.set()


async def test_there_are_only_so_many_streams(
    app: Litestar, api: httpx.AsyncClient, shop: Any, problem: Callable[..., Any]
) -> None:
    """One more than the limit is told to come back later."""
    order = await shop.order((shop.products[0], 1))
    app.state.streams = Shares("streams", 0, 1)
    told = await api.get(f"/orders/{order}/events")
    problem(told, 503)
    assert told.headers["retry-after"] == "1"


async def test_a_customer_has_a_share_of_the_streams(
    app: Litestar, client: Callable[..., Any], shop: Any, problem: Callable[..., Any]
) -> None:
    """Who holds a full share is 429; another customer, and staff, follow as before."""
    alice, bob = str(uuid4()), str(uuid4())
    orders = {
        each: await shop.order((shop.products[0], 1), p_customer_id=each) for each in (alice, bob)
    }
    app.state.stopping.set()  # a stream ends after its first look
    with contextlib.ExitStack() as held:
        for _ in range(events.MAX_STREAMS_EACH):
            held.enter_context(app.state.streams.held(f"sub {alice}", is_staff=False))
        refused = await client("authenticated", alice).get(f"/orders/{orders[alice]}/events")
        problem(refused, 429, "DP039")
        assert refused.headers["retry-after"] == "1"
        for api, order in (
            (client("authenticated", bob), orders[bob]),
            (client("service_role", alice), orders[alice]),
        ):
            assert (await api.get(f"/orders/{order}/events")).status_code == 200
    told = await client("authenticated", alice).get(f"/orders/{orders[alice]}/events")
    assert told.text.count("event: ") == 1
    assert len(app.state.streams) == 0


async def test_no_order_no_stream(api: httpx.AsyncClient, problem: Callable[..., Any]) -> None:
    """404 as a problem document, and a bad Last-Event-ID is 400."""
    problem(await api.get(f"/orders/{uuid4()}/events"), 404)
    problem(await api.get(f"/orders/{uuid4()}/events", headers={"last-event-id": "x"}), 400)


async def test_every_event_has_a_shape(shop: Shop) -> None:
    """The description lists each type of event, and each status of a saga, that there is."""
    for kind, name in ((SagaEventType, "saga_event_type"), (SagaStatus, "saga_status")):
        real = await shop.values(f"select unnest(enum_range(null::{name}))::text")
        assert sorted(get_args(kind)) == sorted(real)
