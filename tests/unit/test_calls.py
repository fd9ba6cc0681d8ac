"""calls.py: how often, how many at once and how long a gateway is asked, and when not at all."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from stand_in import StandIn

from darkpearl.gateways import Answer, AnsweredError, Call, GatewayPayment
from darkpearl.listener import breaker as breakers
from darkpearl.listener.breaker import (
    LONGEST_PAUSE_SECONDS,
    LONGEST_TRY_SECONDS,
    OUTAGE_SECONDS,
    UNSEEN_SECONDS,
    Breaker,
)
from darkpearl.listener.calls import UNKNOWN_SECONDS, Calls, Request, Settlement

PATIENCE_SECONDS = 10.0


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """Stands at some time."""
    return Clock()


def fail(breaker: Breaker, times: int) -> None:
    """Calls about so many payments get no answer, one after another."""
    for number in range(times):
        breaker.failed(f"payment {number}")


# The breaker.


def test_a_breaker_opens_after_so_many_failures_in_a_row(clock: Clock) -> None:
    """One less than the threshold is bad luck; the threshold is an outage."""
    breaker = Breaker(3, clock)
    fail(breaker, 2)
    assert breaker.wait_seconds("a") == 0
    fail(breaker, 3)
    assert breaker.open
    assert not breaker.half_open
    assert breaker.wait_seconds("a") == 1


def test_one_payment_is_no_outage(clock: Clock) -> None:
    """However often the same payment gets no answer, others are asked for."""
    breaker = Breaker(3, clock)
    for _ in range(50):
        breaker.failed("a")
    assert not breaker.open
    assert breaker.wait_seconds("b") == 0


def test_few_payments_are_an_outage_after_a_while(clock: Clock) -> None:
    """A shop that never has so many at once: two in a row, and no answer for half a minute."""
    breaker = Breaker(10, clock)
    fail(breaker, 2)
    clock.seconds += OUTAGE_SECONDS - 1
    fail(breaker, 2)
    assert not breaker.open
    clock.seconds += 1
    breaker.failed("payment 1")
    assert breaker.open
    assert breaker.state == 2
    clock.seconds += 1
    assert breaker.state == 1
    breaker.succeeded()
    assert breaker.state == 0


def test_an_answer_begins_the_count_anew(clock: Clock) -> None:
    """Failures that aren't in a row open nothing."""
    breaker = Breaker(3, clock)
    for _ in range(5):
        fail(breaker, 2)
        breaker.succeeded()
    assert not breaker.open
    assert not breaker.half_open


def test_answers_that_come_in_while_it_is_open_change_nothing(clock: Clock) -> None:
    """Failures of calls that were under way don't make the pause longer."""
    breaker = Breaker(3, clock)
    fail(breaker, 50)
    assert breaker.wait_seconds("a") == 1
    clock.seconds += 1
    assert not breaker.open


def test_half_open_one_failure_doubles_the_pause(clock: Clock) -> None:
    """Each call let through to see, and failed, makes the next pause longer, to a bound."""
    breaker = Breaker(3, clock)
    fail(breaker, 3)
    pauses = [breaker.wait_seconds("a")]
    for number in range(8):
        clock.seconds += pauses[-1]
        assert breaker.half_open
        assert breaker.wait_seconds(f"new {number}") == 0
        breaker.failed(f"new {number}")
        assert breaker.open
        pauses.append(breaker.wait_seconds("a"))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert max(pauses) == LONGEST_PAUSE_SECONDS


def test_half_open_one_call_is_let_through(clock: Clock) -> None:
    """Others wait a little until it is known what became of that one."""
    breaker = Breaker(3, clock)
    fail(breaker, 3)
    clock.seconds += 1
    assert breaker.wait_seconds("a") == 0
    assert 0 < breaker.wait_seconds("b") <= LONGEST_TRY_SECONDS
    breaker.succeeded()
    assert breaker.wait_seconds("b") == 0


