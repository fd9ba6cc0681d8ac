"""How the API describes itself: OpenAPI 3.1, and Swagger UI as a page for people.

Swagger UI is served from files of this package (swagger/, of the npm package swagger-ui-dist), so
that it works where there is no internet, under a policy that lets it load nothing from elsewhere.
"""

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml
from litestar import Litestar, Request, Router
from litestar.connection import ASGIConnection
from litestar.datastructures import CacheControlHeader
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, License, SecurityRequirement, SecurityScheme, Tag
from litestar.static_files import create_static_files_router
from litestar.types import Guard

from darkpearl import __version__
from darkpearl.api.document import exact

SWAGGER = Path(__file__).with_name("swagger")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""For the page alone: its own scripts, and requests to its own origin."""

ANYBODY: list[SecurityRequirement] = [{"token": []}, {}]
"""For operations that need no token, and tell more to who has one."""

_ABOUT = """\
Order fulfilment: place an order and its saga reserves stock, takes the payment and ships, or gives
everything back. Who calls says a bearer token; without one only what is sold can be read. Lists
answer `{data, count, limit, offset, next}`, where `count` is the number of rows that match, up to
10,000, and `next` the cursor of the next page. Errors are problem documents (RFC 9457); `/problems`
lists their types.

A token comes from whoever signs in the shop's people and customers, a JWT;
for development `darkpearl token` prints one: Authorize takes it without the word Bearer.
"""
_TAGS = [
    Tag("orders", "Placing an order starts its saga; follow it as server-sent events."),
    Tag("sagas", "Where each saga stands, and its history. A saga has the id of its order."),
    Tag("products", "The catalogue."),
    Tag("warehouses", "Where stock lies."),
    Tag("inventory", "How much there is. Quantities move through the ledger alone."),
    Tag("stock movements", "The ledger: append-only, idempotent by correlation id."),
    Tag("imports", "Many rows in one request, all of them or none."),
    Tag("payments", "What payment gateways tell by themselves, signed."),
    Tag("events", "What happened, for everybody else, by one cursor."),
    Tag("webhook endpoints", "Whom the same is sent to, signed."),
    Tag("health", "For probes."),
    Tag("problems", "What the type of a problem document stands for."),
]


class Made(NamedTuple):
    """The description, the same at each run."""

    json: bytes
    yaml: bytes


class Json(JsonRenderPlugin):
    """The description as JSON."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The description, as it was made."""
        del openapi_schema
        return _made(request.app).json


class Yaml(YamlRenderPlugin):
    """The description as YAML."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The description, as it was made."""
        del openapi_schema
        return _made(request.app).yaml


class SwaggerPage(OpenAPIRenderPlugin):
    """The page for people."""

    def __init__(self) -> None:
        super().__init__(path="/")
        self._page = (SWAGGER / "index.html").read_bytes()

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page; it fetches the description itself."""
        del request, openapi_schema
        return self._page

    def receive_router(self, router: Router) -> None:
        """Add the files of the page."""
        router.register(
            create_static_files_router(
                "/swagger",
                directories=[SWAGGER],
                include_in_schema=False,
                cache_control=CacheControlHeader(max_age=3600),
            )
        )


def described(make: Callable[[], Made]) -> OpenAPIConfig:
    """The description of this version.

    Args:
        make: has it made, in another process, the first time that somebody asks.
    """
    return OpenAPIConfig(
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
        security=[{"token": []}],
        operation_id_creator=lambda handler, method, path: handler.handler_name,  # noqa: ARG005
        openapi_router=Router(
            "/schema",
            route_handlers=[],
            include_in_schema=False,
            response_headers={"Content-Security-Policy": PAGE_POLICY},
            guards=[_maker(make)],
        ),
        use_handler_docstrings=True,
        render_plugins=[SwaggerPage(), Json(), Yaml()],
    )


def _maker(make: Callable[[], Made]) -> Guard:
    """A guard that has the description made before it is rendered, once.

    In a process of its own, which gives way to requests: it takes more than a second, anybody may
    ask for it, and a thread would keep everybody else from the interpreter.
    """

    async def apart() -> Made:
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (5,))
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, make)
        finally:
            pool.shutdown(wait=False)

    async def guard(asked: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        state = asked.app.state
        if "description" not in state or (
            state.description.done() and state.description.exception()
        ):
            state.description = asyncio.create_task(apart())
        await asyncio.shield(state.description)

    return guard


def _made(app: Litestar) -> Made:
    made: asyncio.Task[Made] = app.state.description
    return made.result()


def describe(app: Litestar) -> Made:
    """The description of an application."""
    document = exact(app.openapi_schema.to_schema())
    text: str = yaml.dump(
        msgspec.to_builtins(document),
        Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    return Made(msgspec.json.encode(document), text.encode())
