"""Services in one process: started together, stopped in their order by one signal."""

import asyncio
import contextlib
import gc
import importlib
import logging
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from darkpearl import connections, database
from darkpearl.cells.arrivals import Arrivals
from darkpearl.config import ANY_PROXY, PREFIX, ConfigError, Settings, traces_exporter
from darkpearl.gateways.make import make_gateway
from darkpearl.listener import Limits, Listener, Operation
from darkpearl.paysim import faults
from darkpearl.telemetry.metrics import CELL, CONTENT_TYPE, Engine, Page, may_scrape
from darkpearl.webhooks import Webhooks

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

KEEPALIVE_SECONDS = 60
"""Longer than the clients of a payment service keep idle connections."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger(__name__)


class ServiceError(RuntimeError):
    """A service can't start, or ended without being told to."""


@dataclass(frozen=True)
class Service:
    """Something that runs until told to stop."""

    run: Callable[[], Awaitable[None]]
    stop: Callable[[], None]
    """Finish what is in hand, then end."""
    kill: Callable[[], None]
    """End now."""


def taken_socket(settings: Settings, setting: str = "port") -> socket.socket:
    """A socket on a port of the settings, bound before anything is started.

    A port that is taken by another then stops nothing.

    Raises:
        ServiceError: the address can't be had.
    """
    port: int = getattr(settings, setting)
    return bound_socket(settings.host, port, PREFIX + setting.upper())


def bound_socket(host: str, port: int, setting: str) -> socket.socket:
    """A socket to serve HTTP on; the error names what sets the port.

    Raises:
        ServiceError: the address can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol, or asyncio doesn't know it for TCP and leaves Nagle's algorithm on.
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise ServiceError(f"{host}:{port}: {error.strerror}; {setting} sets another") from None
    return taken


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to us: one place decides what stops in which order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _server(app: Any, **options: Any) -> _Server:
    """What serves an application over HTTP, within the bounds of connections."""

    async def look() -> None:
        connections.look(server.server_state.connections)

    room = connections.room()
    server = _Server(
        uvicorn.Config(
            app, http=connections.Http, ws="none", log_config=None, log_level=logging.WARNING,
            access_log=False, server_header=False, limit_concurrency=room, backlog=room // 4,
            callback_notify=look, timeout_notify=0, **options,
        )
    )  # fmt: skip
    return server


def api_service(settings: Settings, url: str, taken: socket.socket) -> Service:
    """The HTTP API on a socket that is its own."""
    from darkpearl.api.app import create_app  # noqa: PLC0415 - commands would wait for it

    tracing = traces_of("darkpearl-api")
    app = create_app(settings, url, tracing)
    named = settings.trusted_proxies not in {"", ANY_PROXY}
    server = _server(
        app,
        proxy_headers=named,
        forwarded_allow_ips=settings.trusted_proxies if named else "",
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )

    def stop() -> None:
        app.state.stopping.set()  # ends open event streams, which would hold the server up
        server.should_exit = True

    return Service(
        run=lambda: _to_the_last_span(server.serve([taken]), tracing),
        stop=stop,
        kill=lambda: setattr(server, "force_exit", True),
    )


def paysim_service(settings: Settings, app: Callable[..., Any], taken: socket.socket) -> Service:
    """The payment simulator on a socket that is its own."""
    server = _Server(
        uvicorn.Config(
            app,
            http=faults.Protocol,
            access_log=False,
            log_level=logging.WARNING,
            timeout_keep_alive=KEEPALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        )
    )
    return Service(
        run=lambda: server.serve([taken]),
        stop=lambda: setattr(server, "should_exit", True),
        kill=lambda: setattr(server, "force_exit", True),
    )


def limits_of(settings: Settings) -> Limits:
    """How much a listener takes on, by the settings."""
    return Limits(
        batch_size=settings.batch_size,
        concurrency=settings.payment_concurrency,
        call_seconds=settings.payment_timeout_seconds,
        call_failures=settings.payment_failures,
        poll_seconds=settings.poll_seconds,
        shutdown_seconds=settings.shutdown_seconds,
        idempotency_key_hours=settings.idempotency_key_hours,
    )


def operations_of(settings: Settings) -> dict[str, Operation]:
    """The functions that make the external operations of saga types of one's own, by name.

    Raises:
        ConfigError: the setting makes no sense, or names what can't be imported.
    """
    operations: dict[str, Operation] = {}
    for each in filter(None, map(str.strip, settings.operations.split(","))):
        found = re.fullmatch(r"(\w+)=([\w.]+):(\w+)", each)
        if not found:
            raise ConfigError(f"{PREFIX}OPERATIONS: {each!r} is no NAME=MODULE:FUNCTION")
        name, module, function = found.groups()
        try:
            operations[name] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{PREFIX}OPERATIONS: {each}: {error}") from None
    return operations


def make_listener(settings: Settings, url: str, tracing: "Tracing | None" = None) -> Listener:
    """A listener with its role, the gateway of the settings, and operations, one's own too."""
    address = database.as_role(url, database.LISTENER_ROLE)
    return Listener(
        address,
        make_gateway(settings),
        limits_of(settings),
        {"decide_arrival": Arrivals(address).decide, **operations_of(settings)},
        tracing,
    )


