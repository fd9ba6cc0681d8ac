"""The application: one pool, the routes, and how errors are told."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import Components, License, SecurityScheme, Tag
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from darkpearl import __version__, database
from darkpearl.api import (
    health,
    inventory,
    orders,
    problems,
    products,
    sagas,
    stock_movements,
    warehouses,
    webhooks,
)
from darkpearl.api.access import caller
from darkpearl.api.idempotency import once
from darkpearl.api.listing import listing
from darkpearl.api.parameters import created, refuse_unknown
from darkpearl.api.wire import MAX_BODY_BYTES, DecimalsAreNumbers, JsonRequest, JsonResponse
from darkpearl.config import Settings
from darkpearl.errors import DarkPearlError
from darkpearl.gateways.make import make_gateway
from darkpearl.tokens import Verifier

LOGIN = "darkpearl_api"
"""Whose sessions the API's are: the only ones whose claims the database believes."""

logger = logging.getLogger(__name__)

_ABOUT = """\
Order fulfilment: place an order and its saga reserves stock, takes the payment and ships, or gives
everything back. Who calls says a bearer token; without one only what is sold can be read. Lists
answer `{data, count, limit, offset, next}`, where `count` is the number of all rows that match and
`next` the cursor of the next page. Errors are problem documents (RFC 9457); `/problems` lists their
types.
"""
_TAGS = [
    Tag("orders", "Placing an order starts its saga; follow it as server-sent events."),
    Tag("sagas", "Where each saga stands, and its history. A saga has the id of its order."),
    Tag("products", "The catalogue."),
    Tag("warehouses", "Where stock lies."),
    Tag("inventory", "How much there is. Quantities move through the ledger alone."),
    Tag("stock movements", "The ledger: append-only, idempotent by correlation id."),
    Tag("payments", "What payment gateways tell by themselves, signed."),
    Tag("health", "For probes."),
    Tag("problems", "What the type of a problem document stands for."),
]


def create_app(settings: Settings, database_url: str) -> Litestar:
    """The ASGI application.

    Args:
        settings: of this process.
        database_url: of darkpearl_api, or of a superuser, who becomes darkpearl_api.

    Raises:
        ConfigError: the gateway lacks a setting.

    Whoever serves it sets `app.state.stopping` (an asyncio.Event) when the server is told to
    stop, so that streams end in order; else they are cut at the server's deadline.
    """

    @asynccontextmanager
    async def pool(app: Litestar) -> AsyncIterator[None]:
        async with (
            Verifier(settings) as app.state.tokens,
            database.open_pool(
                database_url, size=settings.pool_size, name="darkpearl api", login=LOGIN
            ) as app.state.pool,
        ):
            try:
                yield
            finally:
                app.state.stopping.set()
                await app.state.gateway.close()

    app = Litestar(
        route_handlers=[
            orders.router,
            sagas.router,
            products.router,
            warehouses.router,
            inventory.router,
            stock_movements.router,
            webhooks.router,
            health.router,
            problems.router,
        ],
        dependencies={
            "caller": Provide(caller),
            "created": Provide(created),
            "listing": Provide(listing),
            "once": Provide(once),
        },
        guards=[refuse_unknown],
        lifespan=[pool],
        middleware=[_log_requests] if logger.isEnabledFor(logging.DEBUG) else [],
        request_class=JsonRequest,
        response_class=JsonResponse,
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers={
            DarkPearlError: problems.on_error,
            HTTPException: problems.on_http_exception,
            Exception: problems.on_exception,
        },
        openapi_config=OpenAPIConfig(
            title="DarkPearl",
            version=__version__,
            description=_ABOUT,
            license=License("Apache-2.0", identifier="Apache-2.0"),
            tags=_TAGS,
            components=Components(
                security_schemes={
                    "token": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")
                }
            ),
            security=[{"token": []}, {}],
            path="/schema",
            use_handler_docstrings=True,
            render_plugins=[SwaggerRenderPlugin(path="/")],
        ),
        plugins=[DecimalsAreNumbers()],
        logging_config=None,
    )
    app.state.gateway = make_gateway(settings)  # asks nothing; knows the gateway's signature
    app.state.stopping = asyncio.Event()
    app.state.streams = 0
    return app


def _log_requests(app: ASGIApp) -> ASGIApp:
    """Log method, path and status; never a query, a body or a header."""

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        what = f"{scope.get('method', scope['type'])} {scope['path']}"

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                logger.debug("%s %s", what, message["status"])
            await send(message)

        await app(scope, receive, told)

    return logged
