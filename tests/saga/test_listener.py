"""The listener at work: to the end of a saga, through outages, to an orderly stop."""

import asyncio
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from shop import Shop
from stand_in import StandIn

from darkpearl import database
from darkpearl.config import Settings
from darkpearl.gateways import Answer, AnsweredError, Call
from darkpearl.gateways.mock import MockGateway
from darkpearl.listener import Listener, breaker
from darkpearl.listener.bell import Bell
from darkpearl.listener.pace import STANDSTILL_FAILURES
from darkpearl.listener.sessions import Sessions
from darkpearl.serving import limits_of
from darkpearl.telemetry.metrics import REGISTRY


class Deaf(StandIn):
    """Never answers a charge."""

    async def authorize(self, call: Call) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError(call)


class Broken(StandIn):
    """Raises on every charge; voids work."""

    async def authorize(self, call: Call) -> Answer:
        self.asked.append(call.idempotency_key)
        raise ConnectionResetError("peer went away")


class Gated(StandIn):
    """Answers when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.called = asyncio.Event()
        self.answer = asyncio.Event()

    async def authorize(self, call: Call) -> Answer:
        self.called.set()
        await self.answer.wait()
        return self.approve(call)


async def test_orders_end_fulfilled_or_cancelled(shop: Shop, listening: Any, until: Any) -> None:
    """Every order ends: fulfilled and paid, or cancelled and owing nothing."""
    few, many = await shop.product(on_hand=30), await shop.product(on_hand=1000)
    for _ in range(100):
        await shop.order((few, 1), (many, 2))
    await listening(MockGateway(approval_rate=0.5))

    async def all_ended() -> bool:
        return await shop.value("select count(*) = 0 from sagas where ready_at is not null")

    await until(all_ended)
    statuses = await shop.statuses()
    assert sum(statuses.values()) == 100
    assert 1 <= statuses["fulfilled"] <= 30
    assert statuses["cancelled"] >= 70


def asleep(shop: Shop) -> Callable[[], Awaitable[bool]]:
    """A listener has taken the idle lock and so sleeps, or is about to."""

    async def holds_idle_lock() -> bool:
        return await shop.value(
            "select count(*) = 1 from pg_locks where locktype = 'advisory' and granted"
            " and mode = 'ExclusiveLock' and objid = (idle_lock_key() & 4294967295)::oid"
        )

    return holds_idle_lock


def fast_asleep(shop: Shop) -> Callable[[], Awaitable[bool]]:
    """A listener has looked a last time since it took the idle lock, and found no more."""

    async def has_looked() -> bool:
        return await shop.value(
            "select count(*) = 1 from pg_stat_activity as bell, pg_stat_activity as look"
            " where bell.datname = current_database() and look.datname = current_database()"
            " and bell.application_name = 'darkpearl bell'"
            " and exists (select from pg_locks as l where l.pid = bell.pid"
            " and l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted)"
            " and look.application_name = 'darkpearl listener' and look.query ~ 'advance'"
            " and look.query_start > bell.query_start"
            " and bell.state = 'idle' and look.state = 'idle'"
        )

    return has_looked


async def test_the_bell_wakes_a_sleeping_listener(shop: Shop, listening: Any, until: Any) -> None:
    """With the poll an hour away, an order is fulfilled because the bell rang, and at once."""
    product = await shop.product(on_hand=100)
    await listening(MockGateway(1.0), poll_seconds=3600)
    took = []
    for number in range(1, 21):
        await until(asleep(shop))
        begun = time.monotonic()
        await shop.order((product, 1))

        async def done(number: int = number) -> bool:
            return (await shop.statuses()).get("fulfilled") == number

        await until(done)
        took.append(time.monotonic() - begun)
    assert sorted(took)[10] < 0.25


@pytest.fixture
async def releases(shop: Shop) -> Callable[[], Awaitable[int]]:
    """How often the idle lock was released."""
    await shop.run("create table release (at timestamptz)")
    await shop.run("grant insert on release to darkpearl_listener")
    await shop.run(
        "create or replace function release_idle_lock() returns void language sql"
        " set search_path = darkpearl, pg_temp"
        " as 'insert into release values (now()); select pg_advisory_unlock(idle_lock_key())'"
    )

    async def count() -> int:
        return await shop.value("select count(*) from release")

    return count


async def test_the_idle_lock_is_kept_for_an_order_alone(
    shop: Shop, listening: Any, until: Any, releases: Callable[[], Awaitable[int]]
) -> None:
    """A listener that is woken for one order is as good as asleep again: writers go on ringing."""
    product = await shop.product(on_hand=100)
    await listening(MockGateway(1.0), poll_seconds=3600)
    await until(asleep(shop))
    await shop.order((product, 1))

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 1}

    await until(done)
    assert await releases() == 0
    assert await asleep(shop)()


async def test_the_idle_lock_is_released_for_a_crowd(
    shop: Shop, connect: Any, listening: Any, until: Any, releases: Callable[[], Awaitable[int]]
) -> None:
    """With more waiting than one claim takes, the sleeper is awake, and writers need not ring."""
    product = await shop.product(on_hand=100)
    await listening(MockGateway(1.0), poll_seconds=3600, batch_size=3)
    await until(asleep(shop))
    crowd = await connect(autocommit=False)
    for _ in range(10):
        await crowd.execute(
            "select place_order(%s, jsonb_build_array("
            "jsonb_build_object('product_id', %s::uuid, 'quantity', 1)))",
            [shop.lisbon, product],
        )
    await crowd.commit()

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 10}

    await until(done)
    assert await releases() >= 1


async def test_a_listener_with_peers_takes_one_pass_at_a_time(
    shop: Shop, database_url: str, listening: Any, until: Any
) -> None:
    """While others listen too, a listener's claims and settlements take turns."""
    await shop.run("create table overlap (at timestamptz)")
    await shop.run("grant insert on overlap to darkpearl_owner")
    await shop.run(
        "create function note_overlap() returns trigger language plpgsql as $$ begin"
        " if not pg_try_advisory_xact_lock(77) then insert into overlap values (now()); end if;"
        " return null; end $$"
    )
    product = await shop.product(on_hand=1000)
    for _ in range(300):
        await shop.order((product, 1))
    await shop.run(
        "create trigger note_overlap after update on sagas"
        " for each statement execute function note_overlap()"
    )
    async with Bell.connect(database_url):
        await listening(MockGateway(1.0), batch_size=10)

        async def done() -> bool:
            return await shop.statuses() == {"fulfilled": 300}

        await until(done)
    assert await shop.value("select count(*) from overlap") == 0