def listener_service(settings: Settings, url: str) -> Service:
    """One listener."""
    tracing = traces_of("darkpearl-listener")
    worker = make_listener(settings, url, tracing)
    return Service(
        run=lambda: _to_the_last_span(worker.run(), tracing), stop=worker.stop, kill=worker.kill
    )


def webhooks_service(settings: Settings, url: str) -> Service:
    """What sends webhooks, with the listener's login."""
    webhooks = Webhooks(
        database.as_role(url, database.LISTENER_ROLE),
        to_private=settings.webhooks_to_private_addresses,
        shutdown_seconds=settings.shutdown_seconds,
    )
    return Service(run=webhooks.run, stop=webhooks.stop, kill=webhooks.kill)


def listener_services(settings: Settings, url: str) -> list[Service]:
    """One listener, and its metrics where the settings give them a port."""
    services = [listener_service(settings, url)]
    if settings.metrics_port:
        services.append(_metrics_service(settings, url, taken_socket(settings, "metrics_port")))
    return services


def _metrics_service(settings: Settings, url: str, taken: socket.socket) -> Service:
    """The metrics of a listener on a socket of their own: any path is the page."""
    page: list[Page] = []
    in_production = settings.environment == "production"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive
        given = dict(scope["headers"]).get(b"authorization", b"")
        allowed = may_scrape(given, settings.metrics_token, in_production=in_production)
        status, headers, body = 401, [(b"www-authenticate", b"Bearer")], b""
        if allowed:
            status, headers = 200, [(b"content-type", CONTENT_TYPE.encode())]
            body = await page[0].text()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    server = _server(app, interface="asgi3", lifespan="off")

    async def run() -> None:
        role = database.as_role(url, database.LISTENER_ROLE)
        async with database.open_pool(role, size=1, name="darkpearl metrics") as pool:

            async def fetch(query: str, parameters: database.Row) -> list[database.Row]:
                async with pool.connection() as connection:
                    return await database.fetch_all(connection, query, parameters)

            engine = Engine(fetch)

            async def engines() -> list[Engine]:
                with contextlib.suppress(Exception):  # a database that is away is told as that
                    engine.cell = next((row["name"] for row in await fetch(CELL, {})), "")
                return [engine]

            page.append(Page(engines))
            with taken:
                await server.serve([taken])

    return Service(
        run=run,
        stop=lambda: setattr(server, "should_exit", True),
        kill=lambda: setattr(server, "force_exit", True),
    )


def traces_of(service: str) -> "Tracing | None":
    """The traces of a service, if the environment wants any and the extra is there.

    Raises:
        ConfigError: the environment wants what can't be had.
    """
    exporter = traces_exporter()
    if exporter is None:
        return None
    try:
        from darkpearl.telemetry import tracing  # noqa: PLC0415 - nobody else pays for it
    except ModuleNotFoundError as error:
        _log.warning("no traces: they need %s; pip install 'darkpearl[otel]'", error.name)
        return None
    return tracing.exporting(service, exporter)


async def _to_the_last_span(serving: Coroutine[Any, Any, None], tracing: "Tracing | None") -> None:
    """Run a service, then send the spans that are left."""
    try:
        await serving
    finally:
        if tracing:
            await tracing.close()


async def serve(services: list[Service], greeting: Coroutine[Any, Any, None] | None = None) -> None:
    """Run services until a signal, or until one ends; then stop them in their order.

    The first signal lets work in hand finish; a second one doesn't.

    Raises:
        ServiceError: a service ended by itself.
    """
    gc.collect()
    gc.freeze()  # imports stay: the collector need not look through them again
    stopping = asyncio.Event()

    def on_signal() -> None:
        for service in services if stopping.is_set() else ():
            service.kill()
        stopping.set()

    loop = asyncio.get_running_loop()
    for each in STOP_SIGNALS:
        loop.add_signal_handler(each, on_signal)
    tasks = [asyncio.ensure_future(service.run()) for service in services]
    waiting = asyncio.create_task(stopping.wait())
    aside = asyncio.create_task(greeting) if greeting else waiting
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    by_itself = not stopping.is_set()
    stopping.set()
    aside.cancel()
    waiting.cancel()
    for service, task in zip(services, tasks, strict=True):
        service.stop()
        await asyncio.wait([task])
    for each in STOP_SIGNALS:
        loop.remove_signal_handler(each)
        signal.signal(each, signal.default_int_handler)
    for task in tasks:
        task.result()
    if by_itself:
        raise ServiceError("a service ended by itself; its log says why")
