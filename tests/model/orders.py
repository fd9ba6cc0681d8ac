"""What the model remembers of a shop: shelves, orders, payments, refunds, parcels, returns."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

Goods = Counter[UUID]
NOTHING = Decimal(0)


@dataclass
class Shelf:
    """Units on a shelf, and those of them that are promised."""

    available: int = 0
    reserved: int = 0

    @property
    def sellable(self) -> int:
        return self.available - self.reserved


@dataclass
class Payment:
    """The money of an order, in major units; the names are the columns'."""

    requested: Decimal
    key: str
    by_hand: str = ""
    """The reference of money that came past the gateway."""
    status: str = "requested"
    authorized: Decimal = NOTHING
    captured: Decimal = NOTHING
    refunded: Decimal = NOTHING
    voided: Decimal = NOTHING

    @property
    def amounts(self) -> tuple[Decimal, ...]:
        """In the order of the columns."""
        return self.requested, self.authorized, self.captured, self.refunded, self.voided


@dataclass
class Refund:
    """Money that goes back. taken_out: it is of units that were taken out of the order."""

    id: UUID
    order: "Order"
    amount: Decimal
    taken_out: bool = False
    status: str = "requested"
    despite_dispute: bool = False
    by_hand: bool = False
    starts_itself: bool = False
    """The shop has started it, and gives it an id."""
    charge: Payment | None = None
    """The one of the order's attempts that the money is of; None, of its payment."""


@dataclass
class Parcel:
    """Goods that were packed, and whether they have left."""

    goods: Goods
    left: bool = False


@dataclass
class Return:
    """Goods that came back, in order."""

    goods: Goods
    restock: bool


@dataclass(eq=False)
class Order:
    """An order and all that belongs to it."""

    id: UUID
    warehouse: UUID
    goods: Goods
    total: Decimal
    status: str = "pending"
    pay_by: int | None = None
    token: str | None = None
    payment: Payment | None = None
    attempts: dict[str, Payment] = field(default_factory=dict)
    """What came to nothing before another was tried, by key."""
    is_overdue: bool = False
    """It was not paid by its deadline."""
    refunds: dict[UUID, Refund] = field(default_factory=dict)
    parcels: dict[UUID, Parcel] = field(default_factory=dict)
    taken_out: dict[UUID, Goods] = field(default_factory=dict)
    returns: dict[UUID, Return] = field(default_factory=dict)
    by_other_means: Decimal = NOTHING
    """Given back by people, past the gateway."""
    dispute: str = "won"
    """Open, won or lost; one that was never opened counts as won."""
    disputed_before: bool = False

    def begin_payment(self, status: str) -> None:
        """The next charge, in place of one that came to nothing."""
        assert self.payment
        old = self.attempts[self.payment.key] = self.payment
        key = f"{self.id}:{old.key.split(':')[1]}:{len(self.attempts) + 1}"
        self.payment = Payment(old.requested, key, status=status)

    def left_to_ship(self) -> Goods:
        gone = [parcel.goods for parcel in self.parcels.values()] + list(self.taken_out.values())
        return self.goods - sum(gone, Goods())

    def out_there(self) -> Goods:
        if not self.parcels and not self.taken_out:
            sent = self.goods
        else:
            sent = sum((each.goods for each in self.parcels.values() if each.left), Goods())
        return sent - sum((each.goods for each in self.returns.values()), Goods())

    def left_to_refund(self) -> Decimal:
        assert self.payment
        asked = (
            each.amount
            for each in self.refunds.values()
            if each.status == "requested" and each.charge is None
        )
        return self.payment.captured - self.payment.refunded - sum(asked, NOTHING)


def is_open(order: Order) -> bool:
    """It may still go either way."""
    return order.status not in {"fulfilling", "fulfilled", "cancelled"}


def is_held(order: Order) -> bool:
    """It waits for its payment, or for another."""
    return order.pay_by is not None and is_open(order)


def is_to_ship(order: Order) -> bool:
    """Its warehouse may pack it."""
    return order.status in {"paid", "payment_processing", "fulfilling"}


def is_partly_sent(order: Order) -> bool:
    """A part has left."""
    return order.status == "fulfilling"


def is_sent(order: Order) -> bool:
    """A part has left, or all of it."""
    return order.status in {"fulfilling", "fulfilled"}


def has_money(order: Order) -> bool:
    """Money of it was taken."""
    return bool(order.payment and order.payment.captured)
