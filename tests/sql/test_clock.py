"""The clock of the database is set back: what happened stays in order, and nothing is refused."""

import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, UNKNOWN, Row, Shop

HOUR = 3600
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


async def wait_of(shop: Shop, saga: UUID) -> float:
    """Seconds until the engine looks at a saga; none when it has ended."""
    seconds: float | None = await shop.value(
        "select extract(epoch from ready_at - clock())::float8 from sagas where id = %s", saga
    )
    return seconds or 0


async def test_waits_are_as_long_as_they_were_to_be(shop: Shop) -> None:
    """What was ready is ready again, and a lease or a backoff takes as long as it was to take."""
    product = await shop.product(on_hand=10)
    leased, failed = await shop.order((product, 1)), await shop.order((product, 1))
    requests = await shop.advance()
    await shop.settle([each for each in requests if each["saga_id"] == str(failed)], UNKNOWN)
    ready = await shop.order((product, 1))
    waits = [await wait_of(shop, each) for each in (leased, failed, ready)]
    await shop.turn_clock(-HOUR)
    await shop.run("select correct_future_waits()")
    corrected = [await wait_of(shop, each) for each in (leased, failed, ready)]
    assert corrected == pytest.approx(waits, abs=2)
    await shop.advance()
    assert shop.claimed == 1
    assert (await shop.saga(ready))["status"] == "waiting"


async def test_a_clock_that_goes_on_corrects_nothing(shop: Shop) -> None:
    """Who passes what the last call returned has nothing looked at while the clock has gone on."""
    order = await shop.order((await shop.product(on_hand=10), 1))
    seen = await shop.value("select correct_future_waits()")
    await shop.turn_clock(-HOUR)
    earlier = await shop.value("select %s - interval '2 hours'", seen)
    await shop.run("select correct_future_waits(%s)", earlier)
    assert await wait_of(shop, order) > HOUR - 60
    await shop.run("select correct_future_waits(%s)", seen)
    assert await wait_of(shop, order) < 1


@pytest.mark.parametrize("together", [1, 2])
async def test_wherever_in_a_pass_the_clock_is_set_back(shop: Shop, together: int) -> None:
    """No saga waits for an hour, whichever look at the clock was the last before it went back."""
    product = await shop.product(on_hand=1000)
    await shop.run("create sequence looks")
    await shop.run("grant usage on sequence looks to public")
    await shop.run(
        "create or replace function clock() returns timestamptz language sql volatile"
        " return clock_timestamp() + case when nextval('darkpearl.looks')"
        f" <= current_setting('test.looks')::bigint then interval '{HOUR} s' else '0' end"
    )
    looks, last = 0, 1

    async def ahead_for_some_looks(*requests: Row) -> list[Row]:
        nonlocal last
        await shop.run("select setval('looks', 1, false)")
        await shop.run(f"set test.looks = {looks}")
        told = await (shop.settle(requests, UNKNOWN) if requests else shop.advance())
        last = max(last, await shop.value("select last_value from looks"))
        await shop.run("set test.looks = 0")
        await shop.run("select correct_future_waits()")
        return told

    await shop.run("set test.looks = 0")
    while looks < min(last, 100):
        looks += 1
        orders = [await shop.order((product, 1)) for _ in range(together)]
        requests = await ahead_for_some_looks()
        assert max([await wait_of(shop, order) for order in orders]) < 60, looks
        await ahead_for_some_looks(*requests)
        assert max([await wait_of(shop, order) for order in orders]) < 60, looks
        await shop.run(
            "update sagas set ready_at = 'infinity', updated_at = '-infinity'"
            " where ready_at is not null"
        )  # out of the way of the next
    assert 5 < looks < 100


async def test_what_was_under_way_is_corrected_later(shop: Shop, connect: Any) -> None:
    """An order of a transaction that spans the turn is found by one of the next calls."""
    product = await shop.product(on_hand=10)
    seen = await shop.value("select correct_future_waits()")
    writer = await connect(autocommit=False)
    place = "select id from place_order(%s, jsonb_build_array(jsonb_build_object("
    place += "'product_id', %s::uuid, 'quantity', 1)))"
    ((order,),) = await (await writer.execute(place, [shop.lisbon, product])).fetchall()
    await shop.turn_clock(-HOUR)
    for _ in range(30):
        seen = await shop.value("select correct_future_waits(%s)", seen)
    await writer.commit()
    assert await wait_of(shop, order) > HOUR - 60
    await shop.run("select correct_future_waits(%s)", seen)
    assert await wait_of(shop, order) < 1


async def test_a_locked_saga_is_left_for_later(shop: Shop, connect: Any) -> None:
    """Somebody's lock on a saga is no reason to wait, nor to forget it."""
    product = await shop.product(on_hand=10)
    locked, free = await shop.order((product, 1)), await shop.order((product, 1))
    seen = await shop.value("select correct_future_waits()")
    holder = await connect(autocommit=False)
    await holder.execute("select from sagas where id = %s for update", [locked])
    await shop.turn_clock(-HOUR)
    seen = await shop.value("select correct_future_waits(%s)", seen)
    assert await wait_of(shop, free) < 1
    assert await wait_of(shop, locked) > HOUR - 60
    await holder.rollback()
    await shop.run("select correct_future_waits(%s)", seen)
    assert await wait_of(shop, locked) < 1


