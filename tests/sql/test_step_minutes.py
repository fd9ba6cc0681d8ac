"""routines/68_step_minutes.sql: what happened in each minute, added up once."""

from typing import Any

import pytest
from shop import APPROVED, DECLINED, Row, Shop

DIRECT = """
    select date_trunc('minute', created_at) as minute, coalesce(step_name, '') as step_name,
        event_type::text, count(*) as events,
        coalesce(
            array_agg(seconds_bucket(seconds) order by seconds) filter (where seconds >= 0), '{}'
        ) as durations
    from (
        select *, extract(epoch from created_at - started_at)::float8 as seconds from saga_events
    ) as e
    group by 1, 2, e.event_type
    order by 1, 2, 3
"""
ROLLED_UP = """
    select m.minute, m.step_name, m.event_type::text, m.events,
        array(
            select u.bucket from unnest(m.buckets, m.counts) as u (bucket, n),
            generate_series(1, u.n) order by 1
        ) as durations
    from step_minutes as m
    where m.events > 0
    order by 1, 2, 3
"""


async def fill(shop: Shop, limit: int = 5) -> bool:
    """Housekeeping adds up the next minutes; whether there are more."""
    async with shop.acting_as("darkpearl_listener"):
        return await shop.value("select fill_step_minutes(%s)", limit)


async def catch_up(shop: Shop) -> int:
    """Housekeeping adds up all that is over; in how many bites."""
    bites = 1
    while await fill(shop):
        bites += 1
    return bites


async def busy(shop: Shop) -> None:
    """A few orders, of which some fail, with minutes between them."""
    product = await shop.product(on_hand=20)
    for answer in (APPROVED, DECLINED, APPROVED):
        for _ in range(3):
            await shop.order((product, 1))
        requests = await shop.advance()
        await shop.turn_clock(2.5)
        await shop.settle(requests, answer)
        await shop.advance()
        await shop.turn_clock(130)


async def test_minutes_say_what_the_events_say(shop: Shop) -> None:
    """Each minute has each kind of event as often as the history, with its durations."""
    await busy(shop)
    await shop.turn_clock(120)
    await catch_up(shop)
    direct = await shop.rows(DIRECT)
    assert direct
    assert await shop.rows(ROLLED_UP) == direct


async def test_each_minute_is_counted_once(shop: Shop) -> None:
    """Who asks again, at once or after a gap, leaves what is counted, and adds the rest."""
    await busy(shop)
    await shop.turn_clock(120)
    await catch_up(shop)
    await catch_up(shop)
    await busy(shop)
    await shop.turn_clock(1000)
    assert await catch_up(shop) > 1
    assert await shop.rows(ROLLED_UP) == await shop.rows(DIRECT)


async def test_an_absence_is_caught_up_with_in_bites(shop: Shop) -> None:
    """After a day without a housekeeper every minute is there, so many in a transaction."""
    await catch_up(shop)
    await busy(shop)
    await shop.turn_clock(86400)
    assert await fill(shop, 60)
    minutes = "select count(distinct minute) from step_minutes"
    first = await shop.value(minutes)
    await fill(shop, 60)
    assert await shop.value(minutes) == first + 60
    while await fill(shop, 60):
        pass
    gaps = (
        "select count(*) from (select minute - lag(minute) over (order by minute) as gap"
        " from (select distinct minute from step_minutes) as m) as g"
        " where gap <> interval '1 minute'"
    )
    assert await shop.value(gaps) == 0
    assert await shop.rows(ROLLED_UP) == await shop.rows(DIRECT)


async def test_a_clock_that_is_set_back_leaves_no_hole(shop: Shop) -> None:
    """Minutes that come again are counted again, with what happened in them both times."""
    await busy(shop)
    await shop.turn_clock(120)
    await catch_up(shop)
    await shop.turn_clock(-300)
    async with shop.acting_as("darkpearl_listener"):
        has_work = await shop.value(
            "select report_listener(new_id(), 'h', 1, '1', 'mock', 'closed', 'idle', 0)"
        )
    assert has_work
    await catch_up(shop)
    await busy(shop)
    await shop.turn_clock(120)
    await catch_up(shop)
    assert await shop.rows(ROLLED_UP) == await shop.rows(DIRECT)


async def test_what_is_older_than_a_month_is_left(shop: Shop) -> None:
    """After a year of absence the last month is caught up with, and no more."""
    await catch_up(shop)
    await shop.turn_clock(365 * 86400)
    await fill(shop)
    oldest = await shop.value(
        "select extract(day from clock() - min(minute)) from step_minutes"
        " where minute > clock() - interval '100 days'"
    )
    assert oldest in {30, 31}


