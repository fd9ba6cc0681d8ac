"""The engine as a model: sagas go through their plans one by one, on a clock that is turned.

There is no SQL here, no batch and no group. What a step does is the shop's: fulfilment.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

LEASE_SECONDS = 30
GIVE_UP_SECONDS = 60
"""Two calls that nobody answers, where a saga can turn back."""
STUCK_SECONDS = 90
"""Three, where it can't."""
PARCEL_SECONDS = 172800


class RefusedError(Exception):
    """The shop says no, with this SQLSTATE, and nothing has changed."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class NeedsPersonError(Exception):
    """A saga asks for nothing, and is stuck."""


def refuse_if(condition: object, sqlstate: str) -> None:
    """Refuse.

    Raises:
        RefusedError: if so.
    """
    if condition:
        raise RefusedError(sqlstate)


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        name: its own.
        kind: own (done here), call (asks the gateway) or wait (for a parcel).
        undo: the name of its undo; "" for none.
        waiting, done, refused: the order's status then; "" leaves it.
        forward_only: nothing turns back from here.
        looks_again: a wait that is tried again when its time is over.
        waits_again: refused or undone, it goes back to the wait before it.
    """

    name: str
    kind: str = "own"
    undo: str = ""
    waiting: str = ""
    done: str = ""
    refused: str = ""
    forward_only: bool = False
    looks_again: bool = False
    waits_again: bool = False


RESERVE = Step("reserve_stock", undo="release_stock", done="reserved")
AWAIT = Step("await_parcel", "wait")
CAPTURE = Step("capture_payment", "call", done="paid", refused="payment_failed")
SEND = Step("send_parcel", done="fulfilling", forward_only=True)
SHIP = Step("ship_order", "wait", done="fulfilled", forward_only=True)
FULFIL = Step("fulfill_order", done="fulfilled")
FULFIL_ONLY = Step("fulfill_order", done="fulfilled", forward_only=True)
PROCESS = Step(
    "process_payment",
    "call",
    undo="void_payment",
    waiting="payment_processing",
    done="paid",
    refused="payment_failed",
)
AUTHORIZE = Step(
    "authorize_payment",
    "call",
    undo="void_payment",
    waiting="payment_processing",
    refused="payment_failed",
)
REFUND = Step("refund_payment", "call", forward_only=True)
PLANS = {
    ("automatic", "at_payment"): (RESERVE, PROCESS, FULFIL),
    ("automatic", "at_fulfilment"): (RESERVE, AUTHORIZE, CAPTURE, FULFIL_ONLY),
    ("on_shipment", "at_payment"): (RESERVE, PROCESS, AWAIT, SEND, SHIP),
    ("on_shipment", "at_fulfilment"): (RESERVE, AUTHORIZE, AWAIT, CAPTURE, SEND, SHIP),
}
AWAIT_PAYMENT = Step("await_payment", "wait", done="payment_processing", looks_again=True)
HELD_PLANS = {
    methods: (RESERVE, AWAIT_PAYMENT, replace(charge, waits_again=True), *others)
    for methods, (_, charge, *others) in PLANS.items()
}


@dataclass
class Try:
    """Something that became of a step: asked, pending, failed or deferred."""

    kind: str
    began: int
    until: int


@dataclass(eq=False)
class Call:
    """A request that the listener holds a lease of; lease_token is the database's."""

    saga: "Saga"
    attempt: int
    request: dict[str, Any]
    lease_token: int = 0