async def test_what_rang_while_it_was_awake_wakes_it_once(shop: Shop, database_url: str) -> None:
    """However often the bell rang while nobody slept, that is one wake-up, and nothing is kept."""
    quiet = asyncio.Event()
    async with Bell.connect(database_url) as bell:
        for _ in range(5):
            await shop.run("notify darkpearl_bell")
        await bell.take_idle_lock()
        assert await bell.wait(quiet, 10)
        assert not await bell.wait(quiet, 0.01)


async def test_a_ring_is_heard_however_the_bell_was_used_before(
    shop: Shop, database_url: str
) -> None:
    """It wakes who waits again, who waits after a ring that nobody waited for, or after asking."""
    quiet = asyncio.Event()

    async def ring() -> None:
        await shop.run("notify darkpearl_bell")

    async with Bell.connect(database_url) as bell:
        for _ in range(2):
            waiting = asyncio.create_task(bell.wait(quiet, 10))
            await ring()
            assert await waiting
            quiet.clear()
        await ring()
        assert await bell.wait(quiet, 10)
        quiet.clear()
        waiting = asyncio.create_task(bell.wait(quiet, 10))
        await ring()
        assert await waiting
        quiet.clear()
        await bell.take_idle_lock()
        waiting = asyncio.create_task(bell.wait(quiet, 10))
        await ring()
        assert await waiting


async def test_a_ring_after_a_claim_has_begun_is_kept(database_url: str) -> None:
    """What rings between the claim that a ring begins and the end of the wait ends the next wait.

    Its work may be too late for that claim's snapshot.
    """
    woken = asyncio.Event()
    claims: list[str] = []
    with psycopg.connect(database_url, autocommit=True) as other:
        async with Bell.connect(database_url) as bell:
            hearing = socket.socket(fileno=os.dup(bell._connection.fileno()))

            def claim() -> None:
                """The claim begins, and another order is committed before anybody is back."""
                claims.append("begun")
                if len(claims) == 1:
                    other.execute("select pg_notify('darkpearl_bell', 'later')")
                    while not select.select([hearing], [], [], 0)[0] or (
                        b"later" not in hearing.recv(65536, socket.MSG_PEEK)
                    ):
                        pass

            async with asyncio.timeout(10):
                with hearing:
                    other.execute("notify darkpearl_bell")
                    assert await bell.wait(woken, 60, claim)
                    woken.clear()
                    assert await bell.wait(woken, 60, claim)
    assert claims == ["begun", "begun"]