async def test_a_minute_waits_for_who_writes_in_it(shop: Shop, connect: Any) -> None:
    """A transaction that began in a minute, and commits in the next, is counted in it."""
    shop.audited = False  # events of sagas that aren't there
    await catch_up(shop)
    product = await shop.product(on_hand=5)
    writer = await connect()
    async with writer.transaction():
        await writer.execute(
            "insert into saga_events (saga_id, warehouse_id, event_type)"
            " values (%s, %s, 'reported')",
            [product, shop.lisbon],
        )
        began = await shop.value(
            "select xact_start from pg_stat_activity where pid = %s", writer.info.backend_pid
        )
        await shop.turn_clock(300)
        await catch_up(shop)
        newest = await shop.value("select max(minute) from step_minutes")
        assert newest < began
    await catch_up(shop)
    assert (
        await shop.value("select sum(events) from step_minutes where event_type = 'reported'") == 1
    )


async def test_who_never_ends_holds_it_up_for_a_quarter_of_an_hour(
    shop: Shop, connect: Any
) -> None:
    """A transaction that stays open keeps minutes from being counted for 15 of them at most."""
    await catch_up(shop)
    writer = await connect()
    async with writer.transaction():
        await writer.execute("select pg_current_xact_id()")
        await shop.turn_clock(3600)
        await catch_up(shop)
        behind = "select extract(epoch from clock() - max(minute)) / 60 from step_minutes"
        assert 15 <= await shop.value(behind) <= 17


async def test_one_housekeeper_at_a_time(shop: Shop, connect: Any) -> None:
    """While one adds up another does nothing."""
    await shop.turn_clock(600)
    other = await connect("darkpearl_listener")
    async with other.transaction():
        await other.execute("select fill_step_minutes()")
        assert not await fill(shop)
    assert await fill(shop)


async def statistics(shop: Shop, start: str, end: str) -> dict[tuple[str | None, str], Row]:
    """step_statistics by step and outcome."""
    async with shop.acting_as("darkpearl_reader"):
        rows = await shop.rows(
            f"select *, event_type::text as outcome from step_statistics({start}, {end})"
        )
    return {(row["step_name"], row["outcome"]): row for row in rows}


async def test_statistics_say_how_often_and_how_long(shop: Shop) -> None:
    """Counts, rates, means and percentiles of a period agree with the history, within a bucket."""
    shop.audited = False  # events of sagas that aren't there
    saga = await shop.product()
    await shop.run(
        "insert into saga_events"
        " (saga_id, warehouse_id, event_type, step_name, started_at, created_at)"
        " select %s, %s, 'step_completed', 'pack', t.at - n * interval '10 ms', t.at"
        " from generate_series(1, 1000) as n"
        " cross join lateral (select date_trunc('minute', clock()) - interval '20 minutes'"
        " + n * interval '500 ms' as at) as t",
        saga,
        shop.lisbon,
    )
    await catch_up(shop)
    window = (
        "date_trunc('minute', clock()) - interval '30 minutes'",
        "clock() - interval '5 minutes'",
    )
    row = (await statistics(shop, *window))["pack", "step_completed"]
    assert row["events"] == 1000
    assert row["per_second"] == pytest.approx(1000 / (25 * 60))
    assert row["mean_seconds"] == pytest.approx(5.005)
    assert 5.0 <= row["p50_seconds"] <= 5.0 * 1.095
    assert 9.9 <= row["p99_seconds"] <= 9.9 * 1.095
    half = (
        "clock() - interval '30 minutes'",
        "date_trunc('minute', clock()) - interval '19 minutes'",
    )
    assert (await statistics(shop, *half))["pack", "step_completed"]["events"] == 119


async def test_buckets_hold_what_falls_in_them(shop: Shop) -> None:
    """A duration is no longer than its bucket, and longer than the one before; whatever it is."""
    wrong = await shop.rows(
        "select s from (select 10 ^ (n / 10.0)::float8 as s from generate_series(-20, 70) as n)"
        " as d"
        " where s > bucket_seconds(seconds_bucket(s)) * 1.000001"
        " or (s > 0.001 and s <= bucket_seconds((seconds_bucket(s) - 1)::smallint))"
    )
    assert wrong == []
    assert await shop.value("select seconds_bucket(0)") == 0
    assert await shop.value("select seconds_bucket(1e15)") == 400


async def test_the_cost_is_that_of_the_minutes(shop: Shop) -> None:
    """Adding a minute up reads the events of that time by their index, not all of them."""
    shop.audited = False  # events of sagas that aren't there
    await shop.run(
        "insert into saga_events (saga_id, warehouse_id, event_type, created_at)"
        " select new_id(), %s, 'reported', clock() - interval '25 days' + n * interval '10 seconds'"
        " from generate_series(1, 100000) as n",
        shop.lisbon,
    )
    await shop.run("vacuum analyze saga_events")
    await shop.turn_clock(600)
    await shop.run("select pg_stat_force_next_flush()")
    reads = (
        "select coalesce(sum(seq_tup_read), 0) as reads from pg_stat_xact_user_tables"
        " where relname like 'saga_events%'"
    )
    async with shop.connection.transaction():
        await shop.run("select fill_step_minutes(5)")
        assert await shop.value(reads) < 50_000
