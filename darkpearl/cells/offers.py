"""Which cell is to have an order that names no warehouse, by what each says that it could serve."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from msgspec import Struct

from darkpearl.errors import PROBLEMS, ConflictError

OFFER = "select * from offer_of_cell(%(items)s)"
"""What a cell says of the items of an order; its row is an Offer."""
HOME = 1
TOO_LITTLE = "DP006"
ONLY_TOGETHER = "DP056"
MOST_TOLD = 20
"""Products that a refusal names."""


class Goods(Struct):
    """A product of an order: the units that are wanted, and of those what a cell can sell."""

    product_id: UUID
    wanted: int
    sellable: int


class Offer(Struct):
    """What the warehouses of a cell could serve."""

    goods: list[Goods]
    warehouses: int | None
    """How many of them it takes; None: they have too little."""
    priority: int | None
    code: str | None
    """Of the first of them."""


def best_of(
    offers: Mapping[int, Offer],
    refused: Mapping[int, Exception],
    gone: Mapping[int, Exception],
) -> int | None:
    """The cell that takes the fewest of its warehouses, and of equal ones the first of those.

    None, where no cell has all of it.

    Args:
        offers: of the cells that have made one, by their numbers.
        refused: what others say of an order that makes no sense there; their catalogue may be late.
        gone: of those that were tried already: somebody else was quicker.

    Raises:
        Exception: one of refused, where home does or nobody else offers; the last of gone, where
            nobody is left.
    """
    if refused and (not offers or HOME in refused):
        raise refused.get(HOME) or next(iter(refused.values()))
    able = [number for number, each in offers.items() if each.warehouses is not None]
    if gone and not able:
        raise list(gone.values())[-1]
    return min(
        able,
        key=lambda n: (offers[n].warehouses, offers[n].priority, offers[n].code),
        default=None,
    )


def too_little(offers: Iterable[Offer], away: Iterable[str]) -> ConflictError:
    """The error for what no cell can serve, as the database of one tells it.

    Args:
        offers: of the cells that answered.
        away: the names of those that didn't.
    """
    wanted: dict[UUID, int] = {}
    sellable: dict[UUID, int] = {}
    for each in (goods for offer in offers for goods in offer.goods):
        wanted[each.product_id] = each.wanted
        sellable[each.product_id] = sellable.get(each.product_id, 0) + each.sellable
    lacking = sorted(each for each in wanted if sellable[each] < wanted[each])
    said = "; ".join(
        f"Product {each}: {wanted[each]} units asked for, {sellable[each]} can be sold in all"
        for each in lacking[:MOST_TOLD]
    )
    code, hint = TOO_LITTLE, "Order less, or name a warehouse. Nothing was placed."
    if not lacking:
        code, hint = ONLY_TOGETHER, "Place an order for each warehouse. Nothing was placed."
        said = "What is wanted is there, but in no cell all of it"
    names = ", ".join(away)
    left_out = f" Without what these have, which don't answer: {names}." if names else ""
    return ConflictError(f"{said}.{left_out}", title=PROBLEMS[code].title, code=code, hint=hint)
