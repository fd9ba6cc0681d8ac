"""routines/55_engine.sql: answers that are unknown, late, double or none, leases, backoff."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, COMPENSATED, DECLINED, LONG, UNKNOWN, Shop, of_cell


async def test_an_unknown_answer_is_asked_again(shop: Shop) -> None:
    """Not before its backoff is over, then under the same idempotency key and a new token."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    (first,) = await shop.advance()
    assert await shop.settle([first], UNKNOWN) == []
    saga = await shop.saga(order)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    failure = await shop.event(order, "step_failed")
    assert (failure["error_code"], failure["message"]) == ("DP017", "no answer")
    assert failure["next_attempt_at"] == saga["ready_at"] > failure["created_at"]
    assert await shop.advance() == []
    assert shop.claimed == 0
    await shop.turn_clock(1)
    (second,) = await shop.advance()
    assert second["request"] == first["request"]
    assert (second["attempt"], second["lease_token"] > first["lease_token"]) == (2, True)
    await shop.settle([second], APPROVED)
    assert await shop.order_status(order) == "fulfilled"


@pytest.mark.parametrize(
    "answer", [{}, None, {"outcome": "maybe"}, {"outcome": None}, 7, "approved"]
)
async def test_what_is_no_answer_is_unknown(shop: Shop, answer: Any) -> None:
    """Whatever a gateway says that means nothing is never taken for an approval or a decline."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), answer)
    saga = await shop.saga(order)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    assert (await shop.event(order, "step_failed"))["error_code"] == "DP017"


async def test_what_is_given_up_is_voided(shop: Shop) -> None:
    """When the time is over the charge may have happened all the same, so it is voided."""
    await shop.give_up_after(1.2, "process_payment")
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    requests = await shop.advance()
    for _ in range(2):
        assert await shop.settle(requests, UNKNOWN) == []
        await shop.turn_clock(LONG)
        requests = await shop.advance()
    (void,) = await shop.settle(requests, UNKNOWN)
    assert void["step_name"] == "void_payment"
    assert void["request"]["idempotency_key"] == of_cell(f"{order}:void_payment")
    assert void["request"]["payment_key"] == of_cell(f"{order}:process_payment")
    assert await shop.order_status(order) == "payment_failed"
    assert await shop.settle([void], APPROVED) == []
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)
    payment = await shop.payment(order)
    assert (payment["status"], payment["voided_amount"]) == ("voided", 10)
    failures = await shop.values(
        "select attempt from saga_events where event_type = 'step_failed' order by id"
    )
    assert failures == [1, 2, 3]
    assert (await shop.events(order))[-5:] == [
        "compensation_started",
        "step_waiting void_payment",
        "step_compensated void_payment",
        *COMPENSATED,
    ]


async def test_a_lease_that_runs_out_is_handed_out_again(shop: Shop) -> None:
    """A listener that died: after its lease the request goes to the next, under a new token."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    (lost,) = await shop.advance()
    await shop.turn_clock(29)
    assert await shop.advance() == []
    await shop.turn_clock(2)
    assert await shop.advance() == []
    failure = await shop.event(order, "step_failed")
    assert (failure["error_code"], failure["attempt"]) == ("DP013", 1)
    await shop.turn_clock(1)
    (again,) = await shop.advance()
    assert again["request"] == lost["request"]
    assert again["lease_token"] > lost["lease_token"]
    assert again["attempt"] == 2

    assert await shop.settle([lost], DECLINED) == []
    assert shop.stale == [(order, "DP009")]
    assert (await shop.saga(order))["status"] == "waiting"
    await shop.settle([again], APPROVED)
    assert shop.stale == []
    assert await shop.order_status(order) == "fulfilled"


async def test_what_nobody_ever_answers_has_an_end(shop: Shop) -> None:
    """Lease after lease runs out: the charge is given up after 100 s of them, the void after 200.

    The time in which no listener was there, between the end of a lease and the next try, is none.
    """
    await shop.run(
        "update step_settings set give_up_seconds = 100, stuck_seconds = 200, backoff_seconds = 0"
    )
    order = await shop.order((await shop.product(on_hand=1), 1))
    names = []
    for _ in range(40):
        names += [each["step_name"] for each in await shop.advance()]
        await shop.turn_clock(LONG)
    assert names == ["process_payment"] * 4 + ["void_payment"] * 7
    assert (await shop.saga(order))["status"] == "stuck"
    assert (await shop.payment(order))["status"] == "void_requested"
    failures = await shop.rows(
        "select * from saga_events where event_type = 'step_failed' order by id"
    )
    assert {(each["error_code"], each["message"]) for each in failures} == {
        ("DP013", "no answer within 30 s")
    }