def test_half_open_what_has_not_failed_is_tried_first(clock: Clock) -> None:
    """A payment that has failed waits for another; when it comes again there was no other."""
    breaker = Breaker(1, clock)
    breaker.failed("a")
    clock.seconds += 1
    assert breaker.wait_seconds("a") > 0
    assert breaker.wait_seconds("b") == 0
    breaker.failed("b")
    clock.seconds += 2
    assert breaker.wait_seconds("a") > 0
    assert breaker.wait_seconds("a") == 0


def test_half_open_one_answer_closes_it(clock: Clock) -> None:
    """Afterwards it takes the whole threshold again, and the first pause is short again."""
    breaker = Breaker(3, clock)
    fail(breaker, 3)
    clock.seconds += 1
    fail(breaker, 1)
    clock.seconds += 2
    breaker.succeeded()
    assert not breaker.open
    assert not breaker.half_open
    fail(breaker, 2)
    assert not breaker.open
    fail(breaker, 3)
    assert breaker.wait_seconds("a") == 1


async def test_without_calls_the_gateways_books_say_that_it_is_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Awaitable[None]]
) -> None:
    """Only while nobody pays; afterwards one payment without an answer opens it again, at once."""
    monkeypatch.setattr(breakers, "LOOK_SECONDS", 0.01)

    class Books(StandIn):
        """Answers for its books when it is up."""

        is_up = False
        looks = 0

        async def payments(self, since: datetime) -> AsyncIterator[GatewayPayment]:
            self.looks += 1
            if not self.is_up:
                raise ConnectionError
            for payment in ():
                yield payment

    async def looked_twice() -> bool:
        return gateway.looks >= 2

    async def closed() -> bool:
        return breaker.state == 0

    gateway, breaker = Books(), Breaker(3, clock)
    fail(breaker, 3)
    clock.seconds += UNSEEN_SECONDS
    assert breaker.is_unseen
    assert breaker.wait_seconds("a") == 0
    assert not breaker.is_unseen  # a call has come, and it is what says
    clock.seconds += UNSEEN_SECONDS
    seeing = asyncio.create_task(breakers.see_again(gateway, breaker))  # type: ignore[arg-type]
    await until(looked_twice)
    assert breaker.state == 1
    gateway.is_up = True
    await until(closed)
    breaker.failed("payment 0")
    assert breaker.open
    seeing.cancel()


# Calls.


def request(
    name: str, *, attempt: int = 1, timeout_seconds: float = 30.0, warehouse: str = ""
) -> Request:
    """A request to charge 10 dollars for the saga of that name."""
    key = f"{name}:process_payment"
    call = Call(
        operation="authorize", idempotency_key=key, payment_key=key, amount=Decimal(10),
        currency="USD", capture=True,
    )  # fmt: skip
    document = msgspec.Raw(msgspec.json.encode(call))
    return Request(name, 7, attempt, timeout_seconds, document, warehouse_id=warehouse)


@asynccontextmanager
async def calling(
    gateway: StandIn,
    breaker: Breaker | None = None,
    *,
    concurrency: int = 4,
    timeout_seconds: float = 5.0,
    operations: dict[str, Any] | None = None,
) -> AsyncIterator[Calls]:
    """Calls that are being made."""
    calls = Calls(
        gateway,  # type: ignore[arg-type]
        breaker or Breaker(1000),
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        operations=operations,
    )
    running = asyncio.create_task(calls.run())
    try:
        yield calls
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def answers(calls: Calls, count: int) -> list[Settlement]:
    """The next so many answers, in the order in which they came."""
    taken: list[Settlement] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(taken) < count:
            await calls.answered.wait()
            calls.answered.clear()
            taken += calls.take_answers()
    return taken


async def settlement(gateway: StandIn, asked: Request, **settings: Any) -> dict[str, Any]:
    """What settle() is given for one request, as it is written."""
    async with calling(gateway, **settings) as calls:
        calls.put(asked)
        (taken,) = await answers(calls, 1)
    assert (taken.saga_id, taken.lease_token) == (asked.saga_id, asked.lease_token)
    given: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(taken))
    return given