async def test_who_had_stopped_listening_is_not_asleep_yet(database_url: str) -> None:
    """What rang while nobody listened is looked for once more before anybody sleeps."""
    async with Bell.connect(database_url) as bell:
        await bell._connection.execute("unlisten *")
        for sleeps in (False, True):
            await bell.take_idle_lock()
            assert bell.holds_idle_lock is sleeps


async def test_a_session_says_what_became_of_its_statement(database_url: str) -> None:
    """A failure is raised, and the session goes on; a parameter may be as large as it likes."""
    statements = {"divide": "select 6 / $1::int, null", "measure": "select length($1::text)"}
    async with Sessions.connect(database_url, "s", statements, count=1) as sessions:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await sessions.call("divide", b"0")
        assert await sessions.call("divide", b"2") == [(b"3", None)]
        begun = sessions.begin("measure", b"x" * 10_000_000)
        assert await begun() == [(b"10000000",)]
        assert await sessions.call("measure", b"") == [(b"0",)]


async def test_a_bell_that_is_lost_is_no_silence(shop: Shop, database_url: str) -> None:
    """A wait on a connection that is lost ends with an error, and so does the next one."""
    quiet = asyncio.Event()

    async def hear(bell: Bell) -> None:
        while await bell.wait(quiet, 10):  # first the server's last words
            quiet.clear()

    for _ in range(2):
        async with Bell.connect(database_url) as bell:
            hearing = asyncio.create_task(hear(bell))
            await shop.run(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name = 'darkpearl bell'"
            )
            with pytest.raises(psycopg.OperationalError):
                await hearing
            quiet.clear()


async def test_a_lost_bell_is_caught_up_by_the_poll(shop: Shop, listening: Any, until: Any) -> None:
    """An order whose bell nobody heard is found by the next poll."""
    product = await shop.product(on_hand=10)
    await shop.run("alter table sagas disable trigger sagas_ring_the_bell")
    await listening(MockGateway(1.0), poll_seconds=0.2)
    await shop.order((product, 1))

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 1}

    await until(done)


async def test_a_writer_that_began_before_the_sleep_is_not_missed(
    shop: Shop, connect: Any, listening: Any, until: Any
) -> None:
    """An order committed after the queue was drained is seen, though it rang no bell."""
    product = await shop.product(on_hand=10)
    writer = await connect("darkpearl_app", autocommit=False)
    await writer.execute(
        "select place_order(%s, jsonb_build_array("
        "jsonb_build_object('product_id', %s::uuid, 'quantity', 1)))",
        [shop.lisbon, product],
    )
    await listening(MockGateway(1.0), poll_seconds=3600)

    async def waits_for_the_idle_lock() -> bool:
        return await shop.value(
            "select count(*) = 1 from pg_locks where locktype = 'advisory' and not granted"
        )

    await until(waits_for_the_idle_lock)
    await writer.commit()

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 1}

    await until(done)


async def test_several_listeners_share_the_work(shop: Shop, listening: Any, until: Any) -> None:
    """Three listeners on one queue: each order is charged once and every saga has one end."""
    products = [await shop.product(on_hand=1000) for _ in range(3)]
    gateways = [MockGateway(1.0, latency_seconds=0.005) for _ in range(3)]
    for gateway in gateways:
        await listening(gateway, batch_size=7)
    for number in range(120):
        await shop.order((products[number % 3], 1), (products[(number + 1) % 3], 1))

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 120}

    await until(done)
    assert (
        await shop.value("select count(*) from saga_events where event_type = 'step_waiting'")
        == 120
    )


async def test_no_lease_runs_out_in_the_queue_of_a_slow_gateway(
    shop: Shop, listening: Any, until: Any
) -> None:
    """A listener claims what the gateway gets to in time; each order is asked about once."""
    await shop.run(
        "update step_settings set timeout_seconds = 1, backoff_seconds = 0"
        " where step_name = 'process_payment'"
    )
    product = await shop.product(on_hand=100)
    for _ in range(30):
        await shop.order((product, 1))
    await listening(MockGateway(1.0, latency_seconds=0.15), payment_concurrency=2)

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 30}

    await until(done)
    assert await shop.value("select max(attempt) from saga_events") == 1


