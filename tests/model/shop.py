"""The shop as a model in plain Python: what may be done in which state, and what is so afterwards.

Orders are served one by one by the sagas of engine.py. Every operation either changes the
model or raises RefusedError with the SQLSTATE with which the database has to refuse it.
"""

import hashlib
from decimal import Decimal
from typing import Any
from uuid import UUID

from model.engine import (
    AWAIT,
    AWAIT_PAYMENT,
    HELD_PLANS,
    PLANS,
    SHIP,
    RefusedError,
    Saga,
    Step,
    refuse_if,
)
from model.fulfilment import BY_HAND, Fulfilment
from model.orders import NOTHING, Goods, Order, Parcel, Payment, Refund, Return, Shelf


def refund_of_return(return_id: UUID) -> UUID:
    """The id of the refund that a return brings about."""
    return UUID(bytes=return_id.bytes[:9] + hashlib.sha256(return_id.bytes).digest()[:7])


class ModelShop(Fulfilment):
    """Shelves, orders and money.

    Args:
        warehouses: the fulfilment and the capture method of each.
        prices: of each product.
    """

    def __init__(
        self, warehouses: dict[UUID, tuple[str, str]], prices: dict[UUID, Decimal]
    ) -> None:
        super().__init__()
        self.warehouses = warehouses
        self.prices = prices
        self.movements: dict[tuple[str, UUID, UUID, UUID], tuple[int, UUID | None]] = {}

    # Stock.

    def move(
        self,
        kind: str,
        warehouse: UUID,
        product: UUID,
        quantity: int,
        operation: UUID,
        other: UUID | None = None,
    ) -> None:
        """receive, adjust, transfer_out and transfer_in; the same again does nothing."""
        refuse_if(quantity == 0 or (quantity < 0 and kind != "adjust"), "DP015")
        key = (kind, warehouse, product, operation)
        if key in self.movements:
            refuse_if(self.movements[key] != (quantity, other), "DP011")
            return
        change = -quantity if kind == "transfer_out" else quantity
        shelf = self.shelves.get((warehouse, product), Shelf())
        refuse_if(change < 0 and shelf.sellable < -change, "DP006")
        shelf.available += change
        self.shelves[warehouse, product] = shelf
        self.movements[key] = (quantity, other)

    def count(self, warehouse: UUID, product: UUID, counted: int, expected: int | None) -> None:
        """A shelf was counted."""
        refuse_if(counted < 0, "DP015")
        shelf = self.shelves.get((warehouse, product))
        refuse_if(shelf is None, "DP010")
        assert shelf
        refuse_if(expected is not None and expected != shelf.available, "DP032")
        change = counted - shelf.available
        refuse_if(change < 0 and shelf.sellable < -change, "DP006")
        shelf.available = counted

    def transfer(
        self, here: UUID, there: UUID, product: UUID, quantity: int, operation: UUID
    ) -> None:
        """Goods go from one warehouse to another."""
        refuse_if(here == there, "DP015")
        known = self.movements.get(("transfer_out", here, product, operation))
        self.move("transfer_out", here, product, quantity, operation, there)
        if known is None:
            self.move("transfer_in", there, product, quantity, operation, here)

    # Orders.

    def place(
        self,
        order_id: UUID,
        warehouse: UUID,
        goods: Goods,
        adjustment: Decimal,
        held_seconds: int | None = None,
        token: str | None = None,
    ) -> None:
        """An order with at most one adjustment, of the whole of it; held until it is paid."""
        refuse_if(held_seconds is not None and held_seconds <= 0, "DP015")
        total = self._price(goods) + adjustment
        refuse_if(total < 0, "DP041")
        order = self.orders[order_id] = Order(order_id, warehouse, goods, total, token=token)
        plan = PLANS[self.warehouses[warehouse]]
        if held_seconds is not None:
            order.pay_by = self.now + held_seconds
            plan = HELD_PLANS[self.warehouses[warehouse]]
        self.start_saga(order_id, warehouse, plan, order)

    def pay(self, order_id: UUID, token: str) -> None:
        """A held order is to be paid with a token."""
        saga = self._held(order_id)
        order = self.orders[order_id]
        status = order.payment.status if order.payment else ""
        voided = saga.status == "compensating"
        tried = not voided and order.token is not None and status in {"", "requested", "pending"}
        pending = status == "pending" and saga.is_pending
        self._refuse_unpayable(saga, is_tried=tried and order.token != token and not pending)
        if order.token == token and (tried or (voided and status == "void_requested")):
            return
        assert order.pay_by is not None
        refuse_if(order.pay_by <= self.now, "DP034")
        if tried:
            self._give_up_payment(saga)
        elif voided:
            self.void(order)
        order.token = token
        if order.payment and order.payment.status in {"declined", "voided", "refunded"}:
            order.begin_payment("requested")
        if saga.step is AWAIT_PAYMENT:
            self._tell_order(saga)

    def cancel_payment(self, order_id: UUID) -> None:
        """The payer of a held order gives up what is pending."""
        saga = self._held(order_id)
        order = self.orders[order_id]
        place = saga.place_of(AWAIT_PAYMENT)
        pending = order.payment and order.payment.status == "pending" and saga.is_pending
        voided = saga.status == "compensating"
        self._refuse_unpayable(saga, is_tried=saga.place > place and not pending and not voided)
        if voided or saga.place < place:
            order.token = None
        elif pending:
            self._give_up_payment(saga)

    def _give_up_payment(self, saga: Saga) -> None:
        self.void(saga.about)
        self.come_out(saga, "given_up")

    def pay_by_hand(self, order_id: UUID, amount: Decimal, reference: str) -> None:
        """The money of a held order has come past the gateway."""
        saga = self._held(order_id)
        order = self.orders[order_id]
        payment = order.payment
        if payment and payment.by_hand == reference and payment.captured == amount:
            return
        tried = payment.status in {"requested", "pending"} if payment else bool(order.token)
        self._refuse_unpayable(saga, is_tried=tried or saga.status == "compensating")
        refuse_if(amount != order.total, "DP041")
        refuse_if(saga.step is not AWAIT_PAYMENT, "DP033")
        if payment:
            order.attempts[payment.key] = payment
        key = f"{order.id}:manual_payment"
        order.payment = Payment(amount, key, reference, "captured", amount, amount)
        for _ in range(2):
            self.come_out(saga, "done")

    def _held(self, order_id: UUID) -> Saga:
        refuse_if(order_id not in self.orders, "DP010")
        refuse_if(self.orders[order_id].pay_by is None, "DP033")
        return self.sagas[order_id]

    def _refuse_unpayable(self, saga: Saga, *, is_tried: bool) -> None:
        """What is paid, is being paid or has turned back is not to be paid."""
        order = saga.about
        payment = order.payment
        voided = saga.status == "compensating" and saga.place > saga.place_of(AWAIT_PAYMENT)
        kept = payment and payment.status in {"authorized", "capture_requested", "captured"}
        refuse_if(kept and saga.status != "compensating", "DP033")
        turned = saga.status in {"compensating", "compensated"}
        refuse_if(turned and order.is_overdue, "DP034")
        goes = saga.status in {"running", "waiting"} or voided
        refuse_if(not goes or saga.cancel_requested, "DP033")
        refuse_if(saga.place > saga.place_of(AWAIT_PAYMENT) + 1, "DP033")
        refuse_if(is_tried, "DP033")

    def cancel(self, order_id: UUID) -> None:
        """Somebody has changed their mind."""
        refuse_if(order_id not in self.orders, "DP010")
        saga = self.sagas[order_id]
        forward_only = [n for n, step in enumerate(saga.plan) if step.forward_only]
        goes = saga.status in {"running", "waiting"}
        if goes and forward_only:
            tried = saga.attempts > 0 and saga.step.kind != "wait"
            pivot = forward_only[0]
            refuse_if(saga.place > pivot or (saga.place == pivot and tried), "DP007")
        refuse_if(saga.status in {"completed", "stuck"}, "DP007")
        if (goes and not saga.cancel_requested) or saga.is_to_wait_again:
            saga.cancel_requested = True
            if saga.status == "running" or saga.step.kind == "wait" or saga.is_pending:
                saga.ready_at = self.now

    def ship(self, order_id: UUID, goods: Goods | None, parcel_id: UUID) -> None:
        """Somebody has packed a parcel: these goods, or all that is left."""
        if known := self._known("parcels", order_id, parcel_id):
            refuse_if(goods is not None and goods != known.goods, "DP011")
            return
        saga = self._shippable(order_id, AWAIT)
        order = self.orders[order_id]
        order.parcels[parcel_id] = Parcel(self._goods_left(order, goods))
        at_last = saga.step is SHIP
        if at_last:
            self._refuse_unpaid(order, parcel_id)
        self._tell_order(saga)
        if at_last:
            self.send_parcels(order)

    def take_out(self, order_id: UUID, goods: Goods | None, operation: UUID) -> None:
        """Goods that have not left are taken out of an order, of which a part has."""
        if known := self._known("taken_out", order_id, operation):
            refuse_if(goods is not None and goods != known, "DP011")
            return
        saga = self._shippable(order_id, SHIP)
        order = self.orders[order_id]
        goods = self._goods_left(order, goods)
        amount = min(self._price(goods), order.left_to_refund())
        if amount > 0:
            self.start_refund(Refund(operation, order, amount, taken_out=True))
        order.taken_out[operation] = goods
        for product, quantity in goods.items():
            self.shelves[order.warehouse, product].reserved -= quantity
        self._tell_order(saga)

    def take_back(
        self, order_id: UUID, goods: Goods | None, operation: UUID, *, restock: bool
    ) -> None:
        """Goods come back: into stock, or written off."""
        order = self._sent_order(order_id)
        if known := self._known("returns", order_id, operation):
            refuse_if(known.restock != restock or goods not in (None, known.goods), "DP011")
            return
        out_there = order.out_there()
        if goods is None:
            refuse_if(not out_there, "DP021")
            goods = out_there
        refuse_if(not goods <= out_there, "DP021")
        order.returns[operation] = Return(goods, restock)
        for product, quantity in goods.items() if restock else ():
            self.shelves[order.warehouse, product].available += quantity

    def take_back_and_refund(self, order_id: UUID, goods: Goods | None, operation: UUID) -> None:
        """The same with the money: both or neither."""
        order = self._sent_order(order_id)
        out_there = order.out_there()
        coming = out_there if goods is None else goods
        refuse_if(not coming or not coming <= out_there, "DP021")
        payment = order.payment
        assert payment
        paid = max(payment.captured - self._price_of_taken_out(order), NOTHING)
        before = self._price_of_returned(order)
        amount = min(before + self._price(coming), paid) - min(before, paid)
        order.returns[operation] = Return(coming, restock=True)
        try:
            if amount:
                self.refund(order_id, amount, refund_of_return(operation))
        finally:
            del order.returns[operation]
        self.take_back(order_id, goods, operation, restock=True)

    def refund(
        self, order_id: UUID, amount: Decimal | None, refund_id: UUID, *, despite: bool = False
    ) -> None:
        """Money of an order goes back, a part or all that is left."""
        if known := self.refunds.get(refund_id):
            other = known.order.id != order_id or amount not in {None, known.amount}
            refuse_if(other, "DP011")
            return
        amount = self._amount_to_refund(order_id, amount)
        order = self.orders[order_id]
        part = order.status == "cancelled" and amount < order.left_to_refund()
        refuse_if(part, "DP015")
        refuse_if(order.dispute != "won" and not despite, "DP027")
        self.start_refund(Refund(refund_id, order, amount, despite_dispute=despite))

    def refund_by_other_means(self, order_id: UUID, amount: Decimal, refund_id: UUID) -> None:
        """A person has given money back past the gateway, and says so."""
        amount = self._amount_to_refund(order_id, amount)
        refund = Refund(refund_id, self.orders[order_id], amount, despite_dispute=True)
        self.start_refund(refund)
        refund.order.by_other_means += amount
        self.answer(self.sagas[refund_id], BY_HAND)

    # Operators.

    def retry(self, saga_id: UUID) -> None:
        """An operator tries a stuck saga again."""
        self.ask_again(self._stuck(saga_id))

    def skip(self, saga_id: UUID) -> None:
        """An operator has done by hand what a stuck saga asked for."""
        saga = self._stuck(saga_id)
        self.answer_stuck(saga, BY_HAND)

    def turn_back(self, saga_id: UUID) -> None:
        """An operator gives a stuck saga up; none that is stuck here can turn back."""
        saga = self._stuck(saga_id)
        refuse_if(saga.turned_back or saga.step.forward_only, "DP007")
        raise NotImplementedError

    # What is known.

    def _price(self, goods: Goods) -> Decimal:
        return sum((self.prices[each] * count for each, count in goods.items()), NOTHING)

    def _price_of_taken_out(self, order: Order) -> Decimal:
        return self._price(sum(order.taken_out.values(), Goods()))

    def _known(self, kind: str, order_id: UUID, operation: UUID) -> Any:
        """What stands under an id that somebody names again. Raises: RefusedError."""
        for order in self.orders.values():
            if operation in getattr(order, kind):
                refuse_if(order.id != order_id, "DP011")
                return getattr(order, kind)[operation]
        return None

    def _sent_order(self, order_id: UUID) -> Order:
        refuse_if(order_id not in self.orders, "DP010")
        order = self.orders[order_id]
        refuse_if(order.status not in {"fulfilling", "fulfilled"}, "DP019")
        return order

    def _stuck(self, saga_id: UUID) -> Saga:
        refuse_if(saga_id not in self.sagas, "DP010")
        refuse_if(self.sagas[saga_id].status != "stuck", "DP008")
        return self.sagas[saga_id]

    def _shippable(self, order_id: UUID, first: Step) -> Saga:
        """The saga of an order that stands between a step and ship_order."""
        refuse_if(order_id not in self.orders, "DP010")
        saga = self.sagas[order_id]
        goes = saga.status in {"running", "waiting"} and not saga.cancel_requested
        refuse_if(SHIP not in saga.plan or not goes or saga.place < saga.place_of(first), "DP024")
        return saga

    def _goods_left(self, order: Order, goods: Goods | None) -> Goods:
        left = order.left_to_ship()
        refuse_if(not left if goods is None else not goods <= left, "DP029")
        return left if goods is None else goods

    def _amount_to_refund(self, order_id: UUID, amount: Decimal | None) -> Decimal:
        refuse_if(order_id not in self.orders, "DP010")
        order = self.orders[order_id]
        left = order.left_to_refund() if order.payment else NOTHING
        if order.status == "fulfilling":
            assert order.payment
            kept = order.payment.captured - self._price_of_what_may_go_back(order)
            left -= max(kept, NOTHING)
        owed = order.status in {"fulfilling", "cancelled"} and left > 0
        refuse_if(order.status != "fulfilled" and not owed, "DP019")
        refuse_if(amount is not None and amount <= 0, "DP015")
        refuse_if(left == 0 or (amount is not None and amount > left), "DP020")
        return left if amount is None else amount

    def _price_of_returned(self, order: Order) -> Decimal:
        return self._price(sum((each.goods for each in order.returns.values()), Goods()))

    def _price_of_what_may_go_back(self, order: Order) -> Decimal:
        return self._price_of_taken_out(order) + self._price_of_returned(order)

    def _refuse_unpaid(self, order: Order, parcel_id: UUID) -> None:
        """Goods leave only when their money is there."""
        payment = order.payment
        assert payment
        kept = payment.refunded <= self._price_of_what_may_go_back(order) or payment.refunded == 0
        if payment.captured < payment.requested or not kept:
            del order.parcels[parcel_id]
            raise RefusedError("DP023")

    def _tell_order(self, saga: Saga) -> None:
        """What was done to an order takes its saga on, as far as nobody is to be asked."""
        if saga.status != "waiting" or saga.step.kind != "wait":
            return
        calls = [n for n in range(saga.place, len(saga.plan)) if saga.plan[n].kind == "call"]
        steps = (calls[0] if calls else len(saga.plan)) - saga.place
        saga.parked = False
        saga.attempts = 1
        self.come_out(saga, self.do_step(saga))
        self.run([saga], steps)
