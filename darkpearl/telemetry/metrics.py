"""Metrics in Prometheus' format: the work of this process, and the queue in the database.

Counters and histograms are of this process. What the database knows is asked when somebody
scrapes, at most every `FRESH_SECONDS`; without an answer in time the page comes all the same and
says so. Every process tells the same of the database: aggregate those by max, not by sum.
"""

import asyncio
import hmac
import itertools
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, TypeVar, cast
from weakref import WeakSet

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    exposition,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from darkpearl.telemetry.gauges import GAUGES

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
FRESH_SECONDS = 5.0
TIMEOUT_SECONDS = 2.0
STEP_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0)
"""Upper bounds in seconds; step_tally() is given them."""

OPERATIONS = {"authorize", "capture", "lookup", "refund", "void"}
"""Calls of a gateway that are measured."""

T = TypeVar("T")
Rows = list[dict[str, Any]]
Fetch = Callable[[str, dict[str, Any]], Awaitable[Rows]]
"""Runs one statement and gives its rows."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each series, which nobody asks
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

requests = Histogram(
    "darkpearl_http_request_duration_seconds",
    "Time until an answer begins, by route template, method and status.",
    ["route", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    registry=REGISTRY,
)
passes = Histogram(
    "darkpearl_pass_duration_seconds",
    "Time of the listener's transactions, advance or settle; their count is its commits.",
    ["call"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    registry=REGISTRY,
)
gateway_calls = Histogram(
    "darkpearl_gateway_call_duration_seconds",
    "Time of calls of the payment gateway, by operation and outcome.",
    ["gateway", "operation", "outcome"],
    buckets=(0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    registry=REGISTRY,
)
outages = Counter(
    "darkpearl_listener_outages",
    "Times that the listener found no database that works, by SQLSTATE.",
    ["sqlstate"],
    registry=REGISTRY,
)
breaker = Gauge(
    "darkpearl_listener_breaker_state",
    "The listener's circuit breaker of the gateway: 0 closed, 1 half open, 2 open.",
    registry=REGISTRY,
)
standstill = Gauge(
    "darkpearl_listener_failures_in_a_row",
    "Failures of the listener's passes since it last got something done.",
    registry=REGISTRY,
)


class Working:
    """What is told of a listener while it works; of several in a process, of the worst.

    Args:
        breaker_state: of its circuit breaker of the gateway, as the gauge tells it.
        failures: of its passes, since one last got something done.
    """

    def __init__(self, breaker_state: Callable[[], int], failures: Callable[[], int]) -> None:
        self.breaker_state = breaker_state
        self.failures = failures
        _working.add(self)

    def ends(self) -> None:
        """It works no more."""
        _working.discard(self)


_working: WeakSet[Working] = WeakSet()
breaker.set_function(lambda: max((each.breaker_state() for each in _working), default=0))
standstill.set_function(lambda: max((each.failures() for each in _working), default=0))

_STATE = (
    "select e.*, cardinality(e.blocked_by) as sessions_blocking, w.*, u.*"
    " from engine_state() as e, webhook_state() as w, upkeep_state() as u"
)
_STUCK = "select * from stuck_state()"
_CATALOGUE = "select * from catalogue_state()"
CELL = (
    "select k.name from known_cells() as k where k.number = this_cell()"
    " and (select count(*) from known_cells()) > 1"
)
"""The name of the cell that is asked, where there are several."""
_TALLY = "select * from step_tally(%(after)s, %(bounds)s)"

_log = logging.getLogger(__name__)


def may_scrape(authorization: bytes, token: str | None, *, in_production: bool) -> bool:
    """Whether the page is for who sends this Authorization header: that of the token.

    Where no token is set it is for everybody, but in production for nobody.
    """
    if token is None:
        return not in_production
    return hmac.compare_digest(authorization, f"Bearer {token}".encode())


class Tally:
    """How many events of a kind there were, and how long they took."""

    def __init__(self) -> None:
        self.counts = [0] * (len(STEP_BUCKETS) + 1)
        self.seconds = 0.0

    def buckets(self) -> list[tuple[str, float]]:
        """Counts up to each bound, the last without one."""
        bounds = [*map(str, STEP_BUCKETS), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self.counts), strict=True))


class Engine(Collector):
    """The database's part: the queue, and the steps since this process first asked.

    Args:
        fetch: asks the database.
        cell: the name of its cell, where there are several: a label of each series.
    """

    def __init__(self, fetch: Fetch, cell: str = "") -> None:
        self._fetch = fetch
        self.cell = cell
        self._catalogue: Rows = []
        self._asked_at = -math.inf
        self._health: dict[str, Any] | None = None
        self._stuck: Rows = []
        self._steps: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self._sagas: defaultdict[str, int] = defaultdict(int)
        self._after: datetime | None = None
        self._asking = asyncio.Lock()

    async def ask(self) -> None:
        """Bring it up to date, unless it is fresh."""
        async with self._asking:
            if time.monotonic() - self._asked_at < FRESH_SECONDS:
                return
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    (health,) = await self._fetch(_STATE, {})
                    self._stuck = await self._fetch(_STUCK, {})
                    asked = {"after": self._after, "bounds": list(STEP_BUCKETS)}
                    for row in await self._fetch(_TALLY, asked):
                        self._add(row)
                    self._catalogue = await self._fetch(_CATALOGUE, {}) if self.cell else []
                    self._health = health
            except Exception as error:  # noqa: BLE001 - a page without it is better than none
                self._health = None
                _log.warning("no metrics of the database: %s", type(error).__name__)
            self._asked_at = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """The families, as of the last answer."""
        for family in self._families():
            if self.cell:
                family.samples = [
                    sample._replace(labels={"cell": self.cell, **sample.labels})
                    for sample in family.samples
                ]
            yield family
        yield from self._of_the_catalogue()

    def _of_the_catalogue(self) -> Iterator[Metric]:
        """How far each other cell is with the catalogue; home knows."""
        for name, column, text in (
            ("darkpearl_cell_kept_bytes", "kept_bytes", "WAL that home keeps for a cell."),
            ("darkpearl_cell_lag_seconds", "lag_seconds", "How late a cell's catalogue is."),
        ):
            family = GaugeMetricFamily(name, text, labels=["cell"])
            for row in self._catalogue if self._health is not None else []:
                if row[column] is not None:
                    family.add_metric([row["cell"]], float(row[column]))
            if family.samples:
                yield family

    def _families(self) -> Iterator[Metric]:
        up = 0 if self._health is None else 1
        yield GaugeMetricFamily("darkpearl_database_up", "Whether the database answers.", up)
        for name, (column, text) in GAUGES.items():
            family = GaugeMetricFamily(name, text)
            if self._health is not None and self._health[column] is not None:
                family.add_metric([], float(self._health[column]))
            yield family
        yield self._stuck_by_type()
        sagas = CounterMetricFamily(
            "darkpearl_sagas", "Sagas by what became of them.", labels=["outcome"]
        )
        for outcome, count in sorted(self._sagas.items()):
            sagas.add_metric([outcome], count)
        yield sagas
        steps = HistogramMetricFamily(
            "darkpearl_step_duration_seconds",
            "Time of steps and undos by outcome, that of an outside answer included.",
            labels=["step", "outcome"],
        )
        for (step, outcome), tally in sorted(self._steps.items()):
            steps.add_metric([step, outcome], tally.buckets(), tally.seconds)
        yield steps

    def _stuck_by_type(self) -> Metric:
        family = GaugeMetricFamily(
            "darkpearl_sagas_stuck", "Sagas that need a person, by type.", labels=["saga_type"]
        )
        for row in self._stuck if self._health is not None else []:
            family.add_metric([row["saga_type"]], row["stuck"])
        return family

    def _add(self, row: dict[str, Any]) -> None:
        self._after = row["until"]
        kind = row["event_type"]
        if kind is None:
            return
        if row["step_name"] and row["bucket"] is not None:
            tally = self._steps[row["step_name"], kind.removeprefix("step_")]
            tally.counts[row["bucket"]] += row["events"]
            tally.seconds += row["seconds"]
        elif kind.startswith("saga_"):
            self._sagas[kind.removeprefix("saga_")] += row["events"]


class Together(Collector):
    """What several say, each family once."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """The families, with the samples of all."""
        families: dict[str, Metric] = {}
        for engine in self._engines:
            for family in engine.collect():
                first = families.setdefault(family.name, family)
                if first is not family:
                    first.samples += family.samples
        yield from families.values()


class PoolStats(Collector):
    """The connections of a pool."""

    def __init__(self, stats: Callable[[], dict[str, int]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """The families, as of now."""
        stats = self._stats()
        connections = GaugeMetricFamily(
            "darkpearl_pool_connections", "Connections of the pool, by state.", labels=["state"]
        )
        idle = stats.get("pool_available", 0)
        connections.add_metric(["idle"], idle)
        connections.add_metric(["busy"], stats.get("pool_size", 0) - idle)
        yield connections
        yield GaugeMetricFamily(
            "darkpearl_pool_waiting",
            "Requests that wait for a connection.",
            stats.get("requests_waiting", 0),
        )


class Page:
    """The page that a scrape of one service gets: this process, and the service's collectors.

    Args:
        engines: gives one for each database that is told of.
        more: the service's own.
    """

    def __init__(self, engines: Callable[[], Awaitable[list[Engine]]], *more: Collector) -> None:
        self._engines = engines
        self._more = more

    async def text(self) -> bytes:
        """The page, at once or after the databases were asked."""
        engines = await self._engines()
        await asyncio.gather(*(each.ask() for each in engines))
        registry = CollectorRegistry(auto_describe=False)
        for each in (REGISTRY, Together(engines), *self._more):
            registry.register(each)
        return exposition.generate_latest(registry)


class _Observed:
    """A gateway whose calls are measured."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._name = str(getattr(gateway, "name", type(gateway).__name__.removesuffix("Gateway")))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._gateway, name)
        return self._measured(name, value) if name in OPERATIONS else value

    def _measured(self, operation: str, call: Callable[..., Awaitable[Any]]) -> Any:
        series: dict[str, Histogram] = {}  # looking them up in the registry takes longer

        async def measured(*arguments: Any) -> Any:
            began, outcome = time.perf_counter(), "error"
            try:
                answer = await call(*arguments)
                outcome = getattr(answer, "outcome", "none")
            except asyncio.CancelledError:
                outcome = "timeout"
                raise
            else:
                return answer
            finally:
                if outcome not in series:
                    series[outcome] = gateway_calls.labels(self._name.lower(), operation, outcome)
                series[outcome].observe(time.perf_counter() - began)

        return measured


def observed(gateway: T) -> T:
    """The same gateway; its calls are measured."""
    return cast(T, _Observed(gateway))