async def test_a_standstill_is_a_metric(database_url: str) -> None:
    """How often in a row a listener's passes have failed can be alerted on, and ends with work."""
    listener = Listener(database_url, MockGateway(), limits_of(Settings()))
    for _ in range(STANDSTILL_FAILURES):
        listener._pace.failed("database: gone")
    name = "darkpearl_listener_failures_in_a_row"
    assert REGISTRY.get_sample_value(name) == STANDSTILL_FAILURES
    listener._pace.done(1)
    assert REGISTRY.get_sample_value(name) == 0


class Slow(StandIn):
    """Holds the calls of some payers until told; answers others at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.answer = asyncio.Event()

    async def authorize(self, call: Call) -> Answer:
        if call.token == "slow":
            self.inside += 1
            await self.answer.wait()
            self.inside -= 1
        return self.approve(call)


async def fulfilled_in(shop: Shop, warehouse: Any) -> int:
    """How many orders of a warehouse are fulfilled."""
    return await shop.value(
        "select count(*) from orders where status = 'fulfilled' and warehouse_id = %s", warehouse
    )


async def test_slow_calls_of_a_warehouse_keep_no_other_waiting(
    shop: Shop, listening: Any, until: Any
) -> None:
    """With 300 of them before it, a quick order elsewhere is fulfilled while they are out.

    They have all places but one, more of them wait than are wanted, and most aren't claimed.
    """
    slow, quick = await shop.product(on_hand=1000), await shop.product()
    await shop.receive(quick, 9, shop.rotterdam)
    gateway = Slow()
    await listening(gateway, payment_concurrency=8, payment_timeout_seconds=60, poll_seconds=0.1)
    for order in range(2):
        await shop.order((quick, 1), warehouse=shop.rotterdam)
        await shop.order((slow, 1))

        async def both(order: int = order) -> bool:
            return await shop.statuses() == {"fulfilled": 2 * order + 2}

        await until(both)
    for _ in range(300):
        await shop.order((slow, 1), p_payment_token="slow")

    async def crowded() -> bool:
        return gateway.inside == 7

    await until(crowded)
    await shop.order((quick, 1), warehouse=shop.rotterdam)

    async def done() -> bool:
        return await fulfilled_in(shop, shop.rotterdam) == 3

    await until(done)
    assert gateway.inside == 7
    assert await fulfilled_in(shop, shop.lisbon) == 2
    assert await shop.value("select count(*) from sagas where status = 'waiting'") < 100
    gateway.answer.set()

    async def all_done() -> bool:
        return await shop.statuses() == {"fulfilled": 305}

    await until(all_done)
    assert await shop.value("select max(attempt) from saga_events") == 1


async def test_slow_calls_cost_no_tries(shop: Shop, listening: Any, until: Any) -> None:
    """More than can be asked within their leases are given back unasked, and none has failed."""
    await shop.run("update step_settings set timeout_seconds = 1")
    product = await shop.product(on_hand=1000)
    for _ in range(60):
        await shop.order((product, 1))
    gateway = MockGateway(1.0, latency_seconds=0.3)
    listener = await listening(gateway, payment_concurrency=4, payment_timeout_seconds=0.6)
    listener._calls._call_seconds = 0.001  # so far they were quick

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 60}

    await until(done)
    assert await shop.value("select max(attempt) from saga_events") == 1
    kinds = "select count(*) from saga_events where event_type = %s"
    assert await shop.value(kinds, "step_failed") == 0
    assert await shop.value(kinds, "step_deferred") > 0


async def test_a_gateway_that_never_answers_is_asked_again_then_voided(
    shop: Shop, listening: Any, until: Any
) -> None:
    """No answer is not a no: the charge is asked for again, and voided when nobody ever answers."""
    product = await shop.product(on_hand=10)
    await shop.run(
        "update step_settings"
        " set timeout_seconds = 0.05, backoff_seconds = 0, give_up_seconds = 0.1"
    )
    await shop.order((product, 1))
    await listening(Deaf(), poll_seconds=0.05)

    async def done() -> bool:
        return await shop.statuses() == {"cancelled": 1}

    await until(done)
    events = await shop.rows("select event_type::text, attempt from saga_events order by id")
    assert {"event_type": "step_waiting", "attempt": 1} in events
    assert {"event_type": "step_failed", "attempt": 2} in events
    assert await shop.rows("select status::text, voided_amount from payments") == [
        {"status": "voided", "voided_amount": 10}
    ]


async def test_a_gateway_that_breaks_is_asked_under_the_same_key(
    shop: Shop, listening: Any, until: Any
) -> None:
    """An exception of the gateway is an unknown outcome: same key again, then a void."""
    product = await shop.product(on_hand=10)
    await shop.run("update step_settings set backoff_seconds = 2, give_up_seconds = 1")
    saga = await shop.order((product, 1))
    gateway = Broken()
    await listening(gateway, poll_seconds=0.05)

    async def done() -> bool:
        return await shop.statuses() == {"cancelled": 1}

    await until(done)
    key = f"{saga}:process_payment"
    assert gateway.asked == [key, key, f"{saga}:void_payment"]
    assert (
        await shop.value("select message from saga_events where event_type = 'step_failed' limit 1")
        == "ConnectionResetError: peer went away"
    )


class Down(Broken):
    """Raises on every charge until it is up."""

    up = False

    async def authorize(self, call: Call) -> Answer:
        return self.approve(call) if self.up else await super().authorize(call)


async def test_an_outage_of_the_gateway_costs_time_and_no_order(
    shop: Shop, listening: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the gateway is down stock steps go on, and who wasn't asked has used up no attempt.

    Once it is back all 160 orders are fulfilled. Nobody else's calls were paused.
    """
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_SECONDS", 0.4)
    product = await shop.product(on_hand=1000)
    await shop.run("update step_settings set backoff_seconds = 0.1")
    for _ in range(120):
        await shop.order((product, 1))
    gateway = Down()
    await listening(gateway, poll_seconds=0.05, payment_failures=3, payment_concurrency=4)

    async def open_breaker() -> bool:
        return await shop.value(
            "select count(*) > 0 from saga_events where event_type = 'step_deferred'"
        )

    await until(open_breaker)
    assert REGISTRY.get_sample_value("darkpearl_listener_breaker_state") in {1, 2}
    late = [await shop.order((product, 1)) for _ in range(40)]

    async def reserved() -> bool:
        return await shop.stock(product) == (1000, 160)

    await until(reserved)
    held = "select external_steps_paused_until from engine_health"
    assert await shop.value(held) is None
    gateway.up = True

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 160}

    await until(done)
    asked = len(gateway.asked)
    answers = await shop.value(
        "select count(*) from saga_events where event_type in ('step_failed', 'step_completed')"
        " and step_name = 'process_payment'"
    )
    assert answers == asked
    assert await shop.order_status(late[0]) == "fulfilled"
    assert await shop.value("select max(attempt) < 5 from saga_events")


