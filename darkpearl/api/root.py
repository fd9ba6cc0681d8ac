"""The first page: what answers here, and where it is described."""

from litestar import get
from msgspec import Struct

from darkpearl import __version__
from darkpearl.api.problems import refusals


class Root(Struct, kw_only=True):
    """What this is."""

    name: str = "DarkPearl"
    version: str = __version__
    about: str = "Order fulfilment: orders, stock and payments, as sagas in PostgreSQL"
    documentation: str = "/schema"
    openapi: str = "/schema/openapi.json"
    health: str = "/health/ready"
    monitor: str = "/monitor"


@get(
    "/",
    summary="What this is",
    tags=["health"],
    security=[{}],
    responses=refusals(needs_token=False),
)
async def get_root() -> Root:
    """The service and its version, and where it is described, for people and programs."""
    return Root()
