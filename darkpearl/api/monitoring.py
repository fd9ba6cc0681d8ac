"""Metrics of this process and of the queue, for Prometheus."""

from collections import Counter
from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State

from darkpearl.api.access import Caller
from darkpearl.api.tokens import Identity
from darkpearl.config import Settings
from darkpearl.database import Pool
from darkpearl.errors import PROBLEMS, UnauthorizedError
from darkpearl.telemetry import metrics
from darkpearl.telemetry.metrics import Page, PoolStats, Rows

_MONITOR = Identity("service_role", '{"role": "service_role", "sub": "metrics"}')


@get("/metrics", include_in_schema=False, media_type=metrics.CONTENT_TYPE)
async def get_metrics(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """The page that Prometheus scrapes. It comes without a database too, and says so.

    Raises:
        UnauthorizedError: the token of the settings is missing; in production there has to be one.
    """
    settings: Settings = state.settings
    given = request.headers.get("authorization", "").encode()
    in_production = settings.environment == "production"
    if not metrics.may_scrape(given, settings.metrics_token, in_production=in_production):
        raise UnauthorizedError(
            "Metrics are for who has the token in DARKPEARL_METRICS_TOKEN.",
            title=PROBLEMS["DP030"].title,
            code="DP030",
            hint="Send Authorization: Bearer and that token.",
        )
    return Response(await state.metrics.text(), media_type=metrics.CONTENT_TYPE)


def page(pool: Pool, visitors_pool: Pool) -> Page:
    """The metrics of an API."""

    def connections() -> dict[str, int]:
        return Counter(pool.get_stats()) + Counter(visitors_pool.get_stats())

    async def fetch(query: str, parameters: dict[str, Any]) -> Rows:
        async with Caller(pool, _MONITOR).transaction() as execute:
            cursor = await execute(query, parameters)
        rows: Rows = await cursor.fetchall()
        return rows

    return Page(metrics.Engine(fetch), PoolStats(connections))
