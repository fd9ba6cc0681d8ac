"""Plans change while their sagas run: each ends by the version that it began with.

The sagas of a release stand in every state there is when the next one comes. Then the gateway
answers, as gateways do, and in the end its books are ours.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from releases import CHECK_FILE, Change, Plan, Releases, as_it_is, insert, move, plans_of, rename
from shop import DECLINED, PENDING, UNKNOWN, Row, Shop

from darkpearl import schema

AT_PAYMENT = "order_fulfilment"
AT_FULFILMENT = "order_fulfilment_with_capture"
METHODS = {AT_PAYMENT: "at_payment", AT_FULFILMENT: "at_fulfilment"}

STATES = {
    # What stands where at the moment of the release: status and attempts of its saga, and what
    # becomes of its order in the end.
    "ready": ("running 0", "fulfilled"),
    "held by a pause": ("running 0", "fulfilled"),
    "backing off": ("running 1", "fulfilled"),
    "call out": ("waiting 1", "fulfilled"),
    "call lost": ("waiting 1", "fulfilled"),
    "call out, declined": ("waiting 1", "cancelled"),
    "call out, cancelled later": ("waiting 1", "cancelled"),
    "call lost, cancelled later": ("waiting 1", "cancelled"),
    "pending": ("waiting 1", "fulfilled"),
    "capture out": ("waiting 1", "fulfilled"),
    "capture lost": ("waiting 1", "fulfilled"),
    "void out": ("compensating 1", "cancelled"),
    "void lost": ("compensating 1", "cancelled"),
    "void held by a pause": ("compensating 0", "cancelled"),
    "void backing off": ("compensating 1", "cancelled"),
    "stuck in its undo": ("stuck 0", "cancelled"),
    "stuck forward": ("stuck 0", "fulfilled"),
    "stuck forward, given up": ("stuck 0", "cancelled"),
}
ONLY = {  # states that one of the plans has
    "capture out": AT_FULFILMENT,
    "capture lost": AT_FULFILMENT,
    "stuck forward, given up": AT_PAYMENT,
}
UNITS = 2
PRICE = 10
ON_HAND = 1000


class Books:
    """A gateway: idempotent, and with books of its own by the key of each payment."""

    def __init__(self) -> None:
        self.said: dict[str, Row] = {}
        self.held: dict[str, Decimal] = {}
        self.captured: dict[str, Decimal] = {}
        self.refunded: dict[str, Decimal] = {}
        self.declines: set[str] = set()

    def answer(self, request: Row) -> Row:
        """What is asked for is done, once; the answer is the same whenever it is asked again."""
        call = request["request"]
        if call["idempotency_key"] not in self.said:
            self.said[call["idempotency_key"]] = {"gateway": "mock", **self._do(call)}
        return self.said[call["idempotency_key"]]

    def kept(self, payment_key: str) -> Decimal:
        """The money that the gateway took for a payment and didn't give back, or holds."""
        return (
            self.captured.get(payment_key, Decimal(0))
            - self.refunded.get(payment_key, Decimal(0))
            + self.held.get(payment_key, Decimal(0))
        )

    def _do(self, call: Row) -> Row:
        key, amount = call["payment_key"], Decimal(call["amount"])
        if key in self.declines:
            return {"outcome": "declined", "code": "card_declined"}
        match call["operation"]:
            case "authorize":
                (self.captured if call["capture"] else self.held)[key] = amount
            case "capture":
                self.captured[key] = self.held.pop(key)
            case "void":
                self.held.pop(key, None)
                self.refunded[key] = self.captured.get(key, Decimal(0))
                return {"outcome": "approved", "captured": str(self.refunded[key])}
            case "refund":
                self.refunded[key] = self.refunded.get(key, Decimal(0)) + amount
        return {"outcome": "approved", "reference": f"ch_{key}"}


@dataclass
class Wave:
    """Orders of one release, one for each state and saga type."""

    plans: dict[str, Plan]
    warehouses: dict[str, UUID]
    orders: dict[tuple[str, str], UUID] = field(default_factory=dict)
    in_hand: dict[UUID, Row] = field(default_factory=dict)  # requests that a listener works on

    def of(self, states: Iterable[str]) -> list[UUID]:
        """The orders that stand in these states."""
        return [order for (state, _), order in self.orders.items() if state in states]


