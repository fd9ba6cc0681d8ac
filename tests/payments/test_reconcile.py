"""Our payments and the gateway's books, compared to the last difference."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import anyio
import pytest
from shop import DECLINED, Shop

from darkpearl import reconcile as reconciliation
from darkpearl.gateways import GatewayPayment
from darkpearl.gateways.mock import MockGateway
from darkpearl.reconcile import BATCH, Difference, ReconcileError, reconcile

APPROVED = {"outcome": "approved", "gateway": "books"}
WAITING = {"outcome": "pending", "gateway": "books", "deadline_seconds": 3600}
NOW = timedelta(0)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
CENT = Decimal("0.01")


class Books(MockGateway):
    """A gateway with books that a test writes."""

    name = "books"

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[GatewayPayment] = []
        self.asked_since: datetime | None = None

    def write(self, key: str, **entry: Any) -> None:
        """20.00 USD, authorised and captured, unless said otherwise."""
        entry = {
            "reference": f"ref-{len(self.entries)}",
            "currency": "USD",
            "authorized": Decimal("20.00"),
            "captured": Decimal("20.00"),
            "refunded": Decimal(0),
            "voided": False,
            "created_at": datetime.now(UTC),
            **entry,
        }
        self.entries.append(GatewayPayment(payment_key=key, **entry))

    async def payments(self, since: datetime) -> AsyncIterator[GatewayPayment]:
        """The rows that were written."""
        self.asked_since = since
        for each in self.entries:
            yield each


@pytest.fixture
def books() -> Books:
    """Books with nothing in them."""
    return Books()


@pytest.fixture
def compare(database_url: str, books: Books) -> Callable[..., Awaitable[list[Any]]]:
    """Compares, without a grace period, and gives kind, here and there of each difference."""

    async def compared(**arguments: Any) -> list[Any]:
        asked = {"since": LONG_AGO, "grace": NOW, **arguments}
        found = await reconcile(database_url, books, **asked)
        return [(each.kind, each.here, each.there) for each in found]

    return compared


@pytest.fixture
def paid(shop: Shop) -> Callable[..., Awaitable[str]]:
    """Places an order of 20.00 and settles its payment with an answer; its payment key."""

    async def place(answer: dict[str, Any] | None = APPROVED) -> str:
        order: UUID = await shop.order((await shop.product("10.00", on_hand=2), 2))
        requests = await shop.advance()
        if answer:
            await shop.settle(requests, answer)
        key: str = (await shop.payment(order))["idempotency_key"]
        return key

    return place


async def change(shop: Shop, key: str, what: str) -> None:
    """Write into a payment what its steps didn't."""
    shop.audited = False
    await shop.run(f"update payments set {what} where idempotency_key = %s", key)


