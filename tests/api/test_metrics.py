"""Metrics: what is counted, what they cost, and that their page always comes."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar
from prometheus_client.parser import text_string_to_metric_families
from server import SECRET, Process, answering, free_port, served
from shop import Shop

from darkpearl.api.app import create_app
from darkpearl.config import Settings
from darkpearl.gateways import Answer
from darkpearl.telemetry import metrics

Json = dict[str, Any]
Api = httpx.AsyncClient
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scrape asks the database."""
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)


async def scrape(api: Api, **more: Any) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels, in the order of the labels' names."""
    page = await api.get("/metrics", **more)
    assert page.status_code == 200, page.text
    assert page.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


async def test_the_docs_list_what_is_exposed(api: Api) -> None:
    """Every family of ours is in docs/operations.md with its type, and nothing else is."""
    listed = dict(
        re.findall(r"^\| `(darkpearl_\w+)` \| (\w+) \|", OPERATIONS.read_text(), re.MULTILINE)
    )
    page = (await api.get("/metrics")).text
    exposed = {
        family.name: family.type
        for family in text_string_to_metric_families(page)
        if family.name.startswith("darkpearl_")
    }
    of_several = {"darkpearl_cell_kept_bytes": "gauge", "darkpearl_cell_lag_seconds": "gauge"}
    assert listed == exposed | of_several  # tests/cells has those


async def test_requests_are_counted_by_template(api: Api, shop: Shop) -> None:
    """An id in a path makes no new series, nor does a path that isn't there."""
    name = "darkpearl_http_request_duration_seconds_count"
    found, none = (
        (name, "GET", "/products/{product_id}", "200"),
        (name, "GET", "none", "404"),
    )
    before = await scrape(api)
    for product in shop.products:
        await api.get(f"/products/{product}")
    await api.get("/nowhere")
    await api.get("/nowhere/else")
    after = await scrape(api)
    assert after[found] - before.get(found, 0) == 2
    assert after[none] - before.get(none, 0) == 2


async def test_the_queue_and_its_steps_are_told(
    api: Api,
    shop: Shop,
    order_body: Callable[..., Json],
    run_sagas: Callable[..., Awaitable[None]],
) -> None:
    """Ready sagas while they are, and how steps and sagas have ended, each counted once."""
    before = await scrape(api)
    assert before[("darkpearl_database_up",)] == 1
    for quantity in (1, 2, 1000):
        await api.post("/orders", json=order_body((0, quantity)))
    assert (await scrape(api))[("darkpearl_sagas_ready",)] == 3
    await run_sagas()
    await shop.turn_clock(10)
    for _ in range(2):
        told = await scrape(api)
        assert told[("darkpearl_sagas_ready",)] == 0
        assert told[("darkpearl_sagas_total", "started")] == 3
        assert told[("darkpearl_sagas_total", "completed")] == 2
        assert told[("darkpearl_sagas_total", "compensated")] == 1
        count = "darkpearl_step_duration_seconds_count"
        assert told[(count, "completed", "reserve_stock")] == 2
        assert told[(count, "failed", "reserve_stock")] == 1
        assert told[(count, "completed", "process_payment")] == 2


async def test_stuck_sagas_are_told_by_type(
    api: Api, shop: Shop, order_body: Callable[..., Json]
) -> None:
    """Each type has a series, also at 0, so that an alert ends; a type is never an id."""
    name = "darkpearl_sagas_stuck"
    assert (await scrape(api))[name, "order_fulfilment"] == 0
    order = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
    await shop.poison("reserve_stock", order, sqlstate="P0001")
    await shop.advance()
    shop.audited = False
    told = await scrape(api)
    types = await shop.values("select distinct saga_type from saga_steps")
    assert {key[1]: count for key, count in told.items() if key[0] == name} == {
        each: float(each == "order_fulfilment") for each in types
    }


async def test_upkeep_is_told(api: Api, shop: Shop) -> None:
    """How old audit, backup and reconciliation are, none where there was none; partitions, ids."""
    told = await scrape(api)
    for never in ("audit_age_seconds", "backup_age_seconds", "reconciliation_differences"):
        assert (f"darkpearl_{never}",) not in told
    assert told["darkpearl_partitions_ahead",] == 3
    assert told["darkpearl_events_out_of_place",] == told["darkpearl_sessions_blocking",] == 0
    assert 0 < told["darkpearl_transaction_id_age",] < 2**31
    await shop.run("select run_audit()")
    await shop.run("select record_upkeep('backup')")
    await shop.run("select record_upkeep('reconciliation', null, '{\"differences\": 2}')")
    await shop.turn_clock(60)
    told = await scrape(api)
    for name in ("audit", "backup", "reconciliation"):
        assert 60 <= told[f"darkpearl_{name}_age_seconds",] < 80
    assert told["darkpearl_audit_findings",] == 0
    assert told["darkpearl_reconciliation_differences",] == 2
    until_next_month = (
        "select extract(epoch from date_trunc('month', now) + interval '1 month' - now)::float8 + 1"
        " from (select clock() at time zone 'UTC' as now) as c"
    )
    for ahead in (2, 1, 0):
        await shop.turn_clock(await shop.value(until_next_month))
        assert (await scrape(api))["darkpearl_partitions_ahead",] == ahead