async def try_for(shop: Shop, order: UUID, seconds: float) -> set[str]:
    """Every try of an order is answered "unknown", as long as that; what was asked for."""
    asked = set()
    ends = shop.turned_seconds + seconds
    while shop.turned_seconds < ends and (await shop.saga(order))["status"] != "stuck":
        requests = await shop.advance()
        while requests:
            asked |= {each["step_name"] for each in requests}
            requests = await shop.settle(requests, UNKNOWN)
        await shop.turn_clock(1)
    return asked


async def test_how_long_one_goes_on_asking_is_a_time(shop: Shop) -> None:
    """A gateway that fails for minutes costs no order; after five of them it is given up."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    assert await try_for(shop, order, 290) == {"process_payment"}
    assert (await shop.saga(order))["attempts"] > 8
    assert await try_for(shop, order, 100) == {"process_payment", "void_payment"}
    assert await shop.order_status(order) == "payment_failed"


async def test_money_that_is_owed_is_asked_for_longer(shop: Shop) -> None:
    """A void is asked for hours before a person is called, and so is a refund."""
    await shop.run("update step_settings set give_up_seconds = 0")
    product = await shop.product(on_hand=2)
    refunded = await shop.fulfilled((product, 1))
    order = await shop.order((product, 1))
    (void,) = await shop.settle(await shop.advance(), UNKNOWN)
    assert await shop.settle([void], UNKNOWN) == []
    refund = (await shop.refund(refunded, 10))["id"]
    for _ in range(200):
        await shop.settle(await shop.advance(), UNKNOWN)
        await shop.turn_clock(60)
    assert [(await shop.saga(each))["status"] for each in (order, refund)] == [
        "compensating",
        "running",
    ]
    for _ in range(300):
        await shop.settle(await shop.advance(), UNKNOWN)
        await shop.turn_clock(60)
    assert [(await shop.saga(each))["status"] for each in (order, refund)] == ["stuck", "stuck"]


async def test_what_is_given_back_unasked_takes_no_time(shop: Shop) -> None:
    """Behind a breaker a saga waits for as long as it is open, and is asked for when it closes."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    (request,) = await shop.advance()
    await shop.settle([request], UNKNOWN)
    for _ in range(100):
        (request,) = await shop.ask_again()
        await shop.turn_clock(20)
        lease = {"saga_id": order, "lease_token": request["lease_token"]}
        await shop.bring([{**lease, "deferred_seconds": 60, "answer": {"message": "not asked"}}])
    (request,) = await shop.ask_again()
    assert request["attempt"] == 2
    assert await shop.settle([request], UNKNOWN) == []
    assert (await shop.saga(order))["status"] == "running"


async def test_a_retry_has_all_the_time_anew(shop: Shop) -> None:
    """An operator who tries a stuck saga again doesn't find its time used up."""
    await shop.run("update step_settings set give_up_seconds = 0, stuck_seconds = 100")
    order = await shop.order((await shop.product(on_hand=1), 1))
    assert "void_payment" in await try_for(shop, order, 500)
    await shop.run("select retry_saga(%s, 'gateway is back')", order)
    assert await try_for(shop, order, 50) == {"void_payment"}
    assert (await shop.saga(order))["status"] == "compensating"


