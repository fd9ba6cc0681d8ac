"""The world of the model: a database, the model of what it should be, and the gateway between.

What is done is done to both, and has to end alike: with the same SQLSTATE, with the same calls
to make, and with the same rows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import psycopg
from model.engine import (
    GIVE_UP_SECONDS,
    LEASE_SECONDS,
    PARCEL_SECONDS,
    STUCK_SECONDS,
    Call,
    NeedsPersonError,
    RefusedError,
)
from model.gateway import Account, Answer, PlayedGateway
from model.orders import Goods, Order
from model.shop import ModelShop
from psycopg.rows import dict_row

METHODS = [
    ("automatic", "at_payment"),
    ("automatic", "at_fulfilment"),
    ("on_shipment", "at_payment"),
    ("on_shipment", "at_fulfilment"),
]
PRICES = [Decimal("3.00"), Decimal("4.50"), Decimal("0.00")]
WAREHOUSES = [UUID(int=n) for n in range(1, len(METHODS) + 1)]
PRODUCTS = [UUID(int=n) for n in range(17, 17 + len(PRICES))]
FIRST_UNITS = 5
ADJUSTMENTS = {"shipping": Decimal("2.00"), "discount": Decimal("-1.00"), "": Decimal(0)}
WAREHOUSE = """
    insert into warehouses (id, code, name, fulfilment_method, capture_method)
    values (%s, %s, 'W', %s, %s)
"""
PRODUCT = "insert into products (id, sku, name, unit_price) values (%s, %s, 'Pearl', %s)"
SETTINGS = f"""
    update step_settings set give_up_seconds = {GIVE_UP_SECONDS}, stuck_seconds = {STUCK_SECONDS},
        backoff_seconds = 0, timeout_seconds = case step_name
            when 'await_parcel' then {PARCEL_SECONDS} when 'ship_order' then {PARCEL_SECONDS}
            else {LEASE_SECONDS}
        end
"""
CLOCK = """
    create or replace function clock() returns timestamptz language sql volatile parallel safe
    return '{}'::timestamptz
        + coalesce(nullif(current_setting('darkpearl.turned_seconds', true), ''), '0')::integer
        * interval '1 second'
"""
LOOK = """
    select json_build_object(
        'shelves', (
            select json_object_agg(
                warehouse_id || ' ' || product_id,
                json_build_array(quantity_available, quantity_reserved)
            ) from inventory
        ),
        'orders', (select json_object_agg(id, status) from orders),
        'sagas', (
            select json_object_agg(id, json_build_array(
                status, position, attempts, cancel_requested,
                extract(epoch from ready_at - '{}'::timestamptz)::float
            )) from sagas
        ),
        'payments', (
            select json_object_agg(order_id, json_build_array(
                status, requested_amount::float, authorized_amount::float, captured_amount::float,
                refunded_amount::float, voided_amount::float
            )) from payments
        ),
        'refunds', (
            select json_object_agg(id, json_build_array(order_id, status, amount::float))
            from refunds
        ),
        'attempts', (
            select json_object_agg(idempotency_key, json_build_array(
                order_id, status, captured_amount::float, refunded_amount::float
            )) from payment_attempts
        ),
        'parcels', (select json_object_agg(id, shipped_at is not null) from shipments),
        'audit', (select json_agg(a) from audit as a)
    ) as seen