class Traffic:
    """Everything that happens to orders, before a release and after it."""

    def __init__(self, shop: Shop, product: UUID) -> None:
        self.shop = shop
        self.product = product
        self.books = Books()
        self.waves: list[Wave] = []

    async def start(self, plans: dict[str, Plan]) -> Wave:
        """Orders in all states, of the release that the database has."""
        wave = Wave(plans, {saga_type: await self._warehouse(saga_type) for saga_type in plans})
        self.waves.append(wave)
        here = list(wave.warehouses.values())
        await self.pause(0)
        early = STATES.keys() - {"ready", "held by a pause"}
        await self._place(wave, early)
        for request in await self.shop.advance(warehouses=here):
            wave.in_hand[UUID(request["saga_id"])] = request
        assert wave.in_hand.keys() == set(wave.of(early))

        forward = wave.of({"stuck forward", "stuck forward, given up"})
        await self.shop.poison("fulfill_order", *forward, sqlstate="DP023")
        await self._answer(wave, wave.of({"capture out", "capture lost"}))
        await self._answer(wave, forward)
        await self._answer(wave, forward)  # the capture, where there is one
        while self.shop.claimed:  # one step after the other, each saga alone
            await self.shop.advance(warehouses=here)
        await self.shop.cure("fulfill_order")

        voids = {"void out", "void lost", "void backing off", "stuck in its undo"}
        for order in wave.of(voids):
            await self.shop.cancel(order)
        await self._answer(wave, wave.of(voids))
        await self._say(wave, wave.of({"stuck in its undo"}), DECLINED)
        # What got lost was done all the same.
        for order in wave.of(
            {"call lost", "call lost, cancelled later", "capture lost", "void lost"}
        ):
            self.books.answer(wave.in_hand.pop(order))
        for order in wave.of({"backing off", "void backing off"}):
            self.books.answer(wave.in_hand[order])
        await self._say(wave, wave.of({"backing off", "void backing off"}), UNKNOWN)
        pending = {order: wave.in_hand[order] for order in wave.of({"pending"})}
        await self._say(wave, list(pending), PENDING)
        wave.in_hand |= pending

        await self.pause(3600)
        for order in wave.of({"void held by a pause"}):
            await self.shop.cancel(order)
        await self._answer(wave, wave.of({"void held by a pause"}))
        await self._place(wave, {"held by a pause"})
        assert await self.shop.advance(warehouses=here) == []
        await self._place(wave, {"ready"})
        assert await self.stands(wave) == {at: STATES[at[0]][0] for at in wave.orders}
        return wave

    async def end(self) -> None:
        """All that is open gets its answer, everything stuck its operator, until all has ended."""
        await self.pause(0)
        for wave in self.waves:
            for order in wave.of({"call out, cancelled later", "call lost, cancelled later"}):
                await self.shop.cancel(order)
            for order in wave.of({"call out, declined"}):
                self.books.declines.add(wave.in_hand[order]["request"]["payment_key"])
            for order in wave.of({"pending"}):
                request = wave.in_hand.pop(order)
                key = request["request"]["idempotency_key"]
                assert await self.shop.told(key, self.books.answer(request)) == "applied"
            await self._ask(list(wave.in_hand.values()))
            assert self.shop.stale == []
            for order in wave.of({"stuck in its undo", "stuck forward"}):
                await self.shop.run("select retry_saga(%s, 'mended')", order)
            for order in wave.of({"stuck forward, given up"}):
                await self.shop.run("select turn_back_saga(%s, 'given up')", order)
        for _ in range(8):
            await self._ask(await self.shop.ask_again())
        assert await self.shop.rows("select * from sagas where ready_at is not null") == []
        assert await self.shop.rows("select * from stuck_sagas") == []

    async def pause(self, seconds: int) -> None:
        """An operator holds all calls back, or ends that."""
        await self.shop.run("select pause_external_steps(%s, 'test')", seconds)

    async def stands(self, wave: Wave) -> dict[tuple[str, str], str]:
        """Where each saga of a wave stands: status and attempts."""
        rows = await self.shop.rows("select id, status, attempts from sagas")
        found = {row["id"]: f"{row['status']} {row['attempts']}" for row in rows}
        return {at: found[order] for at, order in wave.orders.items()}

    async def fates(self, wave: Wave) -> dict[tuple[str, str], str]:
        """The statuses of the orders of a wave."""
        rows = await self.shop.rows("select id, status from orders")
        found = {row["id"]: row["status"] for row in rows}
        return {at: found[order] for at, order in wave.orders.items()}

    async def _warehouse(self, saga_type: str) -> UUID:
        warehouse = await self.shop.value(
            "insert into warehouses (code, name, capture_method)"
            " values (%s, 'W', %s::capture_method) returning id",
            uuid4().hex[:8].upper(),
            METHODS[saga_type],
        )
        await self.shop.receive(self.product, ON_HAND, warehouse)
        return warehouse

    async def _place(self, wave: Wave, states: Iterable[str]) -> None:
        for state in sorted(states):
            for saga_type, warehouse in wave.warehouses.items():
                if ONLY.get(state, saga_type) == saga_type:
                    wave.orders[state, saga_type] = await self.shop.order(
                        (self.product, UNITS), warehouse=warehouse
                    )

    async def _answer(self, wave: Wave, orders: list[UUID]) -> None:
        """The gateway answers what is in hand for these orders; what follows is in hand then."""
        await self._say(wave, orders, None)

    async def _say(self, wave: Wave, orders: list[UUID], answer: Row | None) -> None:
        requests = [wave.in_hand.pop(order) for order in orders if order in wave.in_hand]
        for request in await self._bring(requests, answer):
            wave.in_hand[UUID(request["saga_id"])] = request

    async def _ask(self, requests: list[Row]) -> None:
        """The gateway answers, and whatever follows from that."""
        while requests:
            requests = await self._bring(requests, None)

    async def _bring(self, requests: list[Row], answer: Row | None) -> list[Row]:
        rows = await self.shop.bring(
            [
                {
                    "saga_id": each["saga_id"],
                    "lease_token": each["lease_token"],
                    "answer": answer or self.books.answer(each),
                }
                for each in requests
            ]
        )
        self.shop.stale += [(row["saga_id"], row["error_code"]) for row in rows if row["saga_id"]]
        return [request for row in rows for request in row["requests"] or []]


