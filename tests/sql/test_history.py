"""routines/56_history.sql: partitions of events are made and dropped, and keep nobody waiting."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from shop import APPROVED, Row, Shop

Connect = Callable[..., Awaitable[Any]]

IMPATIENT = "-c search_path=darkpearl -c lock_timeout=150ms -c statement_timeout=5s"
"""Of a session that waits for no lock for longer than that."""


async def latest(shop: Shop) -> Any:
    """The latest day before which events may be dropped."""
    return await shop.value(
        "select (date_trunc('month', clock() at time zone 'UTC') - interval '1 month')::date"
    )


async def bounds(shop: Shop) -> dict[str, str]:
    """Each partition of saga_events and what it is for."""
    await shop.run("set timezone = 'UTC'")
    rows = await shop.rows(
        "select inhrelid::regclass::text as name, pg_get_expr(relpartbound, oid) as bounds"
        " from pg_inherits join pg_class on oid = inhrelid"
        " where inhparent = 'saga_events'::regclass order by 1"
    )
    return {row["name"]: row["bounds"] for row in rows}


async def test_partitions_are_made_once(shop: Shop) -> None:
    """The months ahead have their partitions after a migrate; making them again makes none."""
    assert await shop.rows("select ensure_event_partitions()") == []
    this_month = await shop.value(
        "select 'saga_events_' || to_char(clock() at time zone 'UTC', 'YYYY_MM')"
    )
    made = await bounds(shop)
    assert this_month in made
    assert len(made) == 4
    (more,) = await shop.values("select ensure_event_partitions(3)")
    assert more in await bounds(shop)
    assert await shop.rows("select ensure_event_partitions(3)") == []


async def test_events_land_in_their_month(shop: Shop) -> None:
    """Once a month has its partition no event of it lies in the default one."""
    await shop.turn_clock(200 * 86400)
    made = await shop.values("select ensure_event_partitions()")
    assert len(made) == 3
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    assert await shop.values("select distinct tableoid::regclass::text from saga_events") == [
        made[0]
    ]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo", "Europe/Lisbon"])
async def test_a_month_is_a_month_everywhere(shop: Shop, zone: str) -> None:
    """Partitions run from the first of a month to that of the next in UTC, in any session."""
    seconds = await shop.value(
        "select extract(epoch from date_trunc('year', clock() + interval '2 years') - clock())"
    )
    await shop.turn_clock(float(seconds) + 86400)
    await shop.run(f"set timezone = '{zone}'")
    made = await shop.values("select ensure_event_partitions(11)")
    assert len(made) == 12
    found = await bounds(shop)
    for name in made:
        year, month = int(name[-7:-3]), int(name[-2:])
        after = (year + 1, 1) if month == 12 else (year, month + 1)
        assert found[name] == (
            f"FOR VALUES FROM ('{year}-{month:02}-01 00:00:00+00')"
            f" TO ('{after[0]}-{after[1]:02}-01 00:00:00+00')"
        )


async def test_late_housekeeping_still_works(shop: Shop) -> None:
    """Events of a month that nobody made a partition for don't stop the ones that are to come."""
    await shop.turn_clock(200 * 86400)
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    assert await shop.values("select distinct tableoid::regclass::text from saga_events") == [
        "saga_events_default"
    ]
    made = await shop.values("select ensure_event_partitions()")
    assert len(made) >= 2
    assert (await shop.events(order))[-1] == "saga_completed"


async def test_retention_drops_old_months_but_no_living_saga(shop: Shop) -> None:
    """Partitions that end before a day go; the first that tells of an unended saga stays."""
    partition = "select tableoid::regclass::text from saga_events where saga_id = %s limit 1"
    product = await shop.product(on_hand=5)
    ended = await shop.order((product, 1))
    (request,) = await shop.advance()
    await shop.settle([request], APPROVED)
    old = await shop.value(partition, ended)
    told = len(await shop.events(ended))
    await shop.turn_clock(40 * 86400)
    await shop.rows("select ensure_event_partitions()")
    living = await shop.order((product, 1))
    needed = await shop.value(partition, living)
    await shop.turn_clock(200 * 86400)
    gone = await shop.rows("select * from drop_event_partitions(%s, 'disk')", await latest(shop))
    assert gone[0] == {"name": old, "events": told, "outcome": "dropped"}
    assert gone[-1] == {"name": needed, "events": 1, "outcome": "needed"}
    assert {each["outcome"] for each in gone[:-1]} == {"dropped"}
    assert await shop.events(ended) == []
    assert await shop.events(living) == ["saga_started"]
    assert await shop.values("select finding from audit") == []
    shop.audited = False  # what was dropped can't be rebuilt