async def answer(gateway: StandIn, asked: Request, **settings: Any) -> Answer:
    """What comes of one request that is made."""
    given = await settlement(gateway, asked, **settings)
    assert "deferred_seconds" not in given
    return msgspec.convert(given["answer"], Answer, strict=False)


class Doors(StandIn):
    """Counts who is inside; lets somebody out when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.most = 0
        self._doors: dict[str, asyncio.Event] = {}

    async def authorize(self, call: Call) -> Answer:
        name = call.idempotency_key.partition(":")[0]
        self.inside.append(name)
        self.most = max(self.most, len(self.inside))
        await self._doors.setdefault(name, asyncio.Event()).wait()
        self.inside.remove(name)
        return self.approve(call)

    def let_out(self, name: str) -> None:
        self._doors.setdefault(name, asyncio.Event()).set()


async def seen(condition: Callable[[], bool]) -> None:
    """Waits for a condition by looking again and again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0)


async def test_an_answer_goes_with_its_saga_and_token() -> None:
    """What the gateway said is handed on whole."""
    assert await answer(StandIn(), request("a")) == Answer(
        "approved", gateway="test", reference="a:process_payment"
    )


@pytest.mark.parametrize("operation", ["authorize", "capture", "void", "refund"])
async def test_each_operation_is_the_gateways(operation: Any) -> None:
    """A request for an operation calls that one."""
    gateway = StandIn()

    async def only(call: Call) -> Answer:
        return Answer("approved", reference=call.operation)

    setattr(gateway, operation, only)
    key = f"a:{operation}"
    call = Call(
        operation=operation, idempotency_key=key, payment_key=key, amount=Decimal(1), currency="USD"
    )
    assert (
        await answer(gateway, Request("a", 1, 1, 30.0, msgspec.Raw(msgspec.json.encode(call))))
    ).reference == operation


async def test_so_many_calls_at_once_and_no_more() -> None:
    """The limit is reached, and never exceeded."""
    gateway = Doors()
    names = [f"saga-{number}" for number in range(12)]
    async with calling(gateway, concurrency=4) as calls:
        for name in names:
            calls.put(request(name))
        for left in range(12, 0, -1):
            await seen(lambda left=left: len(gateway.inside) == min(4, left))  # type: ignore[misc]
            gateway.let_out(gateway.inside[0])
            await answers(calls, 1)
    assert gateway.most == 4
    assert len(gateway.asked) == 12


async def test_a_slow_call_holds_nobody_back() -> None:
    """Answers are there as they come, in whatever order."""
    gateway = Doors()
    async with calling(gateway) as calls:
        for name in ("slow", "fast"):
            calls.put(request(name))
        gateway.let_out("fast")
        (first,) = await answers(calls, 1)
        assert first.saga_id == "fast"
        assert gateway.inside == ["slow"]
        gateway.let_out("slow")
        (second,) = await answers(calls, 1)
        assert second.saga_id == "slow"


class Deaf(StandIn):
    """Never answers."""

    async def authorize(self, call: Call) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError(call)


class Broken(StandIn):
    """Raises on every charge."""

    async def authorize(self, call: Call) -> Answer:
        self.approve(call)
        raise ConnectionResetError("peer went away")


class Unsure(StandIn):
    """Answers that it doesn't know."""

    async def authorize(self, call: Call) -> Answer:
        return Answer("unknown", message=f"502 for {call.currency}")


async def test_a_call_takes_its_time_and_no_more() -> None:
    """No answer within the time of one call is unknown, and says so."""
    told = await answer(Deaf(), request("a"), timeout_seconds=0.01)
    assert told.outcome == "unknown"
    assert str(told.message).startswith("no answer within")


