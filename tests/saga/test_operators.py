"""Listeners as operators see them, and batches that listeners work off."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from shop import Row, Shop

import darkpearl
from darkpearl import database
from darkpearl.gateways.mock import MockGateway
from darkpearl.listener import chores, heartbeat
from darkpearl.listener.heartbeat import Activity

STUCK = int(os.environ.get("DARKPEARL_TEST_STUCK", "2000"))
"""Sagas of the batch that runs beside a shop."""
PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def quick_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats ten times as fast, so that nobody waits for one."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.3)


async def activity(shop: Shop) -> list[Row]:
    """listener_activity, the oldest first."""
    return await shop.rows("select * from listener_activity order by started_at")


async def test_a_listener_says_what_it_is(shop: Shop, listening: Any, until: Any) -> None:
    """While it has nothing to do it is seen all the same: where, of which version, with whom."""
    await listening(MockGateway(1.0), poll_seconds=3600)

    async def idles() -> bool:
        return [row["activity"] for row in await activity(shop)] == ["idle"]

    await until(idles)
    (row,) = await activity(shop)
    assert (row["process_id"], row["version"]) == (os.getpid(), darkpearl.__version__)
    assert (row["gateway"], row["breaker"], row["is_alive"]) == ("mock", "closed", True)
    seen = row["last_seen_at"]

    async def seen_again() -> bool:
        return (await activity(shop))[0]["last_seen_at"] > seen

    await until(seen_again)


async def test_one_that_gets_nothing_done_says_why(shop: Shop, listening: Any, until: Any) -> None:
    """It is alive, and after which failure it waits is told; with the cause gone it works again."""
    await shop.run("revoke execute on function advance(integer, uuid[]) from darkpearl_listener")
    order = await shop.order((await shop.product(on_hand=1), 1))
    await listening(MockGateway(1.0))
    said = "backing off: database: permission denied for function advance"

    async def says_why() -> bool:
        return [row["activity"] for row in await activity(shop)] == [said]

    await until(says_why)
    assert await shop.value("select listeners_failing from engine_health") == 1
    await shop.run("grant execute on function advance(integer, uuid[]) to darkpearl_listener")

    async def works() -> bool:
        idles = [row["activity"] for row in await activity(shop)] == ["idle"]
        return idles and await shop.order_status(order) == "fulfilled"

    await until(works)


async def test_one_that_stops_as_it_should_is_gone(shop: Shop, listening: Any, until: Any) -> None:
    """An orderly stop leaves no row that looks like a dead listener."""
    listener = await listening()

    async def is_there() -> bool:
        return len(await activity(shop)) == 1

    async def is_gone() -> bool:
        return await activity(shop) == []

    await until(is_there)
    listener.stop()
    await until(is_gone)


async def test_a_blocked_pass_is_no_dead_listener(
    shop: Shop, listening: Any, until: Any, connect: Any
) -> None:
    """While a pass hangs in a step the listener is alive, and says at what and for how long."""
    gate = await connect()
    await gate.execute("select pg_advisory_lock(77)")
    await shop.run(
        "alter function reserve_stock rename to sound_reserve_stock;"
        " create function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language plpgsql security definer set search_path = darkpearl"
        " set lock_timeout = 0 as $$ begin"
        " perform pg_advisory_xact_lock(77);"
        " return sound_reserve_stock(p_warehouse_ids, p_saga_ids); end $$"
    )
    order = await shop.order((await shop.product(on_hand=1), 1))
    await listening(MockGateway(1.0))

    async def hangs() -> bool:
        rows = await activity(shop)
        return [row["activity"] for row in rows] == ["advance"] and rows[0]["is_alive"]

    await until(hangs)
    since = (await activity(shop))[0]["activity_since"]
    seen = (await activity(shop))[0]["last_seen_at"]

    async def still_hangs() -> bool:
        (row,) = await activity(shop)
        assert abs((row["activity_since"] - since).total_seconds()) < 0.2
        return row["activity"] == "advance" and row["last_seen_at"] > seen

    await until(still_hangs)
    await gate.execute("select pg_advisory_unlock(77)")

    async def done() -> bool:
        return await shop.order_status(order) == "fulfilled"

    await until(done)
    await shop.run(
        "drop function reserve_stock; alter function sound_reserve_stock rename to reserve_stock"
    )


@asynccontextmanager
async def listener_process(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A listener in a process of its own; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "darkpearl", "listener"),
        env={
            **os.environ,
            "DARKPEARL_DATABASE_URL": url,
            "DARKPEARL_GATEWAY": "mock",
            "DARKPEARL_MOCK_APPROVAL_RATE": "1",
            "DARKPEARL_ENVIRONMENT": "development",
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_frozen_listener_is_seen(shop: Shop, database_url: str, until: Any) -> None:
    """A process that is stopped in its tracks isn't alive any more; woken, it is again."""
    async with listener_process(database_url) as process:

        async def is_there() -> bool:
            return [row["is_alive"] for row in await activity(shop)] == [True]

        await until(is_there)
        process.send_signal(signal.SIGSTOP)
        # What was sent before it was stopped has been written by then.
        seen = (await activity(shop))[0]["last_seen_at"]
        await shop.turn_clock(20)
        assert [row["is_alive"] for row in await activity(shop)] == [False]
        assert await shop.value("select listeners_silent from engine_health") == 1
        process.send_signal(signal.SIGCONT)

        async def is_back() -> bool:
            (row,) = await activity(shop)
            return row["is_alive"] and row["last_seen_at"] > seen

        await until(is_back)