async def test_effects_come_last_and_all_at_once(shop: Shop) -> None:
    """At the end of a pass an effect is called once, for the sagas whose steps were done."""
    await shop.run(
        """
        create table called (sagas uuid[], effects text[], statuses text[]);
        grant all on called to darkpearl_owner;
        create function choose(p_warehouse_ids uuid[], p_saga_ids uuid[])
        returns outcome_group[] language sql set search_path = darkpearl as $$
            select group_outcomes(array_agg(row(
                i, case n when 1 then 'refused' else 'done' end, null, null, null, null
            )::step_outcome))
            from unnest(p_saga_ids) with ordinality as s (i, n)
        $$;
        create function call(p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[])
        returns void language sql set search_path = darkpearl as $$
            insert into called
            select p_saga_ids, p_effects,
                array(select s.status::text from sagas as s where s.id = any(p_saga_ids))
        $$;
        select define_plan(
            'toy',
            step('choose', p_function => 'choose', p_effect_function => 'call', p_effect => 'one'),
            step('call', p_effect_function => 'call', p_effect => 'two')
        );
        select start_saga('toy', new_id(), id)
        from (select id from warehouses, generate_series(1, 2) order by id limit 2) as w;
        """
    )
    _, chosen = sorted(await shop.values("select id from sagas"))
    await shop.advance()
    assert await shop.rows("select * from called") == [
        {
            "sagas": [chosen, chosen],
            "effects": ["one", "two"],
            "statuses": ["completed"],
        }
    ]


@asynccontextmanager
async def read(connect: Connect) -> AsyncIterator[None]:
    """Somebody has read all history and is still in that transaction."""
    reader = await connect("darkpearl_reader")
    async with reader.transaction():
        await reader.execute("select count(*) from saga_events")
        yield


async def while_ordering(shop: Shop, connect: Connect, query: str, *parameters: Any) -> list[Row]:
    """Rows of housekeeping, during all of which customers order who wait for no lock."""
    product = await shop.product(on_hand=1000)
    customer = Shop(await connect(options=IMPATIENT, row_factory=dict_row))
    customer.lisbon = shop.lisbon
    housekeeper = Shop(await connect(row_factory=dict_row))
    keeping = asyncio.create_task(housekeeper.rows(query, *parameters))
    while not keeping.done():
        await customer.order((product, 1))
    return await keeping


async def test_making_partitions_keeps_nobody_waiting(shop: Shop, connect: Connect) -> None:
    """Behind an open reader it leaves them for later; who orders meanwhile waits for nothing."""
    await shop.turn_clock(200 * 86400)
    async with read(connect):
        before = await bounds(shop)
        assert await while_ordering(shop, connect, "select ensure_event_partitions()") == []
        assert await bounds(shop) == before
    await shop.turn_clock(70 * 86400)
    assert len(await shop.values("select ensure_event_partitions()")) == 3


async def test_dropping_partitions_keeps_nobody_waiting(shop: Shop, connect: Connect) -> None:
    """Behind an open reader it says busy, and can be called again."""
    await shop.turn_clock(200 * 86400)
    drop = "select * from drop_event_partitions(%s, 'disk')"
    day = await latest(shop)
    async with read(connect):
        (busy,) = await while_ordering(shop, connect, drop, day)
        assert busy["outcome"] == "busy"
    gone = await shop.rows(drop, day)
    assert gone[0] == {**busy, "outcome": "dropped"}
    assert gone[0]["name"] not in await bounds(shop)