async def test_a_call_ends_with_its_lease() -> None:
    """However long a call may take, what comes after the lease would be refused."""
    asked = request("a", timeout_seconds=0.01)
    assert (await answer(Deaf(), asked, timeout_seconds=3600)).outcome == "unknown"


async def test_a_lease_that_ran_out_in_the_queue_is_not_used() -> None:
    """A request whose time is over isn't made, and given back: another may be made already."""
    gateway = StandIn()
    given = await settlement(gateway, request("a", timeout_seconds=0))
    assert given["deferred_seconds"] > 0
    assert gateway.asked == []


async def test_a_call_is_made_with_all_of_its_time_or_not_at_all() -> None:
    """After the queue there is as much left of a lease as a call may take, or it is given back."""
    gateway = Doors()
    async with calling(gateway, concurrency=1, timeout_seconds=0.2) as calls:
        calls.put(request("first", timeout_seconds=30))
        await seen(lambda: gateway.inside == ["first"])
        calls.put(request("second", timeout_seconds=0.3))
        first, second = await answers(calls, 2)
    assert msgspec.json.decode(first.answer, type=Answer).outcome == "unknown"
    assert (first.deferred_seconds, second.saga_id) == (None, "second")
    assert second.deferred_seconds
    assert gateway.inside == ["first"]


async def test_warehouses_and_operations_take_turns() -> None:
    """However many wait of one, the next place is another's."""
    gateway = Doors()
    labels: list[str] = []

    async def buy_label(asked: dict[str, Any]) -> dict[str, Any]:
        labels.append(asked["of"])
        return {"outcome": "approved"}

    own = msgspec.Raw(b'{"operation": "buy_label", "of": "a"}')
    async with calling(gateway, concurrency=1, operations={"buy_label": buy_label}) as calls:
        for number in range(10):
            calls.put(request(f"slow-{number}", warehouse="a"))
        calls.put(request("quick", warehouse="b"))
        calls.put(Request("label", 7, 1, 30.0, own, warehouse_id="a"))
        gateway.let_out("slow-0")
        gateway.let_out("quick")
        given = [each.saga_id for each in await answers(calls, 3)]
        assert given == ["slow-0", "quick", "label"]
    assert labels == ["a"]


async def test_none_holds_all_calls_while_others_want_some() -> None:
    """Alone a warehouse has every place; where another has wanted one lately, all but a few."""
    gateway = Doors()
    async with calling(gateway, concurrency=8) as calls:
        for number in range(20):
            calls.put(request(f"a-{number}", warehouse="a"))
        await seen(lambda: len(gateway.inside) == 8)
        assert calls.held_up
        calls.put(request("b-0", warehouse="b"))
        gateway.let_out("b-0")
        for name in ("a-0", "a-1"):
            gateway.let_out(name)
        given = {each.saga_id for each in await answers(calls, 3)}
        assert given == {"a-0", "a-1", "b-0"}
        await seen(lambda: len(gateway.inside) == 7)
        assert calls.held_up
        assert calls.queue > 0
        calls.put(request("b-1", warehouse="b"))
        assert not calls.held_up
        gateway.let_out("b-1")
        assert [each.saga_id for each in await answers(calls, 1)] == ["b-1"]
        assert len(gateway.inside) == 7


async def test_a_crowded_warehouse_is_named() -> None:
    """When more wait of one than have their turn in time, it is told, with how many they are."""
    gateway = Doors()
    async with calling(gateway, concurrency=2) as calls:
        for number in range(4):
            calls.put(request(f"a-{number}", warehouse="a"))
        await seen(lambda: len(gateway.inside) == 2)
        calls.put(request("b", warehouse="b"))
        assert calls.crowded() == {"a": 2}
        assert calls.capacity(calls.queue - 2) == 1