async def test_webhooks_that_are_late_are_told(
    api: Api, shop: Shop, order_body: Callable[..., Json]
) -> None:
    """How old the oldest is that nobody has sent, and endpoints that were switched off."""
    url = {"url": "https://shop.example/"}
    assert (await api.post("/webhook-endpoints", json=url)).status_code == 201
    await shop.run(
        "insert into webhook_endpoints (url, secret, position, is_enabled, off_because)"
        " values ('https://gone.example/', 'x', 0, false, 'it answered 410 Gone')"
    )
    oldest = ("darkpearl_webhooks_oldest_undelivered_seconds",)
    assert (await scrape(api))[oldest] == 0
    await api.post("/orders", json=order_body((0, 1)))
    await shop.turn_clock(60)
    told = await scrape(api)
    assert 60 <= told[oldest] < 80
    assert told[("darkpearl_webhook_endpoints_off",)] == 1
    assert told[("darkpearl_webhook_endpoints_failing",)] == 0
    assert told[("darkpearl_webhooks_waiting",)] == 0


async def test_every_event_since_the_last_time_is_counted(shop: Shop) -> None:
    """However many there were: reading goes back from the newest until all of a piece are older."""
    tally = "select * from step_tally(%s, array[1])"
    (row,) = await shop.rows(tally, None)
    write = (
        "insert into saga_events (saga_id, warehouse_id, event_type, step_name, message)"
        " select %s, %s, 'reported', %s, repeat('x', 1900) from generate_series(1, %s)"
    )
    await shop.run(write, shop.lisbon, shop.lisbon, "told before", 600)
    await shop.turn_clock(60)
    (*_, row) = await shop.rows(tally, row["until"])
    for step in ("first", "second", "third"):
        await shop.run(write, shop.lisbon, shop.lisbon, step, 600)
    shop.audited = False
    await shop.turn_clock(10)
    rows = await shop.rows(tally, row["until"])
    told: Counter[str] = Counter()
    for each in rows:
        told[each["step_name"]] += each["events"]
    assert +told == {"first": 600, "second": 600, "third": 600}


async def test_without_a_database_the_page_comes_all_the_same() -> None:
    """It says that the database is down, and leaves out what only that knows."""
    app = create_app(Settings(pool_size=1), "postgresql://nobody@127.0.0.1:1/nothing")
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        told = await scrape(client)
    assert told[("darkpearl_database_up",)] == 0
    assert ("darkpearl_sagas_ready",) not in told


async def test_in_production_metrics_want_their_token(
    app: Litestar, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, with another, and when none is set, the answer is 401."""
    token = "a token of the tests"
    for wanted, status in ((None, 401), (token, 200)):
        settings = Settings(environment="production", metrics_token=wanted)
        monkeypatch.setattr(app.state, "settings", settings)
        headers = {"authorization": f"Bearer {token}"}
        assert (await api.get("/metrics", headers=headers)).status_code == status
        assert (await api.get("/metrics")).status_code == 401
    await scrape(api, headers={"authorization": f"Bearer {token}"})


async def test_gateway_calls_are_told_by_outcome() -> None:
    """Answers by what they say; no answer as timeout or error."""

    class Moody:
        name = "moody"

        async def void(self, mood: str) -> Answer:
            if mood == "slow":
                await asyncio.sleep(60)
            if mood == "broken":
                raise ValueError("no")
            return Answer("approved")

    gateway = metrics.observed(Moody())
    assert (await gateway.void("well")).outcome == "approved"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gateway.void("slow"), 0.01)
    with pytest.raises(ValueError, match="no"):
        await gateway.void("broken")
    told = {
        sample.labels["outcome"]: sample.value
        for family in metrics.gateway_calls.collect()
        for sample in family.samples
        if sample.name.endswith("_count") and sample.labels["gateway"] == "moody"
    }
    assert told == {"approved": 1, "timeout": 1, "error": 1}


async def test_a_listener_serves_its_metrics_on_their_own_port(database_url: str) -> None:
    """What the database knows, read as the listener's role, for who has the token."""
    port = free_port()
    settings = {"DARKPEARL_DATABASE_URL": database_url, "DARKPEARL_METRICS_PORT": str(port)}
    token = "a token of the tests"
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with Process("listener", DARKPEARL_METRICS_TOKEN=token, **settings) as listener:
            await answering(client, "/metrics", status=401)
            refused = await client.get("/metrics", headers={"authorization": "Bearer another"})
            assert (refused.status_code, refused.content) == (401, b"")
            told = await scrape(client, headers=headers)
            assert listener.runs()
    assert told[("darkpearl_database_up",)] == 1
    assert told[("darkpearl_sagas_ready",)] == 0


async def test_a_proxy_that_is_trusted_says_who_asks(database_url: str) -> None:
    """X-Forwarded-For counts from a trusted proxy, and from nobody else."""
    for trusted, left in (("127.0.0.1", "4"), ("", "3")):
        settings = Settings(
            port=0, pool_size=1, jwt_secret=SECRET, rate_limit_per_minute=5, trusted_proxies=trusted
        )
        with served(database_url, settings) as (host, port):
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
                for number in (1, 2):
                    headers = {"x-forwarded-for": f"192.0.2.{number}"}
                    told = await client.get("/products", headers=headers)
        assert f"r={left};" in told.headers["ratelimit"], trusted
