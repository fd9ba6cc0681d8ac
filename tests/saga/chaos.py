"""Everything fails at once: `make chaos`, which takes too long for `make test`.

A payment service that loses answers, answers twice and late, and sends its webhooks twice;
listeners killed with SIGKILL after two seconds of work, beside one that can't reach the service;
PostgreSQL restarted three times, twice without a shutdown, and its clock set back by an hour;
sessions ended five times a second, locks left open, a report that never ends, webhooks of garbage.
Orders come in all the while, and some are cancelled. Then the books are compared, and every
cancelled order has a reason of its own.
"""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import httpx
import psycopg
import pytest
from server import free_port
from storm import (
    SECRET,
    Rows,
    Storm,
    disagreement,
    end_sessions,
    kill_listeners,
    leave_locks_open,
    read_without_end,
    run_a_lost_listener,
    send_garbage,
)

from darkpearl import embedded, schema
from darkpearl.gateways.http import HttpGateway

ORDERS = int(os.environ.get("DARKPEARL_TEST_CHAOS_ORDERS", "5000"))
PATIENCE_SECONDS = 120 + ORDERS / 10
LOT = 50
REASONS = ("DP006", "DP014", "DP026")
"""Of orders that are cancelled: no stock, the card was declined, another amount was charged."""
PAYSIM = {
    "seed": 11,
    "latency-ms": 50,
    "decline-rate": 0.1,
    "half-amount-rate": 0.02,
    "refund-failure-rate": 0.02,
    "regret-seconds": 3,
    "drop-rate": 0.02,
    "reset-rate": 0.005,
    "error-rate": 0.005,
    "late-rate": 0.002,
    "late-seconds": 4,
    "pending-rate": 0.01,
    "pending-seconds": 1,
    "pending-deadline-seconds": 60,
    "answer-twice-rate": 0.1,
    "webhook-first-rate": 0.05,
    "duplicate-webhook-rate": 0.02,
    "reorder-seconds": 0.5,
}


@pytest.fixture
async def storm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Storm]:
    """A durable server with forty products, most of them in good supply."""
    home = tmp_path_factory.mktemp("storm")
    with embedded.serve(home, exclusive=True, say=lambda _: None) as server:
        await schema.migrate(server.url)
        storm = Storm(home, server)
        await storm.rows(
            "insert into warehouses (code, name, capture_method)"
            " values ('A', 'A', 'at_payment'), ('B', 'B', 'at_fulfilment')"
        )
        await storm.rows(
            "insert into products (sku, name, unit_price)"
            " select 'C' || n, 'P', 9.99 + n from generate_series(1, 40) as n"
        )
        await storm.rows(
            "select receive_stock(w.id, p.id, %s) from warehouses as w, products as p", ORDERS // 30
        )
        await storm.rows("update step_settings set timeout_seconds = 5, backoff_seconds = 0.2")
        await storm.set_clock("1 hour")
        yield storm
        if now := embedded.running(home):  # the one that was started is long gone
            embedded.stop(now)