async def test_a_quick_warehouse_is_not_crowded() -> None:
    """One whose calls are known to be quick is no trouble as long as few of it wait."""
    gateway = Doors()
    gateway.let_out("first")
    async with calling(gateway, concurrency=2) as calls:
        calls.put(request("first", warehouse="a"))
        await answers(calls, 1)
        for name in ("second", "third", "fourth"):
            calls.put(request(name, warehouse="a"))
        await seen(lambda: len(gateway.inside) == 2)
        assert calls.queue == 1
        assert calls.crowded() == {}


async def test_an_exception_is_no_answer() -> None:
    """Whatever a gateway raises is unknown, and the next call is made as ever."""
    gateway = Broken()
    async with calling(gateway, concurrency=1) as calls:
        calls.put(request("a"))
        calls.put(request("b"))
        told = await answers(calls, 2)
    first, second = [msgspec.json.decode(each.answer, type=Answer) for each in told]
    assert first.outcome == second.outcome == "unknown"
    assert first.message == "ConnectionResetError: peer went away"
    assert len(gateway.asked) == 2


class Remembers(StandIn):
    """Knows what became of a call."""

    def __init__(self, known: Answer | None) -> None:
        super().__init__()
        self.known = known
        self.looked_up: list[str] = []

    async def lookup(self, call: Call) -> Answer | None:
        self.looked_up.append(call.idempotency_key)
        return self.known


KEY = "a:process_payment"


async def test_a_first_try_looks_nothing_up() -> None:
    """Who was never asked knows nothing."""
    gateway = Remembers(Answer("approved"))
    await answer(gateway, request("a"))
    assert (gateway.looked_up, gateway.asked) == ([], [KEY])


@pytest.mark.parametrize("outcome", ["approved", "declined", "pending"])
async def test_a_second_try_takes_the_answer_of_the_first(outcome: Any) -> None:
    """What became of the first try is the answer; nobody is charged to find out."""
    known = Answer(outcome, reference="ch_1")
    gateway = Remembers(known)
    assert await answer(gateway, request("a", attempt=2)) == known
    assert (gateway.looked_up, gateway.asked) == ([KEY], [])


@pytest.mark.parametrize("known", [None, Answer("unknown")], ids=["unheard of", "unknown"])
async def test_a_second_try_asks_when_nothing_became_of_the_first(known: Answer | None) -> None:
    """A key that the gateway never heard of, or can't tell of, is asked for again."""
    gateway = Remembers(known)
    assert (await answer(gateway, request("a", attempt=2))).outcome == "approved"
    assert (gateway.looked_up, gateway.asked) == ([KEY], [KEY])


@pytest.mark.parametrize("gateway", [Broken(), Unsure()], ids=["raises", "unknown"])
async def test_a_gateway_that_fails_is_left_alone(gateway: StandIn, clock: Clock) -> None:
    """Open, nobody is asked; what was in the queue is given back until calls may be made again."""
    breaker = Breaker(3, clock)
    for name in "abc":
        assert not breaker.open
        await answer(gateway, request(name), breaker=breaker)
    assert breaker.open
    asked = list(gateway.asked)
    given = await settlement(gateway, request("d"), breaker=breaker)
    assert given["answer"]["message"].startswith("not asked")
    assert given["deferred_seconds"] == breaker.wait_seconds("d") == 1
    assert gateway.asked == asked