async def test_a_partition_that_is_read_by_its_own_name_is_busy_too(
    shop: Shop, connect: Connect
) -> None:
    """Whatever a transaction has of the history, housekeeping says so, and raises nothing."""
    await shop.turn_clock(200 * 86400)
    (first, *_) = await shop.rows(
        "select * from drop_event_partitions(%s, 'disk', true)", await latest(shop)
    )
    reader = await connect()
    async with reader.transaction():
        await reader.execute(f"select from {first['name']}")
        (busy,) = await shop.rows(
            "select * from drop_event_partitions(%s, 'disk')", await latest(shop)
        )
    assert busy == {**first, "outcome": "busy"}


async def test_partitions_are_made_beside_a_writer(shop: Shop, connect: Connect) -> None:
    """Who is placing an order is in nobody's way: partitions are attached all the same."""
    product = await shop.product(on_hand=1)
    customer = Shop(await connect(row_factory=dict_row))
    customer.lisbon = shop.lisbon
    async with customer.connection.transaction():
        await customer.order((product, 1))
        assert len(await shop.values("select ensure_event_partitions(3)")) == 1


async def test_a_new_partition_is_as_its_siblings(shop: Shop) -> None:
    """Made apart and attached, it has the columns, indexes, policies and triggers of the others."""
    (made,) = await shop.values("select ensure_event_partitions(3)")
    sibling = await shop.value(
        "select max(inhrelid)::regclass::text from pg_inherits"
        " where inhparent = 'saga_events'::regclass and inhrelid <> %s::regclass",
        made,
    )
    for catalogue in [
        (
            "select attname, atttypid, attnotnull, attidentity, pg_get_expr(adbin, adrelid)"
            " from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum"
            " where attnum > 0 and attrelid = %s::regclass order by attnum"
        ),
        (
            "select reloptions, indkey::text, indisprimary from pg_class"
            " join pg_index on indexrelid = oid where indrelid = %s::regclass order by 2"
        ),
        "select polname, polroles from pg_policy where polrelid = %s::regclass",
        "select tgname, tgtype from pg_trigger where tgrelid = %s::regclass order by 1",
        "select contype from pg_constraint where contype <> 'n' and conrelid = %s::regclass",
    ]:
        assert await shop.rows(catalogue, made) == await shop.rows(catalogue, sibling) != []


async def test_young_history_is_not_dropped(shop: Shop) -> None:
    """This month and the one before never go, however the call is meant."""
    await shop.turn_clock(200 * 86400)
    day = await latest(shop)
    for arguments in ("'disk'", "null, true"):
        call = f"select * from drop_event_partitions(%s::date + 1, {arguments})"
        with pytest.raises(psycopg.Error) as refused:
            await shop.rows(call, day)
        assert refused.value.sqlstate == "DP015"
        assert str(day) in str(refused.value.diag.message_hint)
    with pytest.raises(psycopg.Error, match="too young"):
        await shop.rows("select * from drop_event_partitions(null, 'disk')")


async def test_a_dry_run_drops_nothing(shop: Shop) -> None:
    """It tells the partitions that would go and the number of their events, without a reason."""
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    events = await shop.value("select count(*) from saga_events")
    await shop.turn_clock(200 * 86400)
    before = await bounds(shop)
    would_go = await shop.rows(
        "select * from drop_event_partitions(%s, p_dry_run => true)", await latest(shop)
    )
    assert {each["outcome"] for each in would_go} == {"would go"}
    assert would_go[0]["events"] == events
    assert await bounds(shop) == before
    assert await shop.rows("select * from action_log") == []


async def test_what_was_dropped_is_told(shop: Shop) -> None:
    """Each partition that goes leaves who, why and how many events; no reason, no drop."""
    await shop.turn_clock(200 * 86400)
    day = await latest(shop)
    with pytest.raises(psycopg.Error, match="a reason is needed"):
        await shop.rows("select * from drop_event_partitions(%s)", day)
    gone = await shop.rows("select * from drop_event_partitions(%s, 'disk')", day)
    assert gone
    assert (
        await shop.rows(
            "select subject as name, (detail ->> 'events')::bigint as events, 'dropped' as outcome"
            " from action_log where action = 'drop_event_partitions' and reason = 'disk'"
            " and actor = session_user order by id"
        )
        == gone
    )