"""

Row = dict[str, Any]


def _id(*about: object) -> UUID:
    """An id that is the same in every run of a story, and sorts anyhow."""
    return UUID(bytes=hashlib.sha256(repr(about).encode()).digest()[:16], version=4)


class World:
    """A database, the model of what it should be, and the world around both."""

    done: ClassVar[Counter[str]] = Counter()
    """What was done in all stories, and how it ended."""

    def __init__(self, url: str) -> None:
        self.role = ""
        self.connection = psycopg.connect(
            url,
            autocommit=True,
            row_factory=dict_row,
            options="-c search_path=darkpearl -c jit=off",
        )
        for number, (warehouse, methods) in enumerate(zip(WAREHOUSES, METHODS, strict=True)):
            self.rows("none", WAREHOUSE, warehouse, f"W{number}", *methods)
        for number, (product, price) in enumerate(zip(PRODUCTS, PRICES, strict=True)):
            self.rows("none", PRODUCT, product, f"P{number}", price)
        self.connection.execute(SETTINGS)
        self.opened_at = str(self.rows("none", "select clock_timestamp() as at")[0]["at"])
        self.connection.execute(CLOCK.format(self.opened_at))
        self.model = ModelShop(
            dict(zip(WAREHOUSES, METHODS, strict=True)), dict(zip(PRODUCTS, PRICES, strict=True))
        )
        self.gateway = PlayedGateway()
        self.calls: list[Call] = []
        """That the listener has to make, or to bring the answers of."""
        self.told: set[int] = set()
        self.used: dict[str, list[UUID]] = {}
        for warehouse in WAREHOUSES:
            for product in PRODUCTS[:-1]:
                self.receive(warehouse, product, FIRST_UNITS, self.name("movement"))

    def receive(self, warehouse: UUID, product: UUID, quantity: int, under: UUID) -> None:
        """Goods arrive."""
        self.do(
            lambda: self.model.move("receive", warehouse, product, quantity, under),
            "select receive_stock(%s, %s, %s, %s)",
            *(warehouse, product, quantity, under),
        )

    def ship_order(self, order: UUID, goods: Goods | None, parcel: UUID) -> None:
        """Somebody packs a parcel."""
        self.do(
            lambda: self.model.ship(order, goods, parcel),
            "select ship_items(%s, %s, null, %s)",
            *(order, items(goods), parcel),
        )

    def do(self, operation: Callable[[], None], query: str, *parameters: Any) -> None:
        """Somebody does something: shop and model do it, or refuse it alike."""
        expected, found, said = "", "", ""
        try:
            operation()
        except RefusedError as error:
            expected = error.sqlstate
        try:
            self.rows("service_role", query, *parameters)
        except psycopg.Error as error:
            found, said = error.sqlstate or "?", f"{error} {error.diag.message_detail}"
        assert found == expected, (query, parameters, found, expected, said)
        self.note(query.partition("(")[0].removeprefix("select "), expected)
        self.agree()

    def advance(self, only: UUID | None = None) -> None:
        """The listener claims what is ready, everywhere or in one warehouse."""
        named = None if only is None else [only]
        claimed, calls = self.model.advance(named)
        rows = self.rows("darkpearl_listener", "select * from advance(500, %s::uuid[])", named)
        assert sum(row["claimed"] or 0 for row in rows) == claimed
        self._take(rows, calls)

    def bring(self, fates: dict[Call, str]) -> None:
        """Answers come back together: verdicts, calls that got lost on the way, there or back."""
        if not fates:
            return
        settlements: list[Row] = []
        good: list[tuple[Call, Answer | None]] = []
        stale: set[UUID] = set()
        for call, fate in fates.items():
            answer = self._answer(call, fate)
            settlement = {"saga_id": str(call.saga.id), "lease_token": call.lease_token}
            if answer is None:
                settlement |= {"answer": {"message": "not asked"}, "deferred_seconds": 0}
            else:
                settlement["answer"] = answer
            settlements.append(settlement)
            self.calls.remove(call)
            if call.saga.call is call:
                good.append((call, answer))
            else:
                stale.add(call.saga.id)
            self.note("answer", "stale" if call.saga.call is not call else fate)
        calls = self.model.settle(good)
        rows = self.rows("darkpearl_listener", "select * from settle(%s)", json.dumps(settlements))
        assert {row["saga_id"] for row in rows if row["error_code"] == "DP009"} == stale
        self._take([row for row in rows if row["error_code"] != "DP009"], calls)

    def _answer(self, call: Call, fate: str) -> Answer | None:
        """What the listener brings of a call; None: it gives it back unasked."""
        if fate == "given back":
            return None
        if fate == "unknown":
            self.gateway.lose(call.request)
            return {"outcome": "unknown"}
        answer = self.gateway.ask(call.request, "approved" if fate == "lost" else fate)
        return {"outcome": "unknown"} if fate == "lost" else answer

    def _take(self, rows: list[Row], calls: list[Call]) -> None:
        """The requests that the database hands out are those of the model."""
        assert not any(row["error_code"] for row in rows), rows
        asked = {UUID(each["saga_id"]): each for row in rows for each in row["requests"] or []}
        assert asked.keys() == {call.saga.id for call in calls}
        for call in sorted(calls, key=lambda each: each.saga.number):
            found = asked[call.saga.id]
            known = found["request"]
            told = {name: known[name] for name in call.request} | {
                "amount": Decimal(known["amount"])
            }
            assert (found["attempt"], told) == (call.attempt, call.request)
            call.lease_token = found["lease_token"]
            call.request = known
            self.calls.append(call)
        self.agree()

    def tell(self, number: int) -> None:
        """An event of the gateway's is delivered, late or again."""
        key, answer = self.gateway.events[number]
        expected = "duplicate" if number in self.told else self.model.told(key, answer)
        self.told.add(number)
        self.tell_that(expected, f"evt_{number}", key, answer)
        for refund in [each for each in self.model.refunds.values() if each.starts_itself]:
            known = [each.id for each in self.model.refunds.values()]
            (row,) = self.rows(
                "none",
                "select id from refunds where order_id = %s and id <> all(%s)",
                refund.order.id,
                known,
            )
            self.model.adopt(refund, row["id"])
        self.agree()

    def tell_that(self, expected: str, event: str, key: str, answer: Answer) -> None:
        """A webhook comes, and ends as expected."""
        (row,) = self.rows(
            "service_role",
            "select record_gateway_event('played', %s, %s, %s) as it",
            event,
            key,
            json.dumps(answer),
        )
        assert row["it"] == expected, (key, answer, row["it"], expected)
        self.note("event", expected)

    def turn_clock(self, seconds: int) -> None:
        """Time passes; in between there is none."""
        self.model.now += seconds
        self.rows(
            "none", "select set_config('darkpearl.turned_seconds', %s, false)", str(self.model.now)
        )

    def agree(self) -> None:
        """Database and model are the same, the audit is empty, and nobody was charged twice."""
        (row,) = self.rows("none", LOOK.format(self.opened_at))
        found = row["seen"]
        assert found.pop("audit") is None, self.rows("none", "select * from audit")
        for kind, expected in self.model.look().items():
            known = found[kind] or {}
            wrong = {
                each: (known.get(each), expected.get(each))
                for each in known.keys() | expected.keys()
                if known.get(each) != expected.get(each)
            }
            assert not wrong, (kind, wrong)
        for order in self.model.orders.values():
            if payment := order.payment:
                keys = {payment.key, *order.attempts} - self.gateway.unasked
                accounts = [self.gateway.accounts.get(key, Account()) for key in keys]
                kept = sum(each.captured - each.refunded for each in accounts)
                assert kept <= order.total, (order, accounts)
                charged = self.gateway.accounts.get(payment.key, Account()).captured
                assert payment.captured <= charged <= order.total or payment.by_hand, order

    def bring_to_an_end(self) -> None:
        """Everybody does their work: nothing is left to do then, and the books agree."""
        for _ in range(100):
            self.turn_clock(STUCK_SECONDS + 10)
            for key in self.gateway.pending():
                self.gateway.decide(key, "approved")
            self.advance()
            self.bring(
                dict.fromkeys({call.saga.id: call for call in self.calls}.values(), "approved")
            )
            self.agree()
            if self._is_idle():
                break
        else:
            raise AssertionError("it does not end")
        for order in self.model.orders.values():
            assert order.status in {"fulfilled", "cancelled"}, order
            if order.payment:
                self._compare_books(order)

    def _is_idle(self) -> bool:
        """People see to what waits for them; whether there was anything to do."""
        idle = not self.calls and not self.gateway.pending()
        for saga in list(self.model.sagas.values()):
            if saga.status == "stuck":
                self.skip_step(saga.id)
            elif saga.status == "waiting" and saga.step.kind == "wait":
                self.ship_order(saga.id, None, self.name("parcel"))
            elif saga.ready_at is None:
                continue
            idle = False
        for number in range(len(self.gateway.events)):
            if number not in self.told:
                self.tell(number)
                idle = False
        for order in list(self.model.orders.values()):
            if order.status == "cancelled" and order.payment and order.left_to_refund():
                refund = self.name("refund")
                self.do(
                    lambda each=order.id, under=refund: self.model.refund(
                        each, None, under, despite=True
                    ),
                    "select refund_order(%s, null, null, %s, true)",
                    order.id,
                    refund,
                )
                idle = False
        return idle

    def _compare_books(self, order: Order) -> None:
        payment = order.payment
        assert payment
        for key, attempt in order.attempts.items():
            account = self.gateway.accounts.get(key, Account())
            assert attempt.captured == attempt.refunded, order
            assert account.captured == account.refunded == attempt.captured, (order, account)
            assert not account.held, (order, account)
        account = self.gateway.accounts.get(payment.key, Account())
        if payment.by_hand:
            assert account == Account(), (order, account)
            return
        back = account.refunded + order.by_other_means
        assert (payment.captured, payment.refunded) == (account.captured, back), (order, account)
        assert not account.held, (order, account)
        if order.status == "cancelled":
            assert payment.captured == payment.refunded, order
        else:
            assert payment.captured == order.total, order

    def skip_step(self, saga_id: UUID) -> None:
        """An operator sees to what a stuck saga asks for, at the gateway."""
        saga = self.model.sagas[saga_id]
        if saga.status == "stuck":
            with self.model.undisputed(saga), suppress(NeedsPersonError):
                if request := self.model.request_of(saga):
                    self.gateway.do_by_hand(request)
        self.do(lambda: self.model.skip(saga_id), "select skip_step(%s, 'by hand')", saga_id)

    def order(self, place: int, likely: Callable[[Order], object]) -> UUID:
        """One of the orders, as a rule of those that are likely; the newest is at place 0."""
        orders = list(self.model.orders.values())
        some = [each for each in orders if likely(each)] if place < 18 else []
        some = some or orders
        return some[-1 - place % len(some)].id

    def part(self, order: UUID, part: Goods | int | None) -> Goods | None:
        """The goods that are meant by a part of an order."""
        if not isinstance(part, int):
            return part
        return Counter(list(self.model.orders[order].goods)[-part:][:1])

    def name(self, kind: str, *, again: bool = False) -> UUID:
        """A new id, or the last one of its kind again."""
        used = self.used.setdefault(kind, [])
        if not (again and used):
            used.append(_id(kind, len(used)))
        return used[-1]

    def note(self, what: str, how: str) -> None:
        """Note what was done, for the report."""
        self.done[f"{what} {how}".strip()] += 1

    def rows(self, role: str, query: str, *parameters: Any) -> list[Row]:
        """The rows of a statement of a role's."""
        if role != self.role:
            self.connection.execute(f"set role {role}".encode())
            self.role = role
        cursor = self.connection.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def items(goods: Goods | None) -> str | None:
    """Goods as callers write them."""
    if goods is None:
        return None
    return json.dumps(
        [{"product_id": str(each), "quantity": count} for each, count in goods.items()]
    )