async def test_who_cant_reach_the_gateway_leaves_the_work_to_peers(
    shop: Shop, listening: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its breaker open for a minute, it gives no order back that another could have charged."""
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 60.0)
    product = await shop.product(on_hand=1000)
    await shop.run("update step_settings set backoff_seconds = 0.1")
    for _ in range(10):
        await shop.order((product, 1))
    lost = await listening(Down(), poll_seconds=0.05, payment_failures=3, payment_concurrency=4)

    async def open_breaker() -> bool:
        return REGISTRY.get_sample_value("darkpearl_listener_breaker_state") == 2

    await until(open_breaker)
    await listening(MockGateway(1.0), poll_seconds=0.05)

    async def knows_of_its_peer() -> bool:
        return lost._has_peers

    await until(knows_of_its_peer)
    orders = [await shop.order((product, 1)) for _ in range(200)]

    async def done() -> bool:
        return await shop.value(
            "select count(*) = 200 from orders where id = any(%s) and status = 'fulfilled'", orders
        )

    await until(done)
    deferred = "select count(*) from saga_events where event_type = 'step_deferred' and saga_id"
    assert await shop.value(f"{deferred} = any(%s)", orders) == 0


class Refusing(StandIn):
    """Answers some charges with what says nothing; the others are approved."""

    def __init__(self, *odd: str) -> None:
        super().__init__()
        self._odd = odd

    async def authorize(self, call: Call) -> Answer:
        if call.payment_key in self._odd:
            raise AnsweredError("409 used for another request")
        return self.approve(call)


async def test_orders_with_bad_answers_hold_no_other_back(
    shop: Shop, listening: Any, until: Any
) -> None:
    """A dozen orders whose requests are refused don't stop the calls for others."""
    product = await shop.product(on_hand=100)
    bad = [await shop.order((product, 1)) for _ in range(12)]
    for _ in range(20):
        await shop.order((product, 1))
    await listening(Refusing(*[f"{order}:process_payment" for order in bad]), poll_seconds=0.05)

    async def done() -> bool:
        return (await shop.statuses()).get("fulfilled") == 20

    await until(done)
    assert not await shop.values("select from saga_events where event_type = 'step_deferred'")


class Selective(Gated):
    """Lets one charge wait until told to, and answers all others at once."""

    async def authorize(self, call: Call) -> Answer:
        if self.called.is_set():
            return self.approve(call)
        return await super().authorize(call)


async def test_a_slow_answer_holds_no_other_back(shop: Shop, listening: Any, until: Any) -> None:
    """Answers are settled as they come: orders end while one of their batch still waits."""
    product = await shop.product(on_hand=10)
    gateway = Selective()
    for _ in range(6):
        await shop.order((product, 1))
    await listening(gateway, poll_seconds=3600)

    async def all_but_one() -> bool:
        return await shop.statuses() == {"fulfilled": 5, "payment_processing": 1}

    await until(all_but_one)
    gateway.answer.set()

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 6}

    await until(done)