async def test_a_partition_made_later_is_looked_into(shop: Shop) -> None:
    """A saga that has not ended keeps its month also in a partition that no migrate has seen."""
    await shop.turn_clock(200 * 86400)
    await shop.values("select ensure_event_partitions()")
    await shop.order((await shop.product(on_hand=1), 1))
    await shop.turn_clock(100 * 86400)
    found = await shop.rows(
        "select * from drop_event_partitions(%s, p_dry_run => true)", await latest(shop)
    )
    assert (found[-1]["events"], found[-1]["outcome"]) == (1, "needed")


async def test_events_without_a_partition_are_counted(shop: Shop) -> None:
    """engine_health tells of rows that lie in saga_events_default."""
    count = "select events_out_of_place from engine_health"
    await shop.order((await shop.product(on_hand=2), 1))
    assert await shop.value(count) == 0
    await shop.turn_clock(200 * 86400)
    await shop.order((shop.products[0], 1))
    async with shop.acting_as("darkpearl_reader"):
        assert await shop.value(count) == 1


YEAR = 365 * 86400
PLACES = "select tableoid::regclass::text, count(*) from saga_events group by 1 order by 1"


async def stray(shop: Shop) -> None:
    """Two orders in each of two months that had no partition and are over."""
    product = await shop.product(on_hand=10)
    for _ in range(2):
        await shop.turn_clock(YEAR)
        for _ in range(2):
            await shop.order((product, 1))
    await shop.turn_clock(YEAR)
    await shop.values("select ensure_event_partitions()")


async def test_events_move_into_their_months(shop: Shop) -> None:
    """What lay in saga_events_default lies in a partition of its month, word for word."""
    await stray(shop)
    before = await shop.rows("select * from saga_events order by id")
    async with shop.acting_as("darkpearl_listener"):
        made = await shop.values("select place_events()")
        assert len(made) == 2
        assert await shop.values("select place_events()") == []
    assert await shop.rows("select * from saga_events order by id") == before
    assert {tuple(row.values()) for row in await shop.rows(PLACES)} == {(name, 2) for name in made}
    assert await shop.value("select events_out_of_place from engine_health") == 0
    for change in ("delete from saga_events", "truncate saga_events_default"):
        with shop.refused("DP005"):
            await shop.run(change)


async def test_events_of_this_month_stay_until_it_is_over(shop: Shop) -> None:
    """A month to which events are added still isn't moved."""
    product = await shop.product(on_hand=10)
    await shop.turn_clock(YEAR)
    await shop.order((product, 1))
    assert await shop.values("select place_events()") == []
    await shop.turn_clock(32 * 86400)
    assert len(await shop.values("select place_events()")) == 1


@pytest.mark.parametrize("limit", [4, None])
async def test_many_events_are_moved_by_hand_alone(shop: Shop, limit: int | None) -> None:
    """More than the limit stay where they are; as many as it, or without one, all of them go."""
    await stray(shop)
    assert await shop.values("select place_events(3)") == []
    assert len(await shop.values("select place_events(%s)", limit)) == 2


async def test_what_isnt_seen_isnt_moved(shop: Shop) -> None:
    """A transaction that can't see what others have added since it began leaves all in place."""
    await stray(shop)
    for level in ("repeatable read", "serializable"):
        async with shop.connection.transaction():
            await shop.run(f"set transaction isolation level {level}")
            assert await shop.values("select place_events()") == []


async def test_moving_events_keeps_nobody_waiting(shop: Shop, connect: Connect) -> None:
    """Behind somebody who reads them nothing is moved, nothing is lost, and orders are placed."""
    await stray(shop)
    before = await shop.rows("select * from saga_events order by id")
    async with read(connect):
        assert await while_ordering(shop, connect, "select place_events()") == []
    after = await shop.rows("select * from saga_events order by id")
    assert after[: len(before)] == before
    assert len(await shop.values("select place_events()")) == 2