async def test_minutes_are_added_up_by_a_listener(shop: Shop, listening: Any, until: Any) -> None:
    """A listener that has nothing to do adds up what happened, with nobody asking."""
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    await shop.turn_clock(120)
    await listening(poll_seconds=3600)

    async def counted() -> bool:
        return await shop.value(
            "select coalesce(sum(events), 0) = 1 from step_minutes"
            " where event_type = 'saga_completed'"
        )

    await until(counted)


async def stuck(shop: Shop, count: int) -> None:
    """So many orders that were stuck at reserving, and whose cause is gone."""
    product = await shop.product(on_hand=count)
    items = json.dumps([{"product_id": str(product), "quantity": 1}])
    await shop.run(
        "select count(place_order(%s, %s)) from generate_series(1, %s)", shop.lisbon, items, count
    )
    await shop.run(
        "alter function reserve_stock rename to sound_reserve_stock;"
        " create function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language plpgsql as $$ begin raise exception 'poison'; end $$"
    )
    # As the engine leaves them, which finds out one by one.
    async with shop.unguarded():
        shop.audited = True
        await shop.run("update sagas set status = 'stuck', attempts = 0, ready_at = null")
        await shop.run(
            "insert into saga_events"
            " (saga_id, warehouse_id, event_type, step_name, attempt, error_code, message)"
            " select id, warehouse_id, 'step_failed', 'reserve_stock', 1, 'P0001', 'poison'"
            " from sagas"
        )
        await shop.run(
            "insert into saga_events (saga_id, warehouse_id, event_type)"
            " select id, warehouse_id, 'saga_stuck' from sagas"
        )
    shop.audited = True
    await shop.run(
        "drop function reserve_stock; alter function sound_reserve_stock rename to reserve_stock"
    )
    await shop.run("analyze")


async def retry(shop: Shop, pace: int) -> UUID:
    """Staff retry all that is stuck; the batch."""
    async with shop.acting_as("service_role"):
        return await shop.value(
            "select batch_id from retry_sagas('{}', 'disk replaced', false, %s)", pace
        )


async def test_a_batch_outlives_who_works_it_off(shop: Shop, database_url: str, until: Any) -> None:
    """Killed in the middle, twice: the next listener goes on, and each saga is retried once."""
    await shop.run("update step_settings set timeout_seconds = 1, backoff_seconds = 0")
    await stuck(shop, 300)
    await retry(shop, 100)

    def beyond(count: int) -> Callable[[], Any]:
        async def is_beyond() -> bool:
            return await shop.value("select done > %s from batches", count)

        return is_beyond

    for count in (0, 100):
        async with listener_process(database_url):
            await until(beyond(count))
        assert await shop.value("select finished_at is null from batches")
    async with listener_process(database_url):

        async def all_ended() -> bool:
            return await shop.statuses() == {"fulfilled": 300}

        await until(all_ended)
    row = await shop.row("select done, failed, finished_at is not null as ended from batches")
    assert row == {"done": 300, "failed": 0, "ended": True}
    retried = await shop.values("select saga_id from saga_events where event_type = 'retried'")
    assert (len(retried), len(set(retried))) == (300, 300)


async def test_a_shop_goes_on_beside_a_batch(shop: Shop, listening: Any, until: Any) -> None:
    """While thousands of sagas are retried at a pace, each new order is soon fulfilled."""
    await stuck(shop, STUCK)
    product = await shop.product(on_hand=1000)
    await listening(MockGateway(1.0))
    await retry(shop, 400)
    bought = 0
    async with asyncio.timeout(PATIENCE_SECONDS + STUCK / 100):
        while await shop.value("select finished_at is null from batches"):
            order = await shop.order((product, 1))

            async def done(order: UUID = order) -> bool:
                return await shop.order_status(order) == "fulfilled"

            await until(done)
            bought += 1

    async def all_ended() -> bool:
        return await shop.statuses() == {"fulfilled": STUCK + bought}

    assert bought > STUCK / 400
    assert await shop.value("select count(*) from batch_items where result = 'done'") == STUCK
    await until(all_ended)


async def test_chores_end_when_there_are_none(database_url: str, shop: Shop) -> None:
    """Who works off returns when all is done, minutes and batches; nothing is left for later."""
    await stuck(shop, 120)
    await retry(shop, 1000)
    url = database.as_role(database_url, "darkpearl_listener")
    async with database.connect(url, chores.NAME) as connection:
        await chores.work_off(connection)
        assert await database.fetch_all(connection, "select * from work_batches()") == []
    assert await shop.value("select done from batches") == 120
    assert await shop.value("select count(*) >= 59 from step_minutes")


def test_what_it_is_at_is_the_oldest() -> None:
    """Of what is under way at once the heartbeat tells what began first; nothing: idle."""
    at = Activity()
    assert at.now()[0] == "idle"
    with at.during("advance"):
        with at.during("settle"):
            assert at.now()[0] == "advance"
        assert at.now()[0] == "advance"
    assert at.now()[0] == "idle"