async def place_orders(storm: Storm) -> None:
    """Orders of two lines, in lots; a lot whose commit was not heard of is looked up first."""
    products = [row["id"] for row in await storm.rows("select id from products")]
    warehouses = [row["id"] for row in await storm.rows("select id from warehouses")]
    dice = random.Random(5)
    for _ in range(ORDERS // LOT):
        ids = [UUID(int=dice.getrandbits(128), version=4) for _ in range(LOT)]
        warehouse = dice.choice(warehouses)
        lines = [(each, product) for each in ids for product in dice.sample(products, 2)]
        while not await storm.rows("select 1 from orders where id = %s", ids[0]):
            with contextlib.suppress(psycopg.OperationalError):
                async with (
                    storm.session("darkpearl_app") as connection,
                    connection.transaction(),
                ):
                    await connection.execute(
                        "insert into orders (id, warehouse_id) select unnest(%s::uuid[]), %s",
                        [ids, warehouse],
                    )
                    await connection.execute(
                        "insert into order_items (order_id, warehouse_id, product_id, quantity)"
                        " select l.id, %s, l.product, 1 from unnest(%s::uuid[], %s::uuid[])"
                        " as l (id, product)",
                        [warehouse, [line[0] for line in lines], [line[1] for line in lines]],
                    )
        storm.counts["placed"] += LOT
        if dice.random() < 0.5:
            await cancel(storm, dice.choice(ids))


async def cancel(storm: Storm, order: UUID) -> None:
    """Somebody changes their mind; too late is too late."""
    try:
        await storm.rows("select cancel_order(%s, 'changed my mind')", order)
        storm.counts["cancellations"] += 1
    except psycopg.DatabaseError as error:
        if error.sqlstate != "DP007":
            raise
        storm.counts["cancellations too late"] += 1


async def see_to_stuck_sagas(storm: Storm, gateway_url: str) -> None:
    """A saga that ran out of attempts says why; tried again in calm weather, it ends."""
    for row in await storm.rows("select * from stuck_sagas"):
        assert row["last_error"], row
        await storm.rows("select retry_saga(%s, 'the storm is over')", row["id"])
        storm.counts["stuck and retried"] += 1

    async def all_ended() -> bool:
        return await open_sagas(storm) == 0

    async with storm.process("listener", DARKPEARL_GATEWAY_URL=gateway_url):
        await until(storm, all_ended)
    assert await storm.rows("select * from stuck_sagas") == []


async def open_sagas(storm: Storm) -> int:
    """How many sagas have not ended."""
    count: int = await storm.value("select count(*) from sagas where ready_at is not null")
    return count


async def until(
    storm: Storm, condition: Callable[[], Awaitable[bool]], *doers: asyncio.Task[None]
) -> None:
    """Look again and again, while nobody who is at work has failed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, await storm.where()
        for each in doers:
            if each.done():
                each.result()
        await asyncio.sleep(0.2)


async def test_the_books_agree_after_everything_failed(storm: Storm, tmp_path: Path) -> None:
    """Every saga ends or says why not; the gateway's books and ours agree to the cent."""
    began = datetime.now(UTC)
    api_port, gateway_port = free_port(), free_port()
    gateway_url = f"http://127.0.0.1:{gateway_port}"
    webhooks = f"http://127.0.0.1:{api_port}/payments/webhooks/http"
    options = [f"--{name}={value}" for name, value in PAYSIM.items()]
    async with (
        storm.process("api", DARKPEARL_PORT=str(api_port), DARKPEARL_GATEWAY_URL=gateway_url),
        storm.process(
            *("paysim", "--port", str(gateway_port), "--ledger", str(tmp_path / "paysim.db")),
            *("--webhook-url", webhooks, *options),
        ),
    ):
        started = time.monotonic()
        placing = asyncio.create_task(place_orders(storm))
        troubles = [
            asyncio.create_task(each)
            for each in (
                kill_listeners(storm, gateway_url),
                run_a_lost_listener(storm, f"http://127.0.0.1:{free_port()}"),
                leave_locks_open(storm),
                end_sessions(storm),
                read_without_end(storm),
            )
        ]
        garbage = asyncio.create_task(send_garbage(storm, webhooks))
        for quarter, mode in enumerate(("immediate", "fast", "immediate"), 1):

            async def so_far(quarter: int = quarter) -> bool:
                return await storm.value("select count(*) from sagas") >= ORDERS * quarter / 4

            await until(storm, so_far, placing, garbage, *troubles)
            await storm.restart(mode)
            if quarter == 2:
                await storm.set_clock("0")

        async def all_ended() -> bool:
            return placing.done() and await open_sagas(storm) == 0

        await until(storm, all_ended, placing, garbage, *troubles)
        seconds = time.monotonic() - started
        storm.over.set()
        await garbage
        for each in troubles:
            each.cancel()
        await asyncio.gather(*troubles, return_exceptions=True)
        await settled_webhooks(gateway_url)
        await see_to_stuck_sagas(storm, gateway_url)

        gateway = HttpGateway(gateway_url, webhook_secret=SECRET)
        theirs = {each.payment_key: each async for each in gateway.payments(began)}
        await gateway.close()

    ours = await storm.rows(
        "select p.*, o.id, o.status::text, o.total_amount"
        " from orders as o left join payments as p on p.order_id = o.id"
    )
    statuses = Counter(row["status"] for row in ours)
    print(f"\n{ORDERS} orders in {seconds:.0f} s: {dict(statuses)}; {dict(storm.counts)}")  # noqa: T201
    assert sum(statuses.values()) == ORDERS
    assert storm.counts["listeners killed"] >= seconds / storm.turn_seconds / 2
    for row in ours:
        wrong = disagreement(row, theirs.pop(row["idempotency_key"], None))
        assert not wrong, (wrong, row, await storm.story(row["id"]))
    assert theirs == {}, "a charge that nobody here knows of"
    for row in await cancelled_for_no_reason(storm):
        raise AssertionError((row, await storm.story(row["id"])))
    assert await storm.rows("select * from audit") == []


async def cancelled_for_no_reason(storm: Storm) -> Rows:
    """Orders that were given up though nobody asked for that, with stock and a card that pays."""
    return await storm.rows(
        "select o.id, o.status::text from orders as o inner join sagas as s on s.id = o.id"
        " where o.status = 'cancelled' and not s.cancel_requested and not exists ("
        "     select from saga_events as e where e.saga_id = o.id and e.error_code = any(%s)"
        " )",
        list(REASONS),
    )


async def settled_webhooks(gateway_url: str) -> None:
    """Nothing that the service still has to tell changes anything any more: wait until it has."""
    async with httpx.AsyncClient(base_url=gateway_url) as client:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (await client.get("/v1/ledger")).json()["undelivered"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