@pytest.fixture
async def traffic(shop: Shop) -> Traffic:
    """A product, and no orders yet. What fails is tried again after a long while."""
    await shop.run("update step_settings set backoff_seconds = 600")
    return Traffic(shop, await shop.product(str(PRICE)))


async def assert_ended_well(traffic: Traffic) -> None:
    """Every order met its fate by its own plan, and money and goods add up everywhere."""
    shop = traffic.shop
    for wave in traffic.waves:
        fates = await traffic.fates(wave)
        assert fates == {at: STATES[at[0]][1] for at in wave.orders}
        for at, order in wave.orders.items():
            assert_followed(wave.plans[at[1]], await shop.events(order), at)
        for saga_type, warehouse in wave.warehouses.items():
            fulfilled = [at for at in fates if at[1] == saga_type and fates[at] == "fulfilled"]
            assert await shop.stock(traffic.product, warehouse) == (
                ON_HAND - UNITS * len(fulfilled),
                0,
            )
    orders = {order: at for wave in traffic.waves for at, order in wave.orders.items()}
    left = await shop.rows(
        "select correlation_id as id, sum(quantity) as units from stock_movements"
        " where movement_type = 'fulfill' group by correlation_id"
    )
    assert {row["id"]: row["units"] for row in left} == {
        row["id"]: UNITS
        for row in await shop.rows("select id from orders where status = 'fulfilled'")
    }
    ours = {
        row["idempotency_key"]: row["kept"]
        for row in await shop.rows(
            "select idempotency_key, captured_amount - refunded_amount as kept from payments"
        )
    }
    theirs = {key: traffic.books.kept(key) for key in ours.keys() | traffic.books.captured.keys()}
    assert ours == theirs
    kept = {UUID(key.split(":")[0]): amount for key, amount in theirs.items()}
    assert {order: kept.get(order, 0) for order in orders} == {
        order: PRICE * UNITS if STATES[at[0]][1] == "fulfilled" else 0
        for order, at in orders.items()
    }
    assert await shop.audit() == []


def assert_followed(plan: Plan, events: list[str], at: tuple[str, str]) -> None:
    """A saga took the steps of a plan in order, all of them or as many as it undid."""
    done = re.findall(r"^step_completed (\w+)$", "\n".join(events), re.MULTILINE)
    undone = re.findall(r"^step_compensated (\w+)$", "\n".join(events), re.MULTILINE)
    names = [name for name, _ in plan]
    assert done == names[: len(done)], at
    if "saga_completed" in events:
        assert (done, undone) == (names, []), at
    else:
        # A call that was made is undone whether it is known to have been answered or not.
        ways = [[undo for _, undo in reversed(plan[: len(done) + more]) if undo] for more in (0, 1)]
        assert undone in ways, at


CHANGES = {
    "a step inserted": (as_it_is, insert),
    "a step removed": (insert, as_it_is),
    "steps renamed": (as_it_is, rename),
    "a step moved": (as_it_is, move),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES.keys())
async def test_sagas_end_by_the_plan_they_began_with(
    releases: Releases, traffic: Traffic, before: Change, after: Change
) -> None:
    """Wherever sagas stand when a release changes their plan, they end by the one they began with.

    New orders follow the new plan. Functions that only the old one names go when all have ended.
    """
    old = releases.make(before)
    await releases.migrate(old)
    await traffic.start(plans_of(old))
    new = releases.make(after, with_check=insert in {before, after})
    await releases.migrate(new)
    await traffic.start(plans_of(new))
    await traffic.end()
    await assert_ended_well(traffic)
    await releases.migrate(releases.make(after))


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_release_is_rolled_back_under_its_sagas(
    releases: Releases, traffic: Traffic, before: Change, after: Change
) -> None:
    """Rolling a release back is a release: sagas of both plans end by theirs, and new ones too.

    As long as sagas need functions that the old files don't have, these have to stay.
    """
    old = releases.make(before)
    await releases.migrate(old)
    await traffic.start(plans_of(old))
    new = releases.make(after, with_check=insert in {before, after})
    await releases.migrate(new)
    await traffic.start(plans_of(new))
    if after is insert:
        with pytest.raises(schema.SchemaError, match="check_goods"):
            await releases.migrate(old)
        shutil.copy(new / CHECK_FILE, old / CHECK_FILE)
    await releases.migrate(old)
    await traffic.start(plans_of(old))
    await traffic.end()
    await assert_ended_well(traffic)
    await releases.migrate(releases.make(before))