@pytest.mark.parametrize(
    "asked",
    [{"operation": "buy_label", "order": 7}, {"operation": "refund"}, {"order": 7}, [7], "text"],
    ids=["another operation", "a call that lacks its key", "no operation", "a list", "a text"],
)
async def test_what_a_listener_does_not_know_is_given_back(
    asked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not asked, costs no attempt, is said once, and what comes after it is made as ever."""
    gateway = StandIn()
    unknown = Request("odd", 1, 1, 30.0, msgspec.Raw(msgspec.json.encode(asked)))
    async with calling(gateway) as calls:
        for each in (unknown, unknown, request("a")):
            calls.put(each)
        given = {each.saga_id: each for each in await answers(calls, 3)}
    assert given["odd"].deferred_seconds == UNKNOWN_SECONDS
    assert given["a"].deferred_seconds is None
    assert gateway.asked == [KEY]
    assert [each.levelname for each in caplog.records] == ["ERROR"]


async def test_an_operation_of_ones_own_is_made() -> None:
    """It gets the request as the step wrote it, and its answer is handed on whole."""

    async def buy_label(asked: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": "approved", "label": asked["order"], "weights": [1.5, None]}

    own = Request("a", 7, 3, 30.0, msgspec.Raw(b'{"operation": "buy_label", "order": "7"}'))
    given = await settlement(StandIn(), own, operations={"buy_label": buy_label})
    assert given["answer"] == {"outcome": "approved", "label": "7", "weights": [1.5, None]}


@pytest.mark.parametrize("wrong", ["raises", "no JSON", "no await"])
async def test_an_operation_of_ones_own_that_fails_is_unknown(wrong: str, clock: Clock) -> None:
    """Whatever it does, its saga is tried again, and the gateway is none the worse for it."""

    async def operation(asked: dict[str, Any]) -> Any:
        if wrong == "raises":
            raise ConnectionResetError(asked)
        return object()

    own = Request("a", 7, 1, 30.0, msgspec.Raw(b'{"operation": "buy_label"}'))
    made: Any = (lambda _: 7) if wrong == "no await" else operation
    breaker = Breaker(1, clock)
    given = await answer(StandIn(), own, breaker=breaker, operations={"buy_label": made})
    assert given.outcome == "unknown"
    assert not breaker.open


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("bad\x00reference", "badreference"),
        ("\x00", ""),
        (r"a \u0000 in words", r"a \u0000 in words"),
        ("\\\x00", "\\"),
    ],
)
async def test_what_the_database_cant_hold_is_left_out(said: str, kept: str) -> None:
    """A NUL in an answer goes, all else of it stays, and the answer is still one."""
    told = await answer(Remembers(Answer("approved", reference=said)), request("a", attempt=2))
    assert told == Answer("approved", reference=kept)


async def test_what_is_no_text_is_no_answer() -> None:
    """An answer that can't be written, such as one with half a character, is unknown."""
    told = await answer(Remembers(Answer("approved", reference="\ud800")), request("a", attempt=2))
    assert told.outcome == "unknown"


async def test_a_refusal_is_an_answer(clock: Clock) -> None:
    """Declined and pending are what a healthy gateway says: they never open the breaker."""
    gateway = Remembers(Answer("declined"))
    breaker = Breaker(1, clock)
    for outcome in ("declined", "pending"):
        gateway.known = Answer(outcome)  # type: ignore[arg-type]
        await answer(gateway, request("a", attempt=2), breaker=breaker)
    assert not breaker.open


async def test_an_expired_lease_is_nobodys_failure(clock: Clock) -> None:
    """A queue that is too long doesn't mean that the gateway is down."""
    breaker = Breaker(1, clock)
    await settlement(StandIn(), request("a", timeout_seconds=0), breaker=breaker)
    assert not breaker.open


class Odd(StandIn):
    """Answers every charge with what is no outcome."""

    async def authorize(self, call: Call) -> Answer:
        if call.amount:
            raise AnsweredError("400 what is this?")
        return Answer("unknown", code="processing")


@pytest.mark.parametrize("amount", [Decimal(0), Decimal(10)], ids=["unknown", "raises"])
async def test_a_bad_answer_is_an_answer(clock: Clock, amount: Decimal) -> None:
    """What the gateway answers says that it is up, even where nothing follows from it."""
    breaker = Breaker(1, clock)
    for name in "abc":
        asked = request(name)
        call = msgspec.json.decode(asked.request) | {"amount": str(amount)}
        asked = msgspec.structs.replace(asked, request=msgspec.Raw(msgspec.json.encode(call)))
        assert (await answer(Odd(), asked, breaker=breaker)).outcome == "unknown"
    assert not breaker.open
