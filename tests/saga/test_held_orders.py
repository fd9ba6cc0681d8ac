"""Held orders and real listeners: woken, killed, and at the deadline."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shop import Shop
from stand_in import KeyKeeper, StandIn

from darkpearl.gateways import Answer, Call

PAY = "select pay_order(%s, %s)"


class Cards(StandIn):
    """Declines the bad card and keeps which token was asked for under which key."""

    def __init__(self) -> None:
        super().__init__()
        self.cards: list[tuple[str, str | None]] = []

    async def authorize(self, call: Call) -> Answer:
        self.cards.append((call.idempotency_key, call.token))
        if call.token == "bad":
            return Answer("declined", gateway=self.name, code="card_declined")
        return self.approve(call)


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units."""
    return await shop.product(on_hand=10)


async def hold(shop: Shop, product: UUID, seconds: float) -> UUID:
    """An order of one of them, held for so long."""
    pay_by = await shop.value("select clock() + %s * interval '1 second'", seconds)
    return await shop.order((product, 1), p_pay_by=pay_by)


async def test_a_second_card_wakes_the_listener(
    shop: Shop, product: UUID, listening: Any, until: Any
) -> None:
    """With the poll an hour away each payment is tried at once, each under a key of its own."""
    gateway = Cards()
    await listening(gateway, poll_seconds=3600)
    order = await hold(shop, product, 3600)

    def is_now(status: str) -> Any:
        async def looks() -> bool:
            return await shop.order_status(order) == status

        return looks

    await until(is_now("reserved"))
    await shop.run(PAY, order, "bad")
    await until(is_now("payment_failed"))
    assert await shop.stock(product) == (10, 1)
    await shop.run(PAY, order, "good")
    await until(is_now("fulfilled"))
    assert gateway.cards == [
        (f"{order}:process_payment", "bad"),
        (f"{order}:process_payment:2", "good"),
    ]


async def test_the_deadline_comes_by_itself(
    shop: Shop, product: UUID, listening: Any, until: Any
) -> None:
    """Nobody pays, nobody calls: the order is cancelled, and not before its time."""
    order = await hold(shop, product, 1)
    await listening(StandIn())

    async def is_cancelled() -> bool:
        return await shop.order_status(order) == "cancelled"

    await until(is_cancelled)
    assert await shop.value(
        "select o.pay_by <= e.created_at from orders as o inner join saga_events as e"
        " on e.saga_id = o.id and e.event_type = 'saga_compensated'"
    )
    assert await shop.stock(product) == (10, 0)


@pytest.mark.parametrize("place", ["before the charge", "after the charge", "before settle"])
async def test_a_listener_that_is_killed_while_money_moves(
    place: str, shop: Shop, product: UUID, killed_listener: Any, listening: Any, until: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The deadline passes before another comes: nothing is released, and the same key is asked."""
    log = tmp_path / "log"
    log.touch()
    await shop.run(
        "update step_settings set timeout_seconds = 0.5, backoff_seconds = 0"
        " where step_name = 'process_payment'"
    )
    order = await hold(shop, product, 3600)
    await shop.advance()
    await shop.run(PAY, order, "good")
    await killed_listener(place, log)
    await shop.turn_clock(4000)
    assert await shop.order_status(order) == "payment_processing"
    assert await shop.stock(product) == (10, 1)
    gateway = KeyKeeper()
    await listening(gateway)

    async def has_ended() -> bool:
        return await shop.order_status(order) == "fulfilled"

    await until(has_ended)
    charged = [line.removeprefix("charge ") for line in log.read_text().splitlines()]
    assert {*charged, *gateway.asked} == {f"{order}:process_payment"}


@pytest.mark.parametrize(
    ("place", "killed_after"),
    [("after the first commit", []), ("before settle", ["void"]), ("after settle", ["void"])],
)
async def test_a_listener_that_is_killed_between_a_void_and_the_second_card(
    place: str, killed_after: list[str], shop: Shop, product: UUID, killed_listener: Any,
    listening: Any, until: Any, tmp_path: Path,
) -> None:  # fmt: skip
    """The next one voids under the same key, and charges the second card once, after that."""
    log = tmp_path / "log"
    log.touch()
    await shop.run("update step_settings set timeout_seconds = 0.5, backoff_seconds = 0")
    order = await hold(shop, product, 3600)
    await shop.advance()
    await shop.run(PAY, order, "slow")
    await shop.settle(await shop.advance(), {"outcome": "pending", "deadline_seconds": 600})
    await shop.run(PAY, order, "good")
    await killed_listener(place, log)
    asked = log.read_text().splitlines()
    assert asked == [f"{each} {order}:void_payment" for each in killed_after]
    assert await shop.stock(product) == (10, 1)
    gateway = StandIn()
    await listening(gateway)

    async def has_ended() -> bool:
        return await shop.order_status(order) == "fulfilled"

    await until(has_ended)
    voids = [] if place == "after settle" else [f"{order}:void_payment"]
    assert gateway.asked == [*voids, f"{order}:process_payment:2"]
    assert await shop.value("select status from payment_attempts") == "voided"