async def test_those_whose_time_is_over_are_given_up_and_no_others(shop: Shop) -> None:
    """Of sagas that fail together each has its own time."""
    product = await shop.product(on_hand=9)
    old = await shop.order((product, 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await shop.turn_clock(10)
    new = await shop.order((product, 1))
    asked = await shop.advance()
    await shop.give_up_after(0.5, "process_payment")
    await shop.run("update sagas set attempts = 2")
    (void,) = await shop.settle(asked, UNKNOWN)
    assert (void["saga_id"], void["step_name"]) == (str(old), "void_payment")
    assert (await shop.saga(new))["status"] == "running"
    await shop.settle([void], APPROVED)
    assert await shop.order_status(old) == "cancelled"


@pytest.mark.parametrize("answer", [APPROVED, DECLINED, UNKNOWN])
async def test_an_answer_counts_once(shop: Shop, answer: Any) -> None:
    """A second answer under a token that has been used is refused and changes nothing."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    await shop.settle(requests, answer)
    everything = (
        "select (select json_agg(s) from sagas s), (select json_agg(o) from orders o),"
        " (select json_agg(p) from payments p), (select json_agg(i) from inventory i),"
        " (select count(*) from saga_events)"
    )
    before = await shop.row(everything)
    for late in (APPROVED, DECLINED, UNKNOWN):
        await shop.settle(requests, late)
        assert shop.stale == [(order, "DP009")]
    assert await shop.row(everything) == before


async def test_duplicate_answers_in_one_settle_count_once(shop: Shop) -> None:
    """An answer that is brought twice in one call is one answer."""
    product = await shop.product(on_hand=2)
    order = await shop.order((product, 1))
    (request,) = await shop.advance()
    stale = {**request, "lease_token": request["lease_token"] - 1}
    await shop.settle([stale, request, request, stale], APPROVED)
    assert await shop.order_status(order) == "fulfilled"
    assert (await shop.events(order)).count("step_completed process_payment") == 1
    assert await shop.stock(product) == (1, 0)


async def test_an_answer_for_nobody_is_refused(shop: Shop) -> None:
    """A saga that isn't there, a token that was never given, a saga that waits for nothing."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    unknown = str(uuid4())
    rows = await shop.bring(
        [
            {"saga_id": unknown, "lease_token": 1, "answer": APPROVED},
            {"saga_id": str(order), "lease_token": 0, "answer": APPROVED},
        ],
    )
    assert {(str(row["saga_id"]), row["error_code"]) for row in rows} == {
        (unknown, "DP009"),
        (str(order), "DP009"),
    }
    await shop.advance()
    await shop.bring([{"saga_id": str(order), "lease_token": 99, "answer": APPROVED}])
    await shop.bring([{"saga_id": str(order), "answer": APPROVED}])
    await shop.bring([{"saga_id": str(order), "lease_token": "2x", "answer": APPROVED}])
    assert (await shop.saga(order))["status"] == "waiting"


@pytest.mark.parametrize(
    "answers", ["{}", "7", None, "[7]", "[{}]", '[{"saga_id": "x", "lease_token": 1}]']
)
async def test_answers_are_an_array(shop: Shop, answers: str | None) -> None:
    """What is no array, or has an element that names no saga, is refused."""
    with shop.refused("DP015"):
        await shop.run("select settle(%s)", answers)


async def test_a_malformed_answer_moves_nothing(shop: Shop) -> None:
    """An answer whose token is no number is refused like a late one, and reopens nothing."""
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    before = await shop.saga(order)
    (row,) = await shop.bring([{"saga_id": str(order), "lease_token": "x", "answer": APPROVED}])
    assert (row["saga_id"], row["error_code"]) == (order, "DP009")
    assert await shop.saga(order) == before
    assert (await shop.events(order))[-1] == "saga_completed"


async def test_backoff_doubles_and_jitters(shop: Shop) -> None:
    """The n-th wait is between half and whole of backoff * 2^(n-1) seconds, a minute at most."""
    await shop.run(
        "update step_settings set backoff_seconds = 3 where step_name = 'process_payment'"
    )
    product = await shop.product(on_hand=200)
    for _ in range(200):
        await shop.order((product, 1))
    for attempts, longest in [(1, 3), (2, 6), (5, 48), (15, 60), (32767, 60)]:
        await shop.run("update sagas set attempts = %s, ready_at = clock()", attempts - 1)
        await shop.settle(await shop.advance(), UNKNOWN)
        waits = await shop.values(
            "select extract(epoch from s.ready_at - e.created_at)::float8"
            " from sagas as s inner join saga_events as e"
            " on e.saga_id = s.id and e.next_attempt_at = s.ready_at"
            " where e.event_type = 'step_failed' and e.attempt = %s",
            attempts,
        )
        assert len(waits) == 200
        assert longest / 2 - 0.1 < min(waits) < longest * 0.6
        assert longest * 0.9 < max(waits) < longest + 0.1


@pytest.mark.parametrize(
    ("step", "error_code"), [("process_payment", "DP017"), ("reserve_stock", "22012")]
)
async def test_tries_are_counted_as_far_as_they_can_be(
    shop: Shop, step: str, error_code: str
) -> None:
    """One more than can be counted is a try like those before it, and no failure of its own."""
    await shop.give_up_after(100_000)
    order = await shop.order((await shop.product(on_hand=1), 1))
    if step == "reserve_stock":
        await shop.poison(step, order)
    await shop.settle(await shop.advance(), UNKNOWN)
    async with shop.unguarded():
        await shop.run("update sagas set attempts = 32767")
    await shop.settle(await shop.ask_again(), UNKNOWN)
    saga = await shop.saga(order)
    assert (saga["status"], saga["attempts"]) == ("running", 32767)
    failures = await shop.rows("select * from saga_events where event_type = 'step_failed'")
    assert [each["step_name"] for each in failures] == [step, step]
    assert {each["error_code"] for each in failures} == {error_code}


async def test_each_step_has_its_own_backoff(shop: Shop) -> None:
    """The plan says how long a step waits before it is tried again."""
    await shop.run(
        "update step_settings set backoff_seconds = 600 where step_name = 'process_payment'"
    )
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    failure = await shop.event(order, "step_failed")
    wait = failure["next_attempt_at"] - failure["created_at"]
    assert timedelta(seconds=299) < wait < timedelta(seconds=601)