async def test_no_transaction_is_open_during_a_call(shop: Shop, listening: Any, until: Any) -> None:
    """While the gateway is being asked, the listener has no transaction open and holds no row."""
    product = await shop.product(on_hand=10)
    gateway = Gated()
    await listening(gateway)
    await shop.order((product, 1))
    await asyncio.wait_for(gateway.called.wait(), 20)

    async def idle() -> bool:
        states = await shop.values(
            "select distinct state from pg_stat_activity where datname = current_database()"
            " and application_name like 'darkpearl%'"
        )
        return states == ["idle"]

    await until(idle)
    await shop.run("select id from sagas for update nowait")
    gateway.answer.set()

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 1}

    await until(done)


async def test_orders_are_claimed_while_answers_are_settled(
    shop: Shop, listening: Any, until: Any, connect: Any
) -> None:
    """A listener with its hands full claims the next order while it settles, not after."""
    product = await shop.product(on_hand=10)
    gateway = Gated()
    await listening(gateway, batch_size=1)
    first = await shop.order((product, 1))
    await asyncio.wait_for(gateway.called.wait(), 20)
    second = await shop.order((product, 1))
    holder = await connect(autocommit=False)
    await holder.execute("select from sagas where id = %s for update", [first])
    gateway.answer.set()

    async def claimed() -> bool:
        return await shop.order_status(second) == "payment_processing"

    await until(claimed)
    assert await shop.order_status(first) == "payment_processing"
    await holder.rollback()

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 2}

    await until(done)


async def test_stop_finishes_what_is_in_hand(shop: Shop, listening: Any, until: Any) -> None:
    """A stop signal claims nothing more, but an answer that comes within the deadline is kept."""
    product = await shop.product(on_hand=10)
    gateway = Gated()
    listener = await listening(gateway, poll_seconds=3600)
    await shop.order((product, 1))
    await asyncio.wait_for(gateway.called.wait(), 20)
    await until(fast_asleep(shop))
    listener.stop()
    await shop.order((product, 1))
    gateway.answer.set()

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 1, "pending": 1}

    await until(done)


async def test_a_listener_that_is_killed_waits_for_no_answer(
    shop: Shop, listening: Any, until: Any
) -> None:
    """It ends at once, and the request is handed out again when its lease has run out."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    gateway = Gated()
    listener = await listening(gateway, shutdown_seconds=40, payment_timeout_seconds=60)
    await asyncio.wait_for(gateway.called.wait(), 20)
    listener.stop()
    listener.kill()

    async def gone() -> bool:
        return await shop.value(
            "select count(*) = 0 from pg_stat_activity where application_name ~ '^darkpearl (b|l)'"
            " and datname = current_database()"
        )

    await until(gone)
    assert (await shop.events(order))[-1] == "step_waiting process_payment"
    (again,) = await shop.ask_again() or await shop.ask_again()
    assert again["saga_id"] == str(order)


async def test_a_stop_in_the_middle_of_a_look_is_not_missed(database_url: str) -> None:
    """A listener that is told to stop while it looks for work doesn't go to sleep after it."""
    url = database.as_role(database_url, "darkpearl_listener")
    listener = Listener(url, MockGateway(), limits_of(Settings(poll_seconds=3600)))

    class ToldWhileLooking(asyncio.Event):
        def clear(self) -> None:
            listener.stop()
            super().clear()

    listener._wake = ToldWhileLooking()
    async with asyncio.timeout(20):
        await listener.run()


