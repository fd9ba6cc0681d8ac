"""What the steps of the shop's sagas do, as a model: goods, money and parcels.

Shelves, orders and payments are plain values; engine.py takes the sagas through their plans.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from model.engine import (
    AWAIT,
    AWAIT_PAYMENT,
    PARCEL_SECONDS,
    REFUND,
    RESERVE,
    SEND,
    SHIP,
    Engine,
    NeedsPersonError,
    Saga,
)
from model.orders import NOTHING, Order, Payment, Refund, Shelf

Answer = dict[str, Any]
BY_HAND = {"outcome": "approved", "gateway": "by hand"}
RESULTS = {"approved": "done", "declined": "refused", "pending": "pending", "unknown": "failed"}


class Fulfilment(Engine):
    """Sagas of orders and refunds, and what they write."""

    def __init__(self) -> None:
        super().__init__()
        self.shelves: dict[tuple[UUID, UUID], Shelf] = {}
        self.orders: dict[UUID, Order] = {}
        self.refunds: dict[UUID, Refund] = {}
        self._promised: Counter[tuple[UUID, UUID]] = Counter()
        self._effects: list[tuple[str, Order]] = []

    def start_saga(self, saga_id: UUID, warehouse: UUID, plan: tuple[Any, ...], about: Any) -> None:
        """Something is to be done, from the next pass on."""
        number = len(self.sagas)
        self.sagas[saga_id] = Saga(saga_id, warehouse, plan, about, self.now, number=number)

    def start_refund(self, refund: Refund) -> None:
        """Money is to go back."""
        refund.order.refunds[refund.id] = self.refunds[refund.id] = refund
        self.start_saga(refund.id, refund.order.warehouse, (REFUND,), refund)

    def set_status(self, saga: Saga, status: str) -> None:
        if status and isinstance(saga.about, Order):
            saga.about.status = status

    # Stock and parcels.

    def do_step(self, saga: Saga) -> str:
        order = saga.about
        if saga.backwards:
            self._effects.append((saga.name, order))
            return "done"
        if saga.step is RESERVE:
            return self._reserve(order)
        if saga.step is AWAIT_PAYMENT:
            return self._await_payment(order)
        if saga.step is AWAIT:
            return "done" if order.parcels else "waiting"
        if saga.step is SHIP:
            return "waiting" if order.left_to_ship() else "done"
        self._effects.append((saga.name, order))
        return "done"

    def seconds_to_wait(self, saga: Saga) -> int:
        return saga.about.pay_by - self.now if saga.step is AWAIT_PAYMENT else PARCEL_SECONDS

    def _await_payment(self, order: Order) -> str:
        """There is something to try, or the money, or nothing to pay; or it is too late."""
        status = order.payment.status if order.payment else ""
        if status in {"voided", "refunded"} and order.token:
            order.begin_payment("requested")
            status = "requested"
        to_try = order.payment is None and order.token
        if not order.total or to_try or status in {"requested", "authorized", "captured"}:
            return "done"
        assert order.pay_by is not None
        order.is_overdue = order.pay_by <= self.now
        return "refused" if order.is_overdue else "waiting"

    def _reserve(self, order: Order) -> str:
        """All of it or nothing, of what nobody was promised before in this pass."""
        for product, quantity in order.goods.items():
            place = (order.warehouse, product)
            if self.shelves.get(place, Shelf()).sellable - self._promised[place] < quantity:
                return "refused"
        for product, quantity in order.goods.items():
            self._promised[order.warehouse, product] += quantity
        self._effects.append((RESERVE.name, order))
        return "done"

    def end_pass(self) -> None:
        for name, order in self._effects:
            if name == SEND.name:
                self.send_parcels(order)
                continue
            for product, quantity in order.goods.items():
                shelf = self.shelves[order.warehouse, product]
                shelf.reserved += quantity if name == RESERVE.name else -quantity
                shelf.available -= quantity if name == "fulfill_order" else 0
        self._effects = []
        self._promised.clear()

    def send_parcels(self, order: Order) -> None:
        """What was packed and hasn't left leaves."""
        for parcel in order.parcels.values():
            for product, quantity in parcel.goods.items() if not parcel.left else ():
                shelf = self.shelves[order.warehouse, product]
                shelf.available -= quantity
                shelf.reserved -= quantity
            parcel.left = True

    # Money.

    def request_of(self, saga: Saga) -> Answer | None:
        if isinstance(saga.about, Refund):
            return self._refund_request(saga.about)
        order = saga.about
        if saga.name in {"process_payment", "authorize_payment"} and order.payment is None:
            status = "requested" if order.total else "captured"
            order.payment = Payment(order.total, f"{order.id}:{saga.name}", status=status)
        payment = order.payment
        if saga.name == "void_payment":
            disputed = order.dispute != "won" or (payment and payment.by_hand)
            if payment and payment.captured > payment.refunded and disputed:
                raise NeedsPersonError
            self.void(order)
            if payment is None or payment.status != "void_requested":
                return None
        elif payment.status == "captured" or (
            payment.status == "authorized" and saga.name != "capture_payment"
        ):
            return None
        operation = {"void_payment": "void", "capture_payment": "capture"}
        if saga.name == "capture_payment" and payment.status == "authorized":
            payment.status = "capture_requested"
        request = {
            "operation": operation.get(saga.name, "authorize"),
            "idempotency_key": payment.key,
            "payment_key": payment.key,
            "amount": payment.requested,
        }
        if request["operation"] == "authorize":
            return request | {"capture": saga.name == "process_payment", "token": order.token}
        number = payment.key.split(":")[2:]
        return request | {"idempotency_key": ":".join([str(saga.id), saga.name, *number])}

    def void(self, order: Order) -> None:
        """What was asked for is to be voided; the token that was tried is forgotten."""
        payment = order.payment
        undoable = {"requested", "pending", "authorized", "capture_requested", "captured"}
        if payment and payment.status in undoable and payment.requested:
            payment.status = "void_requested"
            order.token = None

    def _refund_request(self, refund: Refund) -> Answer:
        payment = refund.charge or refund.order.payment
        assert payment
        if refund.charge:
            return {
                "operation": "void",
                "idempotency_key": f"{refund.id}:refund_payment",
                "payment_key": payment.key,
                "amount": payment.requested,
            }
        if payment.by_hand or (refund.order.dispute != "won" and not refund.despite_dispute):
            raise NeedsPersonError
        part = refund.order.status in {"fulfilling", "fulfilled"} or refund.order.by_other_means
        return {
            "operation": "refund" if part else "void",
            "idempotency_key": f"{refund.id}:refund_payment",
            "payment_key": payment.key,
            "amount": refund.amount if part else payment.requested,
        }

    @contextmanager
    def undisputed(self, saga: Saga) -> Iterator[None]:
        """What is asked inside is asked by a person, who knows of disputes."""
        order = saga.about.order if isinstance(saga.about, Refund) else saga.about
        order.dispute, dispute = "won", order.dispute
        try:
            yield
        finally:
            order.dispute = dispute

    def settle_step(self, saga: Saga, answer: Answer) -> str:
        settle = {
            "process_payment": self._settle_charge,
            "authorize_payment": self._settle_charge,
            "capture_payment": self._settle_capture,
            "void_payment": self._settle_void,
            "refund_payment": self._settle_refund,
        }
        return settle[saga.name](saga, answer)

    def _settle_charge(self, saga: Saga, answer: Answer) -> str:
        payment, outcome = saga.about.payment, answer["outcome"]
        if outcome in {"declined", "pending"}:
            payment.status = outcome
        if outcome != "approved":
            return RESULTS[outcome]
        amount = Decimal(answer["amount"])
        takes = saga.name == "process_payment"
        payment.status = "captured" if takes else "authorized"
        payment.authorized = amount
        payment.captured = amount if takes else NOTHING
        return "done" if amount == payment.requested else "wrong"

    def _settle_capture(self, saga: Saga, answer: Answer) -> str:
        payment, outcome = saga.about.payment, answer["outcome"]
        if outcome == "declined":
            payment.status = "authorized"
        if outcome != "approved":
            return RESULTS[outcome]
        payment.status = "captured"
        payment.captured = Decimal(answer["amount"])
        return "done" if payment.captured == payment.requested else "wrong"

    def _settle_void(self, saga: Saga, answer: Answer) -> str:
        payment, outcome = saga.about.payment, answer["outcome"]
        back = Decimal(answer.get("refunded", payment.captured))
        if outcome == "approved" and back < payment.captured:
            payment.refunded = max(payment.refunded, back)
            return "wrong"
        if outcome == "approved":
            payment.captured = max(payment.captured, Decimal(answer.get("captured", 0)))
            payment.authorized = max(payment.authorized, payment.captured)
            payment.refunded = payment.captured
            payment.voided = payment.requested - payment.captured
            payment.status = "refunded" if payment.captured else "voided"
        return RESULTS[outcome]

    def _settle_refund(self, saga: Saga, answer: Answer) -> str:
        refund, outcome = saga.about, answer["outcome"]
        payment = refund.charge or refund.order.payment
        owed = refund.taken_out or refund.charge or refund.order.status != "fulfilled"
        if outcome == "declined" and owed:
            return "stuck"
        if outcome == "declined":
            refund.status = "declined"
        elif outcome == "approved":
            refund.status = "refunded"
            refund.by_hand = answer["gateway"] == "by hand"
            payment.refunded += refund.amount
            if payment.refunded == payment.captured:
                payment.status = "refunded"
        return RESULTS[outcome]

    # What the gateway tells by webhook.

    def told(self, key: str, answer: Answer) -> str:
        """The gateway tells what became of a call; what that is to the shop."""
        saga_id, call = key.split(":")[:2]
        saga = self.sagas.get(UUID(saga_id))
        if saga is None or all(call not in {step.name, step.undo} for step in saga.plan):
            return "unmatched"
        order = saga.about
        if isinstance(order, Order) and order.pay_by is not None and order.payment:
            if self._moves_what_was_voided(saga, key, answer):
                order.begin_payment("voided")
            if attempt := self._attempt_of(order, key):
                return self._told_of_attempt(order, attempt, call, answer)
            if order.payment.key.split(":")[2:] != key.split(":")[2:]:
                return "unmatched"
            if self._is_charge(call) and order.payment.key != key:
                return "unmatched"
        return self._told_of_ours(saga, call, answer)

    def _is_charge(self, call: str) -> bool:
        return call in {"process_payment", "authorize_payment"}

    def _attempt_of(self, order: Order, key: str) -> Payment | None:
        """The earlier charge that a call is of, which has its number."""
        call, *number = key.split(":")[1:]
        for attempt in order.attempts.values():
            if attempt.key.split(":")[2:] == number:
                return attempt if attempt.key == key or not self._is_charge(call) else None
        return None

    def _moves_what_was_voided(self, saga: Saga, key: str, answer: Answer) -> bool:
        """The last charge was voided, and is made; or its void, and comes to nothing."""
        payment = saga.about.payment
        call, *number = key.split(":")[1:]
        waits = saga.status in {"running", "waiting"} and payment.key.split(":")[2:] == number
        if call == "void_payment":
            return waits and payment.status == "refunded" and answer["outcome"] == "declined"
        charged = call != "authorize_payment" and answer["outcome"] == "approved"
        return waits and payment.status == "voided" and charged

    def _told_of_attempt(self, order: Order, attempt: Payment, call: str, answer: Answer) -> str:
        """News of a charge that came to nothing; what turns out to be taken goes back."""
        charged = answer["outcome"] == "approved" and call != "void_payment"
        regretted = answer["outcome"] == "declined" and call == "void_payment"
        asked = any(each.charge is attempt for each in order.refunds.values())
        if (
            answer["outcome"] == "disputed"
            or (charged and attempt.status == "declined")
            or (regretted and not asked and attempt.status != "refunded")
        ):
            return "unmatched"
        if charged and not attempt.captured and call != "authorize_payment":
            attempt.captured = Decimal(answer["captured"])
        elif regretted and not asked:
            attempt.refunded = NOTHING
        else:
            return "stale"
        attempt.status = "captured"
        self.start_refund(
            Refund(uuid4(), order, attempt.captured, starts_itself=True, charge=attempt)
        )
        return "applied"

    def _told_of_ours(self, saga: Saga, call: str, answer: Answer) -> str:
        if answer["outcome"] == "disputed":
            return self._record_dispute(saga, answer["dispute"])
        if answer["outcome"] not in {"approved", "declined"}:
            return "stale"
        goes = saga.status in {"running", "waiting", "compensating"} and saga.attempts > 0
        if (goes or saga.status == "stuck") and saga.asks and saga.name == call:
            if answer["outcome"] == "approved" and call in saga.refused:
                self.ask_again(saga)
            else:
                self.answer_stuck(saga, answer)
            return "applied"
        if self._contradicts(saga, call, answer):
            return "unmatched"
        return "applied" if self._is_news(saga, call, answer) else "stale"

    def _record_dispute(self, saga: Saga, dispute: str) -> str:
        order = saga.about
        if not isinstance(order, Order) or order.payment is None:
            return "unmatched"
        closed = order.disputed_before and order.dispute != "open"
        if order.disputed_before and (order.dispute == dispute or (closed and dispute == "open")):
            return "stale"
        order.dispute, order.disputed_before = dispute, True
        return "applied"

    def ask_again(self, saga: Saga) -> None:
        """The step at which a saga stands, stuck or not, is tried now."""
        if saga.status == "stuck":
            saga.status = "compensating" if saga.turned_back else "running"
            saga.tries.clear()
            saga.attempts = 0
        saga.ready_at = self.now

    def answer_stuck(self, saga: Saga, answer: Answer) -> None:
        """An answer for which no listener waits; the rest is for the next pass."""
        if saga.status == "stuck":
            saga.status = "compensating" if saga.turned_back else "running"
            saga.attempts = 1
        self.answer(saga, answer)
        self.run([saga], steps=0)

    def _contradicts(self, saga: Saga, call: str, answer: Answer) -> bool:
        approved = answer["outcome"] == "approved"
        if call == "refund_payment":
            return approved and saga.about.status == "declined"
        payment = saga.about.payment
        if payment is None:
            return False
        if not approved:
            settled = {"voided"} if call == "void_payment" else {"authorized", "captured"}
            return payment.status in settled
        if call == "void_payment" or payment.status != "captured":
            return False
        return Decimal(answer["amount"]) != payment.requested

    def _is_news(self, saga: Saga, call: str, answer: Answer) -> bool:
        """An answer comes after the step: something that came to nothing is owed again."""
        about, approved = saga.about, answer["outcome"] == "approved"
        if approved:
            return self._is_late_charge(about, call, answer)
        if call == "refund_payment" and about.status == "refunded" and not about.by_hand:
            about.status = "failed"
            payment = about.charge or about.order.payment
            payment.refunded -= about.amount
            payment.status = "captured"
        elif (
            call == "void_payment"
            and about.payment.status == "refunded"
            and all(each.charge for each in about.refunds.values())
        ):
            self.start_refund(Refund(uuid4(), about, about.payment.refunded, starts_itself=True))
            about.payment.refunded = NOTHING
            about.payment.status = "captured"
        else:
            return False
        return True

    def _is_late_charge(self, order: Any, call: str, answer: Answer) -> bool:
        """A charge turned up although it was voided: it is written down, and goes back."""
        payment = order.payment if isinstance(order, Order) else None
        if call not in {"process_payment", "capture_payment"} or payment is None:
            return False
        if payment.status not in {"voided", "declined", "void_requested"} or payment.captured:
            return False
        payment.captured = Decimal(answer["captured"])
        payment.authorized = max(payment.authorized, payment.captured)
        if payment.status == "void_requested":
            return True
        payment.status = "captured"
        payment.voided = min(payment.voided, payment.requested - payment.captured)
        self.start_refund(Refund(uuid4(), order, payment.captured, starts_itself=True))
        return True

    def look(self) -> dict[str, dict[str, Any]]:
        """All that can be seen, as JSON has it."""
        return {
            "shelves": {
                f"{warehouse} {product}": [shelf.available, shelf.reserved]
                for (warehouse, product), shelf in self.shelves.items()
            },
            "orders": {str(order.id): order.status for order in self.orders.values()},
            "sagas": {
                str(each.id): [
                    each.status,
                    each.place,
                    each.attempts,
                    each.cancel_requested,
                    each.ready_at,
                ]
                for each in self.sagas.values()
            },
            "payments": {
                str(order.id): [order.payment.status, *map(float, order.payment.amounts)]
                for order in self.orders.values()
                if order.payment
            },
            "refunds": {
                str(each.id): [str(each.order.id), each.status, float(each.amount)]
                for each in self.refunds.values()
            },
            "attempts": {
                key: [str(order.id), each.status, float(each.captured), float(each.refunded)]
                for order in self.orders.values()
                for key, each in order.attempts.items()
            },
            "parcels": {
                str(parcel_id): parcel.left
                for order in self.orders.values()
                for parcel_id, parcel in order.parcels.items()
            },
        }

    def adopt(self, refund: Refund, refund_id: UUID) -> None:
        """A refund that the shop has started by itself has this id."""
        saga = self.sagas.pop(refund.id)
        del self.refunds[refund.id], refund.order.refunds[refund.id]
        refund.id = saga.id = refund_id
        refund.starts_itself = False
        self.sagas[refund_id] = saga
        self.refunds[refund_id] = refund.order.refunds[refund_id] = refund
