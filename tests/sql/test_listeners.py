"""routines/69_listeners.sql: who is there, at what, and seen when."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import Row, Shop


async def report(shop: Shop, listener: UUID, activity: str = "idle", **more: Any) -> bool:
    """A listener says that it is there; whether there are chores."""
    told = {"breaker": "closed", "seconds": 0.0, **more}
    async with shop.acting_as("darkpearl_listener"):
        return await shop.value(
            "select report_listener(%s, 'box-1', 4711, '0.2.0', 'mock', %s, %s, %s)",
            *(listener, told["breaker"], activity, told["seconds"]),
        )


async def seen(shop: Shop) -> list[Row]:
    """listener_activity as reports read it."""
    async with shop.acting_as("darkpearl_reader"):
        return await shop.rows("select * from listener_activity order by started_at")


async def test_a_listener_is_there_while_it_says_so(shop: Shop) -> None:
    """It is alive for 15 seconds after its last word, at what it said, and silent after that."""
    listener = uuid4()
    await report(shop, listener, "advance", seconds=7, breaker="half_open")
    (row,) = await seen(shop)
    assert (row["listener_id"], row["host"], row["process_id"]) == (listener, "box-1", 4711)
    assert (row["version"], row["gateway"]) == ("0.2.0", "mock")
    assert (row["breaker"], row["activity"], row["is_alive"]) == ("half_open", "advance", True)
    assert (row["last_seen_at"] - row["activity_since"]).total_seconds() == pytest.approx(7)
    await shop.turn_clock(14)
    assert (await seen(shop))[0]["is_alive"]
    await shop.turn_clock(2)
    (row,) = await seen(shop)
    assert not row["is_alive"]
    assert 16 <= row["seen_seconds_ago"] < 20
    await report(shop, listener)
    (again,) = await seen(shop)
    assert (again["is_alive"], again["activity"], again["started_at"]) == (
        True,
        "idle",
        row["started_at"],
    )


async def test_health_counts_them(shop: Shop) -> None:
    """engine_health and the metrics say how many are alive, silent, or get no answer."""
    health = "select listeners_alive, listeners_silent, breakers_open from engine_state()"
    assert await shop.row(health) == {
        "listeners_alive": 0,
        "listeners_silent": 0,
        "breakers_open": 0,
    }
    assert await shop.value("select listener_seen_seconds from engine_health") is None
    await report(shop, uuid4())
    await shop.turn_clock(60)
    await report(shop, uuid4(), breaker="open")
    assert await shop.row(health) == {
        "listeners_alive": 1,
        "listeners_silent": 1,
        "breakers_open": 1,
    }
    assert await shop.value("select listener_seen_seconds from engine_health") < 5


async def test_one_that_stops_leaves_no_row(shop: Shop) -> None:
    """An orderly stop is no alarm; the row of one that was killed goes after a day."""
    stopped, killed = uuid4(), uuid4()
    await report(shop, stopped)
    await report(shop, killed)
    async with shop.acting_as("darkpearl_listener"):
        await shop.run("select forget_listener(%s)", stopped)
    assert [row["listener_id"] for row in await seen(shop)] == [killed]
    await shop.turn_clock(86300)
    await report(shop, uuid4())
    assert len(await seen(shop)) == 2
    await shop.turn_clock(200)
    await report(shop, uuid4())
    assert killed not in [row["listener_id"] for row in await seen(shop)]


async def test_a_clock_that_is_set_back_makes_nobody_silent(shop: Shop) -> None:
    """Who was seen in the future was seen now."""
    await report(shop, uuid4())
    await shop.turn_clock(-3600)
    (row,) = await seen(shop)
    assert (row["is_alive"], row["seen_seconds_ago"]) == (True, 0)


async def test_a_heartbeat_stays_on_its_page(shop: Shop) -> None:
    """Days of heartbeats are updates in place: no index entry, and the table doesn't grow."""
    listeners = [uuid4() for _ in range(3)]
    for _ in range(1000):
        for each in listeners:
            await report(shop, each)
    await shop.run("select pg_stat_force_next_flush()")
    await shop.run("select pg_stat_clear_snapshot()")
    row = await shop.row(
        "select n_tup_upd, n_tup_hot_upd, pg_relation_size('listeners') as heap,"
        " pg_relation_size('listeners_pkey') as keys"
        " from pg_stat_user_tables where relname = 'listeners'"
    )
    assert row["n_tup_upd"] == 2997
    assert row["n_tup_hot_upd"] == row["n_tup_upd"]
    assert (row["heap"], row["keys"]) == (8192, 16384)


async def test_it_is_told_of_chores(shop: Shop) -> None:
    """There are chores while a batch isn't done, or a minute isn't counted; else there are none."""
    listener = uuid4()
    assert await report(shop, listener)
    while await shop.value("select fill_step_minutes(60)"):
        pass
    assert not await report(shop, listener)
    await shop.turn_clock(180)
    assert await report(shop, listener)
    while await shop.value("select fill_step_minutes(60)"):
        pass
    assert not await report(shop, listener)
    await shop.run(
        "insert into gateway_events (gateway, event_id, answer, disposition)"
        " values ('mock', 'evt_1', '{\"outcome\": \"approved\"}', 'unmatched')"
    )
    await shop.run("select ack_gateway_events('{}', 'a test of ours', false)")
    assert await report(shop, listener)
    await shop.run("select work_batches()")
    assert not await report(shop, listener)


async def test_one_that_was_seen_to_is_dismissed(shop: Shop) -> None:
    """Its row goes, with a name and a reason in the log; one alive can't be, nor a stranger."""
    dead, alive = uuid4(), uuid4()
    await report(shop, dead)
    await shop.turn_clock(60)
    await report(shop, alive)
    dismiss = "select host from dismiss_listener(%s, %s)"
    async with shop.acting_as("service_role"):
        assert await shop.value(dismiss, dead, "the box burnt down") == "box-1"
        with shop.refused("DP015"):
            await shop.run(dismiss, alive, "why not")
        with shop.refused("DP010"):
            await shop.run(dismiss, dead, "again")
        with shop.refused("DP015"):
            await shop.run(dismiss, alive, " ")
    assert [row["listener_id"] for row in await seen(shop)] == [alive]
    said = "select action, subject, reason from action_log"
    assert await shop.row(said) == {
        "action": "dismiss_listener",
        "subject": "box-1 4711",
        "reason": "the box burnt down",
    }
    await report(shop, dead)  # it was frozen, and wakes
    assert len(await seen(shop)) == 2


async def test_one_that_gets_nothing_done_is_counted_and_says_why(shop: Shop) -> None:
    """However long what the database said: the activity has its beginning."""
    await report(shop, uuid4())
    await report(shop, uuid4(), "backing off: database: could not extend file " + "x" * 200)
    assert await shop.value("select listeners_failing from engine_health") == 1
    activities = {row["activity"][:34] for row in await seen(shop)}
    assert activities == {"idle", "backing off: database: could not e"}
