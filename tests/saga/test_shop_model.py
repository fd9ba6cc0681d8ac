"""The shop against a model of it: every operation, in any order, with the gateway played.

`make model` does more of it: STEPS of them, in rounds, each with the command that tells it again.
What fails is shown as the shortest story that Hypothesis finds, as a program.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from uuid import UUID

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model.draws import (
    Part,
    adjustments,
    amounts,
    fates,
    few,
    final,
    goods,
    has_order,
    has_stuck_saga,
    parts,
    picks,
    products,
    seldom,
    tokens,
    verdicts,
    warehouses,
)
from model.engine import LEASE_SECONDS
from model.orders import (
    Goods,
    has_money,
    is_held,
    is_open,
    is_partly_sent,
    is_sent,
    is_to_ship,
)
from model.world import ADJUSTMENTS, PRODUCTS, WAREHOUSES, World, items

STEPS = int(os.environ.get("DARKPEARL_TEST_MODEL_STEPS", "0"))
SEED = os.environ.get("DARKPEARL_TEST_MODEL_SEED", "")
STEPS_OF_A_STORY = 60
STORIES = 10
"""In a round, which has a seed."""


class ShopMachine(World, RuleBasedStateMachine):
    """What can be done."""

    def __init__(self, url: str) -> None:
        RuleBasedStateMachine.__init__(self)
        World.__init__(self, url)

    @initialize(rich=st.booleans())
    def begin(self, *, rich: bool) -> None:
        """A story may begin in the middle: orders sent, partly sent, and cancelled when paid."""
        if not rich:
            return
        for warehouse in WAREHOUSES:
            self.place_and_work(warehouse, Counter(PRODUCTS[:2] * 2), "", ["approved"])
        for order in [each.id for each in self.model.orders.values() if is_to_ship(each)]:
            self.ship_order(order, Counter(PRODUCTS[:1]), self.name("parcel"))
        self.work(["approved"])
        for warehouse in WAREHOUSES[::2]:
            self.place_order(warehouse, Counter(PRODUCTS[:1]), "")
            self.advance()
            self.cancel(0)
            self.work(["approved"])

    # The shop's people.

    @rule(
        kind=st.sampled_from(["receive", "adjust", "count", "transfer"]),
        here=warehouses,
        there=warehouses,
        product=products,
        quantity=few,
        expected=st.none() | few,
        again=seldom,
    )
    def move_stock(
        self,
        kind: str,
        here: UUID,
        there: UUID,
        product: UUID,
        quantity: int,
        expected: int | None,
        *,
        again: bool,
    ) -> None:
        under = self.name("movement", again=again)
        if kind == "receive":
            self.receive(here, product, quantity, under)
        elif kind == "adjust":
            self.do(
                lambda: self.model.move("adjust", here, product, quantity - 2, under),
                "select adjust_stock(%s, %s, %s, %s)",
                *(here, product, quantity - 2, under),
            )
        elif kind == "count":
            self.do(
                lambda: self.model.count(here, product, quantity, expected),
                "select count_stock(%s, %s, %s, p_expected => %s)",
                *(here, product, quantity, expected),
            )
        else:
            self.do(
                lambda: self.model.transfer(here, there, product, quantity, under),
                "select transfer_stock(%s, %s, %s, %s, %s)",
                *(here, there, product, quantity, under),
            )

    def place(self, warehouse: UUID, goods: Goods, adjustment: str) -> None:
        order = self.name("order")
        amount = ADJUSTMENTS[adjustment]
        said = json.dumps([{"kind": adjustment, "label": "it", "amount": str(amount)}])
        self.do(
            lambda: self.model.place(order, warehouse, goods, amount),
            "select place_order(%s, %s, p_order_id => %s, p_adjustments => %s)",
            *(warehouse, items(goods), order, said if adjustment else None),
        )

    @rule(warehouse=warehouses, goods=goods, adjustment=adjustments)
    def place_order(self, warehouse: UUID, goods: Goods, adjustment: str) -> None:
        self.place(warehouse, goods, adjustment)

    @rule(
        warehouse=warehouses,
        goods=goods,
        adjustment=adjustments,
        verdicts=st.lists(fates, min_size=1, max_size=3),
    )
    def place_and_work(
        self, warehouse: UUID, goods: Goods, adjustment: str, verdicts: list[str]
    ) -> None:
        """What happens most: an order comes, and a listener sees to it."""
        self.place(warehouse, goods, adjustment)
        self.work(verdicts)

    @rule(
        warehouse=warehouses,
        goods=goods,
        seconds=st.sampled_from([0, 40, 100, 800]),
        token=st.none() | tokens,
    )
    def hold(self, warehouse: UUID, goods: Goods, seconds: int, token: str | None) -> None:
        """An order is placed, and its stock kept until it is paid."""
        self.hold_order(warehouse, goods, seconds, token)

    @rule(
        warehouse=warehouses,
        goods=goods,
        then=st.sampled_from(["", "cancel", "tok_visa", "tok_other"]),
    )
    def leave_pending(self, warehouse: UUID, goods: Goods, then: str) -> None:
        """Its payer has something to do, and does nothing, gives up, or names another card."""
        self.hold_order(warehouse, goods, 800, "tok_visa")
        newest = [call for call in self.calls if call.request.get("token")][-1:]
        self.bring(dict.fromkeys(newest, "pending"))
        if then == "cancel":
            self.cancel_payment(0)
        elif then:
            self.pay(0, then)

    def hold_order(self, warehouse: UUID, goods: Goods, seconds: int, token: str | None) -> None:
        order = self.name("order")
        self.do(
            lambda: self.model.place(order, warehouse, goods, Decimal(0), seconds, token),
            "select place_order(%s, %s, p_order_id => %s, p_payment_token => %s,"
            " p_pay_by => clock() + %s * interval '1 second')",
            *(warehouse, items(goods), order, token, seconds),
        )
        self.advance()

    @has_order(is_held)
    @rule(place=picks, token=tokens)
    def pay(self, place: int, token: str) -> None:
        order = self.order(place, is_held)
        self.do(lambda: self.model.pay(order, token), "select pay_order(%s, %s)", *(order, token))

    @has_order(is_held)
    @rule(place=picks)
    def cancel_payment(self, place: int) -> None:
        order = self.order(place, is_held)
        self.do(lambda: self.model.cancel_payment(order), "select cancel_payment(%s)", order)

    @has_order(is_held)
    @rule(place=picks, short=seldom, reference=st.sampled_from(["in cash", "by transfer"]))
    def pay_by_hand(self, place: int, reference: str, *, short: bool) -> None:
        order = self.order(place, is_held)
        amount = self.model.orders[order].total / (2 if short else 1)
        self.do(
            lambda: self.model.pay_by_hand(order, amount, reference),
            "select record_manual_payment(%s, %s, %s)",
            *(order, amount, reference),
        )

    @has_order(is_open)
    @rule(place=picks)
    def cancel(self, place: int) -> None:
        order = self.order(place, is_open)
        self.do(lambda: self.model.cancel(order), "select cancel_order(%s)", order)

    @has_order(is_to_ship)
    @rule(place=picks, part=parts, again=seldom)
    def ship(self, place: int, part: Part, *, again: bool) -> None:
        order = self.order(place, is_to_ship)
        goods = self.part(order, part)
        self.ship_order(order, goods, self.name("parcel", again=again))

    @has_order(is_partly_sent)
    @rule(place=picks, part=parts, again=seldom)
    def take_out(self, place: int, part: Part, *, again: bool) -> None:
        order = self.order(place, is_partly_sent)
        goods = self.part(order, part)
        under = self.name("taken out", again=again)
        self.do(
            lambda: self.model.take_out(order, goods, under),
            "select cancel_items(%s, %s, null, %s)",
            *(order, items(goods), under),
        )

    @has_order(is_sent)
    @rule(place=picks, part=parts, restock=st.booleans(), again=seldom)
    def take_back(self, place: int, part: Part, *, restock: bool, again: bool) -> None:
        order = self.order(place, is_sent)
        goods = self.part(order, part)
        under = self.name("return", again=again)
        self.do(
            lambda: self.model.take_back(order, goods, under, restock=restock),
            "select return_items(%s, %s, null, %s, %s)",
            *(order, items(goods), under, restock),
        )

    @has_order(is_sent)
    @rule(place=picks, part=parts)
    def take_back_and_refund(self, place: int, part: Part) -> None:
        order = self.order(place, is_sent)
        goods = self.part(order, part)
        under = self.name("return")
        self.do(
            lambda: self.model.take_back_and_refund(order, goods, under),
            "select return_and_refund(%s, %s, p_return_id => %s)",
            *(order, items(goods), under),
        )

    @has_order(has_money)
    @rule(place=picks, amount=st.none() | amounts, despite=seldom, again=seldom)
    def refund(self, place: int, amount: Decimal | None, *, despite: bool, again: bool) -> None:
        order = self.order(place, has_money)
        under = self.name("refund", again=again)
        self.do(
            lambda: self.model.refund(order, amount, under, despite=despite),
            "select refund_order(%s, %s, null, %s, %s)",
            *(order, amount, under, despite),
        )

    @has_order(has_money)
    @rule(place=picks, amount=amounts)
    def refund_by_other_means(self, place: int, amount: Decimal) -> None:
        order = self.order(place, has_money)
        under = self.name("refund")
        self.do(
            lambda: self.model.refund_by_other_means(order, amount, under),
            "select record_manual_refund(%s, %s, 'in cash', %s)",
            *(order, amount, under),
        )

    @has_stuck_saga
    @rule(place=picks, kind=st.sampled_from(["retry", "skip", "turn back"]))
    def see_to_stuck_saga(self, place: int, kind: str) -> None:
        sagas = list(self.model.sagas.values())
        some = [each for each in sagas if each.status == "stuck"] if place < 18 else sagas
        saga = some[-1 - place % len(some)].id
        if kind == "retry":
            self.do(lambda: self.model.retry(saga), "select retry_saga(%s, 'mended')", saga)
        elif kind == "skip":
            self.skip_step(saga)
        else:
            self.do(lambda: self.model.turn_back(saga), "select turn_back_saga(%s, 'why')", saga)

    # Listeners.

    @rule(only=st.none() | warehouses)
    def claim(self, only: UUID | None) -> None:
        self.advance(only)

    @rule(verdicts=st.lists(fates, min_size=1, max_size=4))
    def work(self, verdicts: list[str]) -> None:
        """A listener claims, and brings an answer to everything that was asked."""
        self.advance()
        for first in range(2):
            calls = {call.saga.id: call for call in self.calls}.values()
            fates = verdicts[first:] or verdicts
            self.bring({call: fates[n % len(fates)] for n, call in enumerate(calls)})

    @precondition(lambda self: self.calls)
    @rule(fates=st.lists(st.tuples(picks, fates), min_size=1, max_size=3))
    def answer(self, fates: list[tuple[int, str]]) -> None:
        some = {}
        for place, fate in fates:
            call = self.calls[place % len(self.calls)]
            some.setdefault(call.saga.id, (call, fate))
        self.bring(dict(some.values()))

    @precondition(lambda self: self.calls)
    @rule(place=picks, verdict=verdicts)
    def reach(self, place: int, verdict: str) -> None:
        """A call has reached the gateway, and its answer is on its way."""
        self.gateway.ask(self.calls[place % len(self.calls)].request, verdict)

    @precondition(lambda self: self.calls)
    @rule(survivors=st.integers(0, 2))
    def kill(self, survivors: int) -> None:
        """Calls that were out, or waited for their turn, are nobody's any more."""
        for call in self.calls[survivors:]:
            self.gateway.lose(call.request)
        del self.calls[survivors:]

    # The gateway, and time.

    @precondition(lambda self: self.gateway.events)
    @rule(place=picks)
    def tell_event(self, place: int) -> None:
        """Sooner or later, once or again, in any order; or of a payment that is not ours."""
        if place == 20:
            event, key = str(self.name("event")), f"{UUID(int=0)}:process_payment"
            self.tell_that("unmatched", event, key, self.gateway.events[0][1])
        else:
            self.tell(len(self.gateway.events) - 1 - place % len(self.gateway.events))

    @precondition(lambda self: self.gateway.pending())
    @rule(place=picks, verdict=final)
    def decide(self, place: int, verdict: str) -> None:
        pending = self.gateway.pending()
        self.gateway.decide(pending[place % len(pending)], verdict)

    @precondition(lambda self: self.gateway.regrettable())
    @rule(place=picks)
    def regret(self, place: int) -> None:
        """Money that went back to the payer returns to the gateway."""
        regrettable = self.gateway.regrettable()
        self.gateway.regret(regrettable[place % len(regrettable)])

    @precondition(lambda self: self.gateway.stragglers())
    @rule(place=picks)
    def charge_late(self, place: int) -> None:
        """A call that was given up arrives, at a gateway that has forgotten its void."""
        stragglers = self.gateway.stragglers()
        self.gateway.charge_late(stragglers[place % len(stragglers)])

    @has_order(has_money)
    @rule(place=picks, kind=st.sampled_from(["open", "won", "lost"]))
    def dispute(self, place: int, kind: str) -> None:
        """The payer's bank wants the money back."""
        order = self.model.orders[self.order(place, has_money)]
        answer = {"outcome": "disputed", "dispute": kind, "reference": "dp_1", "amount": "1.00"}
        key = order.payment.key if order.payment else f"{order.id}:process_payment"
        expected = self.model.told(key, answer)
        self.tell_that(expected, str(self.name("event")), key, answer)

    @rule(seconds=st.sampled_from([10, LEASE_SECONDS, 70, 700]))
    def let_pass(self, seconds: int) -> None:
        self.turn_clock(seconds)

    def teardown(self) -> None:
        """A story that went well is brought to an end."""
        try:
            if sys.exc_info()[0] is None:
                self.bring_to_an_end()
        finally:
            self.connection.close()


def tell_stories(clone: Callable[[], str], number: int, seed: int) -> None:
    """Stories that follow from a seed, each in a database of its own."""

    @hypothesis.seed(seed)
    def machine() -> ShopMachine:
        return ShopMachine(clone())

    settings = hypothesis.settings(
        max_examples=number,
        stateful_step_count=STEPS_OF_A_STORY,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    run_state_machine_as_test(machine, settings=settings)


def test_shop_and_model_agree_after_every_step(clone: Callable[[], str]) -> None:
    """What is done ends as in the model, whatever came before: rows, calls, refusals and money."""
    seed = int(SEED or (random.randrange(10**9) if STEPS else 1))
    round_steps = STORIES * STEPS_OF_A_STORY
    began = time.monotonic()
    for number in range(max(STEPS // round_steps, 1)):
        print(f"make model SEED={seed + number} STEPS={round_steps}", flush=True)  # noqa: T201
        tell_stories(clone, STORIES, seed + number)
    seconds = time.monotonic() - began
    print(f"{max(STEPS, round_steps)} steps in {seconds:.0f} s: {dict(World.done)}")  # noqa: T201
