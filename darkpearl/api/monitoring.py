"""Metrics of this process and of the queue, for Prometheus."""

from collections import Counter
from contextlib import suppress
from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State

from darkpearl.api.access import Caller
from darkpearl.api.admission import OTHERS
from darkpearl.api.tokens import Identity
from darkpearl.cells.reach import Reach
from darkpearl.config import Settings
from darkpearl.errors import PROBLEMS, UnauthorizedError, UnavailableError
from darkpearl.telemetry import metrics
from darkpearl.telemetry.metrics import Engine, Page, PoolStats, Rows

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


def page(reach: Reach) -> Page:
    """The metrics of an API: of its own cell, or with the label `cell` of each."""
    engines: dict[tuple[int, str], Engine] = {}

    def connections() -> dict[str, int]:
        return sum((Counter(each.get_stats()) for each in reach.pools), Counter())

    def engine(number: int, name: str) -> Engine:
        async def asked(query: str, parameters: dict[str, Any]) -> Rows:
            pool = await reach.pool(number, OTHERS) if name else reach.own[OTHERS]
            async with Caller(pool, _MONITOR).transaction() as execute:
                cursor = await execute(query, parameters)
            rows: Rows = await cursor.fetchall()
            return rows

        async def fetch(query: str, parameters: dict[str, Any]) -> Rows:
            if not name:
                return await asked(query, parameters)
            return await reach.ask(number, lambda: asked(query, parameters))

        return Engine(fetch, name)

    async def all_engines() -> list[Engine]:
        with suppress(UnavailableError):
            await reach.directory()
        several = len(reach.cells) > 1
        named = [(each.number, each.name) for each in reach.cells.values() if several]
        wanted = named or [(0, "")]
        for each in wanted:
            engines.setdefault(each, engine(*each))
        return [engines[each] for each in wanted]

    return Page(all_engines, PoolStats(connections))
