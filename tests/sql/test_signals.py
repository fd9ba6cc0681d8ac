"""routines/58_signals.sql: steps that wait until somebody speaks, or until their deadline."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from shop import APPROVED, LONG, Row, Shop

FUNCTIONS = """
    create table done (id serial, saga_id uuid, what text);
    create table letters (id serial, saga_id uuid, payload jsonb);
    grant all on done, letters to darkpearl_owner;
    grant usage on done_id_seq, letters_id_seq to darkpearl_owner;

    create function prepare(p_warehouse_ids uuid[], p_saga_ids uuid[])
    returns outcome_group[] language plpgsql set search_path = darkpearl as $$
    begin
        insert into done (saga_id, what) select unnest(p_saga_ids), 'prepared';
        return outcome_for_all('done', p_saga_ids);
    end $$;

    create function put_back(p_warehouse_ids uuid[], p_saga_ids uuid[])
    returns outcome_group[] language plpgsql set search_path = darkpearl as $$
    begin
        insert into done (saga_id, what) select unnest(p_saga_ids), 'put back';
        return outcome_for_all('done', p_saga_ids);
    end $$;

    create function ask(p_warehouse_ids uuid[], p_saga_ids uuid[])
    returns outcome_group[] language plpgsql set search_path = darkpearl as $$
    begin
        return outcome_for_all(
            'waiting', p_saga_ids,
            array(select '{"operation": "ask"}'::json from unnest(p_saga_ids))
        );
    end $$;

    create function answered(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
    returns outcome_group[] language plpgsql set search_path = darkpearl as $$
    begin
        return outcomes_of_answers(p_saga_ids, p_answers, 'question');
    end $$;

    create function read(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
    returns outcome_group[] language plpgsql set search_path = darkpearl as $$
    begin
        insert into letters (saga_id, payload) select * from unnest(p_saga_ids, p_answers);
        return group_outcomes(array(
            select row(
                a.saga_id,
                case
                    when a.payload ->> 'verdict' = 'no' then 'refused'
                    when a.payload ? 'parcels' and 2 > (
                        select count(*) from letters as l where l.saga_id = a.saga_id
                    ) then 'waiting'
                    else 'done'
                end,
                null, null, null, null
            )::step_outcome
            from unnest(p_saga_ids, p_answers) as a (saga_id, payload)
        ));
    end $$;
"""
"""Steps of errands: prepare, which put_back undoes; ask, an external call; read, for signals."""

CHECKOUT = """
    select define_plan(
        'order_fulfilment',
        step('reserve_stock', p_function => 'reserve_stock',
            p_effect_function => 'move_goods', p_effect => 'reserve',
            p_undo => 'release_stock', p_undo_effect_function => 'move_goods',
            p_undo_effect => 'release', p_order_status_done => 'reserved'),
        step('approval', p_on_deadline => 'turn_back', p_timeout_seconds => 86400),
        step('process_payment', p_function => 'request_payment',
            p_settle_function => 'record_payment', p_undo => 'void_payment',
            p_undo_function => 'request_void', p_undo_settle_function => 'record_void',
            p_order_status_waiting => 'payment_processing', p_order_status_done => 'paid',
            p_order_status_refused => 'payment_failed'),
        step('fulfill_order', p_effect_function => 'move_goods', p_effect => 'fulfill',
            p_order_status_done => 'fulfilled')
    )
"""
"""Orders that somebody has to approve before they are paid."""

Signal = Callable[..., Awaitable[str]]


class Errands:
    """Sagas of a plan of this test's own: prepare, perhaps ask, wait for `approval`, finish."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def plan(
        self,
        on_deadline: str = "turn_back",
        *,
        settle: str | None = None,
        asks: bool = False,
        seconds: float = 3600,
    ) -> None:
        """Declare the plan."""
        ask = "step('ask', p_function => 'ask', p_settle_function => 'answered')," if asks else ""
        read = f", p_settle_function => '{settle}'" if settle else ""
        await self.shop.run(
            f"""
            select define_plan(
                'errand',
                step('prepare', p_function => 'prepare',
                    p_undo => 'put_back', p_undo_function => 'put_back'),
                {ask}
                step('approval', p_on_deadline => '{on_deadline}', p_timeout_seconds => {seconds}
                    {read}),
                step('finish', p_function => 'prepare')
            )
            """
        )

    async def start(self, count: int = 1) -> list[UUID]:
        """New errands, in order of their ids."""
        return sorted(
            await self.shop.values(
                "with errand as materialized (select new_id() as id from generate_series(1, %s))"
                " select id from errand, lateral start_saga('errand', id, %s)",
                count,
                self.shop.lisbon,
            )
        )

    async def waiting(self, on_deadline: str = "turn_back", **plan: Any) -> UUID:
        """An errand that waits for its approval."""
        await self.plan(on_deadline, **plan)
        (saga,) = await self.start()
        await self.shop.advance()
        assert await self.stands(saga) == ("waiting", "approval")
        return saga

    async def stands(self, saga: UUID) -> tuple[str, str | None]:
        """The status of a saga and the step that it is at."""
        row = await self.shop.row(
            "select status, current_step from saga_states where id = %s", saga
        )
        return row["status"], row["current_step"]

    async def letters(self, saga: UUID) -> list[Any]:
        """The payloads that the settle function has been given for a saga."""
        return await self.shop.values(
            "select payload from letters where saga_id = %s order by id", saga
        )

    async def kept(self, saga: UUID) -> list[str]:
        """The events of a saga that no step has taken."""
        return await self.shop.values(
            "select event_id from saga_signals where saga_id = %s and taken_at is null order by id",
            saga,
        )


@pytest.fixture
async def errands(shop: Shop) -> Errands:
    """Errands, with no plan yet."""
    await shop.run(FUNCTIONS)
    return Errands(shop)


@pytest.fixture
def signal(shop: Shop) -> Signal:
    """An application tells a saga something; the disposition."""

    async def tell(
        saga: UUID, payload: Any = None, event: str | None = None, step: str = "approval"
    ) -> str:
        arguments: Row = {"p_saga_id": saga, "p_step_name": step}
        if payload is not None:
            arguments["p_payload"] = json.dumps(payload)
        if event is not None:
            arguments["p_event_id"] = event
        named = ", ".join(f"{name} => %s" for name in arguments)
        async with shop.acting_as("darkpearl_app"):
            return await shop.value(f"select signal_saga({named})", *arguments.values())

    return tell


@pytest.fixture(autouse=True)
async def told_all_along(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every pass of every test here, audit is empty and events say where sagas stand."""
    advance = shop.advance

    async def advance_and_audit(*arguments: Any) -> list[Row]:
        requests = await advance(*arguments)
        if shop.audited:
            assert await shop.audit() == []
        return requests

    monkeypatch.setattr(shop, "advance", advance_and_audit)


# A saga that waits.


async def test_a_signal_ends_the_wait(shop: Shop, errands: Errands, signal: Signal) -> None:
    """A saga that waits goes on with the signal at the next pass, to its end."""
    saga = await errands.waiting()
    assert await signal(saga) == "applied"
    assert await shop.audit() == []
    await shop.advance()
    assert await shop.events(saga) == [
        "saga_started",
        "step_completed prepare",
        "step_waiting approval",
        "signalled approval",
        "step_completed approval",
        "step_completed finish",
        "saga_completed",
    ]
    assert await errands.kept(saga) == []


async def test_the_history_says_who_spoke(shop: Shop, log_in: Any, errands: Errands) -> None:
    """The event of a signal has the speaker and the event id, and its row the payload."""
    saga = await errands.waiting()
    application = await log_in("darkpearl_app")
    await application.execute(
        """select signal_saga(%s, 'approval', '{"by": "the boss"}', 'letter 7')""", [saga]
    )
    event = await shop.event(saga, "signalled")
    assert (event["actor"], event["message"]) == ("darkpearl_app", "letter 7")
    row = await shop.row("select * from saga_signals where saga_id = %s", saga)
    assert (row["payload"], row["actor"]) == ({"by": "the boss"}, "darkpearl_app")
    assert row["taken_at"] is None
    await shop.advance()
    assert await shop.value("select taken_at is not null from saga_signals")


async def test_a_settle_function_reads_the_payload(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """The settle function is given what was said; it may refuse, and the saga turns back."""
    await errands.plan(settle="read")
    yes, no, nothing = await errands.start(3)
    await shop.advance()
    await signal(yes, {"verdict": "yes"})
    await signal(no, {"verdict": "no"})
    await signal(nothing)
    await shop.advance()
    assert await errands.letters(yes) == [{"verdict": "yes"}]
    assert await errands.letters(nothing) == [{}]
    assert [(await shop.saga(each))["status"] for each in (yes, no, nothing)] == [
        "completed",
        "compensated",
        "completed",
    ]
    assert (await shop.events(no))[-4:] == [
        "step_failed approval",
        "compensation_started",
        "step_compensated put_back",
        "saga_compensated",
    ]


async def test_a_step_may_wait_for_more(shop: Shop, errands: Errands, signal: Signal) -> None:
    """A settle function that says waiting is given the next signal when that comes."""
    saga = await errands.waiting(settle="read")
    await signal(saga, {"parcels": 1})
    await shop.advance()
    assert await errands.stands(saga) == ("waiting", "approval")
    await shop.turn_clock(3000)
    await shop.advance()
    assert shop.claimed == 0
    assert await signal(saga, {"parcels": 2}) == "applied"
    await shop.advance()
    assert await errands.letters(saga) == [{"parcels": 1}, {"parcels": 2}]
    assert (await shop.saga(saga))["status"] == "completed"


async def test_signals_are_taken_one_by_one(shop: Shop, errands: Errands, signal: Signal) -> None:
    """Of several the oldest is read first, and all that are needed in one pass."""
    saga = await errands.waiting(settle="read")
    assert await signal(saga, {"parcels": 1}, "first") == "applied"
    assert await signal(saga, {"parcels": 2}, "second") == "kept"
    assert await signal(saga, {"parcels": 3}, "third") == "kept"
    await shop.advance()
    assert await errands.letters(saga) == [{"parcels": 1}, {"parcels": 2}]
    assert (await shop.saga(saga))["status"] == "completed"
    assert await errands.kept(saga) == ["third"]


async def test_a_wait_is_as_long_as_it_was(shop: Shop, errands: Errands, signal: Signal) -> None:
    """The event that ends a wait says when it began, however long it might have been."""
    for on_deadline, seconds in (("turn_back", 86400), ("go_on", 600)):
        saga = await errands.waiting(on_deadline, seconds=86400)
        await shop.run("update step_settings set timeout_seconds = %s", seconds)
        began = (await shop.event(saga, "step_waiting"))["created_at"]
        await shop.turn_clock(300)
        await signal(saga)
        await shop.advance()
        (ended,) = await shop.rows(
            "select * from saga_events where saga_id = %s and event_type = 'step_completed'"
            " and step_name = 'approval'",
            saga,
        )
        assert ended["started_at"] == began
        assert 300 <= (ended["created_at"] - began).total_seconds() < 310


async def test_waiting_costs_nothing(shop: Shop, errands: Errands) -> None:
    """Before its deadline a saga that waits is claimed by no pass, and nothing of it moves."""
    saga = await errands.waiting(seconds=86400)
    stands = await shop.saga(saga)
    for _ in range(5):
        await shop.turn_clock(80000 / 5)
        assert await shop.advance() == []
        assert shop.claimed == 0
    assert await shop.saga(saga) == stands
    assert stands["attempts"] == 1
    assert len(await shop.events(saga)) == 3


async def test_a_pause_of_calls_holds_no_waiter(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Steps that wait are no calls: a pause of those lets signals through."""
    await errands.plan()
    await shop.run("select pause_external_steps(600, 'test')")
    (saga,) = await errands.start()
    await shop.advance()
    assert await errands.stands(saga) == ("waiting", "approval")
    await signal(saga)
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


async def test_only_a_signal_ends_a_wait(shop: Shop, errands: Errands) -> None:
    """An answer to a call, by a listener or a gateway, is none: it is refused and moves nothing."""
    saga = await errands.waiting(settle="read")
    stands = await shop.saga(saga)
    await shop.settle([await shop.lease(saga)], APPROVED)
    assert shop.stale == [(saga, "DP009")]
    assert await shop.told(f"{saga}:approval", APPROVED) == "unmatched"
    assert await shop.saga(saga) == stands
    assert await errands.letters(saga) == []


async def test_the_bell_rings_for_a_signal(
    shop: Shop, errands: Errands, signal: Signal, connect: Any
) -> None:
    """A listener that sleeps is woken by a signal that a saga waits for, and only then."""
    await errands.plan()
    waits, early = await errands.start(2)
    await shop.run("update sagas set ready_at = clock() + interval '1 day' where id = %s", early)
    await shop.advance()
    sleeper = await connect("darkpearl_listener")
    await sleeper.execute("listen darkpearl_bell")
    assert (await (await sleeper.execute("select take_idle_lock()")).fetchone()) == (True,)
    assert await signal(early) == "kept"
    assert await signal(waits) == "applied"
    heard = [each async for each in sleeper.notifies(timeout=10, stop_after=1)]
    assert [each.channel for each in heard] == ["darkpearl_bell"]
    assert [each async for each in sleeper.notifies(timeout=0)] == []


# A signal that comes early, late, or twice.


async def test_an_early_signal_is_kept(shop: Shop, errands: Errands, signal: Signal) -> None:
    """A saga that isn't there yet finds its signal when it comes, and passes in the same pass."""
    await errands.plan(settle="read")
    (saga,) = await errands.start()
    assert await signal(saga, {"verdict": "yes"}) == "kept"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"
    assert await errands.letters(saga) == [{"verdict": "yes"}]
    assert await shop.events(saga) == [
        "saga_started",
        "signalled approval",
        "step_completed prepare",
        "step_waiting approval",
        "step_completed approval",
        "step_completed finish",
        "saga_completed",
    ]
    waited = await shop.event(saga, "step_waiting")
    assert waited["next_attempt_at"] is None
    (ended,) = await shop.rows(
        "select started_at >= %s as at_once from saga_events"
        " where event_type = 'step_completed' and step_name = 'approval'",
        waited["created_at"],
    )
    assert ended["at_once"]


async def test_early_signals_are_read_until_it_is_enough(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """A step that needs two signals and was sent one early waits for the other."""
    await errands.plan(settle="read")
    one, two = await errands.start(2)
    await signal(one, {"parcels": 1})
    await signal(two, {"parcels": 1})
    await signal(two, {"parcels": 2})
    await shop.advance()
    assert await errands.stands(one) == ("waiting", "approval")
    assert (await shop.saga(one))["ready_at"] > await shop.value("select clock()")
    assert (await shop.saga(two))["status"] == "completed"
    await signal(one, {"parcels": 2})
    await shop.advance()
    assert (await shop.saga(one))["status"] == "completed"


async def test_a_saga_that_backs_off_keeps_its_signal(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Told between two tries of the step before, a saga goes through once that is mended."""
    await errands.plan()
    (saga,) = await errands.start()
    await shop.poison("prepare", saga)
    await shop.advance()
    assert (await shop.events(saga))[-1] == "step_failed prepare"
    assert await signal(saga) == "kept"
    await shop.cure("prepare")
    await shop.turn_clock(LONG)
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


async def test_a_saga_that_is_held_keeps_its_signal(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Told while a pause holds the call before, a saga goes through when that is answered."""
    await errands.plan(asks=True)
    (saga,) = await errands.start()
    await shop.run("select pause_external_steps(60, 'test')")
    assert await shop.advance() == []
    assert await signal(saga) == "kept"
    await shop.run("select pause_external_steps(0, 'test')")
    await shop.turn_clock(2)
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.saga(saga))["status"] == "completed"


async def test_a_signal_is_no_answer_to_a_call(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Told while its call is out, a saga still waits for the answer, and then goes through."""
    await errands.plan(asks=True)
    (saga,) = await errands.start()
    requests = await shop.advance()
    assert [each["step_name"] for each in requests] == ["ask"]
    before = await shop.saga(saga)
    assert await signal(saga) == "kept"
    assert await shop.saga(saga) == before
    await shop.settle(requests, APPROVED)
    assert (await shop.saga(saga))["status"] == "completed"


@pytest.mark.parametrize("payload", [{"verdict": "yes"}, {"verdict": "no"}])
async def test_an_event_counts_once(
    shop: Shop, errands: Errands, signal: Signal, payload: Row
) -> None:
    """The same event id again changes nothing, whatever it says and wherever the saga is."""
    await errands.plan(settle="read")
    (saga,) = await errands.start()
    assert await signal(saga, {"parcels": 1}, "e1") == "kept"
    assert await signal(saga, payload, "e1") == "duplicate"
    await shop.advance()
    assert await errands.stands(saga) == ("waiting", "approval")
    stands = await shop.saga(saga)
    assert await signal(saga, payload, "e1") == "duplicate"
    assert await shop.saga(saga) == stands
    await signal(saga, {"parcels": 2}, "e2")
    await shop.advance()
    assert await signal(saga, payload, "e1") == "duplicate"
    assert await errands.letters(saga) == [{"parcels": 1}, {"parcels": 2}]
    assert (await shop.events(saga)).count("signalled approval") == 2


async def test_events_are_the_sagas_own(shop: Shop, errands: Errands, signal: Signal) -> None:
    """One event id told to two sagas is two signals."""
    await errands.plan()
    sagas = await errands.start(2)
    await shop.advance()
    assert [await signal(saga, event="e1") for saga in sagas] == ["applied", "applied"]


async def test_without_an_event_id_each_call_is_an_event(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Who names no event tells a new one every time."""
    saga = await errands.waiting(settle="read")
    assert await signal(saga, {"parcels": 1}) == "applied"
    assert await signal(saga, {"parcels": 1}) == "kept"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


async def test_a_signal_shares_the_senders_transaction(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Told in a transaction that is rolled back, it never was: it can be told again."""
    saga = await errands.waiting()
    stands = await shop.saga(saga)
    async with shop.connection.transaction(force_rollback=True):
        assert await signal(saga, event="e1") == "applied"
    assert await shop.saga(saga) == stands
    assert len(await shop.events(saga)) == 3
    await shop.advance()
    assert shop.claimed == 0
    assert await signal(saga, event="e1") == "applied"


# Signals that nobody waits for.


async def test_a_signal_that_is_too_late_is_stale(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Told to a saga that has ended or turned back, or has passed the step, it changes nothing."""
    await errands.plan("go_on")
    completed, compensating, compensated = await errands.start(3)
    await shop.advance()
    await signal(completed)
    await shop.advance()
    await shop.give_up_after(0.5, "finish")
    await shop.poison("prepare", compensating, compensated)
    await shop.poison("put_back", compensating)
    await shop.turn_clock(LONG)
    for _ in range(4):
        await shop.advance()
        await shop.turn_clock(10)
    assert (await shop.saga(compensating))["status"] == "compensating"
    assert (await shop.saga(compensated))["status"] == "compensated"
    for saga in (completed, compensating, compensated):
        stands = await shop.saga(saga)
        assert await signal(saga) == "stale"
        assert await shop.saga(saga) == stands
    await shop.cure("put_back")
    await shop.turn_clock(LONG)
    await shop.advance()
    assert (await shop.saga(compensating))["status"] == "compensated"
    assert await shop.audit() == []


async def test_a_step_that_is_passed_waits_for_nothing(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """A saga that went on without its signal doesn't hear it any more."""
    await errands.plan("go_on")
    (saga,) = await errands.start()
    await shop.advance()
    await shop.poison("prepare", saga)
    await shop.turn_clock(LONG)
    await shop.advance()
    assert await errands.stands(saga) == ("running", "finish")
    assert await signal(saga) == "stale"


async def test_who_is_to_turn_back_hears_nothing(shop: Shop, signal: Signal) -> None:
    """Once cancelling was asked for, a signal is stale: the saga turns back whatever it says."""
    await shop.run(CHECKOUT)
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.advance()
    await shop.cancel(order)
    assert await signal(order) == "stale"
    assert await shop.advance() == []
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)


async def test_what_is_no_signal_is_refused(shop: Shop, errands: Errands, signal: Signal) -> None:
    """No such saga, no such step, a step that waits for nothing, one of another version."""
    saga = await errands.waiting()
    await shop.run(
        "select define_plan('errand', step('later', p_on_deadline => 'stuck'),"
        " step('finish', p_function => 'prepare'))"
    )
    (newer,) = await errands.start()
    with shop.refused("DP010"):
        await signal(uuid4())
    for step in ("prepare", "nothing", "", "later"):
        with shop.refused("DP010"):
            await signal(saga, step=step)
    with shop.refused("DP010"):
        await signal(newer)
    assert await signal(newer, step="later") == "kept"
    assert await shop.value("select count(*) from saga_signals") == 1


@pytest.mark.parametrize("event", ["", "x" * 256])
async def test_an_event_id_makes_sense(
    shop: Shop, errands: Errands, signal: Signal, event: str
) -> None:
    """It has 1 to 255 characters."""
    saga = await errands.waiting()
    with shop.refused("DP015"):
        await signal(saga, event=event)
    assert await signal(saga, event="x" * 255) == "applied"


async def test_an_event_id_that_is_null_is_refused(shop: Shop, errands: Errands) -> None:
    """Null names no event: who has no name for it leaves it out."""
    saga = await errands.waiting()
    with shop.refused("DP015"):
        await shop.run("select signal_saga(%s, 'approval', '{}', null)", saga)


async def test_a_payload_has_a_bound(shop: Shop, errands: Errands, signal: Signal) -> None:
    """It has 64 kB of text at most, however well it compresses."""
    saga = await errands.waiting()
    with shop.refused("DP015"):
        await signal(saga, {"text": "x" * 65536})
    await shop.run("create table mail (body jsonb)")
    await shop.run("insert into mail select jsonb_build_object('text', repeat('x', 1000000))")
    with shop.refused("DP015"):
        await shop.run("select signal_saga(%s, 'approval', body) from mail", saga)
    assert await shop.value("select count(*) from saga_signals") == 0
    assert await signal(saga, {"text": "x" * 65000}) == "applied"


async def test_a_saga_keeps_a_thousand_signals(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """One more that nobody has taken is refused; those that were told stay told."""
    saga = await errands.waiting(settle="read")
    told = await shop.values(
        """
        select signal_saga(%s, 'approval', '{"parcels": 1}', n::text)
        from generate_series(1, 1000) as n
        """,
        saga,
    )
    assert (told.count("applied"), told.count("kept")) == (1, 999)
    with shop.refused("DP015"):
        await signal(saga, {}, "1001")
    assert await signal(saga, {}, "1000") == "duplicate"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"
    assert len(await errands.kept(saga)) == 998


async def test_a_payload_may_be_left_out(shop: Shop, errands: Errands) -> None:
    """Nothing, and null, are an empty object."""
    await errands.plan(settle="read")
    one, two = await errands.start(2)
    await shop.advance()
    await shop.run("select signal_saga(%s, 'approval')", one)
    await shop.run("select signal_saga(%s, 'approval', null)", two)
    await shop.advance()
    assert await errands.letters(one) == await errands.letters(two) == [{}]


# Deadlines.


async def test_go_on(shop: Shop, errands: Errands) -> None:
    """Nobody spoke, and that is as good as a signal; the history says that nobody did."""
    saga = await errands.waiting("go_on", settle="read")
    await shop.turn_clock(3500)
    await shop.advance()
    assert shop.claimed == 0
    await shop.turn_clock(101)
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"
    assert await errands.letters(saga) == []
    assert (await shop.events(saga))[2:4] == ["step_waiting approval", "step_completed approval"]
    assert await shop.values(
        "select message from saga_events where error_code = 'DP013' and saga_id = %s", saga
    ) == ["no signal within 3600 s"]


async def test_turn_back(shop: Shop, errands: Errands) -> None:
    """Nobody spoke, and the steps before are undone."""
    saga = await errands.waiting("turn_back")
    await shop.turn_clock(LONG)
    await shop.advance()
    assert await shop.values("select what from done order by id") == ["prepared", "put back"]
    assert (await shop.events(saga))[3:] == [
        "step_failed approval",
        "compensation_started",
        "step_compensated put_back",
        "saga_compensated",
    ]
    failed = await shop.event(saga, "step_failed")
    assert (failed["error_code"], failed["next_attempt_at"]) == ("DP013", None)


async def test_stuck(shop: Shop, errands: Errands, signal: Signal) -> None:
    """Nobody spoke, and a person is called; a signal that comes then is kept for the retry."""
    saga = await errands.waiting("stuck")
    await shop.turn_clock(LONG)
    await shop.advance()
    stuck = await shop.row("select id, current_step, last_error_code from stuck_sagas")
    assert tuple(stuck.values()) == (saga, "approval", "DP013")
    assert await signal(saga) == "kept"
    await shop.advance()
    assert shop.claimed == 0
    async with shop.acting_as("service_role"):
        await shop.run("select retry_saga(%s, 'the letter was late')", saga)
    assert await shop.audit() == []
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


async def test_a_retry_waits_anew(shop: Shop, errands: Errands, signal: Signal) -> None:
    """A saga that is retried without a signal has its whole deadline again."""
    saga = await errands.waiting("stuck")
    await shop.turn_clock(LONG)
    await shop.advance()
    await shop.run("select retry_saga(%s, 'patience')", saga)
    await shop.advance()
    await shop.turn_clock(3000)
    await shop.advance()
    assert await errands.stands(saga) == ("waiting", "approval")
    assert await signal(saga) == "applied"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


async def test_a_stuck_wait_may_be_given_up(shop: Shop, errands: Errands, signal: Signal) -> None:
    """An operator turns it back: the steps before are undone, and signals are stale."""
    saga = await errands.waiting("stuck")
    await shop.turn_clock(LONG)
    await shop.advance()
    await shop.run("select turn_back_saga(%s, 'nobody cares')", saga)
    assert await signal(saga) == "stale"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "compensated"
    assert await shop.values("select what from done order by id") == ["prepared", "put back"]


async def test_a_signal_beats_a_deadline_that_has_passed(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Until a pass has noticed the deadline, a signal is in time."""
    saga = await errands.waiting("turn_back")
    await shop.turn_clock(LONG)
    assert await signal(saga) == "applied"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


async def test_a_wait_may_go_on_after_its_deadline(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """It says so in an event, has as long again, and still goes on with a signal."""
    saga = await errands.waiting("keep_waiting", seconds=600)
    for _ in range(2):
        await shop.turn_clock(LONG)
        await shop.advance()
        assert shop.claimed == 1
        assert await errands.stands(saga) == ("waiting", "approval")
    left = await shop.value("select ready_at - clock() from sagas where id = %s", saga)
    assert 590 < left.total_seconds() <= 600
    waits = await shop.rows(
        "select error_code, message from saga_events where event_type = 'step_waiting' order by id"
    )
    assert [each["error_code"] for each in waits] == [None, "DP013", "DP013"]
    assert waits[-1]["message"] == "no signal within 600 s"
    assert await signal(saga) == "applied"
    await shop.advance()
    assert (await shop.saga(saga))["status"] == "completed"


# Orders that wait.


async def test_an_order_waits_for_its_approval(shop: Shop, signal: Signal) -> None:
    """A plan of orders may wait: stock is promised meanwhile, and money taken after the signal."""
    await shop.run(CHECKOUT)
    product = await shop.product(on_hand=3)
    order = await shop.order((product, 2))
    assert await shop.advance() == []
    assert await shop.order_status(order) == "reserved"
    assert await shop.stock(product) == (3, 2)
    await signal(order)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (1, 0)


async def test_a_wait_for_somebody_is_no_try(shop: Shop, signal: Signal) -> None:
    """What meets an outage after a long wait is put off like anything else, and goes on."""
    await shop.run(CHECKOUT)
    await shop.give_up_after(60)
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.advance()
    await shop.turn_clock(LONG)
    await signal(order)
    await shop.poison("request_payment", order, sqlstate="40P01")
    assert await shop.advance() == []
    assert (await shop.events(order))[-1] == "step_deferred approval"
    await shop.cure("request_payment")
    await shop.settle(await shop.ask_again(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_a_waiting_order_is_cancelled_at_once(shop: Shop) -> None:
    """cancel_order() ends a wait: the order turns back at the next pass, not at its deadline."""
    await shop.run(CHECKOUT)
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.advance()
    await shop.cancel(order)
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    assert (await shop.events(order))[-4:] == [
        "cancelled",
        "compensation_started",
        "step_compensated release_stock",
        "saga_compensated",
    ]


# Batches.


async def test_a_batch_hears_its_signals(shop: Shop, errands: Errands, signal: Signal) -> None:
    """Of fifty sagas that wait, one pass takes on those that were signalled, and no others."""
    await errands.plan(settle="read")
    sagas = await errands.start(50)
    await shop.advance()
    for number, saga in enumerate(sagas[::2]):
        await signal(saga, {"number": number})
    await shop.advance()
    assert shop.claimed == 25
    rows = await shop.rows("select id, status from sagas order by id")
    assert [row["status"] for row in rows] == ["completed", "waiting"] * 25
    read = await shop.rows("select saga_id, payload ->> 'number' as number from letters order by 1")
    assert [(row["saga_id"], int(row["number"])) for row in read] == [
        (saga, number) for number, saga in enumerate(sagas[::2])
    ]


async def test_a_batch_comes_to_its_wait(shop: Shop, errands: Errands, signal: Signal) -> None:
    """Of fifty sagas that reach the wait in one pass, those that were told early go through."""
    await errands.plan(settle="read")
    sagas = await errands.start(50)
    for saga in sagas[::2]:
        await signal(saga, {"verdict": "yes"})
    await shop.advance()
    assert shop.claimed == 50
    rows = await shop.rows("select id, status, ready_at from sagas order by id")
    assert [row["status"] for row in rows] == ["completed", "waiting"] * 25
    await shop.advance()
    assert shop.claimed == 0
    assert await shop.value("select count(*) from letters") == 25


async def test_a_deadline_and_a_signal_in_one_batch(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """In one pass those that were told go on, and those whose time is over turn back."""
    await errands.plan()
    told, silent = await errands.start(2)
    await shop.advance()
    await shop.turn_clock(LONG)
    await signal(told)
    await shop.advance()
    assert shop.claimed == 2
    assert (await shop.saga(told))["status"] == "completed"
    assert (await shop.saga(silent))["status"] == "compensated"


async def test_a_settle_function_that_raises_fails_one_saga(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """The one that it raises for keeps its signal and is tried again; the others go on."""
    await errands.plan(settle="read")
    sagas = await errands.start(10)
    await shop.advance()
    for saga in sagas:
        await signal(saga, {"verdict": "yes"}, "e1")
    bad = sagas[6]
    await shop.poison("read", bad)
    await shop.advance()
    statuses = {saga: (await shop.saga(saga))["status"] for saga in sagas}
    assert statuses == {**dict.fromkeys(sagas, "completed"), bad: "running"}
    assert (await shop.event(bad, "step_failed"))["error_code"] == "22012"
    assert await errands.kept(bad) == ["e1"]
    await shop.cure("read")
    await shop.turn_clock(LONG)
    await shop.advance()
    assert (await shop.saga(bad))["status"] == "completed"
    assert await errands.letters(bad) == [{"verdict": "yes"}]


async def test_a_settle_function_that_keeps_raising_turns_back(
    shop: Shop, errands: Errands, signal: Signal
) -> None:
    """Tried for give_up_seconds, the step has failed for good, and the steps before are undone."""
    saga = await errands.waiting(settle="read")
    await shop.give_up_after(7.2, "approval")
    await signal(saga)
    await shop.poison("read", saga)
    for _ in range(20):
        await shop.advance()
        await shop.turn_clock(LONG)
    assert (await shop.saga(saga))["status"] == "compensated"
    assert (await shop.events(saga)).count("step_failed approval") == 5
    assert await shop.values("select what from done order by id") == ["prepared", "put back"]


# Who may, and what stays.


@pytest.mark.parametrize(
    "role", ["anon", "authenticated", "darkpearl_listener", "darkpearl_reader"]
)
async def test_the_others_may_not_speak(shop: Shop, errands: Errands, role: str) -> None:
    """Staff and applications signal, and nobody else."""
    saga = await errands.waiting()
    async with shop.acting_as(role):
        with shop.refused("42501"):
            await shop.run("select signal_saga(%s, 'approval')", saga)


async def test_staff_may_speak(shop: Shop, errands: Errands) -> None:
    """service_role signals."""
    saga = await errands.waiting()
    async with shop.acting_as("service_role"):
        assert await shop.value("select signal_saga(%s, 'approval')", saga) == "applied"


@pytest.mark.parametrize("statement", ["delete from saga_signals", "truncate saga_signals"])
async def test_signals_stay(shop: Shop, errands: Errands, signal: Signal, statement: str) -> None:
    """What was said is never removed, not even by a superuser."""
    saga = await errands.waiting()
    await signal(saga)
    with shop.refused("DP005"):
        await shop.run(statement)


@pytest.mark.usefixtures("errands")
async def test_a_step_that_waits_has_no_call_for_its_undo(shop: Shop) -> None:
    """An undo that asks outside would have the wait's numbers: it gets a step of its own."""
    with pytest.raises(psycopg.errors.CheckViolation, match="saga_steps_wait_or_call"):
        await shop.run(
            "select define_plan('errand', step('approval', p_on_deadline => 'go_on',"
            " p_undo => 'ask', p_undo_function => 'ask', p_undo_settle_function => 'answered'))"
        )


async def test_signals_at_once_count_once(errands: Errands, connect: Any) -> None:
    """One event told by ten sessions at the same time is applied by one of them."""
    saga = await errands.waiting()
    sessions = [await connect("darkpearl_app") for _ in range(10)]

    async def tell(session: Any) -> str:
        cursor = await session.execute("select signal_saga(%s, 'approval', '{}', 'e1')", [saga])
        (disposition,) = await cursor.fetchone()
        return disposition

    told = await asyncio.gather(*map(tell, sessions))
    assert sorted(told) == ["applied"] + ["duplicate"] * 9