async def test_books_that_agree_have_no_difference(
    shop: Shop, books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """Captured, declined, voided, refunded and free: nothing is reported of those that match."""
    books.write(await paid())
    declined = await paid({**DECLINED, "gateway": "books"})
    books.write(declined, authorized=Decimal(0), captured=Decimal(0))
    await paid({**DECLINED, "gateway": "books"})  # a gateway need not keep those
    voided = await paid()
    await change(shop, voided, "status = 'refunded', refunded_amount = 20, authorized_amount = 20")
    books.write(voided, refunded=Decimal(20), voided=True)
    held = await paid()
    await change(shop, await paid(None), "status = 'voided', voided_amount = 20")
    books.write(held)
    await shop.fulfilled((await shop.product("0", on_hand=1), 1))
    assert await compare() == []


async def test_what_only_one_side_has_is_reported(
    books: Books, paid: Callable[..., Awaitable[str]], database_url: str
) -> None:
    """A payment that the gateway lacks, and one that we lack, each with its name."""
    key = await paid()
    books.write("lost by a restore")
    assert await reconcile(database_url, books, LONG_AGO, NOW) == [
        Difference(key, "only_here", "captured", "unknown", None),
        Difference("lost by a restore", "only_there", "unknown", "captured", "ref-0"),
    ]


def test_a_difference_is_told_in_a_line() -> None:
    """Whose payment it is, what is different, both sides, and the gateway's name where known."""
    assert str(Difference("k", "captured", "5", "4", "ref")) == "k captured: here 5, there 4 (ref)"
    assert str(Difference("k", "captured", "5", "4", None)) == "k captured: here 5, there 4"


@pytest.mark.parametrize(
    ("entry", "difference"),
    [
        ({"currency": "EUR"}, ("currency", "USD", "EUR")),
        ({"captured": 20 - CENT}, ("captured", "20.00", "19.99")),
        ({"refunded": CENT}, ("refunded", "0.00", "0.01")),
        ({"authorized": 20 + CENT}, ("authorized", "20.00", "20.01")),
        ({"captured": Decimal(0)}, ("captured", "20.00", "0.00")),
        ({"captured": Decimal(0), "voided": True}, ("captured", "20.00", "0.00")),
    ],
)
async def test_each_field_that_disagrees_is_reported(
    books: Books,
    paid: Callable[..., Awaitable[str]],
    compare: Any,
    entry: dict[str, Any],
    difference: tuple[str, str, str],
) -> None:
    """Currency, and every amount to the cent."""
    books.write(await paid(), **entry)
    assert await compare() == [difference]


@pytest.mark.parametrize(
    ("status", "entry", "difference"),
    [
        ("voided", {}, ("open_there", "voided", "authorized")),
        ("declined", {}, ("open_there", "declined", "authorized")),
        ("authorized", {"voided": True}, ("status", "authorized", "voided")),
        ("authorized", {"authorized": Decimal(0)}, ("status", "authorized", "not charged")),
        ("requested", {}, ("open_here", "requested", "authorized")),
        ("requested", {"captured": Decimal(20)}, ("open_here", "requested", "captured")),
        ("void_requested", {"voided": True}, ("open_here", "void_requested", "voided")),
        ("pending", {}, ("open_here", "pending", "authorized")),
    ],
)
async def test_what_is_open_on_one_side_is_reported(
    shop: Shop,
    books: Books,
    paid: Callable[..., Awaitable[str]],
    compare: Any,
    status: str,
    entry: dict[str, Any],
    difference: tuple[str, str, str],
) -> None:
    """Money that the gateway still holds, and calls of ours that it has answered."""
    key = await paid(None)
    held = 20 if status == "authorized" else 0
    await change(shop, key, f"status = '{status}', authorized_amount = {held}, gateway = 'books'")
    books.write(key, **{"captured": Decimal(0), **entry})
    assert await compare() == [difference]


async def test_what_is_open_on_both_sides_agrees(
    books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """A payment that waits for the payer's bank is no difference, listed by the gateway or not."""
    await paid(WAITING)
    books.write(await paid(WAITING), authorized=Decimal(0), captured=Decimal(0))
    assert await compare() == []


async def test_a_call_that_never_arrived_is_open_here(
    paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """A request of ours that the gateway hasn't heard of is one that somebody waits for."""
    await paid(None)
    assert await compare() == [("open_here", "requested", "unknown")]


async def test_a_refund_that_nobody_answered_is_open_here(
    shop: Shop, books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """A refund that is asked for and not answered is reported, and so is its money."""
    key = await paid()
    await shop.turn_clock(301)
    async with shop.acting_as("service_role"):
        await shop.run("select refund_order(id, 5) from orders where status = 'fulfilled'")
    books.write(key, refunded=Decimal(5))
    kinds = [kind for kind, _, _ in await compare()]
    assert kinds == ["refund_open_here", "refunded"]
    assert await compare(grace=timedelta(minutes=5)) == []


async def test_a_second_charge_is_reported(
    books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """Two charges under one key are told, and so is the money; one that was prepared isn't."""
    key = await paid()
    books.write(key)
    books.write(key, authorized=Decimal(0), captured=Decimal(0))
    assert await compare() == []
    books.write(key)
    kinds = [kind for kind, _, _ in await compare()]
    assert kinds == ["authorized", "captured", "charged_twice"]


async def test_what_was_only_prepared_changes_nothing(
    shop: Shop, books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """A void stays one though the gateway has another entry, never charged, under its key."""
    key = await paid(None)
    await change(shop, key, "status = 'voided', voided_amount = 20")
    books.write(key, captured=Decimal(0), voided=True)
    books.write(key, captured=Decimal(0), authorized=Decimal(0))
    assert await compare() == []


async def test_a_payment_under_another_name_is_reported(
    books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """An answer that named another payment than the gateway has under our key is told."""
    books.write(await paid({**APPROVED, "reference": "ref-0"}))
    assert await compare() == []
    books.write(await paid({**APPROVED, "reference": "ref-0"}))
    assert await compare() == [("reference", "ref-0", "ref-1")]


async def test_disputes_are_compared(
    shop: Shop, books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """One that was never told is reported; a gateway that doesn't say is asked for none."""
    dispute = {"outcome": "disputed", "dispute": "open", "reference": "dp_1"}
    key = await paid()
    books.write(key, disputed=True)
    assert await compare() == [("disputed", "no", "yes")]
    assert await shop.told(key, dispute) == "applied"
    assert await compare() == []
    books.entries.clear()
    books.write(key, disputed=False)
    assert await compare() == [("disputed", "yes", "no")]
    books.entries.clear()
    books.write(key)
    assert await compare() == []


async def test_refunds_are_compared_to_their_end(
    shop: Shop, books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """One that failed late is none on either side; one by other means is none of the gateway's."""
    key = await paid()
    order = UUID(key.partition(":")[0])
    await shop.refund(order, 5)
    (request,) = await shop.advance()
    await shop.settle([request], APPROVED)
    books.write(key, refunded=Decimal(5))
    assert await compare() == []
    await shop.told(request["request"]["idempotency_key"], {**DECLINED, "gateway": "books"})
    assert await compare() == [("refunded", "0.00", "5.00")]
    books.entries.clear()
    books.write(key)
    assert await compare() == []
    await shop.run("select record_manual_refund(%s, 5, 'bank transfer')", order)
    assert await compare() == []


async def test_what_has_just_changed_is_left_alone(
    shop: Shop, books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """Within the grace period a call may be in flight, on either side; after it there is none."""
    await paid()
    books.write("just made")
    assert await compare(grace=timedelta(minutes=5)) == []
    await shop.turn_clock(301)
    kinds = {kind for kind, _, _ in await compare(grace=timedelta(minutes=5))}
    assert kinds == {"only_here", "only_there"}


async def test_older_payments_are_left_alone(
    books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """Before `since` nothing is missed; the gateway's clock may be off by less than an hour."""
    key = await paid()
    since = datetime.now(UTC) + timedelta(minutes=10)
    books.write("older", created_at=since - timedelta(minutes=5))
    assert await compare(since=since) == []
    books.write(key, created_at=since + timedelta(minutes=5))
    assert await compare(since=since) == []
    assert books.asked_since == since - timedelta(hours=1)


async def test_payments_of_another_gateway_are_left_alone(
    paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """A shop that changed its gateway compares with the one it asks now."""
    await paid({**APPROVED, "gateway": "the one before"})
    assert await compare() == []


async def test_long_lists_are_compared_whole(
    books: Books, paid: Callable[..., Awaitable[str]], compare: Any
) -> None:
    """The list is taken in batches, and none of them is lost."""
    await paid()
    for n in range(2 * BATCH + 1):
        books.write(f"unknown {n}")
    found = await compare()
    assert len(found) == 2 * BATCH + 2
    assert {kind for kind, _, _ in found} == {"only_here", "only_there"}


async def test_books_that_break_off_are_no_comparison(
    books: Books, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a list isn't compared: the error says whose books they are."""

    async def broken(_: datetime) -> AsyncIterator[GatewayPayment]:
        books.write("x")
        yield books.entries[0]
        raise RuntimeError("connection lost")

    monkeypatch.setattr(books, "payments", broken)
    with pytest.raises(ReconcileError, match="the books of books can't be read: connection lost"):
        await reconcile(database_url, books, LONG_AGO, NOW)


async def test_books_without_an_end_are_no_comparison(
    books: Books, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is read up to MOST_PAYMENTS, and its next payment is waited for PAYMENT_SECONDS."""
    books.write("x")

    async def endless(_: datetime) -> AsyncIterator[GatewayPayment]:
        while True:
            yield books.entries[0]

    async def silent(_: datetime) -> AsyncIterator[GatewayPayment]:
        yield books.entries[0]
        await anyio.sleep_forever()

    monkeypatch.setattr(reconciliation, "MOST_PAYMENTS", 3 * BATCH)
    monkeypatch.setattr(reconciliation, "PAYMENT_SECONDS", 0.2)
    for payments, said in (
        (endless, "more than 3000 payments"),
        (silent, "no answer within 0.2 s"),
    ):
        monkeypatch.setattr(books, "payments", payments)
        with pytest.raises(ReconcileError, match=f"the books of books can't be read: {said}"):
            await reconcile(database_url, books, LONG_AGO, NOW)


async def held(shop: Shop) -> UUID:
    """An order of 20.00 whose first card was declined, and another is being asked about."""
    pay_by = await shop.value("select clock() + interval '1 hour'")
    product = await shop.product("10.00", on_hand=2)
    order = await shop.order((product, 2), p_pay_by=pay_by, p_payment_token="tok_bad")
    await shop.settle(await shop.advance(), {**DECLINED, "gateway": "books"})
    return order


async def test_a_card_that_was_declined_first_is_in_order(
    shop: Shop, books: Books, compare: Any
) -> None:
    """Each charge is compared under its own key: the gateway may know of the first, or not."""
    order = await held(shop)
    await shop.run("select pay_order(%s, 'tok_good')", order)
    await shop.settle(await shop.advance(), APPROVED)
    books.write(f"{order}:process_payment:2")
    assert await compare() == []
    books.write(f"{order}:process_payment", authorized=Decimal(0), captured=Decimal(0))
    assert await compare() == []


async def test_a_card_that_was_declined_and_charged_is_found(
    shop: Shop, books: Books, compare: Any
) -> None:
    """Though another was charged since: the payer has paid twice."""
    order = await held(shop)
    await shop.run("select pay_order(%s, 'tok_good')", order)
    await shop.settle(await shop.advance(), APPROVED)
    books.write(f"{order}:process_payment:2")
    books.write(f"{order}:process_payment")
    assert await compare() == [("captured", "0.00", "20.00")]


async def test_money_by_other_means_is_no_business_of_the_gateway(
    shop: Shop, books: Books, compare: Any
) -> None:
    """It isn't missing there, nor is the card that was declined before it."""
    order = await held(shop)
    await shop.run("select record_manual_payment(%s, 20, 'T-1')", order)
    await shop.advance()
    assert await compare() == []
    books.write(f"{order}:process_payment", authorized=Decimal(0), captured=Decimal(0))
    assert await compare() == []