async def test_no_pause_is_longer_than_any_may_be(shop: Shop) -> None:
    """A pause that was set by a clock a year ahead ends within a day."""
    await shop.turn_clock(8760 * HOUR)
    async with shop.acting_as("service_role"):
        await shop.run("select pause_external_steps(60, 'maintenance')")
    await shop.turn_clock(-8760 * HOUR)
    await shop.run("select correct_future_waits()")
    assert await shop.value(
        "select max(paused_until) <= clock() + interval '1 day' from step_settings"
    )


@pytest.mark.parametrize("turned", [-HOUR, HOUR])
async def test_lines_are_taken_whatever_the_clock_does(shop: Shop, turned: int) -> None:
    """An order and its lines are one transaction, also when the clock is turned within it."""
    product = await shop.product(on_hand=10)
    await shop.turn_clock(turned)
    async with shop.connection.transaction():
        order = await shop.order((product, 1))
    async with shop.connection.transaction():
        async with shop.connection.transaction():  # a savepoint
            other = await shop.value(
                "insert into orders (warehouse_id) values (%s) returning id", shop.lisbon
            )
        line = "insert into order_items (order_id, warehouse_id, product_id, quantity)"
        for _ in range(2):
            await shop.run(f"{line} values (%s, %s, %s, 1)", other, shop.lisbon, product)
    totals = await shop.values(
        "select total_amount from orders where id = any(%s) order by 1", [order, other]
    )
    assert totals == [10, 20]


async def test_an_order_of_another_server_takes_no_lines(shop: Shop) -> None:
    """A restored order whose transaction had the number of this one is frozen all the same."""
    product = await shop.product(on_hand=10)
    order = await shop.order((product, 1))
    xid = "pg_current_xact_id()::text::bigint"
    async with shop.unguarded():
        target = await shop.value(
            f"update orders set placed_in = ({xid} + 30)::text::xid8 where id = %s"
            " returning placed_in::text::bigint",
            order,
        )
    shop.audited = True
    while await shop.value(f"select {xid}") < target - 1:
        pass
    with shop.refused("DP012"):
        async with shop.connection.transaction():
            assert await shop.value(f"select {xid}") == target
            await shop.run(
                "insert into order_items (order_id, warehouse_id, product_id, quantity)"
                " values (%s, %s, %s, 1)",
                order, shop.lisbon, product,
            )  # fmt: skip


async def test_stock_is_what_the_last_movement_left(shop: Shop) -> None:
    """The stock of now is that of the latest movement, though one before it tells a later time."""
    product = await shop.product(on_hand=10)
    await shop.turn_clock(-HOUR)
    await shop.receive(product, 5)
    for moment in ("clock()", "clock() + interval '2 hours'"):
        stock = await shop.row(f"select * from stock_at(%s, %s, {moment})", shop.lisbon, product)
        assert stock == {"quantity_available": 15, "quantity_reserved": 0}


async def test_history_is_in_the_order_of_what_happened(shop: Shop) -> None:
    """Events are in order by id, states rebuilt of them agree, no step takes less than no time."""
    product = await shop.product(on_hand=10)
    order = await shop.order((product, 1))
    requests = await shop.advance()
    await shop.turn_clock(-HOUR)
    await shop.settle(requests, APPROVED)
    events = await shop.events(order)
    assert (events[0], events[-1]) == ("saga_started", "saga_completed")
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.value("select count(*) = 0 from saga_events where started_at > created_at")


async def test_counting_goes_on_at_once(shop: Shop) -> None:
    """Metrics count what happens after the clock was set back, and no time below zero."""
    product = await shop.product(on_hand=10)
    tally = "select * from step_tally(%s, array[1])"
    (row,) = await shop.rows(tally, None)
    await shop.turn_clock(-HOUR)
    (row,) = await shop.rows(tally, row["until"])
    await shop.settle(await shop.advance(), APPROVED)
    await shop.order((product, 1))
    await shop.settle(await shop.advance(), APPROVED)
    await shop.run(
        "insert into saga_events (saga_id, warehouse_id, event_type, step_name, started_at)"
        " select id, warehouse_id, 'step_failed', 'backwards', clock() + interval '1 minute'"
        " from sagas"
    )
    shop.audited = False
    await shop.turn_clock(10)
    rows = {each["step_name"]: each for each in await shop.rows(tally, row["until"])}
    assert {"reserve_stock", "backwards"} <= rows.keys()
    assert rows["backwards"]["seconds"] == 0


def documented() -> list[str]:
    """The queries of the operations' page that are bounded by a time."""
    blocks = re.findall(r"```sql\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    queries = [each.strip() for block in blocks for each in block.split(";")]
    return [each for each in queries if "interval" in each and "select" in each]


async def test_documented_queries_are_bounded_by_what_a_planner_can_use(shop: Shop) -> None:
    """A query of the docs for the last hour reads no older partition, and can use an index."""
    assert len(documented()) > 1
    old = "create table saga_events_2020_01 partition of saga_events for values from"
    await shop.run(f"{old} ('2020-01-01') to ('2020-02-01')")
    # Which are best for tables as small as these.
    await shop.run("set enable_seqscan = off; set enable_nestloop = off")
    for query in documented():
        plan = "\n".join(await shop.values(f"explain {query}"))
        assert "2020_01" not in plan, plan
        assert "Subplans Removed" in plan or "Index Cond: (created_at > " in plan, plan