async def test_what_a_ring_had_claimed_is_finished(
    shop: Shop, database_url: str, until: Any
) -> None:
    """A claim begins as soon as the bell rings; who is told to stop right then works it off."""

    class StoppedByTheBell(Listener):
        def _claim_early(self, limit: int) -> None:
            super()._claim_early(limit)
            self.stop()

    product = await shop.product(on_hand=10)
    listener = StoppedByTheBell(
        database.as_role(database_url, "darkpearl_listener"),
        MockGateway(1.0),
        limits_of(Settings(poll_seconds=3600)),
    )
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        await until(fast_asleep(shop))
        await shop.order((product, 1))
    assert await shop.statuses() == {"fulfilled": 1}


async def test_an_outage_is_outlived(shop: Shop, listening: Any, until: Any) -> None:
    """Listeners whose connections are cut come back by themselves and go on."""
    product = await shop.product(on_hand=100)
    await listening(MockGateway(1.0), poll_seconds=3600)
    for number in range(1, 4):
        await shop.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        await shop.order((product, 1))

        async def done(number: int = number) -> bool:
            return await shop.statuses() == {"fulfilled": number}

        await until(done)


async def test_a_listener_needs_no_right_but_the_engine(connect: Any) -> None:
    """The listener's role can run the engine, and can't read one table."""
    session = await connect("darkpearl_listener")
    await session.execute("select * from advance()")
    for table in ("orders", "payments", "inventory", "saga_events"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await session.execute(f"select from {table}")


async def test_payment_tokens_go_when_their_sagas_have_ended(
    shop: Shop, listening: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener's housekeeping leaves none behind, however an order ended."""
    monkeypatch.setattr("darkpearl.listener.housekeeping.HOUSEKEEPING_SECONDS", 0)
    product = await shop.product(on_hand=1)
    for _ in range(2):
        await shop.order((product, 1), p_payment_token="tok_visa")
    await listening(MockGateway(1.0), poll_seconds=0.01)

    async def none_left() -> bool:
        return await shop.value("select count(*) from payment_tokens") == 0

    await until(none_left)
    assert await shop.statuses() == {"fulfilled": 1, "cancelled": 1}


async def test_old_idempotency_keys_are_removed(
    shop: Shop, listening: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that are older than the setting, batch by batch; younger ones stay."""
    monkeypatch.setattr("darkpearl.listener.housekeeping.FORGET_BATCH", 2)
    for key in ("a", "b", "c", "d", "e"):
        await shop.run("select end_request(%s, sha256('x'), 'old')", key)
    await shop.turn_clock(2 * 3600)
    await shop.run("select end_request('young', sha256('x'), 'new')")
    await listening(MockGateway(1.0), poll_seconds=0.01, idempotency_key_hours=1)

    async def one_left() -> bool:
        return await shop.values("select idempotency_key from idempotency_keys") == ["young"]

    await until(one_left)


async def test_a_defect_is_said_once(
    shop: Shop, listening: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Orders that a defect sets aside are one error in the log for each step and SQLSTATE."""
    product = await shop.product(on_hand=100)
    sound = [await shop.order((product, 1)) for _ in range(5)]
    bad = [await shop.order((product, 1)) for _ in range(14)]
    await shop.poison("reserve_stock", *bad, sqlstate="P0001")
    await listening(MockGateway(1.0), poll_seconds=0.05)

    async def done() -> bool:
        return (await shop.statuses()).get("fulfilled") == len(sound)

    await until(done)
    assert set(await shop.values("select id from stuck_sagas")) == set(bad)
    (said,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert said.startswith("reserve_stock raises P0001")


@pytest.mark.parametrize("step", ["reserve_stock", "record_payment"])
@pytest.mark.parametrize("sqlstate", ["55P03", "57014", "53200"])
async def test_an_outage_of_one_order_is_no_outage(
    shop: Shop, listening: Any, until: Any, step: str, sqlstate: str
) -> None:
    """The batch is taken in halves until the order stands alone and is put off: others are done."""
    product = await shop.product(on_hand=100)
    orders = [await shop.order((product, 1)) for _ in range(40)]
    await shop.poison(step, orders[17], sqlstate=sqlstate)
    await listening(MockGateway(1.0), poll_seconds=0.05)

    async def done() -> bool:
        return (await shop.statuses()).get("fulfilled") == 39

    await until(done)
    assert not await shop.values("select id from stuck_sagas")
    await shop.cure(step)
    await shop.run("update sagas set ready_at = clock() where ready_at is not null")

    async def all_done() -> bool:
        return await shop.statuses() == {"fulfilled": 40}

    await until(all_done)


async def test_a_standstill_is_an_error(
    shop: Shop, listening: Any, until: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """A listener that gets nothing done, connected as it is, backs off and says so as an error."""
    monkeypatch.setattr("darkpearl.listener.pace.LONGEST_BACKOFF_SECONDS", 0.05)
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order, sqlstate="58030")
    await listening(MockGateway(1.0), poll_seconds=0.05)

    async def said() -> bool:
        return any(each.levelname == "ERROR" for each in caplog.records)

    await until(said)
    await shop.cure("reserve_stock")

    async def done() -> bool:
        return await shop.statuses() == {"fulfilled": 1}

    await until(done)


async def test_housekeeping_that_fails_keeps_nobody_from_work(
    shop: Shop, listening: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Orders are worked on all the same; the log says what failed, and when it is tried again."""
    await shop.run(
        "create or replace function ensure_event_partitions(p_months_ahead integer default 2)"
        " returns setof text language plpgsql as $$ begin raise 'disk full'; end $$"
    )
    order = await shop.order((await shop.product(on_hand=1), 1))
    await listening(MockGateway(1.0))

    async def fulfilled() -> bool:
        return await shop.order_status(order) == "fulfilled"

    await until(fulfilled)
    (said,) = [each.getMessage() for each in caplog.records if "housekeeping" in each.message]
    assert said == "housekeeping: disk full; trying again in 60 s"


async def test_an_answer_that_was_in_the_way_is_brought_again(
    shop: Shop, connect: Any, listening: Any, until: Any
) -> None:
    """With the poll an hour away, it is recorded soon after its order is let go of."""
    gateway = Gated()
    await listening(gateway, poll_seconds=3600)
    order = await shop.order((await shop.product(on_hand=1), 1))
    await asyncio.wait_for(gateway.called.wait(), 20)
    holder = await connect(autocommit=False)
    await holder.execute("update orders set notes = 'call first' where id = %s", [order])
    moment = await shop.value("select clock_timestamp()")
    gateway.answer.set()

    async def given_back() -> bool:
        return await shop.value(
            "select count(*) > 0 from pg_stat_activity where datname = current_database()"
            " and application_name = 'darkpearl listener' and query ~ 'settle'"
            " and query_start > %s and state = 'idle'",
            moment,
        )

    await until(given_back)
    assert await shop.order_status(order) == "payment_processing"
    await holder.rollback()

    async def done() -> bool:
        return await shop.order_status(order) == "fulfilled"

    await until(done)


async def test_what_others_hold_keeps_no_listener_from_the_rest(
    shop: Shop, connect: Any, listening: Any, until: Any
) -> None:
    """Two sessions hold orders that are being paid, one a shelf: twenty orders are done soon.

    Two listeners are at it. What was held is done when it is let go, at no cost of attempts: its
    charge was asked for once.
    """
    gateway = Gated()
    for _ in range(2):
        await listening(gateway)
    product, shelf = await shop.product(on_hand=100), await shop.product(on_hand=100)
    holders = [await connect(autocommit=False) for _ in range(3)]
    await holders[0].execute("select receive_stock(%s, %s, 1)", [shop.lisbon, shelf])
    short = await shop.order((shelf, 1))
    orders = [await shop.order((product, 1)) for _ in range(22)]

    async def asked_for() -> bool:
        return await shop.value("select count(*) = 22 from sagas where status = 'waiting'")

    await until(asked_for)
    for holder, order in zip(holders[1:], orders, strict=False):
        await holder.execute("update orders set notes = 'call first' where id = %s", [order])
    gateway.answer.set()
    begun = time.monotonic()

    async def others_done() -> bool:
        done = "select count(*) = 20 from orders where id = any(%s) and status = 'fulfilled'"
        return await shop.value(done, orders[2:])

    await until(others_done)
    assert time.monotonic() - begun < 2
    assert await shop.order_status(short) == "pending"
    for holder in holders:
        await holder.rollback()

    async def all_done() -> bool:
        return (await shop.statuses()) == {"fulfilled": 23}

    await until(all_done)
    assert len(gateway.asked) == 23
    assert await shop.values("select distinct attempt from saga_events where attempt > 1") == []