@dataclass(eq=False)
class Saga:
    """Where a saga stands. about: the order or refund that it is of."""

    id: UUID
    warehouse: UUID
    plan: tuple[Step, ...]
    about: Any
    ready_at: int | None
    number: int = 0
    """In the order in which they started."""
    status: str = "running"
    place: int = 1
    attempts: int = 0
    cancel_requested: bool = False
    turned_back: bool = False
    parked: bool = False
    call: Call | None = None
    tries: dict[str, list[Try]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """The calls that were to give money back, and were declined."""

    @property
    def step(self) -> Step:
        return self.plan[self.place - 1]

    @property
    def backwards(self) -> bool:
        return self.status == "compensating" or (self.status == "stuck" and self.turned_back)

    @property
    def name(self) -> str:
        """Of the step at which it stands, or of its undo."""
        return self.step.undo if self.backwards else self.step.name

    @property
    def asks(self) -> bool:
        """The step at which it stands, or its undo, is a call."""
        return self.step.kind == "call" and bool(self.name)

    @property
    def is_pending(self) -> bool:
        """Its last call was answered by pending, and none is out."""
        return self.status == "waiting" and bool(
            (tries := self.tries.get(self.name)) and tries[-1].kind == "pending"
        )

    @property
    def is_to_wait_again(self) -> bool:
        """It turns back, and no further than to a wait."""
        here = self.plan[: self.place]
        goes = self.status == "compensating" and not self.cancel_requested
        return goes and any(step.waits_again for step in here)

    def place_of(self, step: Step) -> int:
        """Where a step stands in its plan; 0: nowhere."""
        return self.plan.index(step) + 1 if step in self.plan else 0


class Engine:
    """Sagas, and a clock in seconds. What steps do is a subclass's."""

    def __init__(self) -> None:
        self.now = 0
        self.sagas: dict[UUID, Saga] = {}
        self.calls: list[Call] = []
        """Made by the pass that runs."""

    def do_step(self, saga: Saga) -> str:
        """Try what a saga stands at: done, refused, waiting or asked."""
        raise NotImplementedError

    def request_of(self, saga: Saga) -> dict[str, Any] | None:
        """What a saga asks the gateway; None: there is nothing to ask."""
        raise NotImplementedError

    def settle_step(self, saga: Saga, answer: dict[str, Any]) -> str:
        """Write an answer down: done, refused, failed, pending, wrong or stuck."""
        raise NotImplementedError

    def set_status(self, saga: Saga, status: str) -> None:
        """The order of a saga gets a status."""
        raise NotImplementedError

    def seconds_to_wait(self, saga: Saga) -> int:
        """How long a saga waits where it stands, until it is looked at again."""
        raise NotImplementedError

    def end_pass(self) -> None:
        """What steps have promised happens."""
        raise NotImplementedError

    def advance(self, warehouses: Iterable[UUID] | None = None) -> tuple[int, list[Call]]:
        """Take on what is ready; how many sagas that were, and the calls to make."""
        ready = [
            saga
            for saga in self.sagas.values()
            if saga.ready_at is not None
            and saga.ready_at <= self.now
            and (warehouses is None or saga.warehouse in warehouses)
        ]
        for saga in ready:
            saga.parked = False
        return len(ready), self.run(ready)

    def settle(self, answers: list[tuple[Call, dict[str, Any] | None]]) -> list[Call]:
        """Answers to calls whose leases are good; None gives a call back unasked."""
        for call, answer in answers:
            saga = call.saga
            saga.parked = False
            if answer is None:
                self.come_out(saga, "deferred")
            else:
                self.answer(saga, answer)
        return self.run([call.saga for call, _ in answers])

    def answer(self, saga: Saga, answer: dict[str, Any]) -> None:
        """The step at which a saga stands has its answer."""
        saga.parked = False
        seconds = answer.get("deadline_seconds", LEASE_SECONDS)
        name = saga.name
        self.come_out(saga, self.settle_step(saga, answer), seconds)
        gives_back = name in {"void_payment", "refund_payment"}
        if gives_back and answer["outcome"] == "declined" and saga.status == "stuck":
            saga.refused.add(name)

    def run(self, sagas: Iterable[Saga], steps: int | None = None) -> list[Call]:
        """One pass, in the order of ids; the calls that it makes."""
        self.calls = []
        for saga in sorted(sagas, key=lambda each: each.id):
            left = steps
            while not saga.parked and left != 0:
                self._take_step(saga)
                left = None if left is None else left - 1
        self.end_pass()
        return self.calls

    def _take_step(self, saga: Saga) -> None:
        step = saga.step
        waits = step.kind == "wait" and not saga.backwards
        if saga.cancel_requested and saga.status in {"running", "waiting"}:
            tried = saga.attempts > 0 or (step.kind == "call" and step.name in saga.asked)
            self._turn_back(saga, undo_step=not waits and tried)
        elif saga.status == "waiting":
            again = self.do_step(saga) if step.looks_again else "waiting"
            self.come_out(saga, again if waits else "failed")
        elif saga.attempts > 0 and saga.backwards and saga.asks and self._is_out_of_time(saga):
            self.come_out(saga, "given_up")
        else:
            saga.attempts += 1
            if not saga.asks:
                self.come_out(saga, self.do_step(saga) if saga.name else "done")
            else:
                self._ask(saga)

    def _ask(self, saga: Saga) -> None:
        """Ask the gateway, where there is something to ask."""
        try:
            request = self.request_of(saga)
        except NeedsPersonError:
            self.come_out(saga, "stuck")
            return
        self.come_out(saga, "done" if request is None else "asked")
        if request is not None:
            saga.call = Call(saga, saga.attempts, request)
            self.calls.append(saga.call)

    def come_out(self, saga: Saga, result: str, seconds: int = 0) -> None:
        """A saga has come out of its step; where it goes next."""
        saga.call = None
        saga.ready_at = self.now
        if result == "failed" and self._is_out_of_time(saga):
            result = "given_up"
        elif result == "pending" and saga.cancel_requested and not saga.backwards:
            self._park(saga, "pending", seconds)
            saga.parked, saga.ready_at = False, self.now
            return
        elif result == "pending" and saga.attempts > 1 and self._is_not_confirmed(saga):
            result = "given_up"
        if result in {"asked", "waiting", "pending", "failed", "deferred"}:
            self._park(saga, result, seconds)
        elif result == "done":
            self._go_on(saga)
        elif result == "refused" and saga.step.waits_again and not saga.backwards:
            self.set_status(saga, saga.step.refused)
            saga.status, saga.place, saga.attempts = "running", saga.place - 1, 0
        elif saga.backwards or result == "stuck" or self._has_no_way_back(saga, result):
            saga.status = "stuck"
            self._end(saga)
        else:
            self.set_status(saga, saga.step.refused)
            self._turn_back(saga, undo_step=result in {"given_up", "wrong"} and saga.asks)

    def _has_no_way_back(self, saga: Saga, result: str) -> bool:
        return saga.step.forward_only and (result in {"given_up", "wrong"} or saga.place > 1)

    def _park(self, saga: Saga, result: str, seconds: int) -> None:
        saga.parked = True
        if result == "deferred":
            saga.attempts -= 1
        wait = {"asked": LEASE_SECONDS, "pending": seconds}
        if result == "waiting":
            wait[result] = self.seconds_to_wait(saga)
        saga.ready_at = self.now + wait.get(result, 0)
        if result != "waiting":
            tries = saga.tries.setdefault(saga.name, [])
            tries.append(Try(result, self.now, saga.ready_at))
        if result == "asked":
            saga.asked.add(saga.name)
        if saga.backwards:
            return
        saga.status = "waiting" if result in wait else "running"
        if saga.status == "waiting":
            self.set_status(saga, saga.step.waiting)

    def _go_on(self, saga: Saga) -> None:
        saga.attempts = 0
        if saga.backwards and saga.step.waits_again and not saga.cancel_requested:
            saga.status, saga.place, saga.turned_back = "running", saga.place - 1, False
        elif saga.backwards:
            saga.place -= 1
            saga.status = "compensating" if saga.place else "compensated"
        else:
            self.set_status(saga, saga.step.done)
            saga.tries.clear()
            saga.status = "completed" if saga.place == len(saga.plan) else "running"
            saga.place = min(saga.place + 1, len(saga.plan))
        if saga.status in {"completed", "compensated"}:
            self._end(saga)

    def _turn_back(self, saga: Saga, *, undo_step: bool) -> None:
        if not undo_step:
            saga.place -= 1
        saga.attempts = 0
        saga.turned_back = True
        saga.status = "compensating" if saga.place else "compensated"
        if not saga.place:
            self._end(saga)

    def _end(self, saga: Saga) -> None:
        saga.attempts = 0
        saga.ready_at = None
        saga.parked = True
        if saga.status == "compensated":
            self.set_status(saga, "cancelled")

    def _longest_seconds(self, saga: Saga) -> int:
        stuck = saga.asks and (saga.backwards or saga.step.forward_only)
        return STUCK_SECONDS if stuck else GIVE_UP_SECONDS

    def _is_out_of_time(self, saga: Saga) -> bool:
        """Calls were out for as long as the step is tried; those given back count for none."""
        tries = saga.tries.get(saga.name, [])
        seconds = 0
        for number, each in enumerate(tries):
            last = number + 1 == len(tries)
            if each.kind == "asked" and (last or tries[number + 1].kind != "deferred"):
                ended = self.now if last else tries[number + 1].began
                seconds += min(ended, each.until) - each.began
        return seconds >= self._longest_seconds(saga)

    def _is_not_confirmed(self, saga: Saga) -> bool:
        """The deadline of the first pending answer is over."""
        longest = self._longest_seconds(saga)
        patience = longest if saga.backwards or saga.step.forward_only else 0
        for each in saga.tries.get(saga.name, []):
            if each.kind == "pending":
                return self.now >= max(each.until, each.began + patience)
        return False
