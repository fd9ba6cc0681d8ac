"""How the API describes itself: OpenAPI 3.1, and Swagger UI as a page for people.

Swagger UI is served from files of this package (swagger/, of the npm package swagger-ui-dist), so
that it works where there is no internet, under a policy that lets it load nothing from elsewhere.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml
from litestar import Litestar, Request, Router
from litestar.datastructures import CacheControlHeader
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, License, SecurityRequirement, SecurityScheme, Tag
from litestar.static_files import create_static_files_router

from darkpearl import __version__

SWAGGER = Path(__file__).with_name("swagger")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""For the page alone: its own scripts, and requests to its own origin."""

ANYBODY: list[SecurityRequirement] = [{"token": []}, {}]
"""For operations that need no token, and tell more to who has one."""

_PAGE = re.compile(r"Page_[\w.]+\.(\w+)_")
"""A page's component as the framework names it: by the path of a class."""

_ABOUT = """\
Order fulfilment: place an order and its saga reserves stock, takes the payment and ships, or gives
everything back. Who calls says a bearer token; without one only what is sold can be read. Lists
answer `{data, count, limit, offset, next}`, where `count` is the number of rows that match, up to
10,000, and `next` the cursor of the next page. Errors are problem documents (RFC 9457); `/problems`
lists their types.
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


class Json(JsonRenderPlugin):
    """The description as JSON."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The description, made exact."""
        return super().render(request, exact(openapi_schema))


class Yaml(YamlRenderPlugin):
    """The description as YAML."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The description, made exact."""
        return super().render(request, exact(openapi_schema))


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


def described() -> OpenAPIConfig:
    """The description of this version."""
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
        ),
        use_handler_docstrings=True,
        render_plugins=[SwaggerPage(), Json(), Yaml()],
    )


def as_yaml(app: Litestar) -> str:
    """The description of an application as YAML, the same at each run."""
    text: str = yaml.safe_dump(
        msgspec.to_builtins(exact(app.openapi_schema.to_schema())),
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    return text


def exact(document: dict[str, Any]) -> dict[str, Any]:
    """The same description, saying what the framework leaves out; in place, and once is enough.

    A parameter that may be left out can't be sent as null, a body takes no unknown fields, a lower
    limit of 0 is a limit, and a page is named by what it holds, wherever the class of that stands.
    """
    _name_pages(document)
    schemas = document["components"]["schemas"]
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                for default in ("deprecated", "allowEmptyValue", "allowReserved"):
                    parameter.pop(default, None)
                parameter["schema"] = _without_null(parameter["schema"])
                _limit(parameter["schema"])
            if body := operation.get("requestBody"):
                _close(body, schemas)
    return document


def _name_pages(part: Any) -> None:
    """Rename the components of pages, and all references to them."""
    for each in part.values() if isinstance(part, dict) else part:
        if isinstance(each, dict | list):
            _name_pages(each)
    if isinstance(part, dict):
        if "$ref" in part:
            part["$ref"] = _PAGE.sub(r"Page_\1", part["$ref"])
        renamed = {_PAGE.sub(r"Page_\1", name): name for name in part if _PAGE.fullmatch(name)}
        for name in sorted(renamed):
            part[name] = part.pop(renamed[name])


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The values of a parameter that is there."""
    schema = {key: value for key, value in schema.items() if key != "description"}
    kinds = [kind for kind in schema.pop("oneOf", []) if kind != {"type": "null"}]
    for kind in kinds[:1]:
        schema = {**kind, **schema}
    if isinstance(schema.get("type"), list):
        (schema["type"],) = set(schema["type"]) - {"null"}
    if "enum" in schema:
        schema["enum"] = [value for value in schema["enum"] if value is not None]
    return schema


def _close(part: Any, schemas: dict[str, Any]) -> None:
    """Say of the objects in a part of the document, and in what it refers to: nothing else."""
    for each in part.values() if isinstance(part, dict) else part:
        if isinstance(each, dict | list):
            _close(each, schemas)
    if isinstance(part, dict):
        _limit(part)
    if isinstance(part, dict) and "$ref" in part:
        schema = schemas[part["$ref"].rpartition("/")[2]]
        if "additionalProperties" not in schema:
            schema["additionalProperties"] = False
            _close(schema, schemas)


def _limit(schema: dict[str, Any]) -> None:
    """Say the lower limit of a whole number that has none: it is 0, for others are said."""
    if schema.get("type") == "integer":
        schema.setdefault("minimum", 0)
