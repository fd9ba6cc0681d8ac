"""The application: its pools, the routes, and how errors are told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from litestar import Litestar
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler

from darkpearl import database
from darkpearl.api import (
    adjustment_reasons,
    events,
    feed,
    health,
    imports,
    inventory,
    monitoring,
    order_payments,
    orders,
    problems,
    products,
    quotes,
    returns,
    root,
    sagas,
    shipments,
    stock_movements,
    transfers,
    warehouses,
    webhook_endpoints,
    webhooks,
)
from darkpearl.api.admission import OTHERS, VISITORS, caller, let_in, staff
from darkpearl.api.bodies import (
    MAX_BODY_BYTES,
    MOST_LARGE_BODIES,
    MOST_LARGE_BODIES_EACH,
    DecimalsAreNumbers,
    JsonRequest,
    JsonResponse,
)
from darkpearl.api.description import Made, describe, described
from darkpearl.api.idempotency import once
from darkpearl.api.limits import Limiter, Shares
from darkpearl.api.listing import listing
from darkpearl.api.middleware import Middleware
from darkpearl.api.parameters import created
from darkpearl.api.tokens import Verifier
from darkpearl.cells.reach import Make, Reach
from darkpearl.config import Settings
from darkpearl.errors import DarkPearlError
from darkpearl.gateways.make import make_gateway
from darkpearl.monitor.looks import Looks
from darkpearl.monitor.page import draw
from darkpearl.monitor.page import router as monitor

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

STATEMENT_TIMEOUT = "10s"
VISITORS_STATEMENT_TIMEOUT = "2s"
VISITORS_SHARE = 4
"""One connection of so many is for visitors, who take none of the others."""

EXPOSED = [
    "Location",
    "ETag",
    "Link",
    "Idempotency-Replayed",
    "Preference-Applied",
    "Retry-After",
    "X-Request-ID",
    "RateLimit",
]
"""Headers that scripts of other origins may read."""

ROUTES: list[ControllerRouterHandler] = [
    orders.router,
    order_payments.router,
    quotes.router,
    returns.router,
    sagas.router,
    shipments.router,
    products.router,
    warehouses.router,
    inventory.router,
    stock_movements.router,
    transfers.router,
    adjustment_reasons.router,
    imports.router,
    webhooks.router,
    feed.router,
    webhook_endpoints.router,
    health.router,
    problems.router,
    monitoring.get_metrics,
    root.get_root,
    monitor(Provide(staff)),
]
"""Everything that can be asked for."""

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


def create_app(settings: Settings, database_url: str, tracing: "Tracing | None" = None) -> Litestar:
    """The ASGI application.

    Args:
        settings: of this process.
        database_url: of darkpearl_api, or of a superuser, who becomes darkpearl_api.
        tracing: of this service; whoever gives it closes it.

    Raises:
        ConfigError: the gateway lacks a setting.

    The server of it sets `app.state.stopping` (an asyncio.Event) when it is told to stop, so that
    streams end in order; else they are cut at the server's deadline.
    """
    app = Litestar(
        route_handlers=ROUTES,
        dependencies={
            "caller": Provide(caller),
            "created": Provide(created),
            "listing": Provide(listing),
            "once": Provide(once),
        },
        before_request=let_in,
        lifespan=[_connected(settings, database_url)],
        compression_config=CompressionConfig(
            "gzip",
            minimum_size=1024,
            gzip_compress_level=5,
            exclude_opt_key="exclude_from_compression",
        ),
        cors_config=cors(settings),
        request_class=JsonRequest,
        response_class=JsonResponse,
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers={
            DarkPearlError: problems.on_error,
            HTTPException: problems.on_http_exception,
            Exception: problems.on_exception,
        },
        openapi_config=described(description),
        plugins=[DecimalsAreNumbers()],
        logging_config=None,
    )
    app.state.gateway = make_gateway(settings)  # asks nothing; knows the gateway's signature
    app.state.settings = settings
    app.state.limiter = Limiter(settings.rate_limit_per_minute)
    app.state.visitors_limiter = Limiter(settings.visitors_rate_limit)
    app.state.stopping = asyncio.Event()
    app.state.streams = Shares("streams", events.MAX_STREAMS, events.MAX_STREAMS_EACH)
    app.state.waits = Shares("requests that wait", feed.MAX_WAITS, feed.MAX_WAITS)
    app.state.looks = feed.looks_by_cell()
    app.state.monitor = Looks(draw)
    app.state.screens = Shares("screens", events.MAX_STREAMS, events.MAX_STREAMS)
    app.state.bodies = Shares("large bodies", MOST_LARGE_BODIES, MOST_LARGE_BODIES_EACH)
    app.state.probing = None
    app.asgi_handler = Middleware(app.asgi_handler, app.state, tracing)
    return app


def _connected(settings: Settings, database_url: str) -> Lifespan:
    """Keys, pool and metrics of an application, from its start to its end."""
    visitors = max(1, settings.pool_size // VISITORS_SHARE)
    others = max(1, settings.pool_size - visitors)

    def pool(name: str, size: int, timeout: str) -> Make:
        return lambda url: database.open_pool(
            url, size=size, name=name, login=database.API_ROLE, statement_timeout=timeout
        )

    makes = {
        OTHERS: pool(OTHERS, others, STATEMENT_TIMEOUT),
        VISITORS: pool(VISITORS, visitors, VISITORS_STATEMENT_TIMEOUT),
    }

    @asynccontextmanager
    async def connected(app: Litestar) -> AsyncIterator[None]:
        async with (
            Verifier(settings) as app.state.tokens,
            Reach(database_url, makes) as app.state.reach,
        ):
            app.state.pool = app.state.reach.own[OTHERS]
            app.state.metrics = monitoring.page(app.state.reach)
            try:
                yield
            finally:
                app.state.stopping.set()
                await app.state.gateway.close()

    return connected


def description() -> Made:
    """The description of the API, of an application that is never started."""
    return describe(create_app(Settings(), "postgresql://"))


def cors(settings: Settings) -> CORSConfig | None:
    """Which other origins' pages may call; None: none."""
    if not settings.cors_origins:
        return None
    return CORSConfig(
        allow_origins=settings.cors_origins.split(","), expose_headers=EXPOSED, max_age=3600
    )
